//! Finds words and phrases of a list in texts.

use std::collections::HashMap;

/// Words and phrases to look for, without regard to capitals.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WordList {
    /// The words of each phrase by its first word; an entry is (word, whether it stands for all words that begin so).
    phrases: HashMap<String, Vec<Vec<(String, bool)>>>,
    /// Phrases whose first word stands for all words that begin so.
    open: Vec<Vec<(String, bool)>>,
}

impl WordList {
    /// Reads one word or phrase a line. A `*` at the end of a word stands for any letters. Empty lines and those that begin with `#`
    /// are skipped. `None` if there is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut list = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let phrase: Vec<(String, bool)> = line
                .split_whitespace()
                .flat_map(|word| {
                    let open = word.ends_with('*');
                    let mut words = words(word);
                    let last = words.pop();
                    words.into_iter().map(|word| (word, false)).chain(last.map(|word| (word, open))).collect::<Vec<_>>()
                })
                .collect();
            match phrase.first() {
                Some((_, true)) => list.open.push(phrase),
                Some((first, false)) => list.phrases.entry(first.clone()).or_default().push(phrase),
                None => {}
            }
        }
        (!list.phrases.is_empty() || !list.open.is_empty()).then_some(list)
    }

    /// Returns true if a word or phrase of the list is in the text, as whole words.
    pub fn is_in(&self, text: &str) -> bool {
        let words = words(text);
        (0..words.len()).any(|i| {
            let begins = |phrase: &Vec<(String, bool)>| {
                let rest = &words[i..];
                phrase.len() <= rest.len()
                    && phrase.iter().zip(rest).all(|((wanted, open), word)| {
                        if *open { word.starts_with(wanted.as_str()) } else { word == wanted }
                    })
            };
            self.phrases.get(&words[i]).is_some_and(|phrases| phrases.iter().any(begins))
                || self.open.iter().any(begins)
        })
    }
}

/// Returns the runs of letters, digits and apostrophes in small letters.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase().replace('\u{2019}', "'");
    let parts = lower.split(|c: char| !c.is_alphanumeric() && c != '\'').map(|word| word.trim_matches('\''));
    parts.filter(|word| !word.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_and_phrases_are_found() {
        let list = WordList::parse("# ours\nidiot\nshut up\nworthless*\n").unwrap();
        for (text, found) in [
            ("You IDIOT!", true),
            ("idiotic", false),
            ("Shut, up", true),
            ("shut the door; up", false),
            ("worthlessness", true),
            ("", false),
            ("an hon-idiot", true),
        ] {
            assert_eq!(list.is_in(text), found, "{text}");
        }
        assert_eq!(WordList::parse("#\n\n"), None);
    }
}
