//! Replaces personal data in the texts of rows, and counts what was replaced.

use super::find;
use super::kind::PersonalDataKind;
use super::names::NameList;
use crate::error::{Error, Result};
use crate::json;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// How often one kind of personal data was found; contains no values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FindingCounts {
    /// How often it was found.
    pub times: u64,
    /// Number of different values.
    pub distinct: u64,
    /// Findings by rule; for national numbers the rule is the country.
    pub rules: BTreeMap<&'static str, u64>,
}

/// What was found and replaced, in counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScrubReport {
    /// Number of rows that were read.
    pub rows: u64,
    /// Number of rows in which something was replaced.
    pub rows_changed: u64,
    /// What was found, by kind.
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
