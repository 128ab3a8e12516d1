//! Reads the file of an evaluation suite into plain types. All mistakes are reported together, with their places.
//!
//! `types` has what a suite is, `task` reads one task, `kinds` and `probes` what depends on its kind. `scorers` has what scores written answers
//! beside comparison with expected ones, `scorer_keys` reads it. Templates are compiled here, so that a mistake in one has a place. `ft eval`
//! runs suites (`eval::suite`).

mod kinds;
mod probe_types;
mod probes;
mod scorer_keys;
pub mod scorers;
mod task;
mod types;

pub use probe_types::{ContentSettings, ExposureTask, ExtractionTask, MembershipTask, PairsTask, SwappedTerms};
pub use types::{
    AnswerFilter, AnswerMap, AnswerSampling, AnswerScore, ChoiceMetric, ChoiceTask, ChoiceTexts, FewShot, FewShotDraw,
    FewShotForm, GENERATE_METRICS, GenerateTask, LetterFilter, Normaliser, PerplexityTask, PerplexityUnit, RegexFilter,
    RowLimit, SuiteFile, SuiteTask, TaskKind,
};

use super::gate::Gate;
use super::mistakes::{SourceSpan, SourceTexts};
use super::node_reader::NodeReader;
use super::suggest::suggest_choice;
use super::tree::{self, Node, NodeKind};
use crate::data::rows::RowTemplate;
use crate::error::{Error, Result};
use crate::fsutil;
use std::collections::BTreeSet;
use std::path::Path;

/// Maximum size of the file in bytes, so that a file of rows given by mistake is not read.
const LARGEST: u64 = 1 << 20;
const KEYS: [&str; 3] = ["title", "tasks", "gates"];
const TASKS_EXAMPLE: &str = "[{name: icd10, data: rows.jsonl, generate: {metrics: [exact_match]}}]";

/// Reads the file of a suite. If there are mistakes, the error lists all of them.
pub fn read(path: &Path) -> Result<SuiteFile> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LARGEST) {
        return Err(Error::user(format!("{}: larger than 1 MiB, so it cannot be the file of a suite", path.display()))
            .hint("a suite is a short YAML file (docs/evaluation.md shows one); rows are evaluated with --data FILE"));
    }
    parse(&path.display().to_string(), &fsutil::read_to_string(path)?)
}

/// Like [`read`], for a file given as text. Messages use `name` in place of a file name.
pub fn parse(name: &str, text: &str) -> Result<SuiteFile> {
    let content = text.strip_prefix('\u{feff}').unwrap_or(text);
    let sources = SourceTexts { name, text: content, sets: &[] };
    let mut mistakes = Vec::new();
    let root =
        tree::parse(0, content, &mut mistakes).or_else(|| mistakes.is_empty().then(|| Node::map(SourceSpan::start(0))));
    let found = root.and_then(|root| file(&mut NodeReader { mistakes: &mut mistakes }, &root));
    match found {
        Some(file) if mistakes.is_empty() => Ok(file),
        _ => Err(sources.report(mistakes)),
    }
}

/// Reads the whole file; `None` if something is missing. Mistakes are noted as they are met.
fn file(reader: &mut NodeReader, root: &Node) -> Option<SuiteFile> {
    reader.check_keys(root, &KEYS, "a suite");
    let NodeKind::Map(_) = root.kind else { return None };
    let title = root.get("title").and_then(|node| reader.text("title", node, "text", "The medical task"));
    let gates = root.get("gates").map_or_else(Vec::new, |node| gates(reader, node));
    let tasks = reader.required(root, "tasks", TASKS_EXAMPLE);
    let tasks = tasks.and_then(|node| reader.list("tasks", node, TASKS_EXAMPLE))?;
    let (mut found, mut names) = (Vec::new(), BTreeSet::new());
    for node in tasks {
        let task = task::task(reader, node);
        let name = node.get("name").and_then(|name| match &name.kind {
            NodeKind::Scalar { text, .. } => Some((text.clone(), name.at)),
            _ => None,
        });
        if let Some((name, at)) = name
            && !names.insert(name.clone())
        {
            reader.wrong::<()>(at, format!("a second task is called `{name}`"), "give each task a name of its own");
        }
        found.push(task);
    }
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    for (gate, at) in &gates {
        if !names.contains(&gate.task) {
            let hint = match suggest_choice(&known, &gate.task) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("its tasks are {}", known.join(", ")),
            };
            reader.wrong::<()>(*at, format!("`gates`: the suite has no task `{}`", gate.task), hint);
        }
    }
    let gates = gates.into_iter().map(|(gate, _)| gate).collect();
    Some(SuiteFile { title, tasks: found.into_iter().collect::<Option<_>>()?, gates })
}

/// Reads a list of gates, or one, with their places.
fn gates(reader: &mut NodeReader, node: &Node) -> Vec<(Gate, SourceSpan)> {
    const EXAMPLE: &str = "[\"icd10.exact_match >= baseline - 0.02\"]";
    let nodes = match &node.kind {
        NodeKind::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    let mut gate = |node: &Node| {
        let text = reader.text("gates", node, "text or a list of texts", EXAMPLE)?;
        match Gate::parse(&text) {
            Ok(gate) => Some((gate, node.at)),
            Err(mistake) => {
                let message = format!("`gates`: {text:?}, character {}: {}", mistake.column, mistake.message);
                reader.wrong(node.at, message, mistake.hint)
            }
        }
    };
    nodes.iter().filter_map(&mut gate).collect()
}

/// Reads a list of texts, or one text.
fn texts(reader: &mut NodeReader, key: &str, node: &Node, example: &str) -> Option<Vec<String>> {
    match &node.kind {
        NodeKind::List(items) => items.iter().map(|item| reader.text(key, item, "text", example)).collect(),
        NodeKind::Scalar { .. } => reader.text(key, node, "text or a list of texts", example).map(|text| vec![text]),
        NodeKind::Map(_) => reader.expected(key, node, "text or a list of texts", example),
    }
}

/// Reads a template over the columns of a row.
fn template(reader: &mut NodeReader, key: &str, node: &Node) -> Option<RowTemplate> {
    let text = reader.text(key, node, "a template", "\"{{ question }}\"")?;
    match RowTemplate::compile(&text) {
        Ok(template) => Some(template),
        Err(fault) => {
            let line =
                fault.line().filter(|_| text.contains('\n')).map_or(String::new(), |n| format!(", its line {n}"));
            reader.wrong(
                node.at,
                format!("`{key}`{line}: {fault}"),
                "a template is text with `{{ column }}` in it (Jinja)",
            )
        }
    }
}
