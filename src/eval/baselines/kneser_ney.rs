//! An n-gram model with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7).
//!
//! The probability of a token after a context is that of its count minus a discount, plus what the discounts left over times the
//! probability after the context without its first token. Below the highest order, a count is the number of different tokens
//! that a sequence was seen after. The lowest order shares what is left over among all known tokens and one unknown one, so that
//! no token is impossible.

use std::collections::HashMap;

/// A token of an n-gram model: an id of a tokenizer, or a number of a word.
pub type Token = u32;

/// Stands before the first token of a sequence.
const START: Token = Token::MAX;
/// Follows the last token of a sequence.
pub const END: Token = Token::MAX - 1;
/// A discount if the counts are too few to estimate it.
const USUAL_DISCOUNT: f64 = 0.75;

/// Which tokens followed a context, and how often.
#[derive(Debug, Clone, Default)]
struct Followers {
    total: f64,
    counts: HashMap<Token, f64>,
}

/// An n-gram model.
#[derive(Debug, Clone)]
pub struct KneserNey {
    discount: f64,
    /// Entry k: by the last k tokens of the context.
    levels: Vec<HashMap<Vec<Token>, Followers>>,
    /// Whether tokens that were never seen have a probability.
    knows_unseen: bool,
}

impl Followers {
    fn add(&mut self, token: Token, count: f64) {
        *self.counts.entry(token).or_insert(0.0) += count;
        self.total += count;
    }

    /// Returns the discounted share of a token, and the share that the discounts leave over.
    fn discounted(&self, token: Token, discount: f64) -> (f64, f64) {
        let count = self.counts.get(&token).copied().unwrap_or(0.0);
        ((count - discount).max(0.0) / self.total, discount * self.counts.len() as f64 / self.total)
    }
}

impl KneserNey {
    /// Counts the n-grams of sequences, of `order` (2: pairs, 3: triples) tokens each; a sequence begins after `order - 1` marks and ends
    /// with one. Without a discount, it is estimated from the numbers of n-grams that occur once and twice (Ney et al. 1994).
    pub fn train<'a>(sequences: impl IntoIterator<Item = &'a [Token]>, order: usize, discount: Option<f64>) -> Self {
        let width = order.max(1);
        let mut levels: Vec<HashMap<Vec<Token>, Followers>> = vec![HashMap::new(); width];
        for sequence in sequences {
            let padded: Vec<Token> =
                std::iter::repeat_n(START, width - 1).chain(sequence.iter().copied()).chain([END]).collect();
            for ngram in padded.windows(width) {
                levels[width - 1].entry(ngram[..width - 1].to_vec()).or_default().add(ngram[width - 1], 1.0);
            }
        }
        // Each different n-gram counts once for the n-gram without its first token.
        for k in (1..width).rev() {
            let mut shorter: HashMap<Vec<Token>, Followers> = HashMap::new();
            for (context, followers) in &levels[k] {
                let entry = shorter.entry(context[1..].to_vec()).or_default();
                followers.counts.keys().for_each(|token| entry.add(*token, 1.0));
            }
            levels[k - 1] = shorter;
        }
        let discount = discount.unwrap_or_else(|| estimated_discount(&levels[width - 1]));
        Self { discount, levels, knows_unseen: true }
    }

    /// Returns the number of tokens of an n-gram.
    pub fn order(&self) -> usize {
        self.levels.len()
    }

    /// Returns the probability of `token` after `context`, of which only the last `order - 1` tokens count.
    pub fn probability(&self, context: &[Token], token: Token) -> f64 {
        let mut p = self.unigram(token);
        for k in 1..self.levels.len().min(context.len() + 1) {
            if let Some(followers) = self.levels[k].get(&context[context.len() - k..]) {
                let (own, left) = followers.discounted(token, self.discount);
                p = own + left * p;
            }
        }
        p
    }

    fn unigram(&self, token: Token) -> f64 {
        let Some(followers) = self.levels[0].get(&[][..]) else { return 1.0 };
        match self.knows_unseen {
            true => {
                let (own, left) = followers.discounted(token, self.discount);
                own + left / (followers.counts.len() + 1) as f64
            }
            false => followers.counts.get(&token).copied().unwrap_or(0.0) / followers.total,
        }
    }

    /// Returns the log-likelihood (natural) of `tokens` after `context`. The beginning of a sequence precedes the context.
    pub fn log_likelihood(&self, context: &[Token], tokens: &[Token]) -> f64 {
        let mut all: Vec<Token> = vec![START; self.order() - 1];
        all.extend(context);
        let mut sum = 0.0;
        for token in tokens {
            sum += self.probability(&all, *token).ln();
            all.push(*token);
        }
        sum
    }

    /// Returns the perplexity of whole sequences by token, their ends included; `None` without sequences.
    pub fn perplexity<'a>(&self, sequences: impl IntoIterator<Item = &'a [Token]>) -> Option<f64> {
        let (mut sum, mut tokens) = (0.0, 0);
        for sequence in sequences {
            sum += self.log_likelihood(&[], &[sequence, &[END]].concat());
            tokens += sequence.len() + 1;
        }
        (tokens > 0).then(|| (-sum / tokens as f64).exp())
    }
}

