//! Imports existing prompts, answers and judgements from data files and from exports of other tools.
//!
//! Each row becomes an [`Item`]; all items of a file are then added to a store. A row that cannot be read is an error
//! that names its line, and nothing of the file is imported.

mod argilla;
mod label_studio;
mod rows;

use super::record::{AnnotatorKind, JsonMap, NewCandidate, NewPair, NewPrompt, NewVote, VoteChoice};
use super::store::Store;
use crate::data::source::{self, ColumnSelection, RowPlace};
use crate::error::{Context, Error, Result};
use crate::json;
use crate::scrub::Scrubber;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The layout of an import file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelImportFormat {
    /// Detected from the columns of the first row.
    #[default]
    Auto,
    /// Prompts and answers in columns, as in ft's own data files.
    Rows,
    /// An export of Argilla: to_datasets, to_json or the older push to the Hub.
    Argilla,
    /// Label Studio's JSON export of a pairwise task.
    LabelStudio,
}

/// Options of an import.
#[derive(Debug, Clone, Default)]
pub struct LabelImportOptions {
    pub format: LabelImportFormat,
    /// Source of answers whose row names none.
    pub source: Option<String>,
    /// The column or field with the prompt.
    pub prompt: Option<String>,
    /// The columns or fields with the answers, in their order.
    pub answers: Vec<String>,
    /// Argilla: the question whose responses say which answer is better.
    pub question: Option<String>,
}

/// The content of one row: a prompt, its answers, and judgements of them.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedRow {
    pub prompt: NewPrompt,
    pub answers: Vec<ImportedAnswer>,
    pub verdicts: Vec<ImportedVerdict>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedAnswer {
    pub source: String,
    pub text: String,
}

/// A judgement of two of the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedVerdict {
    pub annotator: String,
    /// Indices in the list of answers.
    pub a: usize,
    pub b: usize,
    pub choice: VoteChoice,
}

/// Counts of an import: rows read, and records that were added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportCounts {
    pub rows: usize,
    pub prompts: usize,
    pub candidates: usize,
    pub pairs: usize,
    pub votes: usize,
}

impl ImportedRow {
    /// Replaces personal data by pseudonyms in all texts. A key that is a hash of the content is computed again, so
    /// that it does not depend on the original text.
    pub fn scrub(&mut self, scrubber: &mut Scrubber) -> Result<()> {
        let by_content = NewPrompt::keyed_by_content(self.prompt.messages.clone(), JsonMap::new()).key;
        let mut row = Map::from_iter([
            ("prompt".to_string(), self.prompt.messages.take()),
            ("columns".to_string(), Value::Object(std::mem::take(&mut self.prompt.columns))),
            ("answers".to_string(), self.answers.iter().map(|a| a.text.as_str()).collect()),
        ]);
        if self.prompt.key != by_content {
            row.insert("id".into(), self.prompt.key.as_str().into());
        }
        scrubber.row(&mut row)?;
        let mut part = |name: &str| row.remove(name).unwrap_or_default();
        let (messages, columns, answers) = (part("prompt"), part("columns"), part("answers"));
        let columns = columns.as_object().cloned().unwrap_or_default();
        self.prompt = NewPrompt::keyed_by_content(messages, columns);
        if let Value::String(key) = part("id") {
            self.prompt.key = key;
        }
        let texts = answers.as_array().map_or(&[][..], Vec::as_slice);
        self.answers.iter_mut().zip(texts).for_each(|(a, t)| a.text = t.as_str().unwrap_or_default().into());
        Ok(())
    }
}

/// Reads the prompts of a file. If a row ends in an answer, the prompt is the part before it.
///
/// Errors: a row without a prompt (names file and line); two prompts with the same id; an empty file.
pub fn prompts(path: &Path) -> Result<Vec<NewPrompt>> {
    let options = LabelImportOptions { format: LabelImportFormat::Rows, ..LabelImportOptions::default() };
    Ok(read(path, &options)?.into_iter().map(|item| item.prompt).collect())
}

