//! Stores the token ids of many sequences in memory or in a memory-mapped file.
//!
//! A file is `header | words | entries | facts | SHA-256`. A word is a token id with its mark in the highest bit. The
//! header contains the key that the file was made for and the size of each part. The final hash covers everything
//! except the words; each entry contains a hash of its own words, which is checked whenever they are read. A file that
//! is truncated, damaged or belongs to another key is therefore detected before any of its tokens is used. Files are
//! written under a temporary name and never changed afterwards.

use super::items::MarkedSequence;
use super::notes::NoteCounts;
use super::source::ReadCounts;
use crate::error::{Error, Result};
use crate::fsutil::{self, hex, io_error};
use memmap2::{Mmap, UncheckedAdvice};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"FTTOKEN1";
/// Bytes of the header: magic, key, number of words, number of entries, bytes of facts.
const HEADER: usize = 8 + 32 + 3 * 8;
const MARK_BIT: u32 = 1 << 31;

/// Offset in words; hash; value (bits of an f64); length in the low and number of marked tokens in the high 32 bits;
/// line.
type SequenceEntry = [u64; 5];

/// Counts and notes on the rows that the tokens were made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowFacts {
    pub passage: ReadCounts,
    pub split_boundaries: usize,
    /// Their lines are counted from the beginning of the segment.
    pub notes: NoteCounts,
}

/// Properties of a sequence, without its tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceInfo {
    pub length: usize,
    pub marked: usize,
    /// Line in the segment, from 1.
    pub line: usize,
    pub value: f64,
    /// Hash of ids and marks.
    pub hash: u64,
}

/// Stored sequences with random access.
#[derive(Debug)]
pub struct TokenStore {
    backing: TokenBacking,
    pub facts: RowFacts,
}

#[derive(Debug)]
enum TokenBacking {
    Memory { words: Vec<u32>, entries: Vec<SequenceEntry> },
    Mapped { map: Mmap, path: PathBuf, words: usize, entries: usize },
}

impl TokenStore {
    /// Returns the number of sequences.
    pub fn len(&self) -> usize {
        match &self.backing {
            TokenBacking::Memory { entries, .. } => entries.len(),
            TokenBacking::Mapped { entries, .. } => *entries,
        }
    }

    fn words(&self) -> &[u32] {
        match &self.backing {
            TokenBacking::Memory { words, .. } => words,
            TokenBacking::Mapped { map, words, .. } => bytemuck::cast_slice(&map[HEADER..HEADER + words * 4]),
        }
    }

    fn entries(&self) -> &[SequenceEntry] {
        match &self.backing {
            TokenBacking::Memory { entries, .. } => entries,
            TokenBacking::Mapped { map, words, entries, .. } => {
                let start = entries_at(*words);
                bytemuck::cast_slice(&map[start..start + entries * size_of::<SequenceEntry>()])
            }
        }
    }

    /// Returns the properties of sequence `i` without reading its tokens.
    pub fn shape(&self, i: usize) -> SequenceInfo {
        let [_, hash, value, lengths, line] = self.entries()[i];
        SequenceInfo {
            length: (lengths & u64::from(u32::MAX)) as usize,
            marked: (lengths >> 32) as usize,
            line: line as usize,
            value: f64::from_bits(value),
            hash,
        }
    }

    /// Reads sequence `i`. Fails if its tokens do not match their hash.
    pub fn get(&self, i: usize) -> Result<MarkedSequence> {
        let (offset, shape) = (self.entries()[i][0] as usize, self.shape(i));
        let words = self.words().get(offset..offset + shape.length).filter(|words| hash_of(words) == shape.hash);
        let Some(words) = words else {
            return Err(match &self.backing {
                TokenBacking::Mapped { path, .. } => {
                    Error::user(format!("{}: the file of token ids is damaged (sequence {i})", path.display()))
                        .hint("remove it: it will be made again from the rows")
                }
                TokenBacking::Memory { .. } => Error::bug(format!("sequence {i} is not what was stored")),
            });
        };
        Ok(MarkedSequence {
            ids: words.iter().map(|w| w & !MARK_BIT).collect(),
            marked: words.iter().map(|w| w & MARK_BIT != 0).collect(),
        })
    }

