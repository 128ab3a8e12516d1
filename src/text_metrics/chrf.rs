//! chrF (Popović 2015) and chrF++ (Popović 2017) as `sacrebleu` computes them: F-scores of n-grams of up to six characters,
//! and of up to two words, in which recall counts twice.

use super::words::{count_common, count_ngrams, split_whitespace};

/// The longest n-grams of characters.
const CHARACTER_ORDERS: usize = 6;
/// The square of beta = 2: how much recall counts.
const BETA_SQUARED: f64 = 4.0;

/// Which chrF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chrf {
    /// Characters only.
    Characters,
    /// Characters, words and pairs of words: chrF++.
    CharactersAndWords,
}

/// The n-grams of one order: of the answers, of the references, and in common.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Order {
    answer: usize,
    reference: usize,
    common: usize,
}

/// What chrF of a whole file is computed from: the sums over its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct ChrfCounts(Vec<Order>);

impl Chrf {
    fn word_orders(self) -> usize {
        match self {
            Self::Characters => 0,
            Self::CharactersAndWords => 2,
        }
    }

    /// Returns the counts of no answers.
    pub fn zero(self) -> ChrfCounts {
        ChrfCounts(vec![Order::default(); CHARACTER_ORDERS + self.word_orders()])
    }

    /// Counts one answer, against the reference with which it scores highest (the first of equals).
    pub fn count(self, answer: &str, references: &[impl AsRef<str>]) -> ChrfCounts {
        let mut best: Option<ChrfCounts> = None;
        for reference in references {
            let counts = self.count_one(answer, reference.as_ref());
            if best.as_ref().is_none_or(|best| counts.score() > best.score()) {
                best = Some(counts);
            }
        }
        best.unwrap_or_else(|| self.zero())
    }

    fn count_one(self, answer: &str, reference: &str) -> ChrfCounts {
        let characters =
            [answer, reference].map(|text| split_whitespace(text).flat_map(str::chars).collect::<Vec<_>>());
        let words = [answer, reference].map(words);
        let of_characters = (1..=CHARACTER_ORDERS).map(|n| Order::of(&characters, n));
        ChrfCounts(of_characters.chain((1..=self.word_orders()).map(|n| Order::of(&words, n))).collect())
    }
}

impl Order {
    fn of<T: Eq + std::hash::Hash + Clone>([answer, reference]: &[Vec<T>; 2], n: usize) -> Self {
        let (answer, reference) = (count_ngrams(answer, n), count_ngrams(reference, n));
        let of_reference = reference.values().sum();
        // An order that the reference is too short for says nothing about the answer.
        let of_answer = if of_reference > 0 { answer.values().sum() } else { 0 };
        Self { answer: of_answer, reference: of_reference, common: count_common(&answer, &reference) }
    }
}

impl ChrfCounts {
    /// Adds the counts of another answer.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            own.answer += other.answer;
            own.reference += other.reference;
            own.common += other.common;
        }
    }

    /// Computes the score, from 0 to 100: F of the means of precision and recall over the orders that both sides have.
    pub fn score(&self) -> f64 {
        let both: Vec<&Order> = self.0.iter().filter(|order| order.answer > 0 && order.reference > 0).collect();
        let mean = |of: fn(&Order) -> usize| {
            let shares = both.iter().map(|order| order.common as f64 / of(order) as f64);
            shares.sum::<f64>() / both.len().max(1) as f64
        };
        let (precision, recall) = (mean(|order| order.answer), mean(|order| order.reference));
        if precision + recall == 0.0 {
            return 0.0;
        }
        100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    }
}

/// Splits into words, and one mark of punctuation from the end or else from the beginning of each.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in split_whitespace(text) {
        let (first, last) = (word.chars().next(), word.chars().next_back());
        let (Some(first), Some(last)) = (first, last) else { continue };
        if word.chars().nth(1).is_none() {
            words.push(word.to_string());
        } else if last.is_ascii_punctuation() {
            words.extend([word[..word.len() - 1].to_string(), last.to_string()]);
        } else if first.is_ascii_punctuation() {
            words.extend([first.to_string(), word[1..].to_string()]);
        } else {
            words.push(word.to_string());
        }
    }
    words
}