/// Reads the items of a file in order.
pub fn read(path: &Path, options: &LabelImportOptions) -> Result<Vec<ImportedRow>> {
    let mut items: Vec<ImportedRow> = Vec::new();
    let mut format = options.format;
    let mut lines: HashMap<String, (usize, Value)> = HashMap::new();
    source::for_each_selected_chunk(ColumnSelection::Readable, path, None, |chunk| {
        for raw in chunk {
            let line = raw.line;
            let place = RowPlace { path, line };
            let columns = raw.columns(path)?;
            if format == LabelImportFormat::Auto {
                format = detect(&columns);
            }
            let item = match format {
                LabelImportFormat::Argilla => argilla::item(&columns, options),
                LabelImportFormat::LabelStudio => label_studio::item(&columns, options),
                LabelImportFormat::Rows | LabelImportFormat::Auto => rows::item(columns, options, place),
            };
            let item = item.map_err(|e| if e.message().contains(&place.to_string()) { e } else { e.context(place) })?;
            let NewPrompt { key, messages, .. } = &item.prompt;
            let (first, known) = lines.entry(key.clone()).or_insert_with(|| (line, messages.clone()));
            if known != messages {
                return Err(Error::user(format!(
                    "{place}: the id `{key}` is already used by another prompt, in line {first}"
                ))
                .hint("give each prompt its own id, or no id: then ft derives one from the content"));
            }
            items.push(item);
        }
        Ok(())
    })?;
    Ok(items)
}

/// Detects the layout from the columns of a row.
fn detect(columns: &JsonMap) -> LabelImportFormat {
    if argilla::is_record(columns) {
        LabelImportFormat::Argilla
    } else if label_studio::is_task(columns) {
        LabelImportFormat::LabelStudio
    } else {
        LabelImportFormat::Rows
    }
}

/// Adds items to a project. Known records are left unchanged, so that a file may be imported again.
///
/// Errors: an id that the project uses for another prompt.
pub fn import(store: &Store, items: &[ImportedRow], overlap: i64) -> Result<ImportCounts> {
    let mut done = ImportCounts { rows: items.len(), ..ImportCounts::default() };
    let key = |p: &NewPrompt, known: &HashMap<String, String>| {
        known.get(&p.messages.to_string()).cloned().unwrap_or_else(|| p.key.clone())
    };
    let before = store.prompts()?;
    let by_content: HashMap<String, String> = before.iter().map(|p| (p.messages.to_string(), p.key.clone())).collect();
    let fresh: Vec<NewPrompt> = items.iter().map(|i| i.prompt.clone()).collect();
    let fresh: Vec<NewPrompt> =
        fresh.into_iter().filter(|p| !by_content.contains_key(&p.messages.to_string())).collect();
    let taken: HashMap<&str, &Value> = before.iter().map(|p| (p.key.as_str(), &p.messages)).collect();
    if let Some(p) = fresh.iter().find(|p| taken.contains_key(p.key.as_str())) {
        return Err(Error::user(format!(
            "{}: the id `{}` is already used by another prompt of the project",
            store.location(),
            p.key
        ))
        .hint("give the prompt another id, or no id: then ft derives one from the content"));
    }
    done.prompts = store.add_prompts(&fresh)?.new;
    let by_key: HashMap<String, i64> = store.prompts()?.into_iter().map(|p| (p.key, p.id)).collect();
    let prompt = |item: &ImportedRow| {
        let key = key(&item.prompt, &by_content);
        by_key.get(&key).copied().ok_or_else(|| Error::bug(format!("prompt `{key}` was not added")))
    };
    let mut candidates = Vec::new();
    for item in items {
        let prompt = prompt(item)?;
        candidates.extend(item.answers.iter().map(|a| NewCandidate {
            prompt,
            source: a.source.clone(),
            text: a.text.clone(),
            tokens: None,
        }));
    }
    done.candidates = store.add_candidates(&candidates)?.new;
    if items.iter().any(|i| !i.verdicts.is_empty()) {
        (done.pairs, done.votes) = judgements(store, items, prompt, overlap)?;
    }
    Ok(done)
}

