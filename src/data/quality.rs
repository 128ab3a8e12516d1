//! Shows the quality of a data set before a run: lengths, duplicates, overlap of splits, and examples with their mask.

use super::dataset::Dataset;
use super::example::Example;
use super::items::DatasetItem;
use super::tokenizer::ChatTokenizer;
use crate::characters::printable;
use crate::error::Result;
use crate::report;
use console::Style;
use serde::Serialize;

/// Draws a histogram of lengths in tokens, one line per bin; bins above `max_len` are marked.
pub fn histogram(lengths: &[u32], max_len: Option<usize>) -> String {
    let Some(longest) = lengths.iter().max().map(|n| *n as usize) else { return String::new() };
    // About ten bins of a round width.
    let mut width = 1;
    for round in (0..).flat_map(|power| [1, 2, 5].map(|d| d * 10_usize.pow(power))) {
        width = round;
        if longest / round < 10 {
            break;
        }
    }
    let mut bins = vec![0usize; longest / width + 1];
    for n in lengths {
        bins[*n as usize / width] += 1;
    }
    let most = bins.iter().copied().max().unwrap_or(1).max(1);
    let lines = bins.iter().enumerate().map(|(i, n)| {
        let bar = "█".repeat((n * 40).div_ceil(most));
        let over = if max_len.is_some_and(|max| (i + 1) * width - 1 > max) { "  above max_len" } else { "" };
        let over = if *n > 0 { over } else { "" };
        format!("{:>7}–{:<7} {:>8}  {bar}{over}", i * width, (i + 1) * width - 1, report::count(*n as u64))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Duplicate items: those with exactly the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Number of different items that occur more than once, and number of items that could be removed.
    pub groups: usize,
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

/// Returns the example as text, with the tokens that are trained on in green, or between « and » without colour. In
/// colour, spaces next to a boundary are shown as `·`, because it matters on which side they are.
pub fn preview(example: &Example, tokenizer: &ChatTokenizer, colour: bool) -> Result<String> {
    let (learnt, given) = (Style::new().green().force_styling(true), Style::new().dim().force_styling(true));
    let mut out = String::new();
    let (mut from, mut before) = (0, String::new());
    while from < example.ids.len() {
        let on = example.supervised[from];
        let to = (from..example.ids.len()).find(|t| example.supervised[*t] != on).unwrap_or(example.ids.len());
        // A decoder may drop the space at the beginning of a text, so a piece is what it adds to the text decoded
        // before it.
        let until = tokenizer.decode(&example.ids[..to], false)?;
        let text = match until.strip_prefix(&before) {
            Some(text) => text.to_string(),
            // The boundary is inside a character.
            None => tokenizer.decode(&example.ids[from..to], false)?,
        };
        let text = if colour { printable(&text) } else { text };
        match (colour, on) {
            (true, true) => out.push_str(&learnt.apply_to(edges(&text, from > 0, to < example.ids.len())).to_string()),
            (true, false) => out.push_str(&given.apply_to(edges(&text, from > 0, to < example.ids.len())).to_string()),
            (false, true) => out.push_str(&format!("«{text}»")),
            (false, false) => out.push_str(&text),
        }
        (from, before) = (to, until);
    }
    Ok(out)
}

/// Returns the text with the spaces at its beginning and end as `·`, at those of the two that are boundaries.
fn edges(text: &str, begin: bool, end: bool) -> String {
    let (first, last) = (text.len() - text.trim_start_matches(' ').len(), text.trim_end_matches(' ').len());
    let (first, last) = (if begin { first } else { 0 }, if end { last } else { text.len() });
    if first >= last {
        return "·".repeat(text.len());
    }
    format!("{}{}{}", "·".repeat(first), &text[first..last], "·".repeat(text.len() - last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_everything() {
        let lengths: Vec<u32> = (1..=95).collect();
        let text = histogram(&lengths, Some(80));
        assert_eq!(text.lines().count(), 10, "{text}");
        assert_eq!(text.lines().filter(|l| l.ends_with("above max_len")).count(), 2, "{text}");
        assert!(text.lines().next().is_some_and(|l| l.contains(" 9  █")), "{text}");
        assert_eq!(histogram(&[], None), "");
    }
}
