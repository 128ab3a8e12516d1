//! BLEU (Papineni et al. 2002) as `sacrebleu` computes it: tokenizer 13a, n-grams of up to four words, exponential smoothing,
//! several references of each answer.

use super::words::{Counts, count_ngrams, split_whitespace};
use fancy_regex::Regex;
use std::sync::LazyLock;

/// The longest n-grams.
const ORDERS: usize = 4;

/// What BLEU of a whole file is computed from: the sums over its answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BleuCounts {
    answer_words: usize,
    reference_words: usize,
    /// For each order, the n-grams of the answers that a reference has.
    common: [usize; ORDERS],
    /// For each order, the n-grams of the answers.
    total: [usize; ORDERS],
}

impl BleuCounts {
    /// Counts one answer. An n-gram is in common as often as the reference has it that has it most often; the length
    /// of the references is that of the one nearest to the answer's, the shorter of two.
    pub fn of(answer: &str, references: &[impl AsRef<str>]) -> Self {
        let tokenized = tokenize(answer);
        let answer: Vec<&str> = split_whitespace(&tokenized).collect();
        let references: Vec<String> = references.iter().map(|text| tokenize(text.as_ref())).collect();
        let references: Vec<Vec<&str>> = references.iter().map(|text| split_whitespace(text).collect()).collect();
        let nearest = |words: &usize| (words.abs_diff(answer.len()), *words);
        let mut counts = Self {
            answer_words: answer.len(),
            reference_words: references.iter().map(Vec::len).min_by_key(nearest).unwrap_or(0),
            ..Self::default()
        };
        for n in 1..=ORDERS {
            let mut most: Counts<Vec<&str>> = Counts::new();
            for (ngram, count) in references.iter().flat_map(|words| count_ngrams(words, n)) {
                let held = most.entry(ngram).or_insert(0);
                *held = count.max(*held);
            }
            let own = count_ngrams(&answer, n);
            counts.total[n - 1] = own.values().sum();
            counts.common[n - 1] = super::words::count_common(&own, &most);
        }
        counts
    }

    /// Adds the counts of another answer.
    pub fn add(&mut self, other: &Self) {
        self.answer_words += other.answer_words;
        self.reference_words += other.reference_words;
        for n in 0..ORDERS {
            self.common[n] += other.common[n];
            self.total[n] += other.total[n];
        }
    }

    /// Computes BLEU, from 0 to 100. Orders without a common n-gram count as half of one, a quarter of one and so on
    /// (Chen and Cherry 2014, method 3). With `effective_order`, orders longer than the answer are left out, as
    /// for single sentences.
    pub fn score(&self, effective_order: bool) -> f64 {
        if self.common.iter().all(|n| *n == 0) {
            return 0.0;
        }
        let (mut logs, mut orders, mut smoothing) = (0.0, 0, 1.0);
        for n in 0..ORDERS {
            if self.total[n] == 0 {
                break;
            }
            let common = match self.common[n] {
                0 => {
                    smoothing *= 2.0;
                    1.0 / smoothing
                }
                common => common as f64,
            };
            logs += (100.0 * common / self.total[n] as f64).ln();
            orders = n + 1;
        }
        // Answers that are all shorter than four words have no n-grams of that order: undefined, and 0 by convention.
        if orders < ORDERS && !effective_order {
            return 0.0;
        }
        self.brevity_penalty() * (logs / orders as f64).exp()
    }

    fn brevity_penalty(&self) -> f64 {
        let (answer, reference) = (self.answer_words as f64, self.reference_words as f64);
        if answer < reference { (1.0 - reference / answer).exp() } else { 1.0 }
    }
}

/// Separates punctuation from words with spaces, as the tokenizer 13a of `mteval` does.
fn tokenize(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([\{-\~\[-` -\&\(-\+\:-@/])", " $1 "),
            (r"([^0-9])([\.,])", "$1 $2 "),
            (r"([\.,])([^0-9])", " $1 $2"),
            (r"([0-9])(-)", "$1 $2 "),
        ]
        .map(|(pattern, replacement)| (Regex::new(pattern).expect("a valid pattern"), replacement))
    });
    let text = text.trim_end_matches(super::words::is_python_whitespace);
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    }
    let mut text = format!(" {text} ");
    for (pattern, replacement) in RULES.iter() {
        text = pattern.replace_all(&text, *replacement).into_owned();
    }
    text
}