/// Adds the judged pairs and their votes; returns how many of each were new.
fn judgements(
    store: &Store,
    items: &[ImportedRow],
    prompt: impl Fn(&ImportedRow) -> Result<i64>,
    overlap: i64,
) -> Result<(usize, usize)> {
    let all = store.candidates()?;
    let ids: HashMap<(i64, &str, &str), i64> =
        all.iter().map(|c| ((c.prompt, c.source.as_str(), c.text.as_str()), c.id)).collect();
    let (mut pairs, mut said) = (Vec::new(), Vec::new());
    for item in items {
        let prompt = prompt(item)?;
        let id = |i: usize| {
            let answer = &item.answers[i];
            ids.get(&(prompt, answer.source.as_str(), answer.text.as_str()))
                .copied()
                .ok_or_else(|| Error::bug(format!("an answer of {} was not added", answer.source)))
        };
        for verdict in &item.verdicts {
            let (a, b) = (id(verdict.a)?, id(verdict.b)?);
            // The same text from the same source is one answer, so there is nothing to compare.
            if a != b {
                pairs.push(NewPair { prompt, a, b, overlap, repeat_of: None, reason: "imported".into() });
                said.push((a, b, verdict));
            }
        }
    }
    let added = store.add_pairs(&pairs)?.new;
    let known = store.pairs()?;
    let find: HashMap<(i64, i64), &super::record::CandidatePair> =
        known.iter().filter(|p| p.repeat_of.is_none()).map(|p| ((p.a.min(p.b), p.a.max(p.b)), p)).collect();
    let mut people: HashMap<&str, i64> = HashMap::new();
    let mut votes = Vec::new();
    for (a, b, verdict) in said {
        let pair = find.get(&(a.min(b), a.max(b))).ok_or_else(|| Error::bug("a pair was not added"))?;
        let annotator = match people.get(verdict.annotator.as_str()) {
            Some(id) => *id,
            None => {
                let made = store.annotator(&verdict.annotator, AnnotatorKind::Person, &json!({ "imported": true }))?;
                people.insert(&verdict.annotator, made.id);
                made.id
            }
        };
        let choice = if pair.a == a { verdict.choice } else { verdict.choice.flipped() };
        votes.push(NewVote { detail: json!({ "imported": true }), ..NewVote::new(pair.id, annotator, choice) });
    }
    Ok((added, store.add_votes(&votes).context(|| "imported judgements")?.new))
}

/// The answer that a label of another tool means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerPick {
    One(usize),
    Tie,
    BothBad,
    /// The label is empty.
    Nothing,
}

/// Parses a label about answers with these names; `None` if it does not refer to them.
fn parse_pick(label: &str, names: &[String]) -> Option<AnswerPick> {
    let label = label.trim().to_lowercase();
    if let Some(i) = names.iter().position(|n| n.to_lowercase() == label) {
        return Some(AnswerPick::One(i));
    }
    let says = |words: &[&str]| words.iter().any(|w| label.contains(w));
    match label.as_str() {
        "" => return Some(AnswerPick::Nothing),
        "left" | "a" => return Some(AnswerPick::One(0)),
        "right" | "b" => return Some(AnswerPick::One(1)),
        _ if says(&["both bad", "both_bad", "neither", "none"]) => return Some(AnswerPick::BothBad),
        _ if says(&["tie", "equal", "same", "both"]) => return Some(AnswerPick::Tie),
        _ => {}
    }
    let digits: String = label.chars().filter(char::is_ascii_digit).collect();
    // A number is that of a name, or counts from one if no name has a number.
    let named = names.iter().position(|n| !digits.is_empty() && suffix(n) == digits);
    let counted = digits.parse::<usize>().ok().and_then(|n| n.checked_sub(1)).filter(|n| *n < names.len());
    let bare = names.iter().all(|n| suffix(n).is_empty());
    named.or(counted.filter(|_| bare)).map(AnswerPick::One)
}

