//! Builds the parts of a data set from files. The tokens of each segment come from the cache, or its rows are read,
//! tokenised by several threads and stored.
//!
//! Invariant: one chunk of rows is in memory at a time, and the stored tokens depend only on the segment's bytes and on
//! the settings in its cache key.

use super::item::DatasetItem;
use super::summary::FileSummary;
use crate::data::cache::{self, RowFacts, TokenCache, TokenStore, TokenWriter, file_name};
use crate::data::chat::ChatTokenizer;
use crate::data::encode::Supervise;
use crate::data::rows::{RowReader, SourceSpec};
use crate::data::source::{self, FileSegment, RowPlace};
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::report::{self, Progress};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the encoding; increased whenever the same row and settings would give other ids or another mask.
const ENCODING_VERSION: u32 = 2;
/// The tokens of files of at least this many bytes go to a temporary file instead of memory if they are not cached.
const SCRATCH_BYTES: u64 = 256 << 20;

/// The items of one segment of a file.
#[derive(Debug)]
pub(super) struct DatasetPart {
    /// The stored tokens of the items.
    pub tokens: TokenStore,
    /// The file.
    pub path: Arc<PathBuf>,
    /// Number of lines of the file before the segment.
    pub lines_before: usize,
    /// Number of items in all parts before this one, and in this one.
    pub first_item: usize,
    /// Number of items in this part.
    pub items: usize,
}

/// Builds the parts of a data set, file by file.
pub(super) struct DatasetBuilder<'a, T> {
    tokenizer: &'a ChatTokenizer,
    supervise: Supervise,
    cache: &'a TokenCache,
    /// Everything that ids and masks depend on, apart from the rows; part of the cache key.
    identity: String,
    parts: Vec<DatasetPart>,
    files: Vec<FileSummary>,
    items: usize,
    kind: PhantomData<fn() -> T>,
}

impl<'a, T: DatasetItem> DatasetBuilder<'a, T> {
    /// Prepares to tokenise sources; computes what cache keys depend on.
    pub fn new(tokenizer: &'a ChatTokenizer, supervise: Supervise, cache: &'a TokenCache) -> Result<Self> {
        let version = env!("CARGO_PKG_VERSION");
        let identity =
            format!("{version} {ENCODING_VERSION} {:?} {supervise:?} {}", T::PURPOSE, tokenizer.fingerprint()?);
        let (parts, files) = (Vec::new(), Vec::new());
        Ok(Self { tokenizer, supervise, cache, identity, parts, files, items: 0, kind: PhantomData })
    }

    /// Adds the files of a source. Returns the number of items they make.
    pub fn add_source(&mut self, source: &SourceSpec) -> Result<usize> {
        let before = self.items;
        let mut left = source.rows.unwrap_or(usize::MAX);
        for path in source::files(&source.path)? {
            if left > 0 {
                left -= self.file(path, source, left)?;
            }
        }
        Ok(self.items - before)
    }

    /// Returns the parts and a summary of each file. Removes old cache files if rows were tokenised.
    pub fn finish(self) -> (Vec<DatasetPart>, Vec<FileSummary>) {
        if self.files.iter().any(|f| f.tokenised_rows > 0) {
            self.cache.prune_unused();
        }
        (self.parts, self.files)
    }

