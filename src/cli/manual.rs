//! `ft completions` and `ft man`: files that help a shell and its user, made from the definition of the command line.

use super::shared::stdout::print;
use clap::{Args, Command};
use clap_complete::Shell;
use ft::error::Result;
use ft::fsutil::{self, io_error};
use ft::report;
use std::path::PathBuf;

/// Print the completions of ft for a shell
///
/// For bash: ft completions bash > ~/.local/share/bash-completion/completions/ft. For zsh, write them to a file _ft in a
/// folder of $fpath; for fish, to ~/.config/fish/completions/ft.fish.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages of ft and its commands to a folder
///
/// Read them with man -M, or write them to a folder that man searches, such as ~/.local/share/man/man1.
#[derive(Args)]
pub struct ManArgs {
    /// Folder to write; existing pages are replaced
    folder: PathBuf,
}

/// Runs `ft completions`. `command` is the definition of the command line.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ft", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Runs `ft man`. `command` is the definition of the command line.
pub fn man(args: &ManArgs, command: Command) -> Result<()> {
    fsutil::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(command, &args.folder).map_err(|e| io_error("writing", &args.folder, e))?;
    report::info(format!("read the pages with: man {}", args.folder.join("ft.1").display()));
    Ok(())
}
