//! Caches token ids between runs.
//!
//! A file's name is the hash of everything its content depends on: the bytes of the rows, how they are read, tokenizer
//! and template, which tokens are trained on, and the version of this code. A changed setting therefore gives another
//! name, and a cached file is never out of date. Files are written under a temporary name and renamed, so several runs
//! may share a folder. They contain people's texts, so only the owner may read the folder.

use super::choice::CacheChoice;
use super::token_store::{TokenStore, file_name};
use crate::data::source::{self, FileLayout};
use crate::error::{Context, Result};
use crate::fsutil::{self, hex};
use crate::report;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Files of fewer bytes are not kept in the user's cache: tokenising them again takes only a moment.
pub const WORTH_KEEPING: u64 = 16 << 20;
/// Cached files that no run has used for this long are removed.
const MAX_UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// A temporary file older than this was left behind by a run that ended.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A folder of cached token files, or no cache at all.
#[derive(Debug, Clone)]
pub struct TokenCache {
    folder: Option<PathBuf>,
    smallest: u64,
}

/// Number and size of the files in a cache folder, and of those that were removed from it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TokenCacheUsage {
    /// The folder; `None` without a cache.
    pub folder: Option<PathBuf>,
    /// Number of files that are left.
    pub files: usize,
    /// Bytes of the files that are left.
    pub bytes: u64,
    /// Number of files that were removed.
    pub removed: usize,
    /// Bytes of the files that were removed.
    pub removed_bytes: u64,
}

impl TokenCache {
    /// Opens the cache that a recipe asks for; creates the folder if it names one.
    pub fn new(choice: &CacheChoice) -> Result<Self> {
        let made = |folder: PathBuf| fsutil::create_private_dir(&folder).map(|()| folder);
        Ok(match choice {
            CacheChoice::Off => Self { folder: None, smallest: 0 },
            CacheChoice::Folder(folder) => {
                let folder = made(folder.clone()).context(|| "data.cache")?;
                Self { folder: Some(folder), smallest: 0 }
            }
            CacheChoice::Auto => Self { folder: fsutil::user_cache("tokens"), smallest: WORTH_KEEPING },
        })
    }

    /// Returns a cache that stores nothing.
    pub fn off() -> Self {
        Self { folder: None, smallest: 0 }
    }

    /// Returns the folder in which to cache the token ids of a file of this many bytes; `None` if they are not cached.
    pub fn folder_for(&self, bytes: u64) -> Option<PathBuf> {
        let folder = self.folder.as_ref().filter(|_| bytes >= self.smallest)?;
        if let Err(e) = fsutil::create_private_dir(folder) {
            report::warn(format!("token ids are not cached: {}", e.message()));
            return None;
        }
        Some(folder.clone())
    }

    /// Returns the segments of a file and its hash, which takes reading all of it. The result of an earlier run is
    /// reused if the file still has the same size and times and was old enough then that any later change must show in
    /// its time. `progress` gets the number of bytes read since its last call.
    pub fn layout(&self, path: &Path, progress: impl FnMut(u64)) -> Result<FileLayout> {
        let Some(folder) = std::fs::metadata(path).ok().and_then(|m| self.folder_for(m.len())) else {
            return source::layout(path, progress);
        };
        let name = hex(&Sha256::digest(fsutil::absolute(path).to_string_lossy().as_bytes())[..16]);
        let note = folder.join(format!("{name}.layout"));
        let before = FileStamp::of(path);
        let noted = fsutil::read_json::<CachedLayout>(&note).ok().filter(|n| n.version == VERSION && n.stamp.settled());
        if let (Some(noted), Some(stamp)) = (noted, &before)
            && stamp.same_file(&noted.stamp)
        {
            return Ok(noted.layout);
        }
        let layout = source::layout(path, progress)?;
        if let (Some(stamp), Some(after)) = (before, FileStamp::of(path))
            && stamp.same_file(&after)
        {
            fsutil::write_json(&note, &CachedLayout { version: VERSION, stamp: after, layout: layout.clone() })?;
        }
        Ok(layout)
    }

