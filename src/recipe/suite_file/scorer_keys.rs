//! Reads the settings of metrics beside comparison with expected answers.

use super::probes;
use super::scorers::{
    AnswerScorers, CodeTests, JSON, LISTED_WORDS, Opponent, PERSONAL_DATA, PairComparison, PairJudgeBy, REWARD,
    RewardBy, SENTIMENT, SUPPORT, SchemaSource, WIN_RATE, attempts,
};
use super::task::{flip, positive, required};
use super::types::AnswerSampling;
use super::{template, texts};
use crate::recipe::node_reader::NodeReader;
use crate::recipe::tree::{Node, NodeKind};
use crate::rewards::spec::{CommandSpec, HttpSpec, RewardModelSpec};
use crate::sandbox::{FILE_PLACEHOLDER, Isolation, Limits};
use std::time::Duration;

/// The keys of `generate` that this module reads.
pub(super) const KEYS: [&str; 8] =
    ["schema", "context", "code", "reward", "compare", "lexicon", "words", PERSONAL_DATA];
const CODE_KEYS: [&str; 11] = [
    "program",
    "reference",
    "command",
    "file",
    "sandbox",
    "seconds",
    "cpu_seconds",
    "memory_mb",
    "processes",
    "output_kb",
    "disk_mb",
];
const REWARD_KEYS: [&str; 6] = ["model", "base", "command", "url", "timeout", "retries"];
const COMPARE_KEYS: [&str; 8] = ["by", "margin", "judge", "adapter", "rubric", "reasoning", "command", "timeout"];
const AGAINST: &str = "against";
const DIFFICULTY: &str = "difficulty";
/// Seconds allowed for a batch or a request.
const TIMEOUT: f64 = 60.0;
/// How often a failed request is repeated.
const RETRIES: i64 = 2;

/// Reads the settings in a map `generate`.
pub(super) fn scorers(reader: &mut NodeReader, node: &Node) -> Option<AnswerScorers> {
    let schema = node.get("schema").map(|n| schema(reader, n));
    let context = node.get("context").map(|n| template(reader, "context", n));
    let code = node.get("code").map(|n| code(reader, n));
    let reward = node.get("reward").map(|n| reward(reader, n));
    let compare = node.get("compare").map(|n| compare(reader, n));
    let content = probes::content(reader, node);
    Some(AnswerScorers {
        content: content?,
        schema: flip(schema)?,
        context: flip(context)?,
        code: flip(code)?,
        reward: flip(reward)?,
        compare: flip(compare)?,
    })
}

/// Returns the metrics of a task that names none.
pub(super) fn default_metrics(scorers: &AnswerScorers) -> Vec<String> {
    vec![if scorers.code.is_some() { "pass@1" } else { "exact_match" }.to_string()]
}

