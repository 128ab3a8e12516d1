//! The real binary, and what a command wrote.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Returns a command that runs ft with these arguments in `folder`.
pub fn ft(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ft"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

/// Runs ft in the root of the repository.
pub fn ft_here(arguments: &[&str]) -> Output {
    ft(Path::new(env!("CARGO_MANIFEST_DIR")), arguments).output().unwrap()
}

/// Returns what a command wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns what a command wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that must succeed.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}\n{}", stdout(&output), stderr(&output));
    output
}
