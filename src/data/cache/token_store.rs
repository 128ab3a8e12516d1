//! Stores the token ids of many sequences in memory or in a memory-mapped file.
//!
//! A file is `header | words | entries | facts | SHA-256`. A word is a token id with its mark in the highest bit. The
//! header contains the key that the file was made for and the size of each part. The final hash covers everything
//! except the words; each entry contains a hash of its own words, which is checked whenever they are read. A file that
//! is truncated, damaged or belongs to another key is therefore detected before any of its tokens is used. Files are
//! written under a temporary name and never changed afterwards.

use crate::data::chat::NoteCounts;
use crate::data::source::ReadCounts;
use crate::error::{Error, Result};
use crate::fsutil::hex;
use memmap2::{Mmap, UncheckedAdvice};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};

pub(super) const MAGIC: &[u8; 8] = b"FTTOKEN1";
/// Bytes of the header: magic, key, number of words, number of entries, bytes of facts.
pub(super) const HEADER: usize = 8 + 32 + 3 * 8;
pub(super) const MARK_BIT: u32 = 1 << 31;

/// Offset in words; hash; value (bits of an f64); length in the low and number of marked tokens in the high 32 bits;
/// line.
pub(super) type SequenceEntry = [u64; 5];

/// A stored sequence: token ids, and which of them are marked as trained on or judged.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkedSequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether each token is marked.
    pub marked: Vec<bool>,
}

/// Counts and notes on the rows that the tokens were made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowFacts {
    /// Number of rows and blank lines that were read.
    pub passage: ReadCounts,
    /// Number of answers that were encoded apart from their prompt.
    pub split_boundaries: usize,
    /// Their lines are counted from the beginning of the segment.
    pub notes: NoteCounts,
}

/// Properties of a sequence, without its tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceInfo {
    /// Number of tokens.
    pub length: usize,
    /// Number of marked tokens.
    pub marked: usize,
    /// Line in the segment, from 1.
    pub line: usize,
    /// Number stored with the item: a margin or a label.
    pub value: f64,
    /// Hash of ids and marks.
    pub hash: u64,
}

/// Stored sequences with random access.
#[derive(Debug)]
pub struct TokenStore {
    pub(super) backing: TokenBacking,
    /// Counts and notes on the rows.
    pub facts: RowFacts,
}

#[derive(Debug)]
pub(super) enum TokenBacking {
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

pub(super) fn entries_at(words: usize) -> usize {
    (HEADER + words * 4).next_multiple_of(8)
}

pub(super) fn hash_of(words: &[u32]) -> u64 {
    let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(words));
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// Returns the file name for a key.
pub fn file_name(key: &[u8; 32]) -> String {
    format!("{}.tokens", hex(&key[..16]))
}
