//! SQuAD's exact match and F1 of words (Rajpurkar et al. 2016, 2018; its evaluation script 2.0).

use super::words::{FScore, split_whitespace};

/// Lower-cases, removes ASCII punctuation and the articles a, an and the, and joins words with single spaces.
pub fn normalize(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words: Vec<&str> = split_whitespace(&plain).collect();
    let kept: Vec<String> = words.into_iter().map(without_articles).filter(|word| !word.is_empty()).collect();
    kept.join(" ")
}

/// Removes articles from a run without white space: they may stand between other characters that are no letters.
fn without_articles(run: &str) -> String {
    let mut kept = String::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = run;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let part = &rest[..end];
        kept += if matches!(part, "a" | "an" | "the") { " " } else { part };
        rest = &rest[end..];
    }
    split_whitespace(&kept).collect::<Vec<_>>().join(" ")
}

/// Returns true if the answer equals a reference after [`normalize`].
pub fn exact_match(answer: &str, references: &[impl AsRef<str>]) -> bool {
    let answer = normalize(answer);
    references.iter().any(|reference| normalize(reference.as_ref()) == answer)
}

/// Computes F1 of the normalized words with the reference for which it is largest. Two empty texts have 1, an empty and
/// another one 0.
pub fn f1(answer: &str, references: &[impl AsRef<str>]) -> f64 {
    references.iter().map(|reference| f1_with(answer, reference.as_ref())).fold(0.0, f64::max)
}

fn f1_with(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalize(answer), normalize(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let words = |text| split_whitespace(text).collect::<Vec<&str>>();
    FScore::of_ngrams(&words(&answer), &words(&reference), 1).f1
}
