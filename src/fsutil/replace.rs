//! Replaces folders and results by finished new ones, so that a kill at any moment leaves either the old or the new
//! one.

use super::{create_dir_all, io_error, temporary_name};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Lets `fill` write a folder under a temporary name next to `path`, then moves it to `path`. A reader sees the old
/// folder or the new one, and a kill at any moment leaves one of them. If the system cannot exchange two folders in one
/// step, the old one is renamed first; after a kill at that moment, the next call for the same path restores it.
pub fn replace_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_all(parent)?;
    recover_dir(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temp = UnfinishedFolder::create(parent.join(temporary_name(&name)))?;
    fill(temp.path())?;
    let moved = swap(temp.path(), path, exchange).and_then(|()| File::open(parent)?.sync_all());
    moved.map_err(|e| io_error("moving into place", path, e))
}

/// Folders that are being written.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A folder under a temporary name, which is removed with what is in it when the value is dropped, or when the command is
/// interrupted ([`remove_unfinished_folders`]).
pub struct UnfinishedFolder(PathBuf);

impl UnfinishedFolder {
    /// Makes the folder at this path, whose parent exists.
    pub fn create(path: PathBuf) -> Result<Self> {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        let folder = Self(path);
        fs::create_dir(&folder.0).map_err(|e| io_error("creating folder", &folder.0, e))?;
        Ok(folder)
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for UnfinishedFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
    }
}

/// Removes the folders that are being written, for a command that ends now.
pub fn remove_unfinished_folders() {
    for path in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // Another thread may still write files into it.
        for _ in 0..3 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Returns the name of the old folder while a new one replaces it in two steps.
fn old_folder_path(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.old", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Completes a replacement in two steps that was interrupted: moves the old folder back if `path` does not exist, else
/// removes the old folder.
pub fn recover_dir(path: &Path) -> Result<()> {
    let old = old_folder_path(path);
    if !old.exists() {
        return Ok(());
    }
    match path.exists() {
        true => fs::remove_dir_all(&old).map_err(|e| io_error("removing", &old, e)),
        false => fs::rename(&old, path).map_err(|e| io_error("moving into place", path, e)),
    }
}

/// Exchanges two files or folders in one step.
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Moves the folder `new` to `path` and removes the old folder: by `exchange`, or in two steps if `exchange` fails.
fn swap(new: &Path, path: &Path, exchange: impl Fn(&Path, &Path) -> std::io::Result<()>) -> std::io::Result<()> {
    if !path.exists() {
        return file_change(|| fs::rename(new, path));
    }
    if file_change(|| exchange(new, path)).is_ok() {
        return file_change(|| fs::remove_dir_all(new));
    }
    let old = old_folder_path(path);
    file_change(|| fs::rename(path, &old))?;
    file_change(|| fs::rename(new, path)).inspect_err(|_| {
        let _ = fs::rename(&old, path);
    })?;
    file_change(|| fs::remove_dir_all(&old))
}

/// Name of the subfolder of a result that is being moved, file by file, into its parent folder. While it exists, the
/// parent may contain files of two results.
pub const MOVING_FOLDER: &str = "result.moving";

/// Fails if the files of a folder may be of two results, because moving a result was interrupted.
pub fn refuse_unfinished_move(folder: &Path) -> Result<()> {
    match folder.join(MOVING_FOLDER).exists() {
        true => Err(Error::user(format!("{}: ft was stopped while it moved a result here", folder.display()))
            .hint(format!("complete it with: ft resume {}", folder.display()))),
        false => Ok(()),
    }
}

/// Runs one change of the file system. Tests interrupt the program between two such changes.
pub fn file_change<T>(change: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
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

    /// Runs `f` and interrupts it before change number `at` of the file system; returns `None` if it was interrupted.
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
                assert!(!old_folder_path(&path).exists());
                if done.is_some() {
                    break;
                }
            }
            assert_eq!(missing > 0, gap, "only without an exchange there is a moment with neither");
        }
    }
}
