//! Reads one task.

use super::kinds;
use super::probe_types::CONTENT_METRICS;
use super::probes;
use super::template;
use super::types::{FewShot, FewShotForm, SuiteTask, TaskKind};
use crate::recipe::node_reader::NodeReader;
use crate::recipe::tree::{Node, NodeKind};

const KEYS: [&str; 23] = [
    "name",
    "data",
    "limit",
    "category",
    "prompt",
    "answer",
    "separator",
    "few_shot",
    "chat",
    "system",
    "main",
    "choice",
    "generate",
    "perplexity",
    "cloze",
    "pairs",
    "extraction",
    "membership",
    "exposure",
    "group",
    "swap",
    "positive",
    "forgetting",
];
const FEW_SHOT_KEYS: [&str; 8] = ["rows", "data", "seed", "draw", "as", "separator", "prompt", "answer"];

/// Reads a task; `None` if there is a mistake in it, which is noted.
pub(super) fn task(reader: &mut NodeReader, node: &Node) -> Option<SuiteTask> {
    reader.check_keys(node, &KEYS, "a task");
    let NodeKind::Map(_) = node.kind else { return None };
    let name = required(reader, node, "name", "icd10").and_then(|n| name(reader, n));
    let data = required(reader, node, "data", "rows.jsonl").and_then(|n| reader.path("data", n, "rows.jsonl"));
    let mut optional = |key: &str| node.get(key).map(|n| template(reader, key, n));
    let (category, prompt, answer, system) =
        (optional("category"), optional("prompt"), optional("answer"), optional("system"));
    let group = optional("group");
    let swap = node.get("swap").map(|n| probes::swap(reader, n));
    let favourable = node.get("positive").map(|n| reader.text("positive", n, "an answer", "yes"));
    let forgetting = node.get("forgetting").map(|n| reader.truth("forgetting", n));
    let limit = node.get("limit").map(|n| positive(reader, "limit", n));
    let separator = node.get("separator").map(|n| any_text(reader, "separator", n));
    let few_shot = node.get("few_shot").map(|n| few_shot(reader, n));
    let chat = node.get("chat").map(|n| reader.truth("chat", n));
    let kind = kind(reader, node);
    let main = node.get("main").map(|n| main(reader, n, kind.as_ref()));
    if let [kind] = kinds_in(node)[..] {
        check(reader, node, kind);
    }
    Some(SuiteTask {
        name: name?,
        data: data?,
        limit: flip(limit)?,
        category: flip(category)?,
        group: flip(group)?,
        swap: flip(swap)?,
        positive: flip(favourable)?,
        forgetting: flip(forgetting)?.unwrap_or(false),
        prompt: flip(prompt)?,
        answer: flip(answer)?,
        separator: flip(separator)?.unwrap_or_else(|| SuiteTask::SEPARATOR.into()),
        few_shot: flip(few_shot)?,
        chat: flip(chat)?,
        system: flip(system)?,
        main: flip(main)?,
        kind: kind?,
    })
}

/// Returns `Some(None)` for a key that is not there, and `None` for one with a mistake.
pub(super) fn flip<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(Some(value)) => Some(Some(value)),
        Some(None) => None,
    }
}

/// Returns the value of a key that a map must have. The mistake is placed at the map.
pub(super) fn required<'n>(reader: &mut NodeReader, map: &'n Node, key: &str, example: &str) -> Option<&'n Node> {
    map.get(key).or_else(|| reader.wrong(map.at, format!("`{key}` is missing"), format!("e.g. `{key}: {example}`")))
}

/// Reads a whole number of at least 1.
pub(super) fn positive(reader: &mut NodeReader, key: &str, node: &Node) -> Option<usize> {
    match reader.whole(key, node)? {
        0 => reader.wrong(node.at, format!("`{key}`: expected 1 or more, found 0"), "leave it out for the default"),
        n => Some(n as usize),
    }
}

/// Reads a text, which may be empty.
fn any_text(reader: &mut NodeReader, key: &str, node: &Node) -> Option<String> {
    match &node.kind {
        NodeKind::Scalar { text, .. } => Some(text.clone()),
        _ => reader.expected(key, node, "text", "\" \""),
    }
}

