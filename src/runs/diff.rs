//! Compares two runs: their settings, file contents, programs, machine and results.

use super::folder::RunFolder;
use super::lock::RunLock;
use super::number::number;
use crate::report;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// A value that differs between runs `a` and `b`; `-` if a run does not have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `settings`, `contents`, `computed by` or `results`.
    pub group: &'static str,
    /// What differs.
    pub item: String,
    /// Its value in run `a`.
    pub a: String,
    /// Its value in run `b`.
    pub b: String,
}

/// Returns everything that differs, ordered by group.
pub fn diff(a: &RunFolder, b: &RunFolder) -> Vec<Difference> {
    let (was, is) = (groups(a), groups(b));
    let mut found = Vec::new();
    for ((group, left), (_, right)) in was.into_iter().zip(is) {
        let mut names: Vec<&String> = left.iter().chain(&right).map(|(n, _)| n).collect();
        let mut seen = std::collections::HashSet::new();
        names.retain(|n| seen.insert(n.as_str()));
        let value = |values: &[(String, String)], name: &String| {
            values.iter().find(|(n, _)| n == name).map_or("-".to_string(), |(_, v)| v.clone())
        };
        for name in names {
            let (x, y) = (value(&left, name), value(&right, name));
            if x != y {
                found.push(Difference { group, item: name.clone(), a: x, b: y });
            }
        }
    }
    found
}

type NamedValues = Vec<(String, String)>;

fn groups(run: &RunFolder) -> [(&'static str, NamedValues); 4] {
    [
        ("settings", settings(run)),
        ("contents", run.lock.as_ref().map_or(Vec::new(), contents)),
        ("computed by", computed(run)),
        ("results", results(run)),
    ]
}

/// Returns the resolved recipe, one value per key. `run.out` is not a setting that can differ.
fn settings(run: &RunFolder) -> NamedValues {
    fn flatten(path: String, v: &Value, into: &mut NamedValues) {
        match v {
            Value::Object(o) if !o.is_empty() => {
                for (k, v) in o {
                    flatten(if path.is_empty() { k.clone() } else { format!("{path}.{k}") }, v, into);
                }
            }
            Value::String(s) => into.push((path, s.clone())),
            v => into.push((path, v.to_string())),
        }
    }
    let mut all = Vec::new();
    flatten(String::new(), &serde_json::to_value(&run.plan.recipe).unwrap_or_default(), &mut all);
    all.retain(|(k, _)| k != "run.out");
    all
}

fn contents(lock: &RunLock) -> NamedValues {
    let short = |s: &str| s.get(..12).unwrap_or(s).to_string();
    let mut all: NamedValues = Vec::new();
    let none = BTreeMap::new();
    let method = lock.method.as_ref().unwrap_or(&none);
    for (what, files) in [("base", &lock.base), ("tokenizer", &lock.tokenizer), ("method", method)] {
        all.extend(files.iter().map(|(n, f)| (format!("{what}: {n}"), short(&f.sha256))));
    }
    all.extend(lock.template.iter().map(|t| ("template".into(), short(&t.sha256))));
    for (what, rows) in [("training", Some(&lock.train)), ("validation", lock.valid.as_ref())] {
        let Some(rows) = rows else { continue };
        all.push((format!("{what} rows"), short(&rows.sha256)));
        // Equal rows become other tokens with another tokenizer, template or date.
        all.extend(rows.tokens_sha256.iter().map(|tokens| (format!("{what} tokens"), short(tokens))));
    }
    all
}

fn computed(run: &RunFolder) -> NamedValues {
    let Some(f) = &run.facts else { return Vec::new() };
    let e = &f.environment;
    let mut all: NamedValues = vec![
        ("ft".into(), e.ft.clone()),
        ("libtorch".into(), e.libtorch.clone()),
        ("device".into(), e.device.clone()),
        ("device name".into(), e.device_name.clone()),
        ("instructions".into(), e.instructions.clone()),
        ("threads".into(), e.threads.to_string()),
    ];
    if let Some(lock) = &run.lock {
        all.insert(1, ("ft's program file".into(), lock.programs.ft_sha256.get(..12).unwrap_or_default().into()));
    }
    all
}

fn results(run: &RunFolder) -> NamedValues {
    let h = &run.history;
    let mut all: NamedValues = vec![
        ("state".into(), run.state.name().into()),
        ("steps".into(), h.last_step().to_string()),
        ("trained parameters".into(), run.facts.as_ref().map_or("-".into(), |f| report::count(f.trained))),
    ];
    if let Some(last) = h.steps.last() {
        all.push(("training loss, last step".into(), number(last.loss)));
        all.push(("tokens".into(), report::count(last.tokens)));
    }
    if let Some(best) = h.best() {
        all.push((format!("best validation {}", h.aim.metric), number(h.aim_value(best))));
        all.push(("best step".into(), best.step.to_string()));
        let others: BTreeMap<&String, f64> =
            best.means.iter().filter(|(k, _)| k != "loss").map(|(k, v)| (k, *v)).collect();
        all.extend(others.into_iter().map(|(k, v)| (format!("validation {k}, best step"), number(v))));
    }
    if let Some(speed) = h.tokens_per_s() {
        all.push(("tokens a second".into(), report::count(speed.round() as u64)));
    }
    all.push(("peak memory".into(), report::bytes(h.memory())));
    all.push(("time".into(), report::duration(Duration::from_secs_f64(run.seconds()))));
    for (name, file) in run.lock.iter().flat_map(|l| l.result.iter().flatten()) {
        all.push((format!("result: {name}"), file.sha256.get(..12).unwrap_or_default().into()));
    }
    all
}
