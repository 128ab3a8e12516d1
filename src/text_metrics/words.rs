//! Splits texts into words, and counts n-grams.

use std::collections::HashMap;
use std::hash::Hash;

/// Returns true for the characters at which Python's `str.split()` splits: Unicode's white space, and four separators
/// of ASCII.
pub fn is_python_whitespace(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Splits at runs of white space, as Python's `str.split()` does.
pub fn split_whitespace(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_python_whitespace).filter(|word| !word.is_empty())
}

/// How often each n-gram occurs. The n-grams of one order, or of several.
pub type Counts<T> = HashMap<T, usize>;

/// Counts the n-grams of a list of words (or characters).
pub fn count_ngrams<T: Eq + Hash + Clone>(items: &[T], n: usize) -> Counts<Vec<T>> {
    let mut counts = Counts::new();
    if n > 0 {
        items.windows(n).for_each(|ngram| *counts.entry(ngram.to_vec()).or_insert(0) += 1);
    }
    counts
}

/// Returns how many items two counts have in common; an item that is repeated counts as often as both have it.
pub fn count_common<T: Eq + Hash>(a: &Counts<T>, b: &Counts<T>) -> usize {
    a.iter().map(|(item, n)| b.get(item).map_or(0, |m| *m.min(n))).sum()
}

/// Precision, recall and their harmonic mean, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FScore {
    /// The share of the answer that is in the reference.
    pub precision: f64,
    /// The share of the reference that is in the answer.
    pub recall: f64,
    /// Their harmonic mean; 0 if both are 0.
    pub f1: f64,
}

impl FScore {
    /// Computes the scores of `common` items, of which the answer has `answer` and the reference `reference`. An empty
    /// side gives 0.
    pub fn of(common: usize, answer: usize, reference: usize) -> Self {
        let share = |n: usize| if n == 0 { 0.0 } else { common as f64 / n as f64 };
        let f1 = if common == 0 { 0.0 } else { 2.0 * common as f64 / (answer + reference) as f64 };
        Self { precision: share(answer), recall: share(reference), f1 }
    }

    /// Computes the scores of the n-grams that two lists of words have in common.
    pub fn of_ngrams<T: Eq + Hash + Clone>(answer: &[T], reference: &[T], n: usize) -> Self {
        let (answer, reference) = (count_ngrams(answer, n), count_ngrams(reference, n));
        Self::of(count_common(&answer, &reference), answer.values().sum(), reference.values().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ngrams_in_common_count_as_often_as_both_have_them() {
        let counts = |text: &str, n| count_ngrams(&text.split(' ').map(String::from).collect::<Vec<_>>(), n);
        assert_eq!(count_common(&counts("a b a b a", 2), &counts("a b b a", 2)), 2);
        assert_eq!(count_common(&counts("a a a", 1), &counts("a a", 1)), 2);
        assert!(counts("a", 2).is_empty() && counts("a", 0).is_empty());
        assert_eq!(split_whitespace(" a\u{1c}b\u{a0}\n c ").collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn an_empty_side_scores_zero() {
        assert_eq!(FScore::of(0, 0, 3), FScore::default());
        assert_eq!(FScore::of(1, 2, 1), FScore { precision: 0.5, recall: 1.0, f1: 2.0 / 3.0 });
    }
}
