//! Renders what was forgotten and what groups get.

use crate::eval::report::{EvaluationReport, groups, losses};
use crate::runs::page::escape::{named, plain};
use maud::{Markup, html};

/// Renders the losses on tasks that were chosen for them; nothing without such tasks.
pub fn forgetting(report: &EvaluationReport) -> Markup {
    let rows: Vec<Vec<String>> = losses::rows(report).into_iter().map(|row| row.to_vec()).collect();
    section("What was forgotten", &losses::sentences(report), &losses::COLUMNS, &rows)
}

/// Renders what groups get; nothing without groups.
pub fn group_tables(report: &EvaluationReport) -> Markup {
    let note = [groups::NOTE.to_string()];
    section("What groups get", &note, groups::columns(report), &groups::rows(report))
}

fn section(title: &str, sentences: &[String], columns: &[&str], rows: &[Vec<String>]) -> Markup {
    html! {
        @if !rows.is_empty() {
            section {
                h2 { (title) }
                div class="card" {
                    @for sentence in sentences { p { (plain(sentence)) } }
                    div class="scroll" {
                        table {
                            tr { @for column in columns { th { (column) } } }
                            @for (i, row) in rows.iter().enumerate() {
                                // A task that goes on is not named again.
                                @let again = i > 0 && rows[i - 1][0] == row[0];
                                tr { @for (c, cell) in row.iter().enumerate() { td { @if c > 0 || !again { (named(cell)) } } } }
                            }
                        }
                    }
                }
            }
        }
    }
}