/// Notes metrics without their settings, settings without their metric, and samples that are too few.
pub(super) fn check(
    reader: &mut NodeReader,
    node: &Node,
    metrics: &[String],
    scorers: &AnswerScorers,
    samples: Option<&AnswerSampling>,
) {
    let has = |name: &str| metrics.iter().any(|metric| metric == name);
    let at = node.nearest("metrics");
    let programs = metrics.iter().any(|metric| attempts(metric).is_some());
    let compares_rewards = matches!(&scorers.compare, Some(PairComparison { judge: PairJudgeBy::Reward { .. }, .. }));
    // (key, whether it is there, whether a metric reads it, that metric, an example)
    let pairs = [
        ("schema", scorers.schema.is_some(), has(JSON), "json", None),
        ("context", scorers.context.is_some(), has(SUPPORT), "support", Some("\"{{ context }}\"")),
        ("code", scorers.code.is_some(), programs, "pass@1", Some("{ program: \"{{ completion }}\\n{{ test }}\" }")),
        ("reward", scorers.reward.is_some(), has(REWARD) || compares_rewards, "reward", Some("models/reward")),
        ("compare", scorers.compare.is_some(), has(WIN_RATE), "win_rate", Some("{ judge: models/judge }")),
        ("lexicon", scorers.content.lexicon.is_some(), has(SENTIMENT), SENTIMENT, Some("eval/sentiment.tsv")),
        ("words", scorers.content.words.is_some(), has(LISTED_WORDS), LISTED_WORDS, Some("words.txt")),
        (PERSONAL_DATA, node.get(PERSONAL_DATA).is_some(), has(PERSONAL_DATA), PERSONAL_DATA, None),
    ];
    for (key, given, read, metric, example) in pairs {
        match (given, read, example) {
            (true, false, _) => {
                let at = node.entry(key).map_or(node.at, |(key, _)| key.at);
                reader.wrong::<()>(
                    at,
                    format!("`{key}` without the metric `{metric}`"),
                    format!("metrics: [{metric}]"),
                );
            }
            (false, true, Some(example)) => {
                let what =
                    if compares_rewards && key == "reward" { "`by: reward`".into() } else { format!("`{metric}`") };
                reader.wrong::<()>(at, format!("{what} without `{key}`"), format!("e.g. `{key}: {example}`"));
            }
            _ => {}
        }
    }
    let answers = samples.map_or(1, |samples| samples.answers);
    for metric in metrics {
        if let Some(k) = attempts(metric).filter(|k| *k > answers) {
            let why = format!("`{metric}` of {answers} answer{} to each prompt", if answers == 1 { "" } else { "s" });
            reader.wrong::<()>(at, why, format!("e.g. `samples: {{ answers: {k}, temperature: 0.8 }}`"));
        }
    }
    if has(super::scorers::DISAGREEMENT) && answers < 2 {
        let why = "`disagreement` of one answer to each prompt".to_string();
        reader.wrong::<()>(at, why, "e.g. `samples: { answers: 5, temperature: 1.0 }`");
    }
}

fn schema(reader: &mut NodeReader, node: &Node) -> Option<SchemaSource> {
    let text = reader.text("schema", node, "the path of a JSON Schema, or a template", "schema.json")?;
    match text.contains("{{") || text.contains("{%") {
        true => template(reader, "schema", node).map(SchemaSource::Column),
        false => Some(SchemaSource::File(text.into())),
    }
}

/// Reads a command: a list of texts.
fn command(reader: &mut NodeReader, node: &Node, example: &str) -> Option<Vec<String>> {
    let found = match &node.kind {
        NodeKind::List(_) => {
            reader.list("command", node, example)?;
            texts(reader, "command", node, example)?
        }
        _ => return reader.expected("command", node, "a list of a program and its arguments", example),
    };
    match found[0].is_empty() {
        true => reader.wrong(node.at, "`command` names no program".into(), format!("e.g. `command: {example}`")),
        false => Some(found),
    }
}

