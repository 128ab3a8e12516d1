//! Renders the sections of the page in the order of a reader's questions: results, problems, curves, answers of the
//! model, evaluations, data, settings, environment.

mod contents;
mod curves;
mod evaluation;
mod format;
mod overview;
mod samples;
mod settings;

pub use format::short;

use super::card;
use crate::runs::folder::RunFolder;
use maud::Markup;

/// Returns the body of the page as HTML.
pub fn render_sections(run: &RunFolder) -> String {
    let sections: [Markup; 11] = [
        overview::header(run),
        overview::tiles(run),
        overview::doctor(run),
        curves::curves(run),
        samples::samples(run),
        run.card.as_ref().map_or_else(Markup::default, card::section),
        evaluation::evaluations(run),
        contents::data(run),
        settings::settings(run),
        contents::environment(run),
        overview::footer(run),
    ];
    sections.into_iter().map(|s| s.into_string()).filter(|s| !s.is_empty()).collect::<Vec<_>>().join("\n")
}
