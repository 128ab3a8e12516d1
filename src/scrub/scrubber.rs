//! Finds personal data in the texts of rows and replaces it by pseudonyms.
//!
//! Personal data is found by its form (an e-mail address, a valid check digit, a word next to a number) or in a list of
//! names. The same value gets the same pseudonym everywhere. Pseudonyms depend on a key, so that without the key nobody
//! can test which value belongs to a pseudonym. Invariant: the result contains no value that was found, the report
//! contains no values at all, and scrubbing a result again changes nothing. Limit: not all personal data is found;
//! names outside the list stay.

mod check;
mod find;

use crate::error::{Error, Result};
use crate::fsutil;
use crate::json;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;

/// Kinds of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PersonalDataKind {
    Email,
    Phone,
    /// National identification numbers with check digits or a distinctive form, of the countries in `find`.
    National,
    Card,
    Iban,
    Ip,
    /// Names of people, from a list.
    Name,
    Date,
    MedicalRecord,
}

impl PersonalDataKind {
    pub const ALL: [PersonalDataKind; 9] = [
        PersonalDataKind::Email,
        PersonalDataKind::Phone,
        PersonalDataKind::National,
        PersonalDataKind::Card,
        PersonalDataKind::Iban,
        PersonalDataKind::Ip,
        PersonalDataKind::Name,
        PersonalDataKind::Date,
        PersonalDataKind::MedicalRecord,
    ];

    /// Returns the name used in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::National => "national",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::Ip => "ip",
            Self::Name => "name",
            Self::Date => "date",
            Self::MedicalRecord => "medical_record",
        }
    }

    /// Returns the kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Returns the word used in pseudonyms.
    fn label(self) -> &'static str {
        match self {
            Self::Email => "EMAIL",
            Self::Phone => "PHONE",
            Self::National => "NATIONAL-NUMBER",
            Self::Card => "CARD",
            Self::Iban => "IBAN",
            Self::Ip => "IP-ADDRESS",
            Self::Name => "NAME",
            Self::Date => "DATE",
            Self::MedicalRecord => "MEDICAL-RECORD",
        }
    }
}

/// Names to look for, each one or more words. A word with a capital in the list must have one in the text too.
#[derive(Debug, Clone, Default)]
pub struct NameList {
    /// The words of each name, by its first word in lower case; longer names come first.
    by_first: HashMap<String, Vec<Vec<String>>>,
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
    fn find(&self, text: &str) -> Vec<(Range<usize>, String)> {
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

/// How often one kind of personal data was found; contains no values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FindingCounts {
    pub times: u64,
    /// Number of different values.
    pub distinct: u64,
    /// Findings by rule; for national numbers the rule is the country.
    pub rules: BTreeMap<&'static str, u64>,
}

/// What was found and replaced, in counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScrubReport {
    pub rows: u64,
    pub rows_changed: u64,
    pub found: BTreeMap<PersonalDataKind, FindingCounts>,
    /// Number of changed texts by column, with the path inside it: `messages[].content`.
    pub columns: BTreeMap<String, u64>,
    /// Kinds of personal data that were not looked for and may still be in the texts.
    pub not_looked_for: Vec<String>,
}

/// Lists the personal data that is not looked for: kinds that the user left out, and data without a recognisable form.
fn not_looked_for(kinds: &[PersonalDataKind], names: &NameList) -> Vec<String> {
    let names = match names.by_first.is_empty() || !kinds.contains(&PersonalDataKind::Name) {
        true => "names of people (they are found by a list)",
        false => "names of people that are not in the list",
    };
    let always = [names, "street and postal addresses", "places, employers and other words that identify a person"];
    let left_out = PersonalDataKind::ALL.into_iter().filter(|k| *k != PersonalDataKind::Name && !kinds.contains(k));
    always.into_iter().map(String::from).chain(left_out.map(|k| k.name().replace('_', " "))).collect()
}

