//! The directory of one run, and what killed processes left of theirs.
//!
//! A process that is killed cannot remove its directories. Their names have the process's id, and the process holds a lock on each, so that a later
//! one can tell which are left over: also between containers that share the directory for temporary files, but not processes.

use crate::error::Result;
use crate::fsutil::{io_error, open_directory};
use crate::report;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime};

/// What names of directories begin with; the process's id and random characters follow.
const PREFIX: &str = "ft-sandbox-";
/// A directory that is younger may not be locked yet.
const FRESH: Duration = Duration::from_secs(60);

/// The directory of one run: the program's file, and the empty directory that it works in.
pub struct Workplace {
    /// The program's file.
    pub file: PathBuf,
    /// The directory that it works in.
    pub work: PathBuf,
    _folder: tempfile::TempDir,
    /// Held while the directory is used. Without it, on file systems that have no locks, the process's id alone protects it.
    _lock: Option<File>,
}

impl Workplace {
    /// Makes a directory with a program. Errors: the directory for temporary files cannot be written to.
    pub fn make(name: &str, text: &str) -> Result<Self> {
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir();
        let folder = folder.map_err(|e| io_error("creating", &std::env::temp_dir(), e))?;
        let lock = File::open(folder.path()).ok().filter(|file| file.try_lock().is_ok());
        let (file, work) = (folder.path().join(name), folder.path().join("work"));
        std::fs::create_dir(&work).map_err(|e| io_error("creating", &work, e))?;
        std::fs::write(&file, text).map_err(|e| io_error("writing", &file, e))?;
        Ok(Self { file, work, _folder: folder, _lock: lock })
    }
}

/// Removes what killed processes left in the directory for temporary files, at the first call in a process.
pub fn remove_leftovers_once() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let removed = remove_leftovers(&std::env::temp_dir());
        if removed > 0 {
            report::info(format!("removed {removed} directories of sandboxes whose process was killed"));
        }
    });
}

/// Removes directories of sandboxes whose process has ended. Returns how many. What cannot be looked at or removed stays.
fn remove_leftovers(parent: &Path) -> usize {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| is_left_over(path) && std::fs::remove_dir_all(path).is_ok()).count()
}

/// Returns true for a directory of this user whose process has ended, which nobody holds a lock on.
fn is_left_over(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).and_then(|(id, _)| id.parse().ok());
    let Some(process) = process.filter(|id: &i32| *id > 0) else { return false };
    let Ok(folder) = open_directory(path) else { return false };
    let ours = folder.metadata().is_ok_and(|found| {
        let age = found.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
        Some(found.uid()) == own_user() && age.is_some_and(|age| age > FRESH)
    });
    ours && !Path::new("/proc").join(process.to_string()).exists() && folder.try_lock().is_ok()
}

/// Returns the user of this process; `None` where the kernel shows no processes, of which nobody can then tell which have ended.
fn own_user() -> Option<u32> {
    std::fs::metadata("/proc/self").ok().map(|found| found.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::FileTimes;

    fn ended_process() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    /// Makes a directory that was last changed two minutes ago.
    fn old(path: &Path) {
        std::fs::create_dir_all(path.join("work")).unwrap();
        std::fs::write(path.join("program.py"), "print()").unwrap();
        age(path, Duration::from_secs(120));
    }

    fn age(path: &Path, by: Duration) {
        File::open(path).unwrap().set_times(FileTimes::new().set_modified(SystemTime::now() - by)).unwrap();
    }

    #[test]
    fn only_directories_of_processes_that_ended_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let place = |name: String| parent.path().join(name);
        let (ended, running) = (ended_process(), std::process::id());
        let left = place(format!("{PREFIX}{ended}-abc"));
        old(&left);
        let kept = [
            place(format!("{PREFIX}{running}-abc")),
            place(format!("{PREFIX}1-abc")),
            place(format!("{PREFIX}{ended}")),
            place(format!("{PREFIX}0-abc")),
            place(format!("{PREFIX}-{ended}-abc")),
            place("ft-sandbox-abc".into()),
            place(format!("other-{ended}-abc")),
        ];
        kept.iter().for_each(|path| old(path));
        let (fresh, locked) = (place(format!("{PREFIX}{ended}-fresh")), place(format!("{PREFIX}{ended}-locked")));
        [&fresh, &locked].into_iter().for_each(|path| old(path));
        age(&fresh, Duration::ZERO);
        let lock = File::open(&locked).unwrap();
        lock.try_lock().unwrap();
        // Neither a file nor what a link shows is ours to remove.
        let (file, link, target) =
            (place(format!("{PREFIX}{ended}-file")), place(format!("{PREFIX}{ended}-link")), place("target".into()));
        std::fs::write(&file, "").unwrap();
        age(&file, Duration::from_secs(120));
        old(&target);
        std::os::unix::fs::symlink(&target, &link).unwrap();
        // Nobody writes into this pipe.
        let pipe = place(format!("{PREFIX}{ended}-pipe"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(remove_leftovers(parent.path()), 1);
        assert!(!left.exists());
        for path in kept.iter().chain([&fresh, &locked, &file, &target, &pipe]) {
            assert!(path.exists(), "{}", path.display());
        }
        assert!(link.is_symlink());
        drop(lock);
        assert_eq!(remove_leftovers(parent.path()), 1, "its process is no longer there");
        assert_eq!(remove_leftovers(&place("nowhere".into())), 0);
    }

    #[test]
    fn a_directory_in_use_is_not_left_over() {
        let place = Workplace::make("program.py", "print()").unwrap();
        let folder = place.work.parent().unwrap().to_path_buf();
        age(&folder, Duration::from_secs(120));
        assert!(!is_left_over(&folder));
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("{PREFIX}{}-", std::process::id())), "{name}");
        assert!(File::open(&folder).unwrap().try_lock().is_err(), "it is locked");
        drop(place);
        assert!(!folder.exists());
    }
}
