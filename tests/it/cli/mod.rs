//! Tests of src/cli: the real binary.

mod commands;
mod generate_commands;
mod help;
