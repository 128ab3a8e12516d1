//! Labels preference data: people and machines compare pairs of answers to a prompt.
//!
//! - Data: `record` defines the stored records, `store` reads and writes them (the only place that knows SQL), `import`
//!   loads existing files, `candidates` generates answers, `select` chooses the pairs to compare.
//! - Votes of people: `session` decides which task each annotator gets next; `desk` stores every vote before it
//!   acknowledges it; `screen` defines what an annotator sees and sends. `server` shows tasks in a browser, `terminal`
//!   in a terminal. `overview` computes an admin's progress numbers.
//! - Votes of machines: `judge` asks reward models, language models and commands.
//! - Results: `ballot` resolves votes; `aggregate`, `agreement`, `ranking` and `bias` compute statistics from them;
//!   `report` shows these, and `export` writes training rows.

pub mod aggregate;
pub mod agreement;
pub mod assignment;
pub mod bias;
pub mod candidates;
pub mod desk;
mod encoding;
pub mod export;
pub mod import;
pub mod judge;
pub mod markdown;
pub mod overview;
pub mod project;
pub mod ranking;
pub mod record;
pub mod report;
pub mod screen;
pub mod select;
pub mod server;
pub mod similar;
pub mod store;
pub mod terminal;

pub use project::Project;
pub use store::Store;
