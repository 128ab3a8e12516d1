//! Writes the token ids of sequences to memory or to a file, which appears when it is complete.

use super::token_store::{
    HEADER, MAGIC, MARK_BIT, MarkedSequence, RowFacts, SequenceEntry, TokenBacking, TokenStore, entries_at, hash_of,
};
use crate::error::{Error, Result};
use crate::fsutil::{self, io_error};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chat::NoteCounts;
    use crate::data::source::ReadCounts;

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
