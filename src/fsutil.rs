//! Reads and writes files for all of ft: every error names its path, and no file is left half-written.

mod fingerprint;
mod replace;

pub use fingerprint::{FileFingerprint, FingerprintWriter};
#[cfg(test)]
pub use replace::kill_at;
pub use replace::{
    MOVING_FOLDER, UnfinishedFolder, file_change, recover_dir, refuse_unfinished_move, remove_unfinished_folders,
    replace_dir,
};

use crate::characters::hidden;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes an error from an I/O error: what was being done, the path and, for common causes, a hint.
pub fn io_error(doing: &str, path: &Path, e: std::io::Error) -> Error {
    use std::io::ErrorKind::*;
    let err = Error::user(format!("{doing} {}: {e}", path.display()));
    match e.kind() {
        NotFound => err.hint("check the path; relative paths in a recipe start at the folder you run ft in"),
        PermissionDenied => err.hint("check the permissions of the file and its folder"),
        StorageFull => err.hint("free disk space or choose another output folder"),
        FileTooLarge | QuotaExceeded => {
            err.hint("a limit on the size of files (ulimit -f) or a quota stops it: raise it")
        }
        _ => err.hint("check what is at that path, and its disk"),
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| io_error("reading", path, e))
}

/// Reads a whole file as text. Fails if it is not UTF-8; the error names the offset of the first bad byte.
pub fn read_to_string(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    String::from_utf8(bytes).map_err(|e| {
        Error::user(format!(
            "{}: not UTF-8 (first bad byte at offset {})",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
        .hint("convert the file with: iconv -t UTF-8")
    })
}

/// Parses a JSON file into `T`; the error names line and column.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read_to_string(path)?)
}

/// Parses JSON text that came from `path`; the error names line and column.
pub fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_string();
        Error::user(format!("{}:{}:{}: {what}", path.display(), e.line(), e.column())).hint(if e.is_eof() {
            "the file is incomplete: fetch or copy it again"
        } else {
            "correct it there, or fetch the file again if nobody edited it"
        })
    })
}

/// Shortens text from a file for an error message: at most 120 characters, with control characters replaced.
pub fn excerpt(text: &str) -> String {
    const MOST: usize = 120;
    let plain = |c: char| if c.is_control() || hidden(c).is_some() { '\u{fffd}' } else { c };
    let head: String = text.chars().take(MOST).map(plain).collect();
    if text.chars().nth(MOST).is_some() { format!("{head}…") } else { head }
}

/// Creates a folder and its missing parents.
pub fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| io_error("creating folder", path, e))
}

/// Who may read a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Everybody whom the process's umask allows.
    Umask,
    /// Its owner only. For files with people's texts or judgements, or derived from them.
    OwnerOnly,
}

impl FileAccess {
    /// Returns the permissions of a file, before the umask is applied.
    fn mode(self) -> u32 {
        match self {
            Self::Umask => 0o666,
            Self::OwnerOnly => 0o600,
        }
    }
}

/// Creates a folder and its missing parents so that only their owner can read them. Existing folders stay unchanged.
pub fn create_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| io_error("creating folder", path, e))
}

/// Creates a new file for reading and writing. Fails if anything exists at that path, even a link.
pub fn create_new(path: &Path, access: FileAccess) -> std::io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(access.mode()).open(path)
}

/// Returns open options that refuse symbolic links: at a path whose name can be guessed, somebody else may have put a
/// link to another file.
pub fn no_follow_options() -> fs::OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_NOFOLLOW);
    options
}

/// Opens a directory. Fails for links and for everything else, without waiting for the other end of a named pipe.
pub fn open_directory(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY).open(path)
}

/// Locks a folder for one writer until the returned file is dropped; the lock ends with the process, too. Returns
/// `None` if there is no such folder. Fails if another process holds the lock.
pub fn lock_folder(folder: &Path) -> Result<Option<File>> {
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("opening", folder, e)),
    };
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::user(format!("{}: another ft process is working in this folder", folder.display()))
                .hint("wait until it ends, or choose another folder"))
        }
        // Some network file systems do not support locks.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(Some(file)),
    }
}

/// Writes a file under a temporary name in the same folder, fsyncs it and renames it over `path`. If a file existed
/// there, the new one gets its permissions.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    write_atomic_for(FileAccess::Umask, path, fill)
}

