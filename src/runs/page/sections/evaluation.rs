//! Validations of the run, and evaluations whose results were added to its folder.

use super::format;
use crate::runs::folder::RunFolder;
use crate::runs::history::{History, Validation};
use crate::runs::number::number;
use crate::runs::page::escape::plain;
use maud::{Markup, html};
use serde_json::Value;

/// With more validations, only the first, the best and the last are shown at once.
const SHOWN: usize = 12;

/// Renders the section of evaluations; nothing for a run without any.
pub fn evaluations(run: &RunFolder) -> Markup {
    let evaluations: Vec<_> = run.evaluations.iter().filter_map(|(name, v)| Some((name, v.as_object()?))).collect();
    if run.history.validations.is_empty() && evaluations.is_empty() {
        return Markup::default();
    }
    html! {
        section {
            h2 { "Evaluation" }
            @if !run.history.validations.is_empty() {
                div class="card" {
                    (validations(&run.history))
                    @if let Some(words) = run.averaged_result() { p { "The result is " (plain(&words)) "." } }
                }
            }
            @for (name, values) in evaluations {
                div class="card" {
                    p { b { (plain(name)) } }
                    table {
                        @for (k, v) in values.iter().filter(|(_, v)| !v.is_object() && !v.is_null()) {
                            tr { td { (plain(k)) } td class="path" { (plain(&measure(v))) } }
                        }
                    }
                }
            }
        }
    }
}

fn validations(h: &History) -> Markup {
    let best = h.best().map(|b| b.step);
    let last = h.validations.last().map_or(0, |l| l.step);
    let important = |v: &&Validation| v.step == 0 || Some(v.step) == best || v.step == last;
    let all: Vec<&Validation> = h.validations.iter().collect();
    if all.len() <= SHOWN {
        return table(h, &all);
    }
    let few: Vec<&Validation> = h.validations.iter().filter(important).collect();
    html! {
        (table(h, &few))
        details { summary { "All " (all.len()) " validations" } (table(h, &all)) }
    }
}

fn table(h: &History, rows: &[&Validation]) -> Markup {
    let widest = h.validations.iter().max_by_key(|v| v.means.len());
    let names: Vec<&String> = widest.iter().flat_map(|v| v.means.iter().map(|(k, _)| k)).collect();
    let best = h.best().map(|b| b.step);
    html! {
        div class="scroll" {
            table {
                tr { th { "after step" } @for name in &names { th class="number" { (plain(name)) } } th {} }
                @for v in rows {
                    @let is_best = Some(v.step) == best;
                    tr class=[is_best.then_some("best")] {
                        td { @if v.step == 0 { "before the first" } @else { (v.step) } }
                        @for name in &names { td class="number" { (number(v.mean(name))) } }
                        td { @if is_best { "best" } }
                    }
                }
            }
        }
    }
}

/// Formats a result of `ft eval`.
fn measure(v: &Value) -> String {
    match v {
        Value::Number(n) if n.is_f64() => number(n.as_f64().unwrap_or(f64::NAN)),
        other => format::json(other),
    }
}
