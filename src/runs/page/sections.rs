//! Renders the sections of the page in the order of a reader's questions: results, problems, curves, answers of the
//! model, evaluations, data, settings, environment.

use super::chart::{Chart, Series, SeriesStyle, histogram};
use super::{escape, name as named, text as shown};
use crate::data::chat::ChatTurn;
use crate::recipe::{Plan, keys};
use crate::report;
use crate::runs::diagnose::{Diagnosis, DiagnosisId, DiagnosisInput, diagnose};
use crate::runs::folder::{RunFolder, RunSample, RunStatus};
use crate::runs::history::smooth;
use crate::runs::terminal::number;
use crate::runs::{RunLock, StepPoint};
use serde_json::Value;
use std::fmt::Write;
use std::time::Duration;

/// Returns the body of the page as HTML.
pub fn render_sections(run: &RunFolder) -> String {
    [header(run), tiles(run), doctor(run), curves(run), samples(run), report_card(run), evaluations(run), data(run)]
        .into_iter()
        .chain([settings(run), environment(run), footer(run)])
        .filter(|s| !s.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

fn header(run: &RunFolder) -> String {
    let plan = &run.plan;
    let base = plan.recipe.model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let state = run.state.name();
    let words = match (run.state, run.last_words()) {
        (RunStatus::Failed | RunStatus::Interrupted, Some(words)) => {
            let class = if run.state == RunStatus::Failed { "sub words" } else { "sub" };
            format!(r#"<p class="{class}">{}</p>"#, escape(words))
        }
        (RunStatus::Crashed, _) => {
            r#"<p class="sub words">The process ended without recording why: it was killed, or the machine went down.
            <code>ft train … --resume</code> continues from the last checkpoint.</p>"#
                .into()
        }
        (RunStatus::Running, _) => {
            r#"<p class="sub">In progress: this page shows the run as it was when the page was written.</p>"#.into()
        }
        _ => String::new(),
    };
    let began = run.began().map_or(String::new(), |t| format!(" · started {}", escape(&t.replace('T', " "))));
    let title = plan.text.lines().next().and_then(|l| l.strip_prefix('#')).unwrap_or("").trim();
    let title = if title.is_empty() { String::new() } else { format!(r#"<p class="sub">{}</p>"#, named(title)) };
    format!(
        r#"<header><h1>{}</h1><span class="state {state}">{state}</span><p class="sub">{} · {} on {}{began}</p>{title}{words}</header>"#,
        named(&run.name()),
        escape(plan.method()),
        escape(&run.adapter()),
        named(&base),
    )
}

fn tile(name: &str, value: &str, more: &str) -> String {
    format!("<div class=\"tile\"><span>{}</span><b>{value}</b><small>{}</small></div>", escape(name), escape(more))
}

fn tiles(run: &RunFolder) -> String {
    let h = &run.history;
    let mut all = Vec::new();
    let best = h.best();
    if let Some(best) = best {
        let first = h.validations.first().filter(|v| v.step == 0);
        let from = first.map_or(String::new(), |f| format!("<i>{} → </i>", short(h.aim_value(f))));
        let more = match best.step == h.validations.last().map_or(0, |v| v.step) {
            true => format!("best and last, step {}", best.step),
            false => format!("best at step {}", best.step),
        };
        all.push(tile(&format!("Validation {}", h.aim.metric), &format!("{from}{}", short(h.aim_value(best))), &more));
        let accuracy = |v: &crate::runs::Validation| v.means.iter().find(|(k, _)| k == "accuracy").map(|(_, a)| *a);
        if let Some(a) = accuracy(best) {
            let percent = |a: f64| format!("{:.1}", 100.0 * a);
            let from = first.and_then(accuracy).map_or(String::new(), |a| format!("<i>{} → </i>", percent(a)));
            all.push(tile("Accuracy", &format!("{from}{} %", percent(a)), "on validation rows"));
        }
    }
    if let (Some(first), Some(last)) = (h.steps.first(), h.steps.last()) {
        let losses: Vec<f64> = h.steps.iter().map(|p| p.loss).collect();
        let smoothed = if losses.len() < FEW { losses.clone() } else { smooth(&losses, window(losses.len())) };
        let now = smoothed.into_iter().rev().find(|v| v.is_finite()).unwrap_or(f64::NAN);
        let value = format!("<i>{} → </i>{}", short(first.loss), short(now));
        all.push(tile("Training loss", &value, "first step → last, smoothed"));
        let steps = if last.step == run.total_steps() {
            report::count(last.step)
        } else {
            format!("{}<i> of {}</i>", report::count(last.step), report::count(run.total_steps()))
        };
        all.push(tile("Steps", &steps, &format!("{:.2} epochs", last.epoch)));
    }
    let speed = h.tokens_per_s().map_or("validation and saving included".into(), |speed| {
        format!("{} tokens per second in steps", report::count(speed.round() as u64))
    });
    all.push(tile("Time", &escape(&report::duration(Duration::from_secs_f64(run.seconds()))), &speed));
    if h.memory() > 0 {
        all.push(tile("Peak memory", &escape(&report::bytes(h.memory())), "of tensors"));
    }
    format!("<div class=\"tiles\">{}</div>", all.concat())
}

fn doctor(run: &RunFolder) -> String {
    let findings = diagnose(DiagnosisInput { plan: &run.plan, facts: run.facts.as_ref(), history: &run.history });
    let body = if findings.is_empty() && !run.history.steps.is_empty() {
        r#"<p class="well">No problem detected in the training curves.</p>"#.to_string()
    } else {
        findings.iter().map(finding).collect()
    };
    if body.is_empty() { body } else { format!("<section><h2>Doctor</h2>{body}</section>") }
}

fn finding(f: &Diagnosis) -> String {
    let grave = matches!(
        f.id,
        DiagnosisId::NonFinite
            | DiagnosisId::LearningRateTooHigh
            | DiagnosisId::WorseThanStart
            | DiagnosisId::NoGradient
            | DiagnosisId::NoUpdate
            | DiagnosisId::NoMovement
    );
    let evidence: String =
        f.evidence.iter().map(|(k, v)| format!("<li><span>{}</span> {}</li>", escape(k), escape(v))).collect();
    let next: String = f.next.iter().map(|c| format!("<pre class=\"command\">{}</pre>", escape(c))).collect();
    format!(
        r#"<div class="card finding{}"><h3>{}<code>{}</code></h3><ul class="evidence">{evidence}</ul><p>{}</p>{next}</div>"#,
        if grave { " grave" } else { "" },
        escape(&f.title),
        f.id.name(),
        escape(&f.cause),
    )
}

/// Curves with fewer steps are drawn without smoothing.
const FEW: usize = 8;

/// Returns the number of steps that a smoothed value is the mean of.
fn window(steps: usize) -> usize {
    (steps / 20).clamp(3, 401) | 1
}

fn short(x: f64) -> String {
    match x {
        x if !x.is_finite() => "not finite".into(),
        0.0 => "0".into(),
        x if x.abs() >= 1000.0 || x.abs() < 1e-3 => format!("{x:.1e}"),
        x if x.abs() >= 100.0 => format!("{x:.0}"),
        x if x.abs() >= 10.0 => format!("{x:.1}"),
        x if x.abs() >= 0.1 => format!("{x:.2}"),
        x => format!("{x:.3}"),
    }
}

fn curves(run: &RunFolder) -> String {
    let h = &run.history;
    if h.steps.is_empty() {
        return String::new();
    }
    let resumed = run.resumed_steps();
    let left_out = h.steps.iter().filter(|p| !p.was_applied()).map(|p| p.step);
    let ended = run.facts.iter().flat_map(|f| f.origins.iter().map(|o| o.step));
    let skipped: Vec<u64> = left_out.chain(ended).collect::<std::collections::BTreeSet<u64>>().into_iter().collect();
    let curve = |f: &dyn Fn(&StepPoint) -> f64| h.steps.iter().map(|p| (p.step as f64, f(p))).collect::<Vec<_>>();
    let validation = |name: &str| {
        let value = |v: &crate::runs::Validation| Some((v.step as f64, v.means.iter().find(|(k, _)| k == name)?.1));
        h.validations.iter().filter_map(value).collect::<Vec<_>>()
    };
    let mut charts = Vec::new();
    let mut add = |title: &str, note: String, series, format, guide, log_above, from_zero| {
        let chart = Chart {
            title: title.to_string(),
            note,
            series,
            format,
            guide,
            resumed: &resumed,
            skipped: &skipped,
            log_above,
            from_zero,
        };
        charts.push(chart.figure());
    };
    // A smoothed curve and its raw values.
    let with_mean = |points: Vec<(f64, f64)>, name: &str| {
        let values: Vec<f64> = points.iter().map(|p| p.1).collect();
        let smoothed = points.iter().zip(smooth(&values, window(values.len()))).map(|(p, v)| (p.0, v)).collect();
        let look = if values.len() < FEW { SeriesStyle::Dots } else { SeriesStyle::Faint };
        let raw = Series { name: "each step".into(), colour: "train", look, points };
        let mean = Series { name: name.to_string(), colour: "train", look: SeriesStyle::Line, points: smoothed };
        if values.len() < FEW { vec![Series { name: name.to_string(), ..raw }] } else { vec![raw, mean] }
    };
    let evaluated = |name: &str, points: Vec<(f64, f64)>| Series {
        name: name.to_string(),
        colour: "valid",
        look: if points.len() <= 60 { SeriesStyle::Dots } else { SeriesStyle::Line },
        points,
    };
    let smoothing = match h.steps.len() {
        n if n < FEW => "each step".to_string(),
        n => format!("mean over {} steps", window(n)),
    };
    let mut loss = with_mean(curve(&|p| p.loss), "training");
    loss.push(evaluated("validation", validation("loss")));
    let marks = match (resumed.is_empty(), skipped.is_empty()) {
        (true, true) => String::new(),
        (false, true) => " · dashed: resumed".into(),
        (true, false) => format!(" · red: not finite ({})", skipped.len()),
        (false, false) => format!(" · dashed: resumed · red: not finite ({})", skipped.len()),
    };
    add("Loss", format!("{smoothing}{marks}"), loss, short as fn(f64) -> String, None, 200.0, false);
    let lr = vec![Series {
        name: "learning rate".into(),
        colour: "other",
        look: SeriesStyle::Line,
        points: curve(&|p| p.lr),
    }];
    add(
        "Learning rate",
        String::new(),
        lr,
        |v| if v == 0.0 { "0".into() } else { format!("{v:.1e}") },
        None,
        f64::INFINITY,
        true,
    );
    let max_norm = run.plan.recipe.optim.max_norm;
    let guide = (max_norm > 0.0).then_some((max_norm, "clipped above"));
    add(
        "Gradient norm",
        "before clipping".into(),
        with_mean(curve(&|p| p.grad_norm), "norm"),
        short,
        guide,
        20.0,
        true,
    );
    let names: Vec<&String> = h.steps.first().map_or(Vec::new(), |p| p.more.iter().map(|(k, _)| k).collect());
    for name in names {
        let value = |p: &StepPoint| p.more.iter().find(|(k, _)| k == name).map_or(f64::NAN, |(_, v)| *v);
        let mut series = with_mean(curve(&value), "training");
        series.push(evaluated("validation", validation(name)));
        let mut letters = name.replace('_', " ");
        if let Some(first) = letters.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        let share = name.contains("accuracy");
        let format = if share { |v: f64| format!("{:.1}%", 100.0 * v) } else { short };
        add(&letters, String::new(), series, format, None, f64::INFINITY, false);
    }
    let speed = with_mean(curve(&|p| p.tokens_per_s), "tokens per second");
    add(
        "Speed",
        "tokens per second, without validation and saving".into(),
        speed,
        |v| report::count(v.round().max(0.0) as u64),
        None,
        f64::INFINITY,
        true,
    );
    let memory = curve(&|p| if p.memory > 0 { p.memory as f64 } else { f64::NAN });
    let memory = vec![Series { name: "peak so far".into(), colour: "other", look: SeriesStyle::Line, points: memory }];
    add("Memory", "of tensors".into(), memory, |v| report::bytes(v.max(0.0) as u64), None, f64::INFINITY, true);
    format!("<section><h2>Curves</h2><div class=\"charts\">{}</div></section>", charts.concat())
}

fn samples(run: &RunFolder) -> String {
    let first = run.samples.iter().map(|s| s.step).min();
    let last = run.samples.iter().map(|s| s.step).max();
    let (Some(first), Some(last)) = (first, last) else { return String::new() };
    // Every step with samples has the same prompts in the same order.
    let at = |step: u64| run.samples.iter().filter(|s| s.step == step).collect::<Vec<_>>();
    let (before, after) = (at(first), at(last));
    let steps: std::collections::BTreeSet<u64> = run.samples.iter().map(|s| s.step).collect();
    let mut out = String::new();
    for (i, s) in after.iter().enumerate() {
        let same = |b: &&&RunSample| b.prompt == s.prompt;
        let right = |t: &RunSample| t.expected.as_ref().is_some_and(|e| e.trim() == t.text.trim());
        let answer = |class: &str, head: String, text: &str| {
            let text = if text.trim().is_empty() { "<em>(nothing)</em>".into() } else { shown(text.trim()) };
            format!(r#"<div class="answer {class}"><h4>{head}</h4><div class="text" dir="auto">{text}</div></div>"#)
        };
        let name = |step: u64| if step == 0 { "Before".to_string() } else { format!("After step {step}") };
        let mark = |t: &RunSample| if right(t) { r#" <span class="hit">as expected</span>"# } else { "" };
        let mut answers = String::new();
        if let Some(b) = before.get(i).filter(same).filter(|_| first != last) {
            answers += &answer("before", format!("{}{}", name(first), mark(b)), &b.text);
        }
        answers += &answer("after", format!("{}{}", name(last), mark(s)), &s.text);
        if let Some(expected) = &s.expected {
            answers += &answer("expected", "Answer in the data".into(), expected);
        }
        let mut between = String::new();
        for step in steps.iter().filter(|n| **n != first && **n != last) {
            if let Some(m) = at(*step).get(i).filter(same) {
                between += &answer("", format!("{}{}", name(*step), mark(m)), &m.text);
            }
        }
        if !between.is_empty() {
            between = format!("<details><summary>In between</summary><div class=\"answers\">{between}</div></details>");
        }
        let _ = write!(
            out,
            r#"<div class="card sample"><div class="prompt">{}</div><div class="answers">{answers}</div>{between}</div>"#,
            prompt(s),
        );
    }
    let from = if run.plan.recipe.data.valid.is_some() { "validation" } else { "training" };
    format!("<section><h2>Answers to {from} prompts</h2>{out}</section>")
}

/// Renders the prompt of a sample, turn by turn if the turns are known.
fn prompt(sample: &RunSample) -> String {
    let said = |text: &str| format!(r#"<div class="text" dir="auto">{}</div>"#, shown(text.trim()));
    let Some(turns) = &sample.turns else { return said(&sample.prompt) };
    let turn = |turn: &ChatTurn| {
        let role = match turn.role.as_str() {
            "system" => "Instruction",
            "user" => "Question",
            _ => "Earlier answer",
        };
        format!(r#"<div class="turn {}"><h4>{role}</h4>{}</div>"#, escape(&turn.role), said(&turn.text))
    };
    turns.iter().map(turn).collect()
}

fn report_card(run: &RunFolder) -> String {
    run.card.as_ref().map_or(String::new(), super::card::section)
}

fn evaluations(run: &RunFolder) -> String {
    let h = &run.history;
    let mut out = String::new();
    if !h.validations.is_empty() {
        let names: Vec<&String> = h
            .validations
            .iter()
            .max_by_key(|v| v.means.len())
            .map_or(Vec::new(), |v| v.means.iter().map(|(k, _)| k).collect());
        let head: String = names.iter().map(|n| format!("<th class=\"number\">{}</th>", escape(n))).collect();
        let best = h.best().map(|b| b.step);
        let row = |v: &crate::runs::Validation| {
            let cells: String = names
                .iter()
                .map(|n| v.means.iter().find(|(k, _)| k == *n).map_or(f64::NAN, |(_, x)| *x))
                .map(|x| format!("<td class=\"number\">{}</td>", number(x)))
                .collect();
            let (class, mark) = if Some(v.step) == best { (" class=\"best\"", "best") } else { ("", "") };
            format!(
                "<tr{class}><td>{}</td>{cells}<td>{mark}</td></tr>",
                if v.step == 0 { "before the first".into() } else { v.step.to_string() }
            )
        };
        let rows: Vec<String> = h.validations.iter().map(row).collect();
        let table = |rows: &[String]| {
            format!(
                "<div class=\"scroll\"><table><tr><th>after step</th>{head}<th></th></tr>{}</table></div>",
                rows.concat()
            )
        };
        let shown = if rows.len() <= 12 {
            table(&rows)
        } else {
            let few: Vec<String> = h
                .validations
                .iter()
                .filter(|v| v.step == 0 || Some(v.step) == best || v.step == h.validations.last().map_or(0, |l| l.step))
                .map(row)
                .collect();
            format!(
                "{}<details><summary>All {} validations</summary>{}</details>",
                table(&few),
                rows.len(),
                table(&rows)
            )
        };
        let _ = write!(out, "<div class=\"card\">{shown}</div>");
    }
    for (name, value) in &run.evaluations {
        let Some(o) = value.as_object() else { continue };
        let rows: String = o
            .iter()
            .filter(|(_, v)| !v.is_object() && !v.is_null())
            .map(|(k, v)| format!("<tr><td>{}</td><td class=\"path\">{}</td></tr>", escape(k), escape(&plain(v))))
            .collect();
        let _ = write!(out, "<div class=\"card\"><p><b>{}</b></p><table>{rows}</table></div>", escape(name));
    }
    if out.is_empty() { out } else { format!("<section><h2>Evaluation</h2>{out}</section>") }
}

fn plain(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Number(n) if n.is_f64() => number(n.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

fn data(run: &RunFolder) -> String {
    let Some(facts) = &run.facts else { return String::new() };
    let mut out = String::new();
    for (title, d) in [("Training rows", Some(&facts.train)), ("Validation rows", facts.valid.as_ref())] {
        let Some(d) = d else { continue };
        let mut chips = vec![
            ("examples", report::count(d.examples as u64)),
            ("tokens", report::count(d.tokens as u64)),
            ("trained on", format!("{:.1} %", 100.0 * d.supervised_share())),
            ("longest", format!("{} tokens", report::count(d.longest as u64))),
            ("allowed", format!("{} tokens", report::count(d.max_len as u64))),
            ("format", d.format.clone()),
        ];
        for (n, what) in [(d.dropped, "dropped as too long"), (d.truncated, "cut off"), (d.split, "split")] {
            if n > 0 {
                chips.push((what, report::count(n as u64)));
            }
        }
        let chips: String = chips.iter().map(|(k, v)| format!("<li><span>{k}</span> {}</li>", escape(v))).collect();
        let limit = format!("longest allowed: {}", d.max_len);
        let _ = write!(
            out,
            r#"<figure class="chart"><figcaption><b>{title}</b><span class="note">{}</span></figcaption><ul class="evidence">{chips}</ul><p class="note">examples by length in tokens</p>{}</figure>"#,
            escape(&d.path.display().to_string()),
            histogram(d.lengths.width, &d.lengths.counts, d.max_len, &limit),
        );
    }
    format!("<section><h2>Data</h2><div class=\"columns\">{out}</div></section>")
}

/// Returns every key of the resolved recipe with its value: (dotted path, value).
fn values(plan: &Plan) -> Vec<(String, Value)> {
    fn flatten(path: String, v: Value, into: &mut Vec<(String, Value)>) {
        match v {
            Value::Object(o) if !o.is_empty() => {
                for (k, v) in o {
                    flatten(if path.is_empty() { k } else { format!("{path}.{k}") }, v, into);
                }
            }
            v => into.push((path, v)),
        }
    }
    let mut all = Vec::new();
    flatten(String::new(), serde_json::to_value(&plan.recipe).unwrap_or_default(), &mut all);
    all
}

/// Returns true if two values are equal; 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b),
    }
}

fn settings(run: &RunFolder) -> String {
    let plan = &run.plan;
    let (mut set, mut rest) = (String::new(), String::new());
    for (path, value) in values(plan) {
        let default = keys().iter().find(|k| k.path == path).and_then(|k| k.default.clone());
        let differs = default.as_ref().is_none_or(|d| !same(d, &value));
        let line = format!(
            "<tr{}><td>{}</td><td class=\"path\">{}</td><td>{}</td></tr>",
            if differs && default.is_some() { " class=\"changed\"" } else { "" },
            escape(&path),
            escape(&plain_setting(&value)),
            default.map_or(String::new(), |d| escape(&plain_setting(&d))),
        );
        if differs { set += &line } else { rest += &line }
    }
    let head = "<tr><th style=\"padding-left:10px\">key</th><th>value</th><th>default</th></tr>";
    let sets = if plan.sets.is_empty() {
        String::new()
    } else {
        let lines: Vec<String> = plan.sets.iter().map(|s| format!("--set {s}")).collect();
        format!("<pre>{}</pre>", escape(&lines.join("\n")))
    };
    format!(
        "<section><h2>Settings</h2><div class=\"card\"><div class=\"scroll\"><table class=\"settings\">{head}{set}</table></div><details><summary>Left at their defaults</summary><div class=\"scroll\"><table class=\"settings\">{head}{rest}</table></div></details><details><summary>The recipe as written: {}</summary><pre>{}</pre>{sets}</details></div></section>",
        escape(&plan.file.display().to_string()),
        escape(&plan.text),
    )
}

fn plain_setting(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn environment(run: &RunFolder) -> String {
    let row = |k: &str, v: String| format!("<tr><td>{}</td><td class=\"path\">{}</td></tr>", escape(k), escape(&v));
    let mut machine = String::new();
    if let Some(f) = &run.facts {
        let e = &f.environment;
        machine += &row("device", format!("{} ({})", e.device_name, e.device));
        machine += &row("instructions", e.instructions.clone());
        machine += &row("threads", format!("{} of {} cores", e.threads, e.cores));
        machine += &row("memory", report::bytes(e.memory));
        machine += &row("system", format!("{} on {}", e.system, e.host));
        machine += &row("ft", e.ft.clone());
        machine += &row("libtorch", e.libtorch.clone());
        machine += &row(
            "parameters",
            format!(
                "{}, {} trained ({:.2} %)",
                report::count(f.parameters),
                report::count(f.trained),
                100.0 * f.trained as f64 / f.parameters.max(1) as f64
            ),
        );
        for (i, s) in f.sessions.iter().enumerate().filter(|_| f.sessions.len() > 1) {
            let end = s.ended.as_ref().map_or("no end recorded".into(), |e| {
                format!(
                    "{:?} at step {} after {}",
                    e.outcome,
                    e.step,
                    report::duration(Duration::from_secs_f64(e.seconds))
                )
                .to_lowercase()
            });
            machine += &row(&format!("session {}", i + 1), format!("from step {}, {}: {end}", s.from_step, s.began));
        }
    }
    let mut lock = String::new();
    if let Some(l) = &run.lock {
        let short = |sha: &str| sha.get(..16).unwrap_or(sha).to_string();
        let files: Vec<(&String, &crate::runs::lock::LockedFile)> = l.base.iter().chain(&l.tokenizer).collect();
        for (name, file) in files {
            lock += &row(name, short(&file.sha256));
        }
        lock += &row("training rows", short(&l.train.sha256));
        if let Some(v) = &l.valid {
            lock += &row("validation rows", short(&v.sha256));
        }
        lock += &row("recipe", short(&l.recipe_sha256));
        lock += &row("ft's program file", short(&l.programs.ft_sha256));
        lock += &result(l);
    }
    let verified = run.export.as_ref().map_or(String::new(), |e| {
        let verdict = e["verdict"].as_str().unwrap_or("unknown");
        row("result read back", format!("{verdict}; {} tensors compared", e["tensors"]))
    });
    let lock = if lock.is_empty() && verified.is_empty() {
        String::new()
    } else {
        format!(
            "<div class=\"card\"><table>{verified}{lock}</table><p class=\"note\">SHA-256, first 16 digits; ft.lock has all digits. To check the files and train again:</p><pre class=\"command\">ft replay {}</pre></div>",
            escape(&run.path.display().to_string())
        )
    };
    format!(
        "<section><h2>Environment and contents</h2><div class=\"columns\"><div class=\"card\"><table>{machine}</table></div>{lock}</div></section>"
    )
}

fn result(lock: &RunLock) -> String {
    let files = lock.result.iter().flatten();
    files
        .map(|(name, f)| {
            format!(
                "<tr class=\"best\"><td>{}</td><td class=\"path\">{} · {}</td></tr>",
                escape(name),
                escape(f.sha256.get(..16).unwrap_or(&f.sha256)),
                escape(&report::bytes(f.bytes))
            )
        })
        .collect()
}

fn footer(run: &RunFolder) -> String {
    let steps = run.history.last_step();
    format!(
        "<footer>Written by ft {} from the files in {} at step {steps}, {}. This page loads nothing and sends nothing.</footer>",
        env!("CARGO_PKG_VERSION"),
        escape(&run.path.display().to_string()),
        escape(&crate::runs::facts::now().replace('T', " ")),
    )
}
