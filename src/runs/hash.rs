//! SHA-256 of large files that seldom change, remembered between runs.
//!
//! The memory (`hashes.json` in the user's cache folder) is a short-cut alone: a file counts as the same where device,
//! inode, size, and the times of change and of modification are; whoever verifies reads the bytes again. Losing it, or
//! not being able to write it, costs time and nothing else.

use super::lock::Locked;
use crate::error::Result;
use crate::fsutil::{io_error, sha256, write_json};
use crate::report;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether remembered hashes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Files that look the same are the same.
    Remembered,
    /// Every byte is read.
    Bytes,
}

/// Smaller files are read faster than looked up with a good conscience.
const REMEMBERED_FROM: u64 = 8 << 20;
/// More are forgotten, in the order of their keys.
const MOST: usize = 2000;

pub struct Hasher {
    path: Option<PathBuf>,
    known: BTreeMap<String, String>,
    trust: Trust,
    changed: bool,
}

/// `$XDG_CACHE_HOME/ft`, else `~/.cache/ft`.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    Some(folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?.join("ft"))
}

impl Hasher {
    pub fn open(trust: Trust) -> Self {
        Self::at(cache_folder().map(|f| f.join("hashes.json")), trust)
    }

    fn at(path: Option<PathBuf>, trust: Trust) -> Self {
        let read = |p: &PathBuf| serde_json::from_slice(&std::fs::read(p).ok()?).ok();
        let known = path.as_ref().and_then(read).unwrap_or_default();
        Self { path, known, trust, changed: false }
    }

    pub fn file(&mut self, path: &Path) -> Result<Locked> {
        let meta = std::fs::metadata(path).map_err(|e| io_error("reading", path, e))?;
        let bytes = meta.len();
        if bytes < REMEMBERED_FROM {
            return Ok(Locked { sha256: sha256(path)?, bytes });
        }
        let key = format!(
            "{}:{}:{bytes}:{}.{}:{}.{}",
            meta.dev(),
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        if let (Trust::Remembered, Some(known)) = (self.trust, self.known.get(&key)) {
            return Ok(Locked { sha256: known.clone(), bytes });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let spinner = report::spinner(&format!("hashing {name} ({})", report::bytes(bytes)));
        let sha256 = sha256(path);
        spinner.finish_and_clear();
        let sha256 = sha256?;
        self.known.insert(key, sha256.clone());
        self.changed = true;
        Ok(Locked { sha256, bytes })
    }

    /// Remembers what was hashed.
    pub fn close(mut self) {
        if let (true, Some(path)) = (self.changed, &self.path) {
            while self.known.len() > MOST {
                self.known.pop_first();
            }
            let _ = write_json(path, &self.known); // a short-cut only
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_short_cut_and_never_believed_by_those_who_verify() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("model.safetensors"), Some(folder.path().join("cache/hashes.json")));
        std::fs::write(&file, vec![7u8; REMEMBERED_FROM as usize]).unwrap();
        let hash = |trust: Trust| {
            let mut hasher = Hasher::at(memory.clone(), trust);
            let locked = hasher.file(&file).unwrap();
            hasher.close();
            locked.sha256
        };
        let real = hash(Trust::Remembered);
        assert_eq!(real, sha256(&file).unwrap());
        // A memory that lies shows who asks it.
        let text = std::fs::read_to_string(memory.as_ref().unwrap()).unwrap().replace(&real, "remembered");
        std::fs::write(memory.as_ref().unwrap(), text).unwrap();
        assert_eq!(hash(Trust::Remembered), "remembered");
        assert_eq!(hash(Trust::Bytes), real);
        assert_eq!(hash(Trust::Remembered), real, "and who verified puts it right");
        // The same size, other bytes.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, vec![8u8; REMEMBERED_FROM as usize]).unwrap();
        assert_ne!(hash(Trust::Remembered), real);
        // Without a place to remember there is still a hash.
        assert_eq!(Hasher::at(None, Trust::Remembered).file(&file).unwrap().sha256, sha256(&file).unwrap());
    }
}
