//! Tests of src/label: judging pairs of answers.

mod browser;
mod commands;
mod load;
mod numbers;
mod server;
mod session;
mod store;
