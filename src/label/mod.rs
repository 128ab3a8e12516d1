//! From prompts to preference data: people and machines judge pairs of answers.
//!
//! `record` is the plain data all others speak of; `store` is the one place that knows SQL; `session` says who is shown
//! what next, and `desk` keeps what people say about it (`screen`) before it is acknowledged. `server` is its face for
//! browsers, `terminal` the one for terminals. `import` brings what exists.

pub mod desk;
pub mod import;
pub mod markdown;
pub mod overview;
pub mod record;
pub mod screen;
pub mod server;
pub mod session;
pub mod store;
pub mod terminal;

pub use store::Store;
