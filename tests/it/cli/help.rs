//! The `--help` text of every command, compared with tests/snapshots. A changed text is a change of the interface:
//! read the difference, then accept it with INSTA_UPDATE=always.

use crate::support::command::{ft, stdout, succeed};
use crate::support::snapshot::assert_snapshot;
use std::path::Path;

/// Returns the `--help` text of a command, wrapped at 100 columns whatever the terminal is.
fn help(verbs: &[&str]) -> String {
    let output = succeed(ft(Path::new("."), verbs).arg("--help").env("COLUMNS", "100").env_remove("NO_COLOR"));
    stdout(&output)
}

/// Returns the names in the list of commands of a `--help` text.
fn subcommands(text: &str) -> Vec<&str> {
    let list = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap()).filter(|name| *name != "help").collect()
}

/// Returns the help of a command and of all its subcommands.
fn whole_help(verbs: &[&str]) -> String {
    let text = help(verbs);
    let mut whole = format!("$ ft {} --help\n{text}", verbs.join(" "));
    for name in subcommands(&text) {
        whole += &format!("\n{}", whole_help(&[verbs, &[name]].concat()));
    }
    whole
}

#[test]
fn the_help_of_every_command_is_as_recorded() {
    let root = help(&[]);
    let names = subcommands(&root);
    assert!(names.len() >= 18 && names.contains(&"train") && names.contains(&"label"), "{names:?}");
    assert_snapshot("help", &root);
    for name in names.iter().copied().chain(["logits"]) {
        let whole = whole_help(&[name]);
        assert!(whole.contains("\nUsage: ft "), "{name}: {whole}");
        assert_snapshot(&format!("help-{name}"), &whole);
    }
}