    /// Adds at most `limit` rows of a file. Returns the number of rows added.
    fn file(&mut self, path: PathBuf, source: &SourceSpec, limit: usize) -> Result<usize> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let reading = RowReader::of(&path, source, T::PURPOSE)?;
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        let looking = report::bar(bytes, &format!("{name}: bytes hashed"));
        let layout = self.cache.layout(&path, |n| looking.inc(n));
        looking.finish_and_clear();
        let layout = layout?;
        let bar = match layout.lines().map(|lines| lines.min(limit)).or(source.rows.map(|_| limit)) {
            Some(rows) => report::bar(rows as u64, &format!("{name}: rows")),
            None => report::spinner(&format!("{name}: rows")),
        };
        let (folder, path) = (self.cache.folder_for(layout.bytes), Arc::new(path));
        let mut summary = FileSummary {
            path: path.to_path_buf(),
            sha256: layout.sha256.clone(),
            format: reading.format,
            rows: 0,
            blank_lines: 0,
            unused_columns: reading.unused.clone(),
            tokenised_rows: 0,
        };
        for segment in &layout.segments {
            let left = limit - summary.rows;
            if left == 0 {
                break;
            }
            let job =
                SegmentJob { maker: self, path: &path, kind: layout.kind, segment, reading: &reading, left, bar: &bar };
            let key = job.key();
            let found = folder.as_ref().and_then(|folder| cache::find_tokens(folder, &key));
            let rows = if let Some(found) = &found { found.facts.passage.rows } else { 0 };
            bar.inc(rows as u64);
            let made = found.is_none();
            let tokens = match found {
                Some(tokens) => tokens,
                None => job.make(folder.as_deref(), layout.bytes, &key).inspect_err(|_| bar.finish_and_clear())?,
            };
            let passage = tokens.facts.passage;
            summary.rows += passage.rows;
            summary.blank_lines += passage.blank;
            summary.tokenised_rows += if made { passage.rows } else { 0 };
            let items = tokens.len() / T::SEQUENCES;
            self.parts.push(DatasetPart {
                tokens,
                path: path.clone(),
                lines_before: segment.before,
                first_item: self.items,
                items,
            });
            self.items += items;
        }
        bar.finish_and_clear();
        if self.items > u32::MAX as usize {
            return Err(Error::user(format!("{}: more than 4,294,967,295 examples in all", path.display())));
        }
        let rows = summary.rows;
        if rows == 0 {
            return Err(source::no_rows_error(&path));
        }
        self.files.push(summary);
        Ok(rows)
    }
}

/// The work of tokenising one segment.
struct SegmentJob<'a, T> {
    maker: &'a DatasetBuilder<'a, T>,
    path: &'a Path,
    kind: source::FileKind,
    segment: &'a FileSegment,
    reading: &'a RowReader,
    /// Number of rows that may still be read.
    left: usize,
    bar: &'a Progress,
}

impl<T: DatasetItem> SegmentJob<'_, T> {
    /// Returns the cache key: a hash of everything that the tokens depend on.
    fn key(&self) -> [u8; 32] {
        let rows = match self.segment.lines {
            Some(lines) if lines <= self.left => usize::MAX,
            _ => self.left,
        };
        let parts = [
            self.maker.identity.clone(),
            format!("{:?} {}", self.kind, self.reading.format.name()),
            self.reading.renaming(),
            self.segment.sha256.clone(),
            rows.to_string(),
        ];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Reads the rows and stores the tokens of their items in `folder`, a temporary file or memory.
    fn make(&self, folder: Option<&Path>, bytes: u64, key: &[u8; 32]) -> Result<TokenStore> {
        let scratch = folder.is_none() && bytes >= SCRATCH_BYTES;
        let place = match folder {
            Some(folder) => Some(folder.join(file_name(key))),
            None => scratch.then(scratch_file),
        };
        let mut writer = TokenWriter::new(place.as_deref())?;
        let mut facts = RowFacts::default();
        let mut take = |chunk: Vec<source::RawRow>| -> Result<()> {
            let encode = |raw: source::RawRow| {
                let row = self.reading.row(raw, self.path)?;
                let made = T::encode(&row, self.path, self.maker.tokenizer, self.maker.supervise)?;
                self.bar.inc(1);
                Ok((row.line, made))
            };
            let encoded: Vec<Result<_>> = chunk.into_par_iter().map(encode).collect();
            for row in encoded {
                let (line, made) = row?;
                facts.split_boundaries += made.split_boundaries;
                facts.notes.add(&made.notes, line - self.segment.before);
                for item in made.examples {
                    let (sequences, _, value) = item.into_stored();
                    for sequence in &sequences {
                        let place = || RowPlace { path: self.path, line };
                        self.maker.tokenizer.check_embedded(&sequence.ids).context(place)?;
                        writer.push(sequence, line - self.segment.before, value)?;
                    }
                }
            }
            Ok(())
        };
        let passage = source::read(self.path, self.kind, self.segment, self.reading.wanted(), self.left, &mut take)?;
        facts.passage = passage;
        let tokens = writer.finish(facts, key)?;
        if let (true, Some(place)) = (scratch, place) {
            // The open memory map keeps the content available until it is dropped.
            let _ = std::fs::remove_file(place);
        }
        Ok(tokens)
    }
}

/// Returns a path for tokens that are not cached, in the system's temporary folder.
fn scratch_file() -> PathBuf {
    std::env::temp_dir().join(fsutil::temporary_name("ft.tokens"))
}