    /// Releases the memory pages that were read from a mapped file; the operating system may keep them in its file
    /// cache.
    pub fn release(&self) {
        if let TokenBacking::Mapped { map, .. } = &self.backing {
            // SAFETY: the file is never changed, so the pages have the same content when they are read again.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Opens a file that was made for `key`; `None` if it is missing, incomplete, damaged or was made for another key.
    pub fn open(path: &Path, key: &[u8; 32]) -> Option<Self> {
        let file = File::open(path).ok()?;
        let map = unsafe { Mmap::map(&file) }.ok()?;
        let header = map.get(..HEADER)?;
        if &header[..8] != MAGIC || header[8..40] != *key {
            return None;
        }
        let number = |at: usize| -> Option<usize> {
            usize::try_from(u64::from_le_bytes(header[at..at + 8].try_into().ok()?)).ok()
        };
        let (words, entries, facts) = (number(40)?, number(48)?, number(56)?);
        let start = HEADER.checked_add(words.checked_mul(4)?)?.checked_next_multiple_of(8)?;
        let end = start.checked_add(entries.checked_mul(size_of::<SequenceEntry>())?)?;
        let close = end.checked_add(facts)?;
        if close.checked_add(32)? != map.len() {
            return None;
        }
        let mut hash = Sha256::new_with_prefix(header);
        hash.update(&map[start..close]);
        if hash.finalize()[..] != map[close..] {
            return None;
        }
        let facts = serde_json::from_slice(&map[end..close]).ok()?;
        Some(Self { backing: TokenBacking::Mapped { map, path: path.to_path_buf(), words, entries }, facts })
    }
}

fn entries_at(words: usize) -> usize {
    (HEADER + words * 4).next_multiple_of(8)
}

fn hash_of(words: &[u32]) -> u64 {
    let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(words));
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// Stores sequences one after the other.
pub struct TokenWriter {
    /// `None`: the sequences stay in memory.
    file: Option<UnfinishedFile>,
    words: Vec<u32>,
    entries: Vec<SequenceEntry>,
    count: usize,
}

/// A file that is being written under a temporary name; that name is removed unless the file is finished.
struct UnfinishedFile {
    out: BufWriter<File>,
    temp: PathBuf,
    path: PathBuf,
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temp);
    }
}

impl TokenWriter {
    /// Stores the sequences in memory, or in a file that appears at `path` when it is finished.
    pub fn new(path: Option<&Path>) -> Result<Self> {
        let file = path.map(UnfinishedFile::new).transpose()?;
        Ok(Self { file, words: Vec::new(), entries: Vec::new(), count: 0 })
    }

    /// Adds a sequence of the row at `line` of the segment.
    pub fn push(&mut self, sequence: &MarkedSequence, line: usize, value: f64) -> Result<()> {
        let start = self.words.len();
        let word = |(id, marked): (&u32, &bool)| id | if *marked { MARK_BIT } else { 0 };
        self.words.extend(sequence.ids.iter().zip(&sequence.marked).map(word));
        let marked = sequence.marked.iter().filter(|m| **m).count() as u64;
        let lengths = sequence.ids.len() as u64 | marked << 32;
        let hash = hash_of(&self.words[start..]);
        self.entries.push([self.count as u64, hash, value.to_bits(), lengths, line as u64]);
        self.count += sequence.ids.len();
        if self.words.len() > 1 << 18 {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.out.write_all(bytemuck::cast_slice(&self.words)).map_err(|e| write_error(&file.path, e))?;
        self.words.clear();
        Ok(())
    }

    /// Finishes writing and returns the stored sequences; a file is completely on disk before this returns.
    pub fn finish(mut self, facts: RowFacts, key: &[u8; 32]) -> Result<TokenStore> {
        self.flush()?;
        let Some(mut file) = self.file.take() else {
            return Ok(TokenStore {
                backing: TokenBacking::Memory { words: self.words, entries: self.entries },
                facts,
            });
        };
        let text = serde_json::to_vec(&facts).map_err(|e| Error::bug(format!("facts of tokens: {e}")))?;
        file.finish(self.count, &self.entries, &text, key)?;
        TokenStore::open(&file.path, key).ok_or_else(|| {
            Error::user(format!("{}: the file was written, but is now missing or damaged", file.path.display()))
                .hint("does another program change that folder? Choose another folder with data.cache")
        })
    }
}

impl UnfinishedFile {
    fn new(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temp = path.with_file_name(fsutil::temporary_name(&name));
        let file = fsutil::create_new(&temp, fsutil::FileAccess::OwnerOnly).map_err(|e| write_error(&temp, e))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&[0; HEADER]).map_err(|e| write_error(&temp, e))?;
        Ok(Self { out, temp, path: path.to_path_buf() })
    }

