//! What of an answer stands in the context that it was given: runs of words, numbers, names.
//!
//! A number or a name that the context lacks was made up or computed, or is general knowledge; words that stand in it may still
//! be put together to a wrong statement. So these shares find answers to look at, and prove nothing.

use super::numbers::{numbers, within};
use std::collections::HashSet;

/// Length of the runs of words that are compared.
const RUN: usize = 3;
/// Two numbers are equal within this share of their size.
const SAME_NUMBER: f64 = 1e-9;

/// Shares of an answer's parts that stand in its context, from 0 to 1; 1 if the answer has none of this kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Support {
    /// Of its runs of three words (of all its words, if they are fewer).
    pub words: f64,
    /// Of its numbers.
    pub numbers: f64,
    /// Of its words with a capital letter that do not begin a sentence.
    pub names: f64,
}

/// Splits into words in small letters: runs of letters and digits.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Returns the words with a capital letter that are neither the first of a sentence, a line or a quotation nor the word `I`.
fn names(text: &str) -> Vec<String> {
    let (mut found, mut begins, mut word) = (Vec::new(), true, String::new());
    for c in text.chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            if !begins && word.chars().next().is_some_and(char::is_uppercase) && word != "I" {
                found.push(word.to_lowercase());
            }
            begins = false;
            word.clear();
        }
        begins |= matches!(c, '.' | '!' | '?' | ':' | '\n' | '"' | '“' | '«' | '*' | '#');
    }
    found
}

impl Support {
    /// Compares an answer with its context.
    pub fn of(answer: &str, context: &str) -> Self {
        let (said, given) = (words(answer), words(context));
        let run = RUN.min(said.len()).max(1);
        let runs: HashSet<&[String]> = given.windows(run).collect();
        let known: HashSet<&str> = given.iter().map(String::as_str).collect();
        let there = numbers(context);
        let is_there = |n: &f64| there.iter().any(|m| within(*n, *m, SAME_NUMBER, 0.0));
        Self {
            words: share(said.windows(run).map(|words| runs.contains(words))),
            numbers: share(numbers(answer).iter().map(is_there)),
            names: share(names(answer).iter().map(|name| known.contains(name.as_str()))),
        }
    }
}

/// Returns the share that is true; 1 of nothing.
fn share(each: impl Iterator<Item = bool>) -> f64 {
    let (found, all) = each.fold((0u32, 0u32), |(found, all), there| (found + u32::from(there), all + 1));
    if all == 0 { 1.0 } else { f64::from(found) / f64::from(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: &str = "Dr. Marie Keller opened the practice in Bonn in 1,998. It has 12.5 rooms.";

    #[test]
    fn what_stands_in_the_context_is_supported() {
        let all = Support::of("It opened: Marie Keller opened the practice in 1998.", CONTEXT);
        assert_eq!((all.numbers, all.names), (1.0, 1.0));
        // Runs: it opened marie, opened marie keller, marie keller opened, keller opened the, opened the practice, the practice in,
        // practice in 1998.
        assert!((all.words - 4.0 / 7.0).abs() < 1e-12, "{all:?}");
    }

    #[test]
    fn made_up_names_and_numbers_are_not() {
        let found = Support::of("The practice of Otto Keller has 12.5 rooms, 3 doctors and a garden in Rome.", CONTEXT);
        assert!((found.numbers - 0.5).abs() < 1e-12 && (found.names - 1.0 / 3.0).abs() < 1e-12, "{found:?}");
        assert_eq!(Support::of("no garden", CONTEXT).words, 0.0);
    }

    #[test]
    fn an_answer_that_says_nothing_says_nothing_wrong() {
        assert_eq!(Support::of("", CONTEXT), Support { words: 1.0, numbers: 1.0, names: 1.0 });
        assert_eq!(Support::of("in Bonn", CONTEXT).words, 1.0);
        assert_eq!(Support::of("Yes. Otherwise I go.\nNobody", CONTEXT).names, 1.0, "beginnings of sentences");
    }
}
