//! The `ft` command.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    ft::runtime::end_on_closed_pipe();
    let command = cli::Cli::parse();
    match ft::runtime::start().and_then(|_| cli::run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            ft::report::error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
