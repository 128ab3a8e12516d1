//! How far several answers to one question agree: a model that makes an answer up tends to make up another one each time (Manakul et al.
//! 2023, SelfCheckGPT, arXiv 2303.08896). Agreement is no truth: a model may repeat the same mistake.

use super::question_answering::normalize;
use super::rouge::Rouge;
use std::collections::BTreeMap;

/// Computes the mean over all pairs of 1 - F1 of ROUGE-L, from 0 (all alike) to 1. `None` for fewer than two answers.
pub fn disagreement(answers: &[impl AsRef<str>]) -> Option<f64> {
    let distance = |a: &str, b: &str| if a == b { 0.0 } else { 1.0 - Rouge::Longest.score(a, b).f1 };
    let (mut sum, mut pairs) = (0.0, 0);
    for (i, a) in answers.iter().enumerate() {
        for b in &answers[i + 1..] {
            sum += distance(a.as_ref(), b.as_ref());
            pairs += 1;
        }
    }
    (pairs > 0).then(|| sum / f64::from(pairs))
}

/// Computes the entropy in nats of groups of answers that are equal after SQuAD's normalization, from 0 (all alike) to ln n (semantic
/// entropy of Kuhn et al. 2023, arXiv 2302.09664, with equality in place of entailment). `None` for fewer than two answers.
pub fn answer_entropy(answers: &[impl AsRef<str>]) -> Option<f64> {
    if answers.len() < 2 {
        return None;
    }
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    answers.iter().for_each(|answer| *groups.entry(normalize(answer.as_ref())).or_default() += 1);
    let share = |n: &usize| *n as f64 / answers.len() as f64;
    // -1 · ln 1 is a negative zero.
    Some(groups.values().map(share).map(|p| -p * p.ln()).sum::<f64>().max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_disagree_by_the_words_that_they_do_not_share() {
        assert_eq!(disagreement(&["yes", "yes", "yes"]), Some(0.0));
        assert_eq!(disagreement(&["yes", "no"]), Some(1.0));
        // Pairs: equal 0, and twice 1 - 2 · 2 / (3 + 3).
        let found = disagreement(&["it is open", "it is open", "it is closed"]).unwrap();
        assert!((found - 2.0 / 9.0).abs() < 1e-12, "{found}");
        assert_eq!((disagreement(&["日本", "日本"]), disagreement(&["one"])), (Some(0.0), None));
    }

    #[test]
    fn entropy_counts_groups_of_equal_answers() {
        assert_eq!(answer_entropy(&["Paris.", "the paris", "paris"]), Some(0.0));
        assert!((answer_entropy(&["a b", "c", "d", "e"]).unwrap() - 4f64.ln()).abs() < 1e-12);
        let half = answer_entropy(&["x", "x", "y", "y"]).unwrap();
        assert!((half - 2f64.ln()).abs() < 1e-12);
        assert_eq!(answer_entropy(&["x"]), None);
    }
}
