//! Measures the similarity of two texts as the share of character runs (shingles) that they have in common.
//!
//! Case, spaces and punctuation are ignored: answers that differ in nothing else have similarity 1.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Number of characters in a run.
const RUN: usize = 4;

/// The set of a text's character runs, as sorted hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shingles(Vec<u64>);

impl Shingles {
    /// Computes the runs of a text.
    pub fn of(text: &str) -> Self {
        let mut letters = Vec::new();
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            letters.extend(word.chars().flat_map(char::to_lowercase));
            letters.push(' ');
        }
        let hash = |run: &[char]| {
            let mut hash = DefaultHasher::new();
            run.hash(&mut hash);
            hash.finish()
        };
        let mut runs: Vec<u64> = match letters.len() {
            0 => Vec::new(),
            n if n < RUN => vec![hash(&letters)],
            _ => letters.windows(RUN).map(hash).collect(),
        };
        runs.sort_unstable();
        runs.dedup();
        Self(runs)
    }

    /// Returns the Jaccard index: runs in both texts over runs in either, from 0 to 1. Two texts without letters have
    /// 1.
    pub fn similarity(&self, other: &Self) -> f64 {
        let (a, b) = (&self.0, &other.0);
        let (mut i, mut j, mut both) = (0, 0, 0);
        while i < a.len() && j < b.len() {
            match a[i].cmp(&b[j]) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
            }
        }
        let either = a.len() + b.len() - both;
        if either == 0 { 1.0 } else { both as f64 / either as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_is_of_letters() {
        let alike = |a: &str, b: &str| Shingles::of(a).similarity(&Shingles::of(b));
        assert_eq!(alike("Take a seat, please.", "take a SEAT   please"), 1.0);
        assert_eq!(alike("", " ."), 1.0);
        assert_eq!(alike("yes", ""), 0.0);
        assert!(alike("The office opens at nine on Monday.", "The office opens at nine on Mondays.") > 0.9);
        assert!(alike("The office opens at nine.", "Call us tomorrow, we are closed.") < 0.1);
        // abcd, bcde, cde_ and abcd, bcdx, cdx_
        assert!((alike("abcde", "abcdx") - 1.0 / 5.0).abs() < 1e-12);
    }
}
