//! Reports an evaluation: a page for people who decide (`report.html`), Markdown for a model card (`report.md`), a summary for the
//! terminal.
//!
//! `verdict`: what the comparison says, in sentences. `format`: values of metrics as people read them. `calibration`, `classes`:
//! measures of one task that only reports show. `losses`, `groups`: what was forgotten and what groups get, as cells of tables. `page` (a folder): the HTML. `markdown`, `terminal`: the other two.

pub mod calibration;
mod classes;
mod format;
mod groups;
mod losses;
mod markdown;
mod page;
mod terminal;
mod verdict;

use super::baselines::{RuleResult, WordModel, rules};
use super::comparison::{Comparison, GateOutcome, check_gates};
use super::contamination::{Contamination, OverlapRule, TextWords};
use super::forgetting::{SubjectForgetting, forgetting};
use super::groups::{TaskGroups, compare_groups};
use super::results::SuiteResults;
use crate::error::Result;
use crate::fsutil::write_atomic;
use crate::recipe::gate::Gate;
use format::NumberFormat;
use std::io::Write;
use std::path::Path;

/// Name of the page in the folder of an evaluation.
pub const PAGE: &str = "report.html";
/// Name of the Markdown in the folder of an evaluation.
pub const MARKDOWN: &str = "report.md";

/// An evaluation and everything that is computed from it.
pub struct EvaluationReport {
    /// The results.
    pub results: SuiteResults,
    /// How the models compare with the first.
    pub comparison: Comparison,
    /// What the results say about the gates.
    pub gates: Vec<GateOutcome>,
    /// What each model lost of what the first could do; empty if no task was chosen for it.
    pub forgetting: Vec<SubjectForgetting>,
    /// What groups get, for each task that has any.
    pub groups: Vec<TaskGroups>,
    /// What rules without a model reach, for each task.
    pub rules: Vec<Vec<RuleResult>>,
    /// For each task, what its items share with training rows; empty without training rows.
    pub contamination: Vec<Vec<Contamination>>,
}

/// N-gram models of training rows that are compared with the models: of pairs and of triples of words.
const NGRAMS: [usize; 2] = [2, 3];

impl EvaluationReport {
    /// Computes a report. Fails if the results do not fit together or lack what a gate names.
    pub fn of(results: SuiteResults, gates: &[Gate]) -> Result<Self> {
        let comparison = Comparison::of(&results)?;
        let gates = check_gates(&results, gates)?;
        let rules = results.tasks.iter().map(rules).collect();
        let (forgetting, groups) = (forgetting(&results, &comparison), compare_groups(&results));
        Ok(Self { results, comparison, gates, forgetting, groups, rules, contamination: Vec::new() })
    }

    /// Adds what can be said with the texts of the training rows: n-gram models as rules without a model, and overlap.
    pub fn add_training_rows(&mut self, texts: &[String]) {
        for order in NGRAMS {
            let model = WordModel::train(texts.iter().map(String::as_str), order);
            for (task, rules) in self.results.tasks.iter().zip(&mut self.rules) {
                rules.extend(model.rule(task));
            }
        }
        let words = TextWords::of(texts.iter().map(String::as_str));
        let found =
            |rule| self.results.tasks.iter().map(|task| Contamination::of(task, &words, rule)).collect::<Vec<_>>();
        let both = found(OverlapRule::Gpt3).into_iter().zip(found(OverlapRule::EightWords));
        // Of items so short that both rules look for the same runs, one is enough.
        self.contamination = both.map(|(a, b)| if a.run == b.run { vec![a] } else { vec![a, b] }).collect();
    }

    /// Returns what the suite calls itself, or the name of its file.
    pub fn title(&self) -> &str {
        self.results.title.as_deref().unwrap_or(&self.results.suite)
    }

    /// Returns how the values of a gate are written.
    fn format_of(&self, gate: &GateOutcome) -> NumberFormat {
        let task = self.results.tasks.iter().find(|task| task.name == gate.task);
        let metric = task.and_then(|task| Some((task, task.metrics.iter().find(|metric| metric.name == gate.metric)?)));
        metric.map_or(NumberFormat::Plain, |(task, metric)| NumberFormat::of(task, metric))
    }

    /// Returns a sentence for each model that is compared, or one that says that nothing is.
    pub fn verdicts(&self) -> Vec<String> {
        verdict::sentences(self)
    }

    /// Returns the page as HTML.
    pub fn page(&self) -> String {
        page::render(self)
    }

    /// Returns the report as Markdown.
    pub fn markdown(&self) -> String {
        markdown::render(self)
    }

    /// Returns a summary for a terminal, without the last line break.
    pub fn summary(&self) -> String {
        terminal::render(self)
    }

    /// Writes the page and the Markdown into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (name, text) in [(PAGE, self.page()), (MARKDOWN, self.markdown())] {
            write_atomic(&folder.join(name), |file| file.write_all(text.as_bytes()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
