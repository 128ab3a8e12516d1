//! Reads task files of lm-evaluation-harness (0.4) into plain values with their places: YAML with `include`, and `!function` for Python.
//!
//! What a task means is elsewhere (`eval::lm_eval`). `group` finds the tasks of a group.

mod group;

pub use group::read_all;

use super::mistakes::{Mistake, SourceSpan, SourceTexts};
use super::tree::{self, Node, NodeKind, Scalar, parse_scalar};
use crate::error::{Error, Result};
use crate::fsutil;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum size of a file in bytes, so that a file of rows given by mistake is not read.
const LARGEST: u64 = 1 << 20;
/// Most files that include each other.
const DEEPEST: usize = 16;

/// Where a key or value stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskPlace {
    /// The file as named, or the argument that sets a key.
    pub file: Arc<str>,
    /// The line, from 1; `None` for an argument.
    pub line: Option<usize>,
}

impl fmt::Display for TaskPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => write!(f, "{}", self.file),
        }
    }
}

/// A value of a task file.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskValue {
    /// Text, a number, true or false, or null.
    Scalar(Value),
    /// A list.
    List(Vec<TaskValue>),
    /// Names and values.
    Map(Vec<(String, TaskValue)>),
    /// The name of a Python function (`!function`).
    Function(String),
}

impl TaskValue {
    /// Returns the text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns the value of a key, if it is a map with this key.
    pub fn get(&self, key: &str) -> Option<&TaskValue> {
        match self {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Returns true for null.
    pub fn is_null(&self) -> bool {
        *self == Self::Scalar(Value::Null)
    }

    /// Returns the first Python function inside.
    pub fn function(&self) -> Option<&str> {
        match self {
            Self::Function(name) => Some(name),
            Self::List(items) => items.iter().find_map(Self::function),
            Self::Map(entries) => entries.iter().find_map(|(_, value)| value.function()),
            Self::Scalar(_) => None,
        }
    }

    /// Returns it as JSON; a function has none.
    pub fn to_json(&self) -> Option<Value> {
        match self {
            Self::Scalar(value) => Some(value.clone()),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(entries) => entries.iter().map(|(key, value)| Some((key.clone(), value.to_json()?))).collect(),
            Self::Function(_) => None,
        }
    }
}

/// A key of a task with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskKey {
    /// The key.
    pub name: String,
    /// Where it stands.
    pub place: TaskPlace,
    /// Its value.
    pub value: TaskValue,
}

/// A task with all its keys, those of included files among them.
#[derive(Debug, Clone, PartialEq)]
pub struct LmEvalTask {
    /// The file as named.
    pub path: PathBuf,
    /// The keys; each name once.
    pub keys: Vec<TaskKey>,
}

impl LmEvalTask {
    /// Returns a key whose value is not null.
    pub fn get(&self, name: &str) -> Option<&TaskKey> {
        self.keys.iter().find(|key| key.name == name && !key.value.is_null())
    }

    /// Returns the text of a key, if it is one.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|key| key.value.text())
    }

    /// Sets a key; another value of it is replaced.
    fn set(&mut self, key: TaskKey) {
        match self.keys.iter_mut().find(|known| known.name == key.name) {
            Some(known) => *known = key,
            None => self.keys.push(key),
        }
    }
}

/// Reads a file with those that it includes.
fn read(path: &Path) -> Result<LmEvalTask> {
    let mut task = LmEvalTask { path: path.into(), keys: Vec::new() };
    include(path, &mut task, &mut Vec::new())?;
    Ok(task)
}

/// Adds the keys of a file and, before them, those of the files that it includes.
fn include(path: &Path, task: &mut LmEvalTask, around: &mut Vec<PathBuf>) -> Result<()> {
    let same = fsutil::absolute(path);
    if around.contains(&same) || around.len() == DEEPEST {
        return Err(Error::user(format!("{}: the files include each other", path.display())));
    }
    around.push(same);
    let own = keys_of(path)?;
    if let Some(key) = own.iter().find(|key| key.name == "include") {
        let names = match &key.value {
            TaskValue::List(items) => items.iter().map(TaskValue::text).collect(),
            one => one.text().map(|name| vec![Some(name)]).unwrap_or_default(),
        };
        for name in names {
            let name = name.ok_or_else(|| Error::user(format!("{}: `include` names no file", key.place)))?;
            let included = path.parent().unwrap_or(Path::new("")).join(name);
            if !included.is_file() {
                return Err(Error::user(format!("{}: there is no file {}", key.place, included.display()))
                    .hint("copy the files that a task file includes beside it"));
            }
            include(&included, task, around)?;
            // A list of tasks belongs to the file that has it.
            task.keys.retain(|key| key.name != "task_list");
        }
    }
    own.into_iter().filter(|key| key.name != "include").for_each(|key| task.set(key));
    around.pop();
    Ok(())
}

