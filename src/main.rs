//! The `ft` command.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    ft::runtime::end_on_closed_pipe();
    let command = match cli::Cli::try_parse() {
        Ok(command) => command,
        // clap treats --help and --version as errors, but they succeed. Other errors are the user's input: exit code 1,
        // not clap's usual 2, which here means a bug.
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let remedies = command.memory_remedies();
    match ft::runtime::start().and_then(|_| ft::error::catch_libtorch(|| cli::run(command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let remedies = remedies.iter().filter(|_| e.is_out_of_memory());
            let e = remedies.fold(e.clone(), |e, remedy| e.hint(*remedy));
            ft::report::error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
