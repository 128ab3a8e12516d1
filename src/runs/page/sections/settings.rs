//! The settings of the run: those that differ from their defaults, the others, and the recipe as written.

use super::format;
use crate::recipe::plan::Plan;
use crate::recipe::schema;
use crate::runs::folder::RunFolder;
use crate::runs::page::escape::plain;
use maud::{Markup, html};
use serde_json::Value;

/// A key of the resolved recipe.
struct ShownSetting {
    path: String,
    value: Value,
    default: Option<Value>,
}

impl ShownSetting {
    /// Returns true if the value is not the default.
    fn differs(&self) -> bool {
        self.default.as_ref().is_none_or(|d| !same(d, &self.value))
    }
}

/// Returns every key of the resolved recipe in its order.
fn all_settings(plan: &Plan) -> Vec<ShownSetting> {
    let mut values = Vec::new();
    flatten(String::new(), serde_json::to_value(&plan.recipe).unwrap_or_default(), &mut values);
    let default = |path: &str| schema::keys().iter().find(|k| k.path == path).and_then(|k| k.default.clone());
    values.into_iter().map(|(path, value)| ShownSetting { default: default(&path), path, value }).collect()
}

/// Collects the values below a key: (dotted path, value).
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

/// Returns true if two values are equal; 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b),
    }
}

/// Renders the section of settings.
pub fn settings(run: &RunFolder) -> Markup {
    let plan = &run.plan;
    let (set, rest): (Vec<ShownSetting>, Vec<ShownSetting>) =
        all_settings(plan).into_iter().partition(ShownSetting::differs);
    let arguments: Vec<String> = plan.sets.iter().map(|s| format!("--set {s}")).collect();
    html! {
        section {
            h2 { "Settings" }
            div class="card" {
                (table(&set))
                details { summary { "Left at their defaults" } (table(&rest)) }
                details {
                    summary { "The recipe as written: " (plain(&plan.file.display().to_string())) }
                    pre { (plain(&plan.text)) }
                    @if !arguments.is_empty() { pre { (plain(&arguments.join("\n"))) } }
                }
            }
        }
    }
}

fn table(settings: &[ShownSetting]) -> Markup {
    html! {
        div class="scroll" {
            table class="settings" {
                tr { th style="padding-left:10px" { "key" } th { "value" } th { "default" } }
                @for s in settings {
                    tr class=[(s.differs() && s.default.is_some()).then_some("changed")] {
                        td { (plain(&s.path)) }
                        td class="path" { (plain(&format::json(&s.value))) }
                        td { @if let Some(default) = &s.default { (plain(&format::json(default))) } }
                    }
                }
            }
        }
    }
}
