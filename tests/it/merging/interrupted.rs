//! Kills and full disks: `ft merge`, `ft adapter resize` and `extract` leave the old folder or the new one, never a part.

use crate::support::command::{ft, ft_binary, stderr, succeed};
use crate::support::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder with a base, two adapters and a tuned model, and a merge to be replaced in `out`.
fn project() -> tempfile::TempDir {
    let project = tempfile::tempdir().unwrap();
    for (name, to) in [("base", "biased-llama"), ("one", "merging/one"), ("two", "merging/two")] {
        std::os::unix::fs::symlink(fixture(to), project.path().join(name)).unwrap();
    }
    succeed(&mut ft(project.path(), &["merge", "base", "one", "--out", "tuned", "--dtype", "f32"]));
    succeed(&mut ft(project.path(), &["merge", "base", "one", "--out", "out"]));
    project
}

/// The commands that write a folder `out`, and whether they replace an old one.
const COMMANDS: [(&[&str], bool); 5] = [
    (&["merge", "base", "one", "two", "--force"], true),
    (&["merge", "base", "one", "two", "--as", "adapter", "--force"], true),
    (&["merge", "base", "one", "two", "--method", "ties", "--as", "adapter", "--force"], true),
    (&["adapter", "resize", "one", "--rank", "2"], false),
    (&["adapter", "extract", "base", "tuned", "--rank", "4"], false),
];

/// Returns the contents of a folder's files, without those that name their folder or a time; empty if it is missing.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
    files.filter(|(name, _)| !["export_report.json", "README.md", "merge.html"].contains(&name.as_str())).collect()
}

/// Returns the names of unfinished folders.
fn unfinished(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".out")).collect()
}

#[test]
fn a_kill_leaves_the_old_folder_or_the_new_one() {
    let project = project();
    let at = |name: &str| project.path().join(name);
    for (command, replaces) in COMMANDS {
        let arguments = [command, &["--out", "out"]].concat();
        let run = || {
            let mut command = ft(project.path(), &arguments);
            command.env("OMP_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        // What was there before, and what an undisturbed run makes.
        let restore = || {
            let _ = std::fs::remove_dir_all(at("out"));
            if replaces {
                succeed(&mut ft(project.path(), &["merge", "base", "one", "--out", "out"]));
            }
        };
        restore();
        let old = content(&at("out"));
        let began = Instant::now();
        assert!(run().status().unwrap().success(), "{command:?}");
        let took = began.elapsed();
        let new = content(&at("out"));
        assert!(old != new && new.len() >= 2, "{command:?}");
        restore();
        let mut killed = 0;
        // Most of the time is spent before the first file and in checking; kills are spread over all of it.
        for part in 1..=12 {
            let mut child = run().spawn().unwrap();
            std::thread::sleep(took * part / 12);
            child.kill().unwrap();
            killed += i32::from(!child.wait().unwrap().success());
            let found = content(&at("out"));
            assert!(found == old || found == new, "{command:?} killed after {part}/12: {:?}", found.keys());
            if found == new {
                restore();
            }
        }
        assert!(killed >= 6, "{command:?}: only {killed} of 12 runs were killed");
        // What kills leave behind does not disturb the next run.
        assert!(run().status().unwrap().success(), "{command:?}");
        assert_eq!(content(&at("out")), new, "{command:?}");
        unfinished(project.path()).iter().for_each(|name| std::fs::remove_dir_all(at(name)).unwrap());
    }
}

/// A kill while files are being written: the unfinished folder has another name.
#[test]
fn a_kill_while_files_are_written_leaves_the_old_folder() {
    let project = project();
    let old = content(&project.path().join("out"));
    let mut seen = 0;
    for _ in 0..20 {
        let arguments = ["merge", "base", "one", "two", "--force", "--out", "out"];
        let mut command = ft(project.path(), &arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while unfinished(project.path()).is_empty() && began.elapsed() < Duration::from_secs(60) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::yield_now();
        }
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        let left = unfinished(project.path());
        left.iter().for_each(|name| std::fs::remove_dir_all(project.path().join(name)).unwrap());
        if finished {
            continue; // the folder was moved into place before the kill
        }
        seen += i32::from(!left.is_empty());
        assert_eq!(content(&project.path().join("out")), old);
        if seen == 5 {
            return;
        }
    }
    panic!("only {seen} of 20 commands were killed while they wrote");
}

/// Simulates a full disk: every write beyond a file size fails (`ulimit -f`).
#[test]
fn a_full_disk_leaves_the_old_folder() {
    let project = project();
    for (command, replaces) in COMMANDS {
        if !replaces {
            let _ = std::fs::remove_dir_all(project.path().join("out"));
        }
        let old = content(&project.path().join("out"));
        let line = [command, &["--out", "out"]].concat().join(" ");
        let script = format!("trap '' XFSZ; ulimit -f 3; exec {} {line}", ft_binary().display());
        let output = Command::new("bash").args(["-c", &script]).current_dir(project.path()).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains("File too large") && said.contains("ulimit -f"), "{line}: {said}");
        assert_eq!(content(&project.path().join("out")), old, "{line}");
        assert!(unfinished(project.path()).is_empty(), "{line}");
    }
}
