//! Finds the letter of a choice in a written answer, and the tags of words: lm-evaluation-harness's filters `multi_choice_regex` and
//! `regex_pos`.

use super::scores::{compile, first_group, picked};
use crate::error::Result;
use crate::recipe::suite_file::LetterFilter;
use fancy_regex::Regex;
use std::collections::HashMap;

/// Most choices: there is a letter for each.
pub const LETTERS: usize = 26;
/// What takes the place of tags if there are none.
const NO_TAGS: &str = "invalid";

/// A filter that finds letters, compiled.
pub struct ChoiceLetter {
    settings: LetterFilter,
    regex: Regex,
    /// What does not count where texts of choices are looked for, in order.
    ignored: Vec<Regex>,
    punctuation: Option<Regex>,
}

impl ChoiceLetter {
    /// Compiles a filter.
    pub fn of(settings: &LetterFilter) -> Result<Self> {
        Ok(Self {
            settings: settings.clone(),
            regex: compile(&settings.regex.pattern)?,
            ignored: settings.ignore.iter().map(|pattern| compile(pattern)).collect::<Result<_>>()?,
            punctuation: settings.ignore_punctuation.then(|| compile(r"\p{P}")).transpose()?,
        })
    }

    /// Returns what the expression finds, else the letter of a choice whose text the answer has (the longest text first), else a letter
    /// behind a colon, as `(A)`; what is to be said otherwise if there is none of them.
    pub fn of_answer(&self, answer: &str, choices: &[String]) -> String {
        let pick = self.settings.regex.pick;
        let find = |regex: &Regex, text: &str| {
            let found = picked(regex, pick, text)?;
            first_group(&found).map(|found| found.trim().to_string()).filter(|found| !found.is_empty())
        };
        find(&self.regex, answer)
            .or_else(|| {
                let texts: Vec<String> = choices.iter().map(|choice| self.counted(choice.trim())).collect();
                let mut escaped: Vec<String> =
                    texts.iter().map(|text| fancy_regex::escape(text).into_owned()).collect();
                // One text may begin another.
                escaped.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
                let found = find(&compile(&escaped.join("|")).ok()?, &self.counted(answer))?;
                // Of equal texts the last.
                let letters: HashMap<&String, String> = texts.iter().zip((0..).map(in_parentheses)).collect();
                Some(letters.get(&found).cloned().unwrap_or(found))
            })
            .or_else(|| {
                let letters: Vec<String> = (0..choices.len()).map(|i| letter(i).to_string()).collect();
                let found = find(&compile(&format!(r":\s*({})", letters.join("|"))).ok()?, answer)?;
                Some(format!("({found})"))
            })
            .unwrap_or_else(|| self.settings.regex.otherwise.clone())
    }

    /// Removes what does not count.
    fn counted(&self, text: &str) -> String {
        let mut text =
            self.ignored.iter().fold(text.to_string(), |text, regex| regex.replace_all(&text, "").into_owned());
        if self.settings.ignore_case {
            text = text.to_lowercase();
        }
        self.punctuation.as_ref().map_or(text.clone(), |punctuation| punctuation.replace_all(&text, "").into_owned())
    }
}

fn letter(number: usize) -> char {
    char::from(b'A' + (number % LETTERS) as u8)
}

fn in_parentheses(number: usize) -> String {
    format!("({})", letter(number))
}

/// Finds the tags of words.
pub struct WordTags(Regex);

impl WordTags {
    /// Compiles the expression of a pair.
    pub fn new() -> Result<Self> {
        compile(r"\('([^']*)', '([^']*)'\)").map(Self)
    }

    /// Returns the tags of all pairs `('word', 'TAG')`, with a space between them, or `invalid`.
    pub fn of_answer(&self, answer: &str) -> String {
        let pairs = self.0.captures_iter(answer).map_while(|found| found.ok());
        let tags: Vec<String> = pairs.filter_map(|pair| Some(pair.get(2)?.as_str().to_string())).collect();
        if tags.is_empty() { NO_TAGS.into() } else { tags.join(" ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::RowTemplate;
    use crate::recipe::suite_file::RegexFilter;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct FilteredAnswers {
        letters: Vec<Letters>,
        tags: Vec<(String, Vec<String>)>,
    }

    #[derive(Deserialize)]
    struct Letters {
        regex_pattern: String,
        group_select: i64,
        ignore_case: bool,
        ignore_punctuation: bool,
        regexes_to_ignore: Vec<String>,
        choices: Vec<String>,
        /// Answers with what the filter makes of each.
        answers: Vec<(String, String)>,
    }

    /// tests/fixtures/answer_filters.py writes what lm-evaluation-harness 0.4.13 finds.
    #[test]
    fn letters_and_tags_are_those_of_lm_evaluation_harness() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/answer-filters.json");
        let fixture: FilteredAnswers = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(fixture.letters.len() > 5 && fixture.tags.len() > 3);
        for set in fixture.letters {
            let filter = ChoiceLetter::of(&LetterFilter {
                choices: RowTemplate::compile("{{ choices }}").unwrap(),
                regex: RegexFilter { pick: set.group_select, ..RegexFilter::first(set.regex_pattern) },
                ignore_case: set.ignore_case,
                ignore_punctuation: set.ignore_punctuation,
                ignore: set.regexes_to_ignore,
            })
            .unwrap();
            for (answer, expected) in set.answers {
                assert_eq!(filter.of_answer(&answer, &set.choices), expected, "{answer:?} {:?}", set.choices);
            }
        }
        for (answer, expected) in fixture.tags {
            assert_eq!(WordTags::new().unwrap().of_answer(&answer), expected.join(" "), "{answer:?}");
        }
    }
}
