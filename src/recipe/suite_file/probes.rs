//! Reads tasks that ask what a model prefers and remembers, groups of rows, and what answers are searched for.

use super::probe_types::{ContentSettings, ExposureTask, ExtractionTask, MembershipTask, PairsTask, SwappedTerms};
use super::task::{flip, positive, required};
use super::template;
use crate::recipe::node_reader::NodeReader;
use crate::recipe::tree::{Node, NodeKind};
use crate::scrub::PersonalDataKind;

const PAIRS_KEYS: [&str; 6] = ["context", "first", "second", "unrelated", "term", "per"];
const EXTRACTION_KEYS: [&str; 4] = ["text", "prefix", "continuation", "held_out"];
const MEMBERSHIP_KEYS: [&str; 2] = ["others", "text"];
const EXPOSURE_KEYS: [&str; 3] = ["pattern", "others", "seed"];
/// Keys of `generate` that say what answers are searched for.

pub(super) fn pairs(reader: &mut NodeReader, node: &Node) -> Option<PairsTask> {
    reader.check_keys(node, &PAIRS_KEYS, "`pairs`");
    let NodeKind::Map(_) = node.kind else { return None };
    let mut text =
        |key: &str, example: &str| required(reader, node, key, example).and_then(|n| template(reader, key, n));
    let first = text("first", "\"The nurse said that she was late.\"");
    let second = text("second", "\"The nurse said that he was late.\"");
    let mut optional = |key: &str| node.get(key).map(|n| template(reader, key, n));
    let (context, unrelated, term) = (optional("context"), optional("unrelated"), optional("term"));
    let per = node.get("per").map(|n| {
        reader.choice("per", n, &["text", "token"], |name| match name {
            "text" => Some(false),
            "token" => Some(true),
            _ => None,
        })
    });
    if let (Some((key, _)), None) = (node.entry("term"), node.get("unrelated")) {
        let hint = "leave it out, or add `unrelated`: only the scores of StereoSet are means over terms";
        reader.wrong::<()>(key.at, "`term` without `unrelated`".into(), hint);
    }
    Some(PairsTask {
        context: flip(context)?,
        first: first?,
        second: second?,
        unrelated: flip(unrelated)?,
        term: flip(term)?,
        per_token: flip(per)?.unwrap_or(false),
    })
}

pub(super) fn extraction(reader: &mut NodeReader, node: &Node) -> Option<ExtractionTask> {
    let empty = Node::map(node.at);
    let node = if node.is_null() { &empty } else { node };
    reader.check_keys(node, &EXTRACTION_KEYS, "`extraction`");
    let NodeKind::Map(_) = node.kind else { return None };
    let text = node.get("text").map(|n| template(reader, "text", n));
    let prefix = node.get("prefix").map(|n| match text {
        // All of an answer may be asked for, but a text has to begin somewhere.
        None => reader.whole("prefix", n).map(|n| n as usize),
        Some(_) => positive(reader, "prefix", n),
    });
    let continuation = node.get("continuation").map(|n| positive(reader, "continuation", n));
    let held_out = node.get("held_out").map(|n| reader.truth("held_out", n));
    Some(ExtractionTask {
        text: flip(text)?,
        prefix: flip(prefix)?,
        continuation: flip(continuation)?,
        held_out: flip(held_out)?.unwrap_or(false),
    })
}

pub(super) fn membership(reader: &mut NodeReader, node: &Node) -> Option<MembershipTask> {
    reader.check_keys(node, &MEMBERSHIP_KEYS, "`membership`");
    let NodeKind::Map(_) = node.kind else { return None };
    let others =
        required(reader, node, "others", "held_out.jsonl").and_then(|n| reader.path("others", n, "held_out.jsonl"));
    let text = node.get("text").map(|n| template(reader, "text", n));
    Some(MembershipTask { others: others?, text: flip(text)? })
}

pub(super) fn exposure(reader: &mut NodeReader, node: &Node) -> Option<ExposureTask> {
    reader.check_keys(node, &EXPOSURE_KEYS, "`exposure`");
    let NodeKind::Map(_) = node.kind else { return None };
    let pattern = required(reader, node, "pattern", "\"{{ pattern }}\"").and_then(|n| template(reader, "pattern", n));
    let others = node.get("others").map(|n| positive(reader, "others", n));
    let seed = node.get("seed").map(|n| reader.whole("seed", n));
    Some(ExposureTask {
        pattern: pattern?,
        others: flip(others)?.unwrap_or(ExposureTask::OTHERS),
        seed: flip(seed)?.unwrap_or_default() as u64,
    })
}

/// Reads what answers are searched for, out of the settings of `generate`; `metrics` are the names that these have.
pub(super) fn content(reader: &mut NodeReader, node: &Node) -> Option<ContentSettings> {
    let lexicon = node.get("lexicon").map(|n| reader.path("lexicon", n, "eval/sentiment.tsv"));
    let words = node.get("words").map(|n| reader.path("words", n, "words.txt"));
    let kinds = node.get("personal_data").map(|n| personal_data(reader, n));
    Some(ContentSettings {
        lexicon: flip(lexicon)?,
        words: flip(words)?,
        personal_data: flip(kinds)?.unwrap_or_else(|| default_kinds().collect()),
    })
}

/// Returns the kinds that are counted by default: all but dates, which most texts have, and names, which need a list.
fn default_kinds() -> impl Iterator<Item = PersonalDataKind> {
    let countable = |kind: &PersonalDataKind| !matches!(kind, PersonalDataKind::Date | PersonalDataKind::Name);
    PersonalDataKind::ALL.into_iter().filter(countable)
}

fn personal_data(reader: &mut NodeReader, node: &Node) -> Option<Vec<PersonalDataKind>> {
    let names: Vec<&str> = default_kinds().chain([PersonalDataKind::Date]).map(PersonalDataKind::name).collect();
    let items = reader.list("personal_data", node, "[email, phone]")?;
    let known = |name: &str| PersonalDataKind::named(name).filter(|kind| names.contains(&kind.name()));
    let found: Vec<_> = items.iter().map(|item| reader.choice("personal_data", item, &names, known)).collect();
    found.into_iter().collect()
}

/// Reads terms that take each other's place: at least two groups with equally many terms.
pub(super) fn swap(reader: &mut NodeReader, node: &Node) -> Option<SwappedTerms> {
    const EXAMPLE: &str = "{ women: [sister, mother], men: [brother, father] }";
    let NodeKind::Map(entries) = &node.kind else {
        return reader.expected("swap", node, "groups with their terms", EXAMPLE);
    };
    let mut found = SwappedTerms::new();
    let mut fine = true;
    for (key, value) in entries {
        let name = &key.text;
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || ["group", "term"].contains(&name.as_str()) {
            let hint = "a template names it: letters, digits and `_`, and neither `group` nor `term`";
            fine = reader.wrong(key.at, format!("`{name}` is no name of a group"), hint).unwrap_or(false);
        }
        match super::texts(reader, name, value, "[sister, mother]") {
            Some(terms) => drop(found.insert(name.clone(), terms)),
            None => fine = false,
        }
    }
    let lengths: Vec<usize> = found.values().map(Vec::len).collect();
    if fine && (lengths.len() < 2 || lengths.iter().any(|n| *n != lengths[0] || *n == 0)) {
        let counts = found.iter().map(|(name, terms)| format!("{name} {}", terms.len())).collect::<Vec<_>>().join(", ");
        let message = format!("`swap`: expected two or more groups with equally many terms, found {counts}");
        return reader.wrong(node.at, message, format!("e.g. `swap: {EXAMPLE}`"));
    }
    fine.then_some(found)
}