fn code(reader: &mut NodeReader, node: &Node) -> Option<CodeTests> {
    const COMMAND: &str = "[python3, \"{file}\"]";
    const PROGRAM: &str = "\"{{ prompt }}{{ completion }}\\n{{ test }}\"";
    reader.check_keys(node, &CODE_KEYS, "`code`");
    let NodeKind::Map(_) = node.kind else { return None };
    let program = required(reader, node, "program", PROGRAM).and_then(|n| template(reader, "program", n));
    let reference = node.get("reference").map(|n| template(reader, "reference", n));
    let given = node.get("command").map(|n| {
        let found = command(reader, n, COMMAND)?;
        match found.iter().any(|part| part.contains(FILE_PLACEHOLDER)) {
            true => Some(found),
            false => reader.wrong(n.at, "`command` lacks `{file}`".into(), format!("e.g. `command: {COMMAND}`")),
        }
    });
    let file = node.get("file").map(|n| {
        let name = reader.text("file", n, "the name of a file", "program.py")?;
        match name.contains('/') || name == "." || name == ".." || name == "work" {
            true => reader.wrong(n.at, format!("`file`: {name:?} is no name of a file"), "e.g. `file: program.py`"),
            false => Some(name),
        }
    });
    let isolation = node.get("sandbox").map(|n| {
        reader.choice("sandbox", n, &["namespaces", "limits_only"], |name| match name {
            "namespaces" => Some(Isolation::Namespaces),
            "limits_only" => Some(Isolation::LimitsOnly),
            _ => None,
        })
    });
    let seconds = node.get("seconds").map(|n| match reader.number("seconds", n)? {
        x if x > 0.0 && x <= 86400.0 => Some(x),
        x => reader.wrong(n.at, format!("`seconds`: expected a time of up to a day, found {x}"), "e.g. `seconds: 10`"),
    });
    let mut whole = |key: &str| {
        node.get(key).map(|n| match positive(reader, key, n)? {
            x if x < 1 << 30 => Some(x as u64),
            x => reader.wrong(n.at, format!("`{key}`: {x} is too much"), "leave it out for the default"),
        })
    };
    let (cpu, memory, processes) = (whole("cpu_seconds"), whole("memory_mb"), whole("processes"));
    let (output, disk) = (whole("output_kb"), whole("disk_mb"));
    let default = Limits::default();
    let wall = flip(seconds)?.map_or(default.wall, Duration::from_secs_f64);
    Some(CodeTests {
        program: program?,
        reference: flip(reference)?,
        command: flip(given)?.unwrap_or_else(|| ["python3", FILE_PLACEHOLDER].map(str::to_string).to_vec()),
        file: flip(file)?.unwrap_or_else(|| "program.py".into()),
        isolation: flip(isolation)?.unwrap_or_default(),
        limits: Limits {
            wall,
            cpu: flip(cpu)?.unwrap_or_else(|| wall.as_secs_f64().ceil() as u64),
            memory: flip(memory)?.map_or(default.memory, |mb| mb << 20),
            processes: flip(processes)?.unwrap_or(default.processes),
            output: flip(output)?.map_or(default.output, |kb| (kb << 10) as usize),
            disk: flip(disk)?.map_or(default.disk, |mb| mb << 20),
        },
    })
}

/// Reads `timeout`.
fn timeout(reader: &mut NodeReader, node: &Node) -> Option<f64> {
    let Some(n) = node.get("timeout") else { return Some(TIMEOUT) };
    match reader.number("timeout", n)? {
        x if x > 0.0 && x <= 86400.0 => Some(x),
        x => reader.wrong(n.at, format!("`timeout`: expected seconds above 0, found {x}"), "e.g. `timeout: 60`"),
    }
}

/// Notes keys that the chosen kind does not read.
fn unread(reader: &mut NodeReader, node: &Node, keys: &[&str], beside: &str) {
    for key in keys {
        if let Some((key, _)) = node.entry(key) {
            reader.wrong::<()>(key.at, format!("`{}` beside {beside}", key.text), "leave it out");
        }
    }
}

