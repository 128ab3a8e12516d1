//! Tokenised data sets with random access, whatever their size.
//!
//! Files are read in segments and tokenised by several threads. The tokens are stored in memory or in memory-mapped
//! files. Items over the maximum length are dropped or cut by views on the stored tokens, without copying them.
//!
//! Invariant: the summary counts every item that is dropped, truncated or split. Per item only a few bytes are always
//! in memory, not its tokens.

use super::builder::{DatasetBuilder, DatasetPart};
use super::item::DatasetItem;
use super::options::{EncodeOptions, Overflow};
use super::shares::source_mix;
use super::summary::{DatasetSummary, LengthQuantiles, add_notes, summarise_files};
use crate::data::batch::SourceMix;
use crate::data::cache::{MarkedSequence, TokenCache};
use crate::data::chat::ChatTokenizer;
use crate::data::encode::Example;
use crate::data::rows::{RowFormat, SourceList, SourceSpec};
use crate::error::{Error, Result};
use crate::fsutil::hex;
use sha2::{Digest, Sha256};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// After reading this many tokens from memory-mapped files, their pages are released.
const MAX_RESIDENT_WORDS: usize = 64 << 20;

/// The items of some sources, and a summary of how they were read.
#[derive(Debug, Clone)]
pub struct Dataset<T = Example> {
    parts: Arc<Vec<DatasetPart>>,
    /// The item and its first token, for each view; `None` if every item is used whole.
    views: Option<Vec<(u32, u32)>>,
    /// Number of tokens of each item when packed (of a pair: of both sequences together).
    lengths: Vec<u32>,
    max_len: usize,
    mix: SourceMix,
    read: Arc<AtomicUsize>,
    /// How the sources were read and tokenised.
    pub summary: DatasetSummary,
    kind: PhantomData<fn() -> T>,
}

/// Loads the examples of a file into memory, without a cache.
pub fn load(
    path: &Path,
    format: RowFormat,
    rows: Option<usize>,
    tokenizer: &ChatTokenizer,
    options: &EncodeOptions,
) -> Result<Dataset> {
    let source = SourceSpec { rows, ..SourceSpec::file(path, format) };
    Dataset::open(&SourceList(vec![source]), tokenizer, options, &TokenCache::off())
}

impl<T: DatasetItem> Dataset<T> {
    /// Reads all sources; token ids come from the cache if it has them.
    ///
    /// Errors: a row that cannot be read or tokenised (with file and line), too many items over the maximum length, a
    /// source with a weight of which no item is left.
    pub fn open(
        sources: &SourceList,
        tokenizer: &ChatTokenizer,
        options: &EncodeOptions,
        cache: &TokenCache,
    ) -> Result<Self> {
        let began = Instant::now();
        let mut maker = DatasetBuilder::<T>::new(tokenizer, options.supervise, cache)?;
        let counts = sources.0.iter().map(|source| maker.add_source(source)).collect::<Result<Vec<_>>>()?;
        let (parts, files) = maker.finish();
        let split_boundaries = parts.iter().map(|p| p.tokens.facts.split_boundaries).sum();
        let mut notes = Vec::new();
        parts.iter().for_each(|p| add_notes(&p.tokens.facts.notes, &p.path, p.lines_before, &mut notes));
        let mut dataset = Self {
            parts: Arc::new(parts),
            views: None,
            lengths: Vec::new(),
            max_len: options.max_len,
            mix: SourceMix::unweighted(0),
            read: Arc::default(),
            summary: DatasetSummary {
                split_boundaries,
                notes,
                ..summarise_files(files, began.elapsed().as_secs_f64())
            },
            kind: PhantomData,
        };
        dataset.apply_overflow_policy(options)?;
        dataset.count_tokens()?;
        dataset.set_mix(sources, &counts)?;
        let hashes: Vec<u8> = dataset.hashes().into_iter().flat_map(u64::to_le_bytes).collect();
        dataset.summary.tokens_sha256 = hex(&Sha256::digest(hashes));
        dataset.parts.iter().for_each(|p| p.tokens.release());
        Ok(dataset)
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Returns true if there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of tokens of each item when packed (of a pair: of both sequences together).
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Returns how often each source occurs in an epoch.
    pub fn mix(&self) -> SourceMix {
        self.mix.clone()
    }

    /// Reads item `i`. Fails if the file of its tokens is damaged.
    pub fn get(&self, i: usize) -> Result<T> {
        let (item, from) = self.view(i);
        let (part, at) = self.part_of(item);
        let sequences = (0..T::SEQUENCES).map(|k| part.tokens.get(at + k).map(|s| self.cut(s, from)));
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        let words: usize = sequences.iter().map(|s| s.ids.len()).sum();
        if self.read.fetch_add(words, Ordering::Relaxed) + words > MAX_RESIDENT_WORDS {
            self.read.store(0, Ordering::Relaxed);
            self.parts.iter().for_each(|p| p.tokens.release());
        }
        let shape = part.tokens.shape(at);
        Ok(T::from_stored(sequences, part.lines_before + shape.line, shape.value))
    }

    /// Reads all items in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<T>> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Reads all items into memory; for small sources and tests.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        self.iter().collect()
    }