/// Returns the digits at the end of a name.
fn suffix(name: &str) -> String {
    let start = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[start..].to_string()
}

/// Converts the choice among several answers into verdicts on pairs of them.
fn pairwise_verdicts(pick: AnswerPick, answers: usize, annotator: &str) -> Vec<ImportedVerdict> {
    let twos = (0..answers).flat_map(|a| (a + 1..answers).map(move |b| (a, b)));
    let said = |(a, b)| {
        let choice = match pick {
            AnswerPick::One(i) if i == a => VoteChoice::A,
            AnswerPick::One(i) if i == b => VoteChoice::B,
            AnswerPick::Tie => VoteChoice::Tie,
            AnswerPick::BothBad => VoteChoice::BothBad,
            // Neither of the two was chosen: nothing is known about their order.
            AnswerPick::One(_) | AnswerPick::Nothing => return None,
        };
        Some(ImportedVerdict { annotator: annotator.to_string(), a, b, choice })
    };
    twos.filter_map(said).collect()
}

/// Returns the id of a prompt from the columns that may contain one.
fn own_id(columns: &JsonMap) -> Option<String> {
    let id =
        ["prompt_id", "external_id", "id", "key"].into_iter().find_map(|k| columns.get(k).filter(|v| !v.is_null()))?;
    match id {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(n) => Some(n.to_string()),
        other => json::long_number(other).map(String::from),
    }
}

/// Creates a prompt with its own id, or with a hash of the messages if it has none.
fn new_prompt(messages: Value, id: Option<String>, columns: JsonMap) -> NewPrompt {
    match id {
        Some(key) => NewPrompt { key, messages, columns },
        None => NewPrompt::keyed_by_content(messages, columns),
    }
}

/// Returns the messages of a prompt: text becomes one user turn, a list of messages is unchanged.
fn as_messages(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(json!([{ "role": "user", "content": text }])),
        Value::Array(turns) if !turns.is_empty() && turns.iter().all(|t| t.get("role").is_some()) => {
            Some(value.clone())
        }
        _ => None,
    }
}

/// Returns the names of the fields with the prompt and the answers: those given in the options, or known names.
fn prompt_and_answer_fields(data: &JsonMap, options: &LabelImportOptions) -> Result<(String, Vec<String>)> {
    let found = || data.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    let known = ["prompt", "instruction", "question", "query", "input", "chat", "messages", "conversation"];
    let prompt = match &options.prompt {
        Some(name) => data.contains_key(name).then(|| name.clone()),
        None => known.iter().find(|k| data.contains_key(**k)).map(|k| k.to_string()),
    };
    let prompt = prompt.ok_or_else(|| {
        Error::user(format!("no field with the prompt among {}", found())).hint("name it with --prompt FIELD")
    })?;
    let stems = ["generation", "generations", "response", "answer", "completion", "output", "candidate", "text"];
    let is_answer = |name: &&String| {
        let stem =
            name.trim_end_matches(|c: char| c.is_ascii_alphanumeric() && (c.is_ascii_digit() || c.is_uppercase()));
        let stem = stem.trim_end_matches(['-', '_', ' ']).to_lowercase();
        (stem.len() < name.len() && stems.contains(&stem.as_str()))
            || matches!(name.as_str(), "left" | "right" | "chosen" | "rejected")
    };
    let answers: Vec<String> = match options.answers.is_empty() {
        false => options.answers.clone(),
        true => data.keys().filter(is_answer).filter(|n| **n != prompt).cloned().collect(),
    };
    if let Some(missing) = answers.iter().find(|a| !data.contains_key(*a)) {
        return Err(Error::user(format!("no field `{missing}`; found {}", found())));
    }
    if answers.len() < 2 {
        return Err(Error::user(format!("no two fields with answers among {}", found()))
            .hint("name them with --answer FIELD --answer FIELD"));
    }
    Ok((prompt, answers))
}
