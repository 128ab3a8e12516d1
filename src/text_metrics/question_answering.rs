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

/// Normalizes references and leaves out those of which nothing remains; if nothing remains of any, the right answer is none.
fn normalized(references: &[impl AsRef<str>]) -> Vec<String> {
    let mut found: Vec<String> = references.iter().map(|reference| normalize(reference.as_ref())).collect();
    if found.iter().any(|reference| !reference.is_empty()) {
        found.retain(|reference| !reference.is_empty());
    }
    found
}

/// Returns true if a question has an answer: if one of its references is not empty. The only right answer to others is an empty one.
pub fn is_answerable(references: &[impl AsRef<str>]) -> bool {
    references.iter().any(|reference| !reference.as_ref().trim().is_empty())
}

/// Returns true if the answer equals a reference after [`normalize`].
pub fn exact_match(answer: &str, references: &[impl AsRef<str>]) -> bool {
    normalized(references).contains(&normalize(answer))
}

/// Computes F1 of the normalized words with the reference for which it is largest. Two empty texts have 1, an empty and
/// another one 0.
pub fn f1(answer: &str, references: &[impl AsRef<str>]) -> f64 {
    let answer = normalize(answer);
    normalized(references).iter().map(|reference| f1_of_normalized(&answer, reference)).fold(0.0, f64::max)
}

fn f1_of_normalized(answer: &str, reference: &str) -> f64 {
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let words = |text| split_whitespace(text).collect::<Vec<&str>>();
    FScore::of_ngrams(&words(answer), &words(reference), 1).f1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_an_answer_is_answered_by_nothing() {
        let none = [""];
        assert!(!is_answerable(&none) && !is_answerable(&[" "]) && is_answerable(&["", "nine"]));
        assert!(exact_match("", &none) && exact_match(" the. ", &none) && !exact_match("nine", &none));
        assert_eq!((f1("", &none), f1("nine", &none)), (1.0, 0.0));
        assert!(!exact_match("", &["nine"]));
        assert_eq!(f1("", &["nine"]), 0.0);
        // A reference of which nothing remains does not make an empty answer right.
        assert!(!exact_match("", &["the", "nine"]) && exact_match("", &["the"]));
        assert_eq!(f1("", &["the", "nine"]), 0.0);
    }
}
