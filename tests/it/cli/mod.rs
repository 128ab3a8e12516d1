//! Tests of src/cli: the real binary.

mod commands;
mod eval_commands;
mod eval_report_commands;
mod evaluation_commands;
mod generate_commands;
mod help;
