//! Renders the inputs of a run: its rows, programs, machine and files.

use super::format::short_sha;
use crate::report;
use crate::runs::facts::{DataFacts, RunFacts, RunSession};
use crate::runs::folder::RunFolder;
use crate::runs::lock::RunLock;
use crate::runs::page::escape::plain;
use crate::runs::page::histogram::histogram;
use maud::{Markup, html};
use std::time::Duration;

/// Renders the section of data; nothing for a run without facts.
pub fn data(run: &RunFolder) -> Markup {
    let Some(facts) = &run.facts else { return Markup::default() };
    html! {
        section {
            h2 { "Data" }
            div class="columns" {
                (rows("Training rows", &facts.train))
                @if let Some(valid) = &facts.valid { (rows("Validation rows", valid)) }
            }
        }
    }
}

fn rows(title: &str, d: &DataFacts) -> Markup {
    let mut chips = vec![
        ("examples", report::count(d.examples as u64)),
        ("tokens", report::count(d.tokens as u64)),
        ("trained on", format!("{:.1} %", 100.0 * d.supervised_share())),
        ("longest", format!("{} tokens", report::count(d.longest as u64))),
        ("allowed", format!("{} tokens", report::count(d.max_len as u64))),
        ("format", d.format.clone()),
    ];
    let changed = [("dropped as too long", d.dropped), ("cut off", d.truncated), ("split", d.split)];
    chips.extend(changed.into_iter().filter(|(_, n)| *n > 0).map(|(what, n)| (what, report::count(n as u64))));
    html! {
        figure class="chart" {
            figcaption { b { (title) } span class="note" { (plain(&d.path.display().to_string())) } }
            ul class="evidence" { @for (k, v) in &chips { li { span { (k) } " " (plain(v)) } } }
            p class="note" { "examples by length in tokens" }
            (histogram(d.lengths.width, &d.lengths.counts, d.max_len, &format!("longest allowed: {}", d.max_len)))
        }
    }
}

/// Renders the section of programs, machine and files.
pub fn environment(run: &RunFolder) -> Markup {
    let verified = run
        .export
        .as_ref()
        .map(|e| format!("{}; {} tensors compared", e["verdict"].as_str().unwrap_or("unknown"), e["tensors"]));
    html! {
        section {
            h2 { "Environment and contents" }
            div class="columns" {
                div class="card" { table { @if let Some(f) = &run.facts { (machine(f)) } } }
                @if verified.is_some() || run.lock.is_some() {
                    div class="card" {
                        table {
                            @if let Some(verified) = &verified { (row("result read back", verified)) }
                            @if let Some(lock) = &run.lock { (files(lock)) }
                        }
                        p class="note" {
                            "SHA-256, first 16 digits; ft.lock has all digits. To check the files and train again:"
                        }
                        pre class="command" { "ft replay " (plain(&run.path.display().to_string())) }
                    }
                }
            }
        }
    }
}

fn row(name: &str, value: &str) -> Markup {
    html! { tr { td { (plain(name)) } td class="path" { (plain(value)) } } }
}

fn machine(f: &RunFacts) -> Markup {
    let e = &f.environment;
    let share = 100.0 * f.trained as f64 / f.parameters.max(1) as f64;
    html! {
        (row("device", &format!("{} ({})", e.device_name, e.device)))
        (row("instructions", &e.instructions))
        (row("threads", &format!("{} of {} cores", e.threads, e.cores)))
        (row("memory", &report::bytes(e.memory)))
        (row("system", &format!("{} on {}", e.system, e.host)))
        (row("ft", &e.ft))
        (row("libtorch", &e.libtorch))
        (row(
            "parameters",
            &format!("{}, {} trained ({share:.2} %)", report::count(f.parameters), report::count(f.trained)),
        ))
        @if f.sessions.len() > 1 {
            @for (i, s) in f.sessions.iter().enumerate() { (row(&format!("session {}", i + 1), &session(s))) }
        }
    }
}

fn session(s: &RunSession) -> String {
    let end = s.ended.as_ref().map_or("no end recorded".into(), |e| {
        let worked = report::duration(Duration::from_secs_f64(e.seconds));
        format!("{:?} at step {} after {worked}", e.outcome, e.step).to_lowercase()
    });
    format!("from step {}, {}: {end}", s.from_step, s.began)
}

fn files(lock: &RunLock) -> Markup {
    html! {
        @for (name, file) in lock.base.iter().chain(&lock.tokenizer) { (row(name, short_sha(&file.sha256))) }
        (row("training rows", short_sha(&lock.train.sha256)))
        @if let Some(valid) = &lock.valid { (row("validation rows", short_sha(&valid.sha256))) }
        (row("recipe", short_sha(&lock.recipe_sha256)))
        (row("ft's program file", short_sha(&lock.programs.ft_sha256)))
        @for (name, file) in lock.result.iter().flatten() {
            tr class="best" {
                td { (plain(name)) }
                td class="path" { (plain(short_sha(&file.sha256))) " · " (plain(&report::bytes(file.bytes))) }
            }
        }
    }
}