    /// Returns the file and the line of item `i`.
    pub fn location(&self, i: usize) -> (&Path, usize) {
        let (part, at) = self.part_of(self.view(i).0);
        (&part.path, part.lines_before + part.tokens.shape(at).line)
    }

    /// Returns a hash of each item's tokens and marks; equal items have equal hashes.
    pub fn hashes(&self) -> Vec<u64> {
        let hash = |i: usize| {
            let (item, from) = self.view(i);
            let (part, at) = self.part_of(item);
            let one = |k: usize| part.tokens.shape(at + k).hash.rotate_left(k as u32);
            (0..T::SEQUENCES).fold(from as u64, |hash, k| hash.wrapping_mul(31) ^ one(k))
        };
        let hashes = (0..self.len()).map(hash).collect();
        self.parts.iter().for_each(|p| p.tokens.release());
        hashes
    }

    fn view(&self, i: usize) -> (usize, usize) {
        match &self.views {
            Some(views) => (views[i].0 as usize, views[i].1 as usize),
            None => (i, 0),
        }
    }

    /// Returns the part that contains an item, and the index of the item's first sequence in it.
    fn part_of(&self, item: usize) -> (&DatasetPart, usize) {
        let part = &self.parts[self.parts.partition_point(|p| p.first_item <= item) - 1];
        (part, (item - part.first_item) * T::SEQUENCES)
    }

    /// Returns the sequence from token `from` on, cut to the maximum length. If it begins in the middle, its first
    /// token loses its mark, because nothing precedes it that could predict it.
    fn cut(&self, mut sequence: MarkedSequence, from: usize) -> MarkedSequence {
        let end = sequence.ids.len().min(from.saturating_add(self.max_len));
        if from > 0 || end < sequence.ids.len() {
            sequence =
                MarkedSequence { ids: sequence.ids[from..end].into(), marked: sequence.marked[from..end].into() };
            if from > 0 {
                sequence.marked[0] = false;
            }
        }
        sequence
    }

    /// Returns the number of tokens of each item (of a pair: of its longer sequence), before any is cut.
    fn item_lengths(&self) -> Vec<u32> {
        let of_part = |part: &DatasetPart| {
            let side = |at: usize| part.tokens.shape(at).length as u32;
            let item = |k: usize| (k * T::SEQUENCES..(k + 1) * T::SEQUENCES).map(side).max().unwrap_or(0);
            (0..part.items).map(item).collect::<Vec<u32>>()
        };
        self.parts.iter().flat_map(of_part).collect()
    }

    /// Applies `on_overflow` to the items over `max_len`.
    fn apply_overflow_policy(&mut self, options: &EncodeOptions) -> Result<()> {
        let max = options.max_len;
        let longest: Vec<u32> = self.item_lengths();
        let too_long: Vec<u32> = (0..longest.len() as u32).filter(|i| longest[*i as usize] as usize > max).collect();
        if let Some(top) = (0..longest.len()).max_by_key(|i| (longest[*i], std::cmp::Reverse(*i))) {
            let (file, line) = self.location(top);
            (self.summary.longest_file, self.summary.longest_line) = (file.to_path_buf(), line);
        }
        self.summary.lengths = LengthQuantiles::of(&longest);
        self.summary.too_long = too_long.len();
        if too_long.is_empty() {
            return Ok(());
        }
        let share = too_long.len() as f64 / longest.len() as f64;
        if options.on_overflow == Overflow::Error && share > options.overflow_tolerance {
            return Err(self.overflow_error(&too_long, &longest, max));
        }
        if options.on_overflow == Overflow::Split && T::SEQUENCES > 1 {
            return Err(Error::user("data.on_overflow: split: a pair of answers cannot be split")
                .hint("use drop, truncate or error"));
        }
        let mut views = Vec::with_capacity(longest.len());
        for (item, length) in longest.iter().enumerate() {
            if *length as usize <= max {
                views.push((item as u32, 0));
                continue;
            }
            match options.on_overflow {
                Overflow::Error | Overflow::Drop => self.summary.dropped += 1,
                Overflow::Truncate if self.has_target(item, 0)? => {
                    views.push((item as u32, 0));
                    self.summary.truncated += 1;
                }
                Overflow::Truncate => self.summary.dropped += 1,
                Overflow::Split => {
                    let before = views.len();
                    for from in (0..*length as usize).step_by(max) {
                        if self.has_target(item, from)? {
                            views.push((item as u32, from as u32));
                        }
                    }
                    let any = views.len() > before;
                    self.summary.split += usize::from(any);
                    self.summary.dropped += usize::from(!any);
                }
            }
        }
        if views.is_empty() {
            return Err(Error::user(format!(
                "{}: every example is longer than batch.max_len {max}, so none is left",
                self.summary.name()
            ))
            .hint(format!("set batch.max_len to {} or more", self.summary.lengths.p50)));
        }
        self.views = Some(views);
        Ok(())
    }

