//! Finds personal data in a text by the rules and the list of names.

use super::kind::PersonalDataKind;
use super::names::NameList;
use super::rules::{RULES, letters_and_digits, stands_apart, word};
use std::collections::BTreeMap;
use std::ops::Range;

/// A piece of personal data in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScrubFinding {
    /// Range of bytes in the text.
    pub at: Range<usize>,
    /// The kind of personal data.
    pub kind: PersonalDataKind,
    /// The rule that found it: the country of a national number, else the kind's own name.
    pub rule: &'static str,
    /// The normalised value, so that all spellings get one pseudonym.
    pub value: String,
}

/// Finds personal data of these kinds, without overlaps, in the order of the text.
///
/// Errors: a pattern gives up on the text.
pub(super) fn find(text: &str, kinds: &[PersonalDataKind], names: &NameList) -> Result<Vec<ScrubFinding>, String> {
    // By first byte. Findings do not overlap, so only the last one that begins before the end of a new one could
    // overlap it.
    let mut found: BTreeMap<usize, ScrubFinding> = BTreeMap::new();
    let mut add = |finding: ScrubFinding| {
        let before = found.range(..finding.at.end).next_back();
        if before.is_none_or(|(_, f)| f.at.end <= finding.at.start) {
            found.insert(finding.at.start, finding);
        }
    };
    // Look for all kinds, also those that are not wanted: a number of an unwanted kind must not be taken for a wanted
    // one.
    for rule in RULES.iter() {
        let mut from = 0;
        while from < text.len() {
            let Some(groups) = rule.pattern.captures_from_pos(text, from).map_err(|e| e.to_string())? else { break };
            let Some(core) = groups.get(rule.core).or_else(|| groups.get(0)) else { break };
            let at = core.start()..core.end();
            if rule.kind == PersonalDataKind::Email {
                // Examine the whole match only once: invalid text in front of an address may be long.
                from = at.end;
                if let Some(at) = address(text, at) {
                    let value = normal(rule.kind, &text[at.clone()]);
                    add(ScrubFinding { at, kind: rule.kind, rule: rule.name, value });
                }
            } else if let Some(at) = rule.accepted_range(text, at.clone()) {
                from = at.end;
                let value = normal(rule.kind, &text[at.clone()]);
                add(ScrubFinding { at, kind: rule.kind, rule: rule.name, value });
            } else {
                // A later match may be accepted, but none that begins inside the same word.
                let rest = &text[at.start..];
                let first = rest.chars().next().map_or(1, char::len_utf8);
                from = match rest.starts_with(word) {
                    true => at.start + rest.find(|c| !word(c)).unwrap_or(rest.len()),
                    false => at.start + first,
                };
            }
        }
    }
    names
        .find(text)
        .into_iter()
        .for_each(|(at, value)| add(ScrubFinding { at, kind: PersonalDataKind::Name, rule: "name", value }));
    Ok(found.into_values().filter(|f| kinds.contains(&f.kind)).collect())
}

/// Returns the part of a match that is a valid e-mail address: no two dots in a row, no dot at the beginning.
fn address(text: &str, mut at: Range<usize>) -> Option<Range<usize>> {
    let local = text[at.clone()].find('@')?;
    let name = &text[at.start..at.start + local];
    let doubled = name.rfind("..").map_or(0, |i| i + 2);
    at.start += name.len() - name[doubled..].trim_start_matches('.').len();
    let host = text[at.clone()].find('@')? + 1;
    if let Some(doubled) = text[at.start + host..at.end].find("..") {
        at.end = at.start + host + doubled;
    }
    let (name, host) = text[at.clone()].split_once('@')?;
    let ending = host.rsplit_once('.')?.1;
    let known = (2..=24).contains(&ending.chars().count()) && ending.chars().all(char::is_alphabetic);
    (known && !name.is_empty() && !name.ends_with('.') && stands_apart(text, &at)).then_some(at)
}

/// Returns the normalised spelling of a value.
fn normal(kind: PersonalDataKind, value: &str) -> String {
    match kind {
        PersonalDataKind::Email | PersonalDataKind::Ip | PersonalDataKind::Name | PersonalDataKind::Date => {
            value.to_lowercase()
        }
        PersonalDataKind::Phone => {
            let digits: String = value.chars().filter(char::is_ascii_digit).collect();
            digits.trim_start_matches('0').to_string()
        }
        _ => letters_and_digits(value),
    }
}
