//! Computes SHA-256 of files and remembers those of large files, which seldom change, between runs.
//!
//! The remembered hashes (`hashes.json` in the user's cache folder) only save time. A file is regarded as unchanged if
//! its device, inode, size and times of modification and of status change are unchanged. Verification
//! ([`HashTrust::Bytes`]) always reads the bytes. If hashes.json is lost or cannot be written, files are hashed again.

use crate::error::Result;
use crate::fsutil::{io_error, sha256, write_json};
use crate::report;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Hash and size of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// SHA-256 as hexadecimal digits.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// Whether a remembered hash is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTrust {
    /// Accept the remembered hash of a file that looks unchanged.
    Remembered,
    /// Read every byte.
    Bytes,
}

/// Size in bytes from which hashes are remembered. Smaller files are hashed quickly enough.
const REMEMBERED_FROM: u64 = 8 << 20;
/// Maximum number of remembered hashes; beyond it, the first in the order of keys are forgotten.
const MAX_REMEMBERED: usize = 2000;

/// Hashes files, using remembered hashes where that is allowed.
pub struct FileHasher {
    path: Option<PathBuf>,
    known: BTreeMap<String, String>,
    trust: HashTrust,
    changed: bool,
}

/// Returns `$XDG_CACHE_HOME/ft`, else `~/.cache/ft`; `None` if neither variable is an absolute path.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    Some(folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?.join("ft"))
}

impl FileHasher {
    /// Reads the remembered hashes, if there are any.
    pub fn open(trust: HashTrust) -> Self {
        Self::at(cache_folder().map(|f| f.join("hashes.json")), trust)
    }

    fn at(path: Option<PathBuf>, trust: HashTrust) -> Self {
        let read = |p: &PathBuf| serde_json::from_slice(&std::fs::read(p).ok()?).ok();
        let known = path.as_ref().and_then(read).unwrap_or_default();
        Self { path, known, trust, changed: false }
    }

    /// Returns size and SHA-256 of a file. Shows a spinner while it hashes a large one.
    pub fn hash_file(&mut self, path: &Path) -> Result<FileDigest> {
        let meta = std::fs::metadata(path).map_err(|e| io_error("reading", path, e))?;
        let bytes = meta.len();
        if bytes < REMEMBERED_FROM {
            return Ok(FileDigest { sha256: sha256(path)?, bytes });
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
        if let (HashTrust::Remembered, Some(known)) = (self.trust, self.known.get(&key)) {
            return Ok(FileDigest { sha256: known.clone(), bytes });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let spinner = report::spinner(&format!("hashing {name} ({})", report::bytes(bytes)));
        let sha256 = sha256(path);
        spinner.finish_and_clear();
        let sha256 = sha256?;
        self.known.insert(key, sha256.clone());
        self.changed = true;
        Ok(FileDigest { sha256, bytes })
    }

    /// Writes the new hashes to hashes.json. A failure is ignored.
    pub fn close(mut self) {
        if let (true, Some(path)) = (self.changed, &self.path) {
            while self.known.len() > MAX_REMEMBERED {
                self.known.pop_first();
            }
            let _ = write_json(path, &self.known); // without it, files are only hashed again
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
        let hash = |trust: HashTrust| {
            let mut hasher = FileHasher::at(memory.clone(), trust);
            let locked = hasher.hash_file(&file).unwrap();
            hasher.close();
            locked.sha256
        };
        let real = hash(HashTrust::Remembered);
        assert_eq!(real, sha256(&file).unwrap());
        // A wrong remembered hash shows who reads the bytes and who does not.
        let text = std::fs::read_to_string(memory.as_ref().unwrap()).unwrap().replace(&real, "remembered");
        std::fs::write(memory.as_ref().unwrap(), text).unwrap();
        assert_eq!(hash(HashTrust::Remembered), "remembered");
        assert_eq!(hash(HashTrust::Bytes), real);
        assert_eq!(hash(HashTrust::Remembered), real, "verification corrects the remembered hash");
        // Same size, different bytes.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, vec![8u8; REMEMBERED_FROM as usize]).unwrap();
        assert_ne!(hash(HashTrust::Remembered), real);
        // Without a cache folder, files are still hashed.
        assert_eq!(
            FileHasher::at(None, HashTrust::Remembered).hash_file(&file).unwrap().sha256,
            sha256(&file).unwrap()
        );
    }
}