/// Reads the keys of one file.
fn keys_of(path: &Path) -> Result<Vec<TaskKey>> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LARGEST) {
        return Err(Error::user(format!("{}: larger than 1 MiB, so it cannot be a task file", path.display()))
            .hint("a task file of lm-evaluation-harness is a short YAML file; rows are named with --data"));
    }
    let text = fsutil::read_to_string(path)?;
    let content = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let name = path.display().to_string();
    let sources = SourceTexts { name: &name, text: content, sets: &[] };
    let (mut mistakes, mut tags) = (Vec::new(), Vec::new());
    let root = tree::parse_tagged(0, content, &mut mistakes, Some(&mut tags));
    let file: Arc<str> = name.as_str().into();
    let mut keys = Vec::new();
    match root.as_ref().map(|root| &root.kind) {
        Some(NodeKind::Map(entries)) => {
            for (key, node) in entries {
                let place = TaskPlace { file: file.clone(), line: Some(key.at.line) };
                let value = value_of(node, &tags, &mut mistakes);
                keys.push(TaskKey { name: key.text.clone(), place, value });
            }
        }
        _ if !mistakes.is_empty() => {}
        _ => {
            let mistake = Mistake::new(SourceSpan::start(0), "this is no task file: it has no keys");
            mistakes.push(mistake.hint("a task file has keys such as `task`, `dataset_path` and `doc_to_text`"));
        }
    }
    if mistakes.is_empty() { Ok(keys) } else { Err(sources.report(mistakes)) }
}

/// Returns the value of a node. Words are true and false as in YAML 1.1, which lm-evaluation-harness reads.
fn value_of(node: &Node, tags: &[(SourceSpan, String)], mistakes: &mut Vec<Mistake>) -> TaskValue {
    if let Some((at, tag)) = tags.iter().find(|(at, _)| *at == node.at) {
        match (&node.kind, tag.as_str()) {
            (NodeKind::Scalar { text, .. }, "function") => return TaskValue::Function(text.clone()),
            _ => mistakes
                .push(Mistake::new(*at, format!("the YAML tag `!{tag}`")).hint("a task file has `!function` only")),
        }
    }
    match &node.kind {
        NodeKind::Scalar { text, plain } => TaskValue::Scalar(match parse_scalar(text, *plain) {
            Scalar::Text("yes" | "Yes" | "YES" | "on" | "On" | "ON") if *plain => true.into(),
            Scalar::Text("no" | "No" | "NO" | "off" | "Off" | "OFF") if *plain => false.into(),
            _ => node.to_json(),
        }),
        NodeKind::List(items) => TaskValue::List(items.iter().map(|item| value_of(item, tags, mistakes)).collect()),
        NodeKind::Map(entries) => TaskValue::Map(
            entries.iter().map(|(key, node)| (key.text.clone(), value_of(node, tags, mistakes))).collect(),
        ),
    }
}

/// Applies `KEY=VALUE`, where the value is YAML, or a template as it is, and a key may have points. An empty value removes the key.
fn apply(task: &mut LmEvalTask, set: &str) -> Result<()> {
    let wrong = |what: String| Error::user(format!("--set {set}: {what}")).hint("such as --set num_fewshot=5");
    let (path, text) = set.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE".into()))?;
    let mut names = path.trim().split('.');
    let first = names.next().unwrap_or_default();
    if path.trim().split('.').any(str::is_empty) {
        return Err(wrong(format!("`{path}` is not a key")));
    }
    let (sets, mut mistakes, mut tags) = ([set.to_string()], Vec::new(), Vec::new());
    // A template would be a map of a map in YAML.
    let is_template = ["{{", "{%"].iter().any(|tag| text.trim_start().starts_with(tag));
    let value = match is_template {
        true => Some(TaskValue::Scalar(text.into())),
        false => tree::parse_tagged(1, text, &mut mistakes, Some(&mut tags))
            .map(|node| value_of(&node, &tags, &mut mistakes)),
    };
    if !mistakes.is_empty() {
        return Err(SourceTexts { name: "", text: "", sets: &sets }.report(mistakes));
    }
    let value = value.unwrap_or(TaskValue::Scalar(Value::Null));
    let known = task.keys.iter().find(|key| key.name == first).map(|key| key.value.clone());
    let rest: Vec<&str> = names.collect();
    let value = put(known, &rest, value);
    let place = TaskPlace { file: format!("--set {path}").into(), line: None };
    task.set(TaskKey { name: first.into(), place, value });
    Ok(())
}

/// Returns `known` with the value at the names below it.
fn put(known: Option<TaskValue>, names: &[&str], value: TaskValue) -> TaskValue {
    let Some((name, rest)) = names.split_first() else { return value };
    let mut entries = match known {
        Some(TaskValue::Map(entries)) => entries,
        _ => Vec::new(),
    };
    let at = entries.iter().position(|(key, _)| key == name);
    let below = put(at.map(|at| entries[at].1.clone()), rest, value);
    match at {
        Some(at) => entries[at].1 = below,
        None => entries.push((name.to_string(), below)),
    }
    TaskValue::Map(entries)
}