    fn finish(&mut self, words: usize, entries: &[SequenceEntry], facts: &[u8], key: &[u8; 32]) -> Result<()> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(key);
        [words, entries.len(), facts.len()].iter().for_each(|n| header.extend((*n as u64).to_le_bytes()));
        let entries: &[u8] = bytemuck::cast_slice(entries);
        let mut hash = Sha256::new_with_prefix(&header);
        hash.update(entries);
        hash.update(facts);
        let padding = entries_at(words) - HEADER - words * 4;
        let write = || -> std::io::Result<()> {
            self.out.write_all(&[0; 8][..padding])?;
            self.out.write_all(entries)?;
            self.out.write_all(facts)?;
            self.out.write_all(&hash.finalize())?;
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&header)?;
            self.out.flush()?;
            self.out.get_ref().sync_all()?;
            std::fs::rename(&self.temp, &self.path)
        };
        write().map_err(|e| write_error(&self.path, e))
    }
}

fn write_error(path: &Path, e: std::io::Error) -> Error {
    let storage = e.kind() == std::io::ErrorKind::StorageFull;
    let error = io_error("writing", path, e);
    if storage { error.hint("token ids are cached in this folder; set data.cache to another one") } else { error }
}

/// Returns the file name for a key.
pub fn file_name(key: &[u8; 32]) -> String {
    format!("{}.tokens", hex(&key[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32]) -> MarkedSequence {
        MarkedSequence { ids: ids.to_vec(), marked: ids.iter().map(|id| id % 3 == 0).collect() }
    }

    fn write(path: Option<&Path>, key: &[u8; 32]) -> TokenStore {
        let mut writer = TokenWriter::new(path).unwrap();
        for i in 0..100u32 {
            writer.push(&sequence(&(0..i * 71 % 50).collect::<Vec<_>>()), i as usize, f64::from(i)).unwrap();
        }
        let passage = ReadCounts { rows: 100, blank: 3 };
        writer.finish(RowFacts { passage, split_boundaries: 4, notes: NoteCounts::default() }, key).unwrap()
    }

    #[test]
    fn a_mapped_file_reads_as_memory_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        let (memory, mapped) = (write(None, &[1; 32]), write(Some(&path), &[1; 32]));
        assert_eq!(mapped.len(), 100);
        assert_eq!(mapped.facts, memory.facts);
        for i in 0..100 {
            assert_eq!((mapped.get(i).unwrap(), mapped.shape(i)), (memory.get(i).unwrap(), memory.shape(i)));
            assert_eq!(mapped.get(i).unwrap(), sequence(&(0..i as u32 * 71 % 50).collect::<Vec<_>>()));
            assert_eq!(mapped.shape(i).value, i as f64);
        }
        mapped.release();
        assert_eq!(mapped.get(7).unwrap(), memory.get(7).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_not_the_whole_file_of_the_key_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        drop(write(Some(&path), &[1; 32]));
        let good = std::fs::read(&path).unwrap();
        assert!(TokenStore::open(&path, &[2; 32]).is_none(), "another key");
        assert!(TokenStore::open(&folder.path().join("absent"), &[1; 32]).is_none());
        for length in (0..good.len()).step_by(97).chain([good.len() - 1]) {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(TokenStore::open(&path, &[1; 32]).is_none(), "cut to {length}");
        }
        std::fs::write(&path, [good.as_slice(), b"x"].concat()).unwrap();
        assert!(TokenStore::open(&path, &[1; 32]).is_none(), "longer");
        // A flipped bit: outside the words, opening the file must fail; inside them, reading the sequence must fail.
        let words: usize = (0..100usize).map(|i| i * 71 % 50).sum();
        let padding = HEADER + words * 4..entries_at(words);
        for at in (0..good.len()).step_by(53).filter(|at| !padding.contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            let found = TokenStore::open(&path, &[1; 32]).is_none_or(|t| (0..100).any(|i| t.get(i).is_err()));
            assert!(found, "byte {at}");
        }
    }
}