/// Replaces personal data by pseudonyms and counts it.
pub struct Scrubber {
    kinds: Vec<PersonalDataKind>,
    names: NameList,
    key: [u8; 32],
    seen: BTreeSet<String>,
    report: ScrubReport,
}

impl Scrubber {
    /// Creates a scrubber for these kinds. With the same `key` (any bytes), the same value has the same pseudonym in
    /// every file. Without a key, a random one is used and not stored, so that pseudonyms are consistent within this
    /// scrubber only.
    pub fn new(kinds: &[PersonalDataKind], names: NameList, key: Option<&[u8]>) -> Self {
        let key = match key {
            Some(key) => Sha256::digest(key).into(),
            None => rand::random(),
        };
        let report = ScrubReport { not_looked_for: not_looked_for(kinds, &names), ..ScrubReport::default() };
        Self { kinds: kinds.to_vec(), names, key, seen: BTreeSet::new(), report }
    }

    /// Returns the text with all findings replaced by pseudonyms.
    ///
    /// Errors: a text that a pattern cannot search completely; it must not be let through.
    pub fn text(&mut self, text: &str) -> Result<String> {
        let found = find::find(text, &self.kinds, &self.names).map_err(|e| {
            Error::user(format!("a text cannot be searched for personal data: {e}")).hint("leave the row out")
        })?;
        let (mut out, mut from) = (String::with_capacity(text.len()), 0);
        for finding in found {
            let pseudonym = self.pseudonym(finding.kind, &finding.value);
            let count = self.report.found.entry(finding.kind).or_default();
            count.times += 1;
            count.distinct += u64::from(self.seen.insert(pseudonym.clone()));
            *count.rules.entry(finding.rule).or_default() += 1;
            out.push_str(&text[from..finding.at.start]);
            out.push_str(&pseudonym);
            from = finding.at.end;
        }
        out.push_str(&text[from..]);
        Ok(out)
    }

    /// Replaces personal data in all texts of a row at any depth, except names of columns and roles of messages.
    pub fn row(&mut self, row: &mut serde_json::Map<String, Value>) -> Result<()> {
        let mut changed = false;
        for (column, value) in row.iter_mut() {
            changed |= self.value(value, column)?;
        }
        self.report.rows += 1;
        self.report.rows_changed += u64::from(changed);
        Ok(())
    }

    fn value(&mut self, value: &mut Value, path: &str) -> Result<bool> {
        let mut changed = false;
        match value {
            Value::String(text) => {
                let scrubbed = self.text(text)?;
                if scrubbed != *text {
                    *self.report.columns.entry(path.to_string()).or_default() += 1;
                    *text = scrubbed;
                    changed = true;
                }
            }
            Value::Array(items) => {
                for item in items {
                    changed |= self.value(item, &format!("{path}[]"))?;
                }
            }
            number if json::long_number(number).is_some() => {}
            Value::Object(fields) => {
                for (key, field) in fields.iter_mut().filter(|(key, _)| !matches!(key.as_str(), "role" | "from")) {
                    changed |= self.value(field, &format!("{path}.{key}"))?;
                }
            }
            _ => {}
        }
        Ok(changed)
    }

    /// Returns the counts so far.
    pub fn report(&self) -> &ScrubReport {
        &self.report
    }

    /// Returns a pseudonym such as `[EMAIL:kqzvwxma]`. It has letters only, so that nothing is found in it again: eight
    /// letters, or 38 bits, of the SHA-256 of key, kind and value.
    fn pseudonym(&self, kind: PersonalDataKind, value: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(kind.name());
        hash.update([0]);
        hash.update(value);
        let digest: [u8; 32] = hash.finalize().into();
        let mut number = u64::from_le_bytes(digest[..8].try_into().unwrap_or_default());
        let letters: String = (0..8)
            .map(|_| {
                let letter = (b'a' + (number % 26) as u8) as char;
                number /= 26;
                letter
            })
            .collect();
        format!("[{}:{letters}]", kind.label())
    }
}
