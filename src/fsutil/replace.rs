//! Puts finished folders and results in the place of older ones, so that a kill at any moment leaves the one or the other.

use super::{create_dir_all, io_error, temporary};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Fills a folder under a temporary name beside `path` and puts it in its place: a reader sees the old folder or the new one,
/// and a kill at any moment leaves one of them. Where the system cannot exchange two folders in one step, the old one
/// stands aside for a moment; a kill then is made good by the next call for the same path.
pub fn replace_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_all(parent)?;
    recover_dir(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temp = parent.join(temporary(&name));
    fs::create_dir(&temp).map_err(|e| io_error("creating folder", &temp, e))?;
    fill(&temp).inspect_err(|_| {
        let _ = fs::remove_dir_all(&temp);
    })?;
    swap(&temp, path, exchange).and_then(|()| File::open(parent)?.sync_all()).map_err(|e| {
        let _ = fs::remove_dir_all(&temp);
        io_error("moving into place", path, e)
    })
}

/// Where the old folder stands while a new one takes its place in two steps.
fn aside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.old", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Puts a folder that stands aside back into its place, if nothing took it, and removes it otherwise.
pub fn recover_dir(path: &Path) -> Result<()> {
    let old = aside(path);
    if !old.exists() {
        return Ok(());
    }
    match path.exists() {
        true => fs::remove_dir_all(&old).map_err(|e| io_error("removing", &old, e)),
        false => fs::rename(&old, path).map_err(|e| io_error("moving into place", path, e)),
    }
}

/// Exchanges what two paths name, in one step.
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Puts the folder `new` in the place of `path` and removes what was there. Where `exchange` fails, in two steps.
fn swap(new: &Path, path: &Path, exchange: impl Fn(&Path, &Path) -> std::io::Result<()>) -> std::io::Result<()> {
    if !path.exists() {
        return step(|| fs::rename(new, path));
    }
    if step(|| exchange(new, path)).is_ok() {
        return step(|| fs::remove_dir_all(new));
    }
    let old = aside(path);
    step(|| fs::rename(path, &old))?;
    step(|| fs::rename(new, path)).inspect_err(|_| {
        let _ = fs::rename(&old, path);
    })?;
    step(|| fs::remove_dir_all(&old))
}

/// The folder of a result that is being moved into the folder it stands in, file by file.
pub const MOVING: &str = "result.moving";

/// An error where the files of a folder may be of two results.
pub fn refuse_moving(folder: &Path) -> Result<()> {
    match folder.join(MOVING).exists() {
        true => Err(Error::user(format!("{}: a result was being put here when ft was stopped", folder.display()))
            .hint(format!("end it with: ft resume {}", folder.display()))),
        false => Ok(()),
    }
}

/// Changes the file system once; tests kill between these.
pub fn step<T>(change: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    #[cfg(test)]
    tests::count_down();
    change()
}

#[cfg(test)]
pub use tests::kill_at;

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    thread_local! {
        static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    }

    pub fn count_down() {
        match LEFT.get() {
            0 => resume_unwind(Box::new("killed")),
            left => LEFT.set(left - 1),
        }
    }

    /// Runs `f` and ends it before change `at` of the file system; `None` where that came.
    pub fn kill_at<T>(at: u32, f: impl FnOnce() -> Result<T>) -> Option<T> {
        LEFT.set(at);
        let result = catch_unwind(AssertUnwindSafe(f));
        LEFT.set(u32::MAX);
        result.ok().map(|done| done.unwrap())
    }

    #[test]
    fn a_kill_leaves_the_old_folder_or_the_new_one() {
        let cannot = |_: &Path, _: &Path| Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
        let ways: [&dyn Fn(&Path, &Path) -> std::io::Result<()>; 2] = [&exchange, &cannot];
        for (way, gap) in ways.into_iter().zip([false, true]) {
            let mut missing = 0;
            for at in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let (path, new) = (folder.path().join("model"), folder.path().join(".model.tmp-1"));
                for (folder, text) in [(&path, "old"), (&new, "new")] {
                    fs::create_dir(folder).unwrap();
                    fs::write(folder.join("file"), text).unwrap();
                }
                let done = kill_at(at, || swap(&new, &path, way).map_err(|e| io_error("moving", &path, e)));
                missing += u32::from(!path.exists());
                replace_dir(&folder.path().join("model"), |_| Err(Error::user("broken off"))).unwrap_err();
                let found = fs::read_to_string(path.join("file")).unwrap();
                assert!(found == "new" || done.is_none() && found == "old", "killed at {at}: {found}");
                assert!(!aside(&path).exists());
                if done.is_some() {
                    break;
                }
            }
            assert_eq!(missing > 0, gap, "only without an exchange there is a moment with neither");
        }
    }
}
