//! Signs of made-up answers: what does not stand in a given context, and samples that disagree.

use super::{add_mean, each};
use crate::eval::results::SubjectResults;
use crate::eval::suite::answers::ItemTexts;
use crate::text_metrics::agreement::{answer_entropy, disagreement};
use crate::text_metrics::support::Support;

/// Adds the shares of words, numbers and names that stand in the contexts.
pub fn score_support(contexts: &[String], answers: &[ItemTexts], results: &mut SubjectResults) {
    let of = |part: fn(Support) -> f64| each(answers, |i, text| part(Support::of(text, &contexts[i])));
    add_mean(results, "support_words", of(|support| support.words));
    add_mean(results, "support_numbers", of(|support| support.numbers));
    add_mean(results, "support_names", of(|support| support.names));
}

/// Adds how far the samples of each item disagree.
pub fn score_disagreement(answers: &[ItemTexts], results: &mut SubjectResults) {
    let of = |measure: fn(&[String]) -> Option<f64>| -> Vec<f64> {
        answers.iter().map(|texts| measure(&texts.samples).unwrap_or_default()).collect()
    };
    add_mean(results, "disagreement", of(|samples| disagreement(samples)));
    add_mean(results, "answer_entropy", of(|samples| answer_entropy(samples)));
}
