//! Joins evaluations of several models on the same suite and items into one.

use super::check::check;
use crate::error::{Context, Error, Result};
use crate::eval::results::{ItemInfo, SubjectResults, SuiteResults, TaskResults};
use std::path::Path;

/// An evaluation, and where it was read from.
pub struct Evaluated {
    /// Name of its file or folder, for messages and for models that share a name.
    pub place: String,
    /// Its results.
    pub results: SuiteResults,
}

/// Joins evaluations; the first model of the first is the baseline. A model that was evaluated twice with the same answers stays
/// once. Models of one name get that of their place, too. Fails if there is none, or if tasks, metrics or items differ.
pub fn join(evaluations: Vec<Evaluated>) -> Result<SuiteResults> {
    for Evaluated { place, results } in &evaluations {
        check(results).context(|| place.clone())?;
    }
    let mut evaluations = evaluations.into_iter();
    let Some(Evaluated { place: first_place, results: mut joined }) = evaluations.next() else {
        return Err(Error::user("no results to report").hint("name a folder with results.json"));
    };
    for Evaluated { place, results } in evaluations {
        if let Some(difference) = difference(&joined, &results) {
            return Err(Error::user(format!(
                "{first_place} and {place} are results of different questions: {difference}"
            ))
            .hint("evaluate all models with the same suite on the same files"));
        }
        for (i, subject) in results.subjects.iter().enumerate() {
            let found: Vec<&SubjectResults> = results.tasks.iter().map(|task| &task.results[i]).collect();
            if joined.subjects.iter().enumerate().any(|(k, known)| known == subject && answers_of(&joined, k) == found)
            {
                continue;
            }
            let mut subject = subject.clone();
            if joined.subjects.iter().any(|known| known.name == subject.name) {
                subject.name = unused(&joined, format!("{} ({})", subject.name, short(&place)));
            }
            joined.subjects.push(subject);
            joined.tasks.iter_mut().zip(found).for_each(|(task, found)| task.results.push(found.clone()));
        }
    }
    Ok(joined)
}

fn answers_of(results: &SuiteResults, subject: usize) -> Vec<&SubjectResults> {
    results.tasks.iter().map(|task| &task.results[subject]).collect()
}

/// Returns a name that no model has: this one, or with a number behind it.
fn unused(results: &SuiteResults, name: String) -> String {
    let taken = |name: &String| results.subjects.iter().any(|subject| subject.name == *name);
    match taken(&name) {
        false => name,
        true => (2..).map(|n| format!("{name} {n}")).find(|name| !taken(name)).unwrap_or(name),
    }
}

fn short(place: &str) -> String {
    let path = Path::new(place);
    let path = if path.extension().is_some_and(|e| e == "json") { path.parent().unwrap_or(path) } else { path };
    path.file_name().map_or_else(|| place.to_string(), |name| name.to_string_lossy().into_owned())
}

/// Returns the first difference between what two evaluations asked.
fn difference(a: &SuiteResults, b: &SuiteResults) -> Option<String> {
    let names = |results: &SuiteResults| results.tasks.iter().map(|t| t.name.clone()).collect::<Vec<_>>().join(", ");
    if names(a) != names(b) {
        return Some(format!("the tasks are {} and {}", names(a), names(b)));
    }
    a.tasks.iter().zip(&b.tasks).find_map(|(a, b)| Some(format!("task {}: {}", a.name, task_difference(a, b)?)))
}

fn task_difference(a: &TaskResults, b: &TaskResults) -> Option<String> {
    if a.kind != b.kind {
        return Some(format!("its kind is {} and {}", a.kind, b.kind));
    }
    if a.main_metric != b.main_metric {
        return Some(format!("its main metric is {} and {}", a.main_metric, b.main_metric));
    }
    if a.metrics != b.metrics {
        return Some("the metrics differ".to_string());
    }
    if a.items.len() != b.items.len() {
        return Some(format!("{} and {} items", a.items.len(), b.items.len()));
    }
    a.items
        .iter()
        .zip(&b.items)
        .enumerate()
        .find_map(|(i, (a, b))| Some(format!("item {} (line {}): {}", i + 1, a.line, item_difference(a, b)?)))
}

fn item_difference(a: &ItemInfo, b: &ItemInfo) -> Option<&'static str> {
    let parts = [
        ("other prompts", a.prompt != b.prompt),
        ("other expected answers", a.expected != b.expected),
        ("other choices", a.choices != b.choices),
        ("other categories", a.category != b.category),
        ("other lines of their files", a.line != b.line),
    ];
    parts.into_iter().find(|(_, differ)| *differ).map(|(what, _)| what)
}
