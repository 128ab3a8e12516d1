//! Makes the elements that the page repeats: texts of people, figures, cells and heads of tables.

use crate::runs::page::escape::name;
use crate::runs::page::{escape, plot};
use maud::{Markup, PreEscaped, html};
use std::fmt::Display;

/// A row of a forest plot: name, value and interval.
pub(super) type PlotRow = (String, f64, Option<[f64; 2]>);

/// Returns a text of people or models for an element or a quoted attribute.
pub(super) fn escaped(text: &str) -> Markup {
    PreEscaped(escape::escape(text))
}

/// Returns a name or title, isolated from the text around it.
pub(super) fn named(text: &str) -> Markup {
    PreEscaped(name(text))
}

/// Returns a figure with a title, a note and a forest plot.
pub(super) fn forest_figure(
    title: &str,
    note: &str,
    label: &str,
    rows: &[PlotRow],
    format: impl Fn(f64) -> String,
    guide: f64,
    at_least: Option<[f64; 2]>,
) -> Markup {
    PreEscaped(plot::figure(title, note, &plot::forest(label, rows, format, Some(guide), at_least)))
}

/// Returns a share in percent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

/// Returns a table cell with a number.
pub(super) fn number(value: impl Display) -> Markup {
    html! { td.number { (value.to_string()) } }
}

/// Returns a table cell with a name.
pub(super) fn path(text: &str) -> Markup {
    html! { td.path { (named(text)) } }
}

/// Returns the head of a table: columns of text, then columns of numbers.
pub(super) fn head(texts: &[&str], numbers: &[&str]) -> Markup {
    html! {
        tr {
            @for text in texts { th { (text) } }
            @for text in numbers { th.number { (text) } }
        }
    }
}