/// Returns n1 / (n1 + 2 n2), where n1 and n2 n-grams occur once and twice.
fn estimated_discount(level: &HashMap<Vec<Token>, Followers>) -> f64 {
    let of =
        |wanted: f64| level.values().flat_map(|f| f.counts.values()).filter(|count| **count == wanted).count() as f64;
    let (once, twice) = (of(1.0), of(2.0));
    if once == 0.0 || twice == 0.0 { USUAL_DISCOUNT } else { once / (once + 2.0 * twice) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct NltkScores {
        models: Vec<FixtureModel>,
    }

    #[derive(Deserialize)]
    struct FixtureModel {
        order: usize,
        discount: f64,
        sequences: Vec<Vec<Token>>,
        /// Context, token, probability.
        scores: Vec<(Vec<Token>, Token, f64)>,
        perplexity: f64,
        held_out: Vec<Vec<Token>>,
    }

    fn known(token: Token) -> Token {
        match token {
            1_000_000 => START,
            1_000_001 => END,
            token => token,
        }
    }

    #[test]
    fn probabilities_equal_nltk() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kneser-ney.json");
        let fixture: NltkScores = crate::fsutil::read_json(&path).unwrap();
        assert!(fixture.models.len() >= 4);
        for model in fixture.models {
            let sequences = model.sequences.iter().map(Vec::as_slice);
            let found =
                KneserNey { knows_unseen: false, ..KneserNey::train(sequences, model.order, Some(model.discount)) };
            assert!(model.scores.len() >= 50);
            for (context, token, expected) in &model.scores {
                let context: Vec<Token> = context.iter().map(|t| known(*t)).collect();
                let p = found.probability(&context, known(*token));
                assert!((p - expected).abs() <= 1e-12, "order {}: {context:?} {token}: {p} {expected}", model.order);
            }
            let perplexity = found.perplexity(model.held_out.iter().map(Vec::as_slice)).unwrap();
            assert!((perplexity / model.perplexity - 1.0).abs() < 1e-10, "{perplexity} {}", model.perplexity);
        }
    }

    #[test]
    fn probabilities_add_up_to_one_and_none_is_zero() {
        let sequences: Vec<Vec<Token>> = vec![vec![1, 2, 3, 1, 2], vec![2, 3, 3], vec![4, 1, 2, 3]];
        for order in [1, 2, 3, 5] {
            let model = KneserNey::train(sequences.iter().map(Vec::as_slice), order, None);
            for context in [&[][..], &[1], &[1, 2], &[9, 2], &[START, START, START, START]] {
                // Token 99 stands for all that were not seen.
                let sum: f64 = [1, 2, 3, 4, END, 99].iter().map(|t| model.probability(context, *t)).sum();
                assert!((sum - 1.0).abs() < 1e-12, "order {order}, {context:?}: {sum}");
                assert!(model.probability(context, 99) > 0.0);
            }
        }
        let nothing = KneserNey::train([], 2, None);
        assert!(nothing.log_likelihood(&[1], &[2]).is_finite() && nothing.perplexity([]).is_none());
    }

    #[test]
    fn what_follows_often_is_likely() {
        let sequences: Vec<Vec<Token>> = (0..50).map(|i| vec![1, 2, 10 + i % 7, 3, 4]).collect();
        let model = KneserNey::train(sequences.iter().map(Vec::as_slice), 3, None);
        assert!(model.log_likelihood(&[11, 3], &[4]) > model.log_likelihood(&[11, 3], &[2]) + 3.0);
        assert!(model.perplexity([&[1, 2, 12, 3, 4][..]]).unwrap() < 2.0);
    }
}
