//! ROUGE-1, -2, -L and -Lsum (Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries), as the package
//! `rouge-score` computes them without stemming.
//!
//! Words are lower-cased runs of a to z and 0 to 9; text in other scripts has none and scores 0, as in that package.

use super::words::{Counts, FScore, count_ngrams};
use std::collections::BTreeSet;

/// Which ROUGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rouge {
    /// Overlap of n-grams of words.
    Ngrams(usize),
    /// The longest common subsequence of words, over the whole text.
    Longest,
    /// For each line of the reference, the union of its longest common subsequences with the lines of the answer.
    LongestBySentence,
}

impl Rouge {
    /// Scores an answer against one reference.
    pub fn score(self, answer: &str, reference: &str) -> FScore {
        match self {
            Self::Ngrams(n) => FScore::of_ngrams(&words(answer), &words(reference), n),
            Self::Longest => longest_score(&words(answer), &words(reference)),
            Self::LongestBySentence => sentence_score(&sentences(answer), &sentences(reference)),
        }
    }

    /// Scores an answer against the reference with which its F1 is largest. Zeros if there are no references.
    pub fn best(self, answer: &str, references: &[impl AsRef<str>]) -> FScore {
        let scores = references.iter().map(|reference| self.score(answer, reference.as_ref()));
        scores.fold(FScore::default(), |best, score| if score.f1 > best.f1 { score } else { best })
    }
}

/// Splits into ROUGE's words.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let parts = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    parts.filter(|word| !word.is_empty()).map(String::from).collect()
}

/// Splits into lines that are not empty, and these into words.
fn sentences(text: &str) -> Vec<Vec<String>> {
    text.split('\n').filter(|line| !line.is_empty()).map(words).collect()
}

/// Returns the table of lengths of longest common subsequences: entry (i, j), in a row of `b.len() + 1`, is that of the
/// first i items of `a` and the first j of `b`.
fn lengths(a: &[String], b: &[String]) -> Vec<u32> {
    let width = b.len() + 1;
    let mut table = vec![0; (a.len() + 1) * width];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            table[i * width + j] = match a[i - 1] == b[j - 1] {
                true => table[(i - 1) * width + j - 1] + 1,
                false => table[(i - 1) * width + j].max(table[i * width + j - 1]),
            };
        }
    }
    table
}

fn longest_score(answer: &[String], reference: &[String]) -> FScore {
    let common = lengths(reference, answer).last().copied().unwrap_or(0) as usize;
    FScore::of(common, answer.len(), reference.len())
}

/// Returns the places in `reference` of one longest common subsequence with `answer`.
fn longest_places(reference: &[String], answer: &[String]) -> Vec<usize> {
    let (table, width) = (lengths(reference, answer), answer.len() + 1);
    let (mut i, mut j, mut places) = (reference.len(), answer.len(), Vec::new());
    while i > 0 && j > 0 {
        if reference[i - 1] == answer[j - 1] {
            places.push(i - 1);
            (i, j) = (i - 1, j - 1);
        } else if table[i * width + j - 1] > table[(i - 1) * width + j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places
}

/// Counts the words that any line of the answer shares with a line of the reference, each at most as often as both
/// texts have it (Lin 2004, section 3.2).
fn sentence_score(answer: &[Vec<String>], reference: &[Vec<String>]) -> FScore {
    let count = |lines: &[Vec<String>]| -> Counts<Vec<String>> { count_ngrams(&lines.concat(), 1) };
    let (mut in_answer, mut in_reference) = (count(answer), count(reference));
    let totals = [answer, reference].map(|lines| lines.iter().map(Vec::len).sum::<usize>());
    let mut common = 0;
    for line in reference {
        let union: BTreeSet<usize> = answer.iter().flat_map(|other| longest_places(line, other)).collect();
        for place in union {
            let word = std::slice::from_ref(&line[place]);
            if let (Some(a @ 1..), Some(b @ 1..)) = (in_answer.get_mut(word), in_reference.get_mut(word)) {
                (*a, *b) = (*a - 1, *b - 1);
                common += 1;
            }
        }
    }
    FScore::of(common, totals[0], totals[1])
}
