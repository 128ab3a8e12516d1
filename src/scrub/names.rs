//! Finds names of people that are in a list.

use crate::error::{Error, Result};
use crate::fsutil;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// Names to look for, each one or more words. A word with a capital in the list must have one in the text too.
#[derive(Debug, Clone, Default)]
pub struct NameList {
    /// The words of each name, by its first word in lower case; longer names come first.
    pub(super) by_first: HashMap<String, Vec<Vec<String>>>,
}

impl NameList {
    /// Reads a file with one name per line; empty lines and lines that begin with `#` are skipped.
    pub fn read(path: &Path) -> Result<Self> {
        let names = Self::of(fsutil::read_to_string(path)?.lines());
        match names.by_first.is_empty() {
            true => {
                Err(Error::user(format!("{}: the file contains no names", path.display()))
                    .hint("write one name per line"))
            }
            false => Ok(names),
        }
    }

    /// Makes a list from names.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut by_first: HashMap<String, Vec<Vec<String>>> = HashMap::new();
        for name in names.into_iter().map(str::trim).filter(|n| !n.is_empty() && !n.starts_with('#')) {
            let words: Vec<String> = words(name).map(|at| name[at].to_string()).collect();
            if let Some(first) = words.first() {
                by_first.entry(first.to_lowercase()).or_default().push(words);
            }
        }
        by_first.values_mut().for_each(|names| names.sort_by_key(|n| std::cmp::Reverse(n.len())));
        Self { by_first }
    }

    /// Finds names in a text. Returns their byte ranges, and the names as spelled in the list, in lower case.
    pub(super) fn find(&self, text: &str) -> Vec<(Range<usize>, String)> {
        if self.by_first.is_empty() {
            return Vec::new();
        }
        let places: Vec<Range<usize>> = words(text).collect();
        let (mut found, mut i) = (Vec::new(), 0);
        while i < places.len() {
            let rest = &places[i..];
            let fits = |name: &&Vec<String>| {
                rest.len() >= name.len() && name.iter().zip(rest).all(|(n, at)| same_word(n, &text[at.clone()]))
                    // Between the words there may be only spaces, dots of initials, hyphens and apostrophes.
                    && rest[..name.len()].windows(2).all(|w| text[w[0].end..w[1].start].chars().all(|c| " .-'’\u{a0}".contains(c)))
            };
            let names = self.by_first.get(&text[places[i].clone()].to_lowercase());
            match names.and_then(|names| names.iter().find(fits)) {
                Some(name) => {
                    let at = rest[0].start..rest[name.len() - 1].end;
                    found.push((at, name.join(" ").to_lowercase()));
                    i += name.len();
                }
                None => i += 1,
            }
        }
        found
    }
}

/// Compares words ignoring case, but a name with a capital does not match a word without one (`Will`, `May`).
fn same_word(name: &str, word: &str) -> bool {
    let capital = |s: &str| s.chars().next().is_some_and(char::is_uppercase);
    name.to_lowercase() == word.to_lowercase() && (!capital(name) || capital(word))
}

/// Returns the byte ranges of the words of a text; an apostrophe ends a word (`Anna's`).
fn words(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text[from..].find(char::is_alphanumeric)?;
        let length = text[start..].find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len() - start);
        from = start + length;
        Some(start..from)
    })
}
