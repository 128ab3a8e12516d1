//! The `ft` command.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            ft::report::error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
