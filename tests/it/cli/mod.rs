//! Tests of src/cli: the real binary.

mod commands;
mod eval_commands;
mod eval_import_commands;
mod eval_report_commands;
mod eval_scorers;
mod evaluation_commands;
mod generate_commands;
mod help;