/// As [`write_atomic`], with a choice who may read the file. A file for its owner only replaces one that others could
/// read by one that they cannot.
pub fn write_atomic_for(
    access: FileAccess,
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_all(folder)?;
    let temp = folder.join(temporary_name(&path.file_name().unwrap_or_default().to_string_lossy()));
    let run = || -> std::io::Result<()> {
        let mut out = BufWriter::new(create_new(&temp, access)?);
        let before = fs::symlink_metadata(path).ok().filter(|m| m.is_file() && access == FileAccess::Umask);
        if let Some(before) = before {
            out.get_ref().set_permissions(Permissions::from_mode(before.permissions().mode() & 0o777))?;
        }
        fill(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&temp, path)?;
        File::open(folder)?.sync_all()
    };
    run().map_err(|e| {
        let _ = fs::remove_file(&temp);
        io_error("writing", path, e)
    })
}

/// Returns a name for an unfinished file or folder: hidden, marked by `.tmp-`, and random, so that nobody can place a
/// file there beforehand.
pub fn temporary_name(name: &str) -> String {
    format!(".{name}.tmp-{}-{:016x}", std::process::id(), rand::random::<u64>())
}

/// Returns true for the name of an unfinished file or folder, as [`temporary_name`] makes it.
pub fn is_temporary_name(name: &str) -> bool {
    name.starts_with('.') && name.contains(".tmp-")
}

/// Writes a value as indented JSON, by [`write_atomic`].
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::bug(format!("{}: {e}", path.display())))?;
    text.push('\n');
    write_atomic(path, |w| w.write_all(text.as_bytes()))
}

/// Returns the SHA-256 of a file in lower-case hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| io_error("reading", path, e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|e| io_error("reading", path, e))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hex(&hash.finalize()))
}

/// Returns the bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Returns a folder of the user's cache: `$XDG_CACHE_HOME/ft/NAME`, else `~/.cache/ft/NAME`. `None` if neither variable
/// is set. The folder need not exist.
pub fn user_cache(name: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| set("HOME").map(|h| h.join(".cache")))?;
    Some(base.join("ft").join(name))
}

/// Returns the absolute path, which the user can paste anywhere. The path need not exist.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_not_whole_yet_has_a_name_that_nobody_can_guess_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let names: std::collections::BTreeSet<String> = (0..100).map(|_| temporary_name("a.json")).collect();
        assert!(names.len() == 100 && names.iter().all(|n| is_temporary_name(n)), "{names:?}");
        let (victim, link) = (folder.path().join("victim"), folder.path().join("link"));
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        for path in [&link, &victim, &folder.path().join("dangling")] {
            if path.ends_with("dangling") {
                std::os::unix::fs::symlink(folder.path().join("nowhere"), path).unwrap();
            }
            assert!(create_new(path, FileAccess::Umask).is_err(), "{}", path.display());
        }
        assert!(no_follow_options().write(true).create(true).truncate(true).open(&link).is_err());
        assert!(!folder.path().join("nowhere").exists());
        // The finished file takes the place of a link, and leaves alone what it led to.
        write_atomic(&link, |w| w.write_all(b"new")).unwrap();
        assert_eq!((fs::read(&victim).unwrap(), fs::read(&link).unwrap()), (b"mine".to_vec(), b"new".to_vec()));
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn files_of_one_owner_stay_so() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        create_private_dir(&at("cache/tokens")).unwrap();
        assert_eq!((mode(&at("cache")), mode(&at("cache/tokens"))), (0o700, 0o700));
        fs::write(at("rows.jsonl"), "old").unwrap();
        fs::set_permissions(at("rows.jsonl"), Permissions::from_mode(0o644)).unwrap();
        write_atomic_for(FileAccess::OwnerOnly, &at("rows.jsonl"), |w| w.write_all(b"new")).unwrap();
        assert_eq!(mode(&at("rows.jsonl")), 0o600);
        // Writing anew gives nobody a right that they had not.
        write_atomic(&at("rows.jsonl"), |w| w.write_all(b"newer")).unwrap();
        assert_eq!(mode(&at("rows.jsonl")), 0o600);
    }
}