    /// Returns true if the piece from token `from` on can be trained on: each of its sequences has a marked token, or
    /// had none before it was cut (a prompt).
    fn has_target(&self, item: usize, from: usize) -> Result<bool> {
        let (part, at) = self.part_of(item);
        for k in 0..T::SEQUENCES {
            let marked = part.tokens.shape(at + k).marked > 0;
            if marked && !self.cut(part.tokens.get(at + k)?, from).marked.contains(&true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn overflow_error(&self, too_long: &[u32], longest: &[u32], max: usize) -> Error {
        let several = self.summary.files.len() > 1;
        let spot = |item: &u32| {
            let (part, at) = self.part_of(*item as usize);
            let file = if several { format!("{}:", part.path.display()) } else { String::new() };
            let line = part.lines_before + part.tokens.shape(at).line;
            format!("{file}{line} ({} tokens)", longest[*item as usize])
        };
        let spots: Vec<String> = too_long.iter().take(5).map(spot).collect();
        Error::user(format!(
            "{}: {} of {} examples ({:.1} %) are longer than batch.max_len {max}: lines {}{}",
            self.summary.name(),
            too_long.len(),
            longest.len(),
            100.0 * too_long.len() as f64 / longest.len() as f64,
            spots.join(", "),
            if too_long.len() > spots.len() { ", …" } else { "" },
        ))
        .hint(format!(
            "set batch.max_len to {} to keep them all ({} for 99 %)",
            self.summary.lengths.max, self.summary.lengths.p99
        ))
        .hint("or choose what happens to them with data.on_overflow: drop, truncate or split")
    }

    /// Counts the tokens of the items that are left, after `on_overflow` was applied.
    fn count_tokens(&mut self) -> Result<()> {
        let n = match &self.views {
            Some(views) => views.len(),
            None => self.parts.iter().map(|p| p.items).sum(),
        };
        let (mut lengths, mut marked) = (Vec::with_capacity(n), 0);
        for i in 0..n {
            let (item, from) = self.view(i);
            let (part, at) = self.part_of(item);
            let mut length = 0;
            for k in at..at + T::SEQUENCES {
                let shape = part.tokens.shape(k);
                if from == 0 && shape.length <= self.max_len {
                    (length, marked) = (length + shape.length, marked + shape.marked);
                } else {
                    let cut = self.cut(part.tokens.get(k)?, from);
                    length += cut.ids.len();
                    marked += cut.marked.iter().filter(|m| **m).count();
                }
            }
            lengths.push(length as u32);
        }
        self.summary.examples = n;
        self.summary.tokens = lengths.iter().map(|n| *n as usize).sum();
        self.summary.supervised_tokens = marked;
        self.lengths = lengths;
        Ok(())
    }

    /// Sets how often each source occurs in an epoch. `counts` are items per source before `on_overflow` was applied.
    fn set_mix(&mut self, sources: &SourceList, counts: &[usize]) -> Result<()> {
        let ends = counts.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        let views = |end: usize| match &self.views {
            Some(views) => views.partition_point(|(item, _)| (*item as usize) < end),
            None => end,
        };
        let ends: Vec<usize> = ends.map(views).collect();
        let left: Vec<usize> = (0..ends.len()).map(|i| ends[i] - i.checked_sub(1).map_or(0, |i| ends[i])).collect();
        self.mix = source_mix(sources, left, self.len(), "example", &mut self.summary)?;
        Ok(())
    }
}
