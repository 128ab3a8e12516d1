//! Checks whether an answer follows an instruction.

use super::segments::{capital_words, sentences};
use super::{Instruction, LanguageDetector};
use crate::text_metrics::json_answer::without_fence;
use crate::text_metrics::words::split_whitespace;
use fancy_regex::{Regex, escape};

/// The answers among which `detectable_format:constrained_response` lets choose.
const FIXED_ANSWERS: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

impl Instruction {
    /// Returns true if the answer follows the instruction. `language` is asked by three of the kinds; a language that cannot be told
    /// counts as the right one, as in the original.
    pub fn is_followed(&self, answer: &str, language: LanguageDetector) -> bool {
        let is_in = |wanted: &str| language(answer).is_none_or(|found| found == wanted);
        match self {
            Self::Keywords(words) => words.iter().all(|word| count(&format!("(?i){}", escape(word)), answer) > 0),
            Self::KeywordFrequency(word, amount) => amount.holds(count(&format!("(?i){}", escape(word)), answer)),
            Self::ForbiddenWords(words) => {
                words.iter().all(|word| count(&format!(r"(?i)\b{}\b", escape(word)), answer) == 0)
            }
            Self::LetterFrequency(letter, amount) => {
                amount.holds(answer.to_lowercase().chars().filter(|c| c == letter).count())
            }
            Self::Language(code) => is_in(code),
            Self::Sentences(amount) => amount.holds(sentences(answer)),
            Self::Paragraphs(n) => paragraphs(answer) == Some(*n),
            Self::Words(amount) => amount.holds(count(r"\w+", answer)),
            Self::ParagraphFirstWord { paragraphs, paragraph, word } => {
                first_word(answer, *paragraphs, *paragraph).is_some_and(|found| found == *word)
            }
            Self::Placeholders(n) => count(r"\[.*?\]", answer) >= *n,
            Self::Postscript(mark) => has_postscript(answer, mark),
            Self::Bullets(n) => count(r"(?m)^\s*\*[^\*].*$", answer) + count(r"(?m)^\s*-.*$", answer) == *n,
            Self::ConstrainedResponse => FIXED_ANSWERS.iter().any(|fixed| answer.contains(fixed)),
            Self::Highlights(n) => highlights(answer) >= *n,
            Self::Sections(title, n) => count(&format!(r"\s?{}\s?\d+\s?", escape(title)), answer) >= *n,
            Self::Json => serde_json::from_str::<serde::de::IgnoredAny>(without_fence(answer)).is_ok(),
            Self::Title => found(r"<<[^\n]+>>", answer)
                .iter()
                .any(|title| !title.trim_start_matches('<').trim_end_matches('>').trim().is_empty()),
            Self::TwoResponses => two_responses(answer),
            Self::RepeatPrompt(prompt) => answer.trim().to_lowercase().starts_with(&prompt.trim().to_lowercase()),
            Self::End(phrase) => {
                answer.trim().trim_matches('"').to_lowercase().ends_with(&phrase.trim().to_lowercase())
            }
            Self::CapitalWords(amount) => amount.holds(capital_words(answer)),
            Self::EnglishCapital => is_upper(answer) && is_in("en"),
            Self::EnglishLowercase => is_lower(answer) && is_in("en"),
            Self::NoComma => !answer.contains(','),
            Self::Quotation => {
                let answer = answer.trim();
                answer.len() > 1 && answer.starts_with('"') && answer.ends_with('"')
            }
        }
    }
}

/// Returns the places of a pattern that do not overlap.
fn found<'a>(pattern: &str, text: &'a str) -> Vec<&'a str> {
    let pattern = Regex::new(pattern).expect("a valid pattern, in which texts of users are escaped");
    pattern.find_iter(text).filter_map(|place| place.ok()).map(|place| place.as_str()).collect()
}

fn count(pattern: &str, text: &str) -> usize {
    found(pattern, text).len()
}

/// Returns true if there are capital letters and no small ones, as Python's `isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// Returns the number of paragraphs between dividers `***`; `None` if one in the middle is empty.
fn paragraphs(answer: &str) -> Option<usize> {
    let divider = Regex::new(r"\s?\*\*\*\s?").expect("a valid pattern");
    let parts: Vec<&str> = divider.split(answer).filter_map(|part| part.ok()).collect();
    let empty = |part: &&str| part.trim().is_empty();
    let inner = parts.len().checked_sub(1).and_then(|last| parts.get(1..last)).unwrap_or_default();
    (!inner.iter().any(|part| empty(&part))).then(|| parts.iter().filter(|part| !empty(part)).count())
}

/// Returns the first word, in lower case and up to its first mark of punctuation, of the paragraph with this number, if there are
/// exactly so many. Paragraphs are separated by empty lines; empty ones do not count, but have a number.
fn first_word(answer: &str, paragraphs: usize, paragraph: usize) -> Option<String> {
    let parts: Vec<&str> = answer.split("\n\n").collect();
    let count = parts.iter().filter(|part| !part.trim().is_empty()).count();
    if count != paragraphs || paragraph > count {
        return None;
    }
    let text = parts.get(paragraph.checked_sub(1)?)?;
    let word = split_whitespace(text).next()?.trim_start_matches('\'').trim_start_matches('"').to_lowercase();
    Some(word.split(['.', ',', '?', '!', '\'', '"']).next().unwrap_or("").to_string())
}

fn has_postscript(answer: &str, mark: &str) -> bool {
    let pattern = match mark {
        "P.P.S" => r"p\.\s?p\.\s?s".to_string(),
        "P.S." => r"p\.\s?s\.".to_string(),
        other => escape(&other.to_lowercase()).into_owned(),
    };
    count(&pattern, &answer.to_lowercase()) > 0
}

/// Counts texts between single and between double asterisks.
fn highlights(answer: &str) -> usize {
    let single = found(r"\*[^\n\*]*\*", answer).into_iter().filter(|text| !text.trim_matches('*').trim().is_empty());
    let inside =
        |text: &str| text.strip_prefix("**").and_then(|t| t.strip_suffix("**")).unwrap_or("").trim().is_empty();
    let double = found(r"\*\*[^\n\*]*\*\*", answer).into_iter().filter(|text| !inside(text));
    single.count() + double.count()
}

fn two_responses(answer: &str) -> bool {
    let parts: Vec<&str> = answer.split("******").map(str::trim).collect();
    let last = parts.len() - 1;
    let stray = parts.iter().enumerate().any(|(i, part)| part.is_empty() && i != 0 && i != last);
    let written: Vec<&&str> = parts.iter().filter(|part| !part.is_empty()).collect();
    !stray && matches!(written[..], [a, b] if a != b)
}