fn reward(reader: &mut NodeReader, node: &Node) -> Option<RewardBy> {
    if let NodeKind::Scalar { .. } = node.kind {
        let path = reader.path("reward", node, "models/reward")?;
        return Some(RewardBy::Model(RewardModelSpec { path, base: None, force: false }));
    }
    reader.check_keys(node, &REWARD_KEYS, "`reward`");
    let NodeKind::Map(_) = node.kind else { return None };
    match ["model", "command", "url"].map(|key| node.get(key)) {
        [Some(path), None, None] => {
            unread(reader, node, &["timeout", "retries"], "`model`");
            let path = reader.path("model", path, "models/reward");
            let base = node.get("base").map(|n| reader.path("base", n, "models/base"));
            Some(RewardBy::Model(RewardModelSpec { path: path?, base: flip(base)?, force: false }))
        }
        [None, Some(run), None] => {
            unread(reader, node, &["base", "retries"], "`command`");
            let (run, timeout) = (command(reader, run, "[python3, score.py]"), timeout(reader, node));
            Some(RewardBy::Command(CommandSpec { run: run?, timeout: timeout? }))
        }
        [None, None, Some(address)] => {
            unread(reader, node, &["base"], "`url`");
            let url =
                reader.text("url", address, "an address", "http://127.0.0.1:8000/score").and_then(|url| {
                    match url.starts_with("http://") {
                        true => Some(url),
                        false => reader.wrong(
                            address.at,
                            format!("`url`: expected http://…, found {url}"),
                            "for https, use a proxy on this machine",
                        ),
                    }
                });
            let timeout = timeout(reader, node);
            let retries = node.get("retries").map(|n| reader.whole("retries", n));
            let retries = flip(retries)?.unwrap_or(RETRIES).min(100) as u32;
            Some(RewardBy::Server(HttpSpec { url: url?, timeout: timeout?, retries }))
        }
        _ => reader.wrong(
            node.at,
            "`reward` has one of `model`, `command` and `url`".into(),
            "e.g. `reward: { command: [python3, score.py] }`",
        ),
    }
}

fn compare(reader: &mut NodeReader, node: &Node) -> Option<PairComparison> {
    let keys: Vec<&str> = COMPARE_KEYS.into_iter().chain([AGAINST, DIFFICULTY]).collect();
    reader.check_keys(node, &keys, "`compare`");
    let NodeKind::Map(_) = node.kind else { return None };
    let against = node.get(AGAINST).map(|n| {
        reader.choice(AGAINST, n, &["baseline", "answer"], |name| match name {
            "baseline" => Some(Opponent::Baseline),
            "answer" => Some(Opponent::Expected),
            _ => None,
        })
    });
    let judge = match ["by", "judge", "command"].map(|key| node.get(key)) {
        [Some(by), None, None] => {
            unread(reader, node, &["adapter", "rubric", "reasoning", "timeout"], "`by: reward`");
            let by = reader.choice("by", by, &["reward"], |name| (name == "reward").then_some(()));
            let margin = node.get("margin").map(|n| match reader.number("margin", n)? {
                x if x >= 0.0 => Some(x),
                x => reader.wrong(n.at, format!("`margin`: expected 0 or more, found {x}"), "leave it out for 0"),
            });
            by?;
            PairJudgeBy::Reward { margin: flip(margin)?.unwrap_or(0.0) }
        }
        [None, Some(path), None] => {
            unread(reader, node, &["margin", "timeout"], "`judge`");
            let path = reader.path("judge", path, "models/judge");
            let adapter = node.get("adapter").map(|n| reader.path("adapter", n, "adapters/judge"));
            let rubric = node.get("rubric").map(|n| reader.path("rubric", n, "rubric.txt"));
            let reasoning = node.get("reasoning").map(|n| reader.whole("reasoning", n));
            PairJudgeBy::Model {
                path: path?,
                adapter: flip(adapter)?,
                rubric: flip(rubric)?,
                reasoning: flip(reasoning)?.unwrap_or(0).min(1 << 20) as usize,
            }
        }
        [None, None, Some(run)] => {
            unread(reader, node, &["margin", "adapter", "rubric", "reasoning"], "`command`");
            let (run, timeout) = (command(reader, run, "[python3, judge.py]"), timeout(reader, node));
            PairJudgeBy::Command(CommandSpec { run: run?, timeout: timeout? })
        }
        _ => {
            return reader.wrong(
                node.at,
                "`compare` has one of `judge`, `command` and `by: reward`".into(),
                "e.g. `compare: { judge: models/judge }`",
            );
        }
    };
    let difficulty = node.get(DIFFICULTY).map(|n| template(reader, DIFFICULTY, n));
    Some(PairComparison { judge, against: flip(against)?.unwrap_or_default(), difficulty: flip(difficulty)? })
}