    /// Removes the files that no run has used for at least `unused`, and counts the files in the folder.
    pub fn prune(&self, unused: Duration) -> TokenCacheUsage {
        let mut found = TokenCacheUsage { folder: self.folder.clone(), ..Default::default() };
        let entries = self.folder.iter().flat_map(std::fs::read_dir).flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(meta) = entry.metadata() else { continue };
            let temporary = fsutil::is_temporary_name(&name);
            if !meta.is_file() || !(temporary || [".tokens", ".layout", ".logprobs"].iter().any(|e| name.ends_with(e)))
            {
                continue;
            }
            let age = meta.modified().ok().and_then(|t| t.elapsed().ok()).unwrap_or_default();
            let limit = if temporary { ABANDONED.min(unused.max(Duration::from_secs(60))) } else { unused };
            if age >= limit && std::fs::remove_file(entry.path()).is_ok() {
                found.removed += 1;
                found.removed_bytes += meta.len();
            } else {
                found.files += 1;
                found.bytes += meta.len();
            }
        }
        found
    }

    /// Removes the files that no run has used for a month.
    pub fn prune_unused(&self) {
        self.prune(MAX_UNUSED);
    }
}

/// Opens the cached file of a key; `None` if it is missing or damaged. Sets its modification time, which records its
/// last use.
pub fn find_tokens(folder: &Path, key: &[u8; 32]) -> Option<TokenStore> {
    let path = folder.join(file_name(key));
    let found = TokenStore::open(&path, key);
    if found.is_some()
        && let Ok(file) = File::options().append(true).open(&path)
    {
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
    }
    found
}

/// Version of the format of [`CachedLayout`].
const VERSION: u32 = 1;

/// The cached layout of a file, and the state of the file at that time.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CachedLayout {
    version: u32,
    stamp: FileStamp,
    layout: FileLayout,
}

/// Properties of a file that change when its content changes. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStamp {
    path: PathBuf,
    bytes: u64,
    modified: u64,
    /// When the file's name, size or content last changed (ctime); a program cannot set it.
    changed: i64,
    file: u64,
    /// When these properties were read.
    seen: u64,
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path).ok()?;
        let nanos = |t: SystemTime| t.duration_since(UNIX_EPOCH).ok().map(|d| d.as_nanos() as u64);
        Some(Self {
            path: fsutil::absolute(path),
            bytes: meta.len(),
            modified: nanos(meta.modified().ok()?)?,
            changed: meta.ctime() * 1_000_000_000 + meta.ctime_nsec(),
            file: meta.ino(),
            seen: nanos(SystemTime::now())?,
        })
    }

    fn same_file(&self, other: &FileStamp) -> bool {
        FileStamp { seen: 0, ..self.clone() } == FileStamp { seen: 0, ..other.clone() }
    }

    /// Returns true if the file was last changed more than two seconds before its properties were read. File times have
    /// a limited resolution: a change right after reading might not show in them.
    fn settled(&self) -> bool {
        self.seen.saturating_sub(self.modified.max(self.changed.max(0) as u64)) > 2_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noted_layout_is_used_while_the_file_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenCache::new(&CacheChoice::Folder(folder.path().join("cache"))).unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{}\n{}\n").unwrap();
        let read = || {
            let mut bytes = 0;
            (cache.layout(&path, |n| bytes += n).unwrap(), bytes)
        };
        let (first, bytes) = read();
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(folder.path().join("cache")).unwrap());
        assert_eq!(mode & 0o777, 0o700, "the cache holds people's texts");
        assert_eq!((bytes, first.lines()), (6, Some(2)));
        assert_eq!(read(), (first.clone(), 6), "a file that was just written must be hashed again");
        // Pretend that the properties were read later.
        let note = std::fs::read_dir(folder.path().join("cache")).unwrap().next().unwrap().unwrap().path();
        let mut noted: CachedLayout = fsutil::read_json(&note).unwrap();
        noted.stamp.seen += 10_000_000_000;
        fsutil::write_json(&note, &noted).unwrap();
        assert_eq!(read(), (first.clone(), 0));
        std::fs::write(&path, "{ }\n{}").unwrap();
        let (second, bytes) = read();
        assert_eq!((bytes, second == first), (6, false), "same size, other content");
    }

    #[test]
    fn pruning_leaves_what_is_used_and_what_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenCache::new(&CacheChoice::Folder(folder.path().into())).unwrap();
        let old = SystemTime::now() - Duration::from_secs(100 * 24 * 3600);
        for (name, aged) in
            [("a.tokens", true), ("b.tokens", false), (".c.tokens.tmp-7-00ff", true), ("mine.txt", true)]
        {
            let file = File::create(folder.path().join(name)).unwrap();
            if aged {
                file.set_times(FileTimes::new().set_modified(old)).unwrap();
            }
        }
        let found = cache.prune(MAX_UNUSED);
        assert_eq!((found.files, found.removed), (1, 2));
        assert!(folder.path().join("b.tokens").exists() && folder.path().join("mine.txt").exists());
        assert_eq!(cache.prune(Duration::ZERO).removed, 1);
    }
}
