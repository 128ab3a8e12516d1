//! Reads one task.

use super::kinds;
use super::probes;
use super::scorers::{TOOL_CALLS, is_scorer};
use super::template;
use super::types::{AnswerFilter, FewShot, FewShotDraw, FewShotForm, GenerateTask, RowLimit, SuiteTask, TaskKind};
use crate::data::rows::RowTemplate;
use crate::data::source::RowColumns;
use crate::recipe::node_reader::NodeReader;
use crate::recipe::tree::{Node, NodeKey, NodeKind};

const KEYS: [&str; 26] = [
    "name",
    "data",
    "rows",
    "where",
    "columns",
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
const FEW_SHOT_KEYS: [&str; 10] =
    ["rows", "data", "examples", "group", "seed", "draw", "as", "separator", "prompt", "answer"];

/// Reads a task; `None` if there is a mistake in it, which is noted.
pub(super) fn task(reader: &mut NodeReader, node: &Node) -> Option<SuiteTask> {
    reader.check_keys(node, &KEYS, "a task");
    let NodeKind::Map(_) = node.kind else { return None };
    let name = required(reader, node, "name", "icd10").and_then(|n| name(reader, n));
    let data = required(reader, node, "data", "rows.jsonl").and_then(|n| reader.path("data", n, "rows.jsonl"));
    let mut optional = |key: &str| node.get(key).map(|n| template(reader, key, n));
    let (category, prompt, answer, system) =
        (optional("category"), optional("prompt"), optional("answer"), optional("system"));
    let only = optional("where");
    let group = optional("group");
    let rows = node.get("rows").map(|n| rows_path(reader, n));
    let columns = node.get("columns").map(|n| columns(reader, n));
    let swap = node.get("swap").map(|n| probes::swap(reader, n));
    let favourable = node.get("positive").map(|n| reader.text("positive", n, "an answer", "yes"));
    let forgetting = node.get("forgetting").map(|n| reader.truth("forgetting", n));
    let limit = node.get("limit").map(|n| limit(reader, n));
    let separator = node.get("separator").map(|n| any_text(reader, "separator", n));
    let few_shot = node.get("few_shot").map(|n| few_shot(reader, n));
    let chat = node.get("chat").map(|n| reader.truth("chat", n));
    let kind = kind(reader, node);
    let main = node.get("main").map(|n| main(reader, n, kind.as_ref()));
    if let [name] = kinds_in(node)[..] {
        check(reader, node, name, kind.as_ref());
    }
    Some(SuiteTask {
        name: name?,
        data: data?,
        rows: flip(rows)?.unwrap_or_default(),
        only: flip(only)?,
        columns: flip(columns)?.unwrap_or_default(),
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
pub(super) fn any_text(reader: &mut NodeReader, key: &str, node: &Node) -> Option<String> {
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

/// Reads how many rows are asked: a number, or a map with a seed that draws them.
fn limit(reader: &mut NodeReader, node: &Node) -> Option<RowLimit> {
    if let NodeKind::Scalar { .. } = node.kind {
        return positive(reader, "limit", node).map(|rows| RowLimit { rows, seed: None });
    }
    reader.check_keys(node, &["rows", "seed"], "`limit`");
    let rows = required(reader, node, "rows", "200").and_then(|n| positive(reader, "rows", n));
    let seed = node.get("seed").map(|n| reader.whole("seed", n));
    Some(RowLimit { rows: rows?, seed: flip(seed)?.map(|seed| seed as u64) })
}

fn few_shot(reader: &mut NodeReader, node: &Node) -> Option<FewShot> {
    if let NodeKind::Scalar { .. } = node.kind {
        return reader.expected("few_shot", node, "keys and values", "{ rows: 4, data: train.jsonl, seed: 7 }");
    }
    reader.check_keys(node, &FEW_SHOT_KEYS, "`few_shot`");
    let examples = node.get("examples").map(|n| examples(reader, n));
    let rows = match (node.get("rows"), &examples) {
        (None, Some(examples)) => examples.as_ref().map(Vec::len),
        _ => required(reader, node, "rows", "4").and_then(|n| positive(reader, "rows", n)),
    };
    let data = node.get("data").map(|n| reader.path("data", n, "train.jsonl"));
    if let (Some((key, _)), Some(_)) = (node.entry("data"), node.get("examples")) {
        reader.wrong::<()>(key.at, "`data` beside `examples`".into(), "leave out one of them");
    }
    if let (Some(rows), Some(Some(examples)), Some(n)) = (rows, &examples, node.get("rows"))
        && rows > examples.len()
    {
        let message = format!("`rows`: {rows} examples are wanted, `examples` has {}", examples.len());
        reader.wrong::<()>(n.at, message, "leave out `rows` for all of them");
    }
    let seed = node.get("seed").map(|n| reader.whole("seed", n));
    let form = node.get("as").map(|n| {
        reader.choice("as", n, &["text", "turns"], |name| match name {
            "text" => Some(FewShotForm::Text),
            "turns" => Some(FewShotForm::Turns),
            _ => None,
        })
    });
    let names = FewShotDraw::ALL.map(|(name, _)| name);
    let draw = node.get("draw").map(|n| reader.choice("draw", n, &names, FewShotDraw::named));
    if let (Some((key, _)), None) = (node.entry("draw"), node.get("seed")) {
        reader.wrong::<()>(
            key.at,
            "`draw` without `seed`".into(),
            "e.g. `seed: 1234`, the default of lm-evaluation-harness",
        );
    }
    let group = node.get("group").map(|n| template(reader, "group", n));
    if let (Some((key, _)), Some(_), Some(Some(FewShotDraw::LmEval | FewShotDraw::LmEvalSpare))) =
        (node.entry("group"), node.get("draw"), draw)
    {
        reader.wrong::<()>(
            key.at,
            "`group` beside `draw`".into(),
            "leave out one of them: lm-evaluation-harness has no groups",
        );
    }
    let separator = node.get("separator").map(|n| any_text(reader, "separator", n));
    let prompt = node.get("prompt").map(|n| template(reader, "prompt", n));
    let answer = node.get("answer").map(|n| template(reader, "answer", n));
    Some(FewShot {
        rows: rows?,
        data: flip(data)?,
        seed: flip(seed)?.map(|seed| seed as u64),
        examples: flip(examples)?,
        group: flip(group)?,
        draw: flip(draw)?.unwrap_or_default(),
        form: flip(form)?.unwrap_or_default(),
        separator: flip(separator)?.unwrap_or_else(|| FewShot::SEPARATOR.into()),
        prompt: flip(prompt)?,
        answer: flip(answer)?,
    })
}

/// Reads where in a row of the file the rows are: names of lists, `*` for all values of a map.
fn rows_path(reader: &mut NodeReader, node: &Node) -> Option<Vec<String>> {
    let text = reader.text("rows", node, "names", "data.paragraphs.qas")?;
    let names: Vec<String> = text.split('.').map(str::to_string).collect();
    match names.iter().any(String::is_empty) {
        true => reader.wrong(
            node.at,
            format!("`rows`: `{text}` is not the way to a list"),
            "names of lists with points between them, from the outside in: `rows: data.paragraphs.qas`; `*` is all values of a map",
        ),
        false => Some(names),
    }
}

/// Reads columns that are computed by templates.
fn columns(reader: &mut NodeReader, node: &Node) -> Option<Vec<(String, RowTemplate)>> {
    let NodeKind::Map(entries) = &node.kind else {
        return reader.expected("columns", node, "names and templates", "{ query: \"{{ title }}: {{ text }}\" }");
    };
    let column = |(key, node): &(NodeKey, Node)| Some((key.text.clone(), template(reader, &key.text, node)?));
    let found: Vec<Option<_>> = entries.iter().map(column).collect();
    found.into_iter().collect()
}

/// Reads rows that are given in the suite.
fn examples(reader: &mut NodeReader, node: &Node) -> Option<Vec<RowColumns>> {
    const EXAMPLE: &str = "[{ question: \"2 + 2?\", answer: \"4\" }]";
    let rows = reader.list("examples", node, EXAMPLE)?;
    let row = |row: &Node| match row.to_json() {
        serde_json::Value::Object(columns) => Some(columns),
        _ => reader.expected("examples", row, "columns and values", EXAMPLE),
    };
    let found: Vec<Option<_>> = rows.iter().map(row).collect();
    found.into_iter().collect()
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
fn check(reader: &mut NodeReader, node: &Node, kind: &str, read: Option<&TaskKind>) {
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
            &["rows", "where", "columns", "answer", "separator", "few_shot", "chat", "system"],
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
    let generate = match read {
        Some(TaskKind::Generate(generate)) => Some(generate),
        _ => None,
    };
    // Examples are answered by the same template, unless they have one of their own.
    let for_examples = node.get("few_shot").is_some_and(|shots| shots.get("answer").is_none());
    let needs_answer = generate.is_some_and(|generate| generate.needs_answer()) || for_examples;
    if kind == "cloze" || kind == "exposure" || (kind == "generate" && has_prompt && needs_answer) {
        required(reader, node, "answer", "\"{{ answer }}\"");
    }
    let has_letters = |g: &GenerateTask| g.extract.iter().any(|filter| matches!(filter, AnswerFilter::Letter(_)));
    if !has_prompt && generate.is_some_and(has_letters) {
        let hint = "e.g. `prompt: \"{{ question }}\"`: the choices are columns of the row";
        reader.wrong::<()>(node.at, "a filter with `letter_of` needs `prompt`".into(), hint);
    }
    if let Some(metric) = generate.and_then(|g| g.metrics.iter().find(|metric| is_scorer(metric)))
        && !has_prompt
        && metric != TOOL_CALLS
    {
        let hint = "e.g. `prompt: \"{{ messages[0].content }}\"`: the metric reads columns of the row";
        reader.wrong::<()>(node.at, format!("the metric `{metric}` needs `prompt`"), hint);
    }
}
