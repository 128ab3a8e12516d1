//! Finds equal items: duplicates in a data set, and training items in the validation split.

use crate::data::dataset::{Dataset, DatasetItem, PromptRow, PromptSet};
use serde::Serialize;
use std::hash::{Hash, Hasher};

/// Duplicate items: those with exactly the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Number of different items that occur more than once.
    pub groups: usize,
    /// Number of items that could be removed so that each occurs once.
    pub superfluous: usize,
    /// The first groups of equal items, each with the places (`file:line`) of its first members.
    pub first: Vec<Vec<String>>,
}

/// Maximum number of groups, and of members per group, whose places are listed.
const MAX_NAMED_GROUPS: usize = 100;
const MEMBERS: usize = 5;

/// Items that can be compared by their hashes.
pub trait HashedItems {
    /// Returns a hash of each item; equal items have equal hashes.
    fn hashes(&self) -> Vec<u64>;
    /// Returns the place of item `i` as `file:line`.
    fn location_of(&self, i: usize) -> String;
}

impl<T: DatasetItem> HashedItems for Dataset<T> {
    fn hashes(&self) -> Vec<u64> {
        Dataset::hashes(self)
    }
    fn location_of(&self, i: usize) -> String {
        let (path, line) = self.location(i);
        format!("{}:{line}", path.display())
    }
}

impl HashedItems for PromptSet {
    fn hashes(&self) -> Vec<u64> {
        let hash = |row: &PromptRow| {
            let mut hash = std::hash::DefaultHasher::new();
            row.ids.hash(&mut hash);
            hash.finish()
        };
        self.rows.iter().map(hash).collect()
    }
    fn location_of(&self, i: usize) -> String {
        self.rows[i].place().to_string()
    }
}

/// Finds equal items. Needs a few bytes of memory per item.
pub fn find_duplicates(items: &impl HashedItems) -> Duplicates {
    let mut order: Vec<(u64, u32)> = items.hashes().into_iter().zip(0..).collect();
    order.sort_unstable();
    let mut groups: Vec<&[(u64, u32)]> = order.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1).collect();
    groups.sort_unstable_by_key(|group| group[0].1);
    let names =
        |group: &&[(u64, u32)]| group.iter().take(MEMBERS).map(|(_, i)| items.location_of(*i as usize)).collect();
    Duplicates {
        groups: groups.len(),
        superfluous: groups.iter().map(|group| group.len() - 1).sum(),
        first: groups.iter().take(MAX_NAMED_GROUPS).map(names).collect(),
    }
}

/// Validation items that are also training items. Their loss measures memorisation, not generalisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitOverlap {
    /// Number of such validation items.
    pub rows: usize,
    /// The places of the first ones as `file:line`: (training, validation).
    pub first: Vec<(String, String)>,
}

/// Finds the items of `valid` that are also in `train`.
pub fn find_overlap(train: &impl HashedItems, valid: &impl HashedItems) -> SplitOverlap {
    let mut known: Vec<(u64, u32)> = train.hashes().into_iter().zip(0..).collect();
    known.sort_unstable();
    let mut found = SplitOverlap { rows: 0, first: Vec::new() };
    for (i, hash) in valid.hashes().into_iter().enumerate() {
        let at = known.partition_point(|(h, _)| *h < hash);
        if let Some((_, same)) = known.get(at).filter(|(h, _)| *h == hash) {
            found.rows += 1;
            if found.first.len() < MAX_NAMED_GROUPS {
                found.first.push((train.location_of(*same as usize), valid.location_of(i)));
            }
        }
    }
    found
}