/// Reads the name of a task, which is the name of a file too.
fn name(reader: &mut NodeReader, node: &Node) -> Option<String> {
    let text = reader.text("name", node, "a name", "icd10")?;
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+');
    match !text.is_empty() && text.chars().all(fits) {
        true => Some(text),
        false => reader.wrong(
            node.at,
            format!("`{text}` is no name of a task"),
            "a name has letters, digits, `_`, `-` and `+`: gates and files name tasks",
        ),
    }
}

fn few_shot(reader: &mut NodeReader, node: &Node) -> Option<FewShot> {
    if let NodeKind::Scalar { .. } = node.kind {
        return reader.expected("few_shot", node, "keys and values", "{ rows: 4, data: train.jsonl, seed: 7 }");
    }
    reader.check_keys(node, &FEW_SHOT_KEYS, "`few_shot`");
    let rows = required(reader, node, "rows", "4").and_then(|n| positive(reader, "rows", n));
    let data = node.get("data").map(|n| reader.path("data", n, "train.jsonl"));
    let seed = node.get("seed").map(|n| reader.whole("seed", n));
    let form = node.get("as").map(|n| {
        reader.choice("as", n, &["text", "turns"], |name| match name {
            "text" => Some(FewShotForm::Text),
            "turns" => Some(FewShotForm::Turns),
            _ => None,
        })
    });
    let draw = node.get("draw").map(|n| {
        reader.choice("draw", n, &["by_row", "lm_eval"], |name| match name {
            "by_row" => Some(false),
            "lm_eval" => Some(true),
            _ => None,
        })
    });
    if let (Some((key, _)), None) = (node.entry("draw"), node.get("seed")) {
        reader.wrong::<()>(
            key.at,
            "`draw` without `seed`".into(),
            "e.g. `seed: 1234`, the default of lm-evaluation-harness",
        );
    }
    let separator = node.get("separator").map(|n| any_text(reader, "separator", n));
    let prompt = node.get("prompt").map(|n| template(reader, "prompt", n));
    let answer = node.get("answer").map(|n| template(reader, "answer", n));
    Some(FewShot {
        rows: rows?,
        data: flip(data)?,
        seed: flip(seed)?.map(|seed| seed as u64),
        as_lm_eval: flip(draw)?.unwrap_or(false),
        form: flip(form)?.unwrap_or_default(),
        separator: flip(separator)?.unwrap_or_else(|| FewShot::SEPARATOR.into()),
        prompt: flip(prompt)?,
        answer: flip(answer)?,
    })
}

/// Returns the kinds that a task names.
fn kinds_in(node: &Node) -> Vec<&'static str> {
    TaskKind::NAMES.into_iter().filter(|kind| node.get(kind).is_some()).collect()
}

/// Reads what depends on the kind of the task.
fn kind(reader: &mut NodeReader, node: &Node) -> Option<TaskKind> {
    let given = kinds_in(node);
    match given[..] {
        [kind] => {
            let inner = node.get(kind)?;
            match kind {
                "choice" => kinds::choice(reader, inner).map(TaskKind::Choice),
                "generate" => kinds::generate(reader, inner).map(TaskKind::Generate),
                "perplexity" => kinds::perplexity(reader, inner).map(TaskKind::Perplexity),
                "pairs" => probes::pairs(reader, inner).map(TaskKind::Pairs),
                "extraction" => probes::extraction(reader, inner).map(TaskKind::Extraction),
                "membership" => probes::membership(reader, inner).map(TaskKind::Membership),
                "exposure" => probes::exposure(reader, inner).map(TaskKind::Exposure),
                _ => kinds::cloze(reader, inner).map(|()| TaskKind::Cloze),
            }
        }
        [] => reader.wrong(
            node.at,
            "the task has no kind".into(),
            format!("add one of {}, e.g. `generate: {{ metrics: [exact_match] }}`", TaskKind::NAMES.join(", ")),
        ),
        [.., second] => {
            let at = node.entry(second).map_or(node.at, |(key, _)| key.at);
            reader.wrong(at, format!("a task has one kind, found {}", given.join(" and ")), "make two tasks of it")
        }
    }
}

