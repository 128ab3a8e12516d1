//! Labels preference data: people and machines compare pairs of answers to a prompt.
//!
//! The modules, in groups that use only the groups before them:
//! - Records: `record` defines what is stored, `store` reads and writes them (the only place that knows SQL), `project`
//!   reads a project as a whole and fills it with prompts, answers and pairs.
//! - Votes of machines: `machines` asks reward models, language models and commands.
//! - Votes of people: `people` decides which task each annotator gets next and stores every vote before it acknowledges
//!   it. `server` shows tasks in a browser, with texts rendered by `runs::page::markdown`; `terminal` shows them in a terminal.
//! - Results: `statistics` has the pure mathematics; `results` computes verdicts, rankings and biases; `report` shows
//!   these, and `export` writes training rows.

#![warn(missing_docs)]

pub mod export;
pub mod machines;
pub mod people;
pub mod project;
pub mod record;
pub mod report;
pub mod results;
pub mod server;
pub mod statistics;
pub mod store;
pub mod terminal;