/// Reads the name of the main metric, which must be one of the task's.
fn main(reader: &mut NodeReader, node: &Node, kind: Option<&TaskKind>) -> Option<String> {
    let Some(kind) = kind else { return Some(String::new()) };
    let names = kinds::metric_names(kind);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    reader.choice("main", node, &names, |name| names.contains(&name).then(|| name.to_string()))
}

/// Notes keys that the kind of the task does not read, and those that it lacks.
fn check(reader: &mut NodeReader, node: &Node, kind: &str) {
    let mut unread = |keys: &[&str], why: &str| {
        for key in keys {
            if let Some((key, _)) = node.entry(key) {
                reader.wrong::<()>(key.at, format!("`{}` beside `{kind}`", key.text), why);
            }
        }
    };
    let has_prompt = node.get("prompt").is_some();
    match kind {
        "membership" => unread(&["category", "group", "swap"], "leave it out: the rows are those of two files"),
        "extraction" => unread(&["category", "group", "swap"], "leave it out: rows that are too short are left out"),
        "generate" if !has_prompt => unread(&["swap", "group"], "add `prompt`, in which the terms or columns are"),
        _ => {}
    }
    if !matches!(kind, "generate" | "choice") {
        unread(&["positive"], "leave it out: only answers that are chosen or written can be favourable");
    }
    let choices_are_prompts = node.get("choice").is_some_and(|choice| choice.get("continuation").is_some());
    match kind {
        "perplexity" | "pairs" | "extraction" | "membership" => unread(
            &["prompt", "answer", "separator", "few_shot", "chat", "system"],
            "leave it out: the text of a row is evaluated as it is, e.g. `perplexity: { text: \"{{ page }}\" }`",
        ),
        "exposure" => unread(&["few_shot"], "leave it out: canaries are asked as they were trained on"),
        "choice" => {
            unread(&["answer"], "write it under `choice`");
            if choices_are_prompts {
                unread(&["prompt"], "leave it out: with `continuation`, the choices are the prompts");
            }
        }
        "generate" if !has_prompt => unread(
            &["answer", "separator", "few_shot", "chat", "system"],
            "add `prompt`; without it, a row is a conversation as in training, and its last answer is the expected one",
        ),
        _ => {}
    }
    let positive_alone = node.get("positive").is_some() && node.get("group").is_none() && node.get("swap").is_none();
    if let (Some((key, _)), true) = (node.entry("positive"), positive_alone) {
        let hint = "add `group: \"{{ column }}\"`: it says which answer is favourable where groups are compared";
        reader.wrong::<()>(key.at, "`positive` without groups".into(), hint);
    }
    let few_shot_of_task = node.get("few_shot").is_some_and(|few_shot| few_shot.get("data").is_none());
    if let (Some((key, _)), true) = (node.entry("swap"), few_shot_of_task) {
        let hint = "name a file in few_shot.data: the rows of the task differ in the terms only";
        reader.wrong::<()>(key.at, "`swap` beside `few_shot` from the same rows".into(), hint);
    }
    if kind == "cloze" || kind == "exposure" || (kind == "choice" && !choices_are_prompts) {
        required(reader, node, "prompt", "\"{{ question }}\"");
    }
    if kind == "cloze" || kind == "exposure" || (kind == "generate" && has_prompt && !needs_no_answer(node)) {
        required(reader, node, "answer", "\"{{ answer }}\"");
    }
}

/// Returns true if all metrics of a task of written answers do without an expected one.
fn needs_no_answer(node: &Node) -> bool {
    let metrics = node.get("generate").and_then(|generate| generate.get("metrics"));
    metrics.is_some_and(|metrics| {
        kinds::names_in(metrics).next().is_some()
            && kinds::names_in(metrics).all(|name| CONTENT_METRICS.contains(&name))
    })
}
