//! Converts prompts and answers into HTML that runs no code and loads nothing: rendered as Markdown, or as typed except
//! for formulas.
//!
//! A model's output is untrusted. pulldown-cmark parses the Markdown; ammonia then keeps only the HTML elements and
//! attributes that are on a list. Each block gets its text direction from its first letter, formulas become MathML, and
//! invisible characters are shown as their code points.

mod allowlist;
mod formulas;
mod writer;

use super::escape;
use allowlist::CLEANER;
use maud::{Markup, PreEscaped, html as template};
use pulldown_cmark::{Event, Options, Parser, Tag, html};
use std::ops::Range;
use writer::{FORMULA_END, FORMULA_START, HtmlWriter, TypedFormula};

const OPTIONS: Options = Options::ENABLE_TABLES.union(Options::ENABLE_STRIKETHROUGH).union(Options::ENABLE_TASKLISTS);

/// Converts Markdown into HTML. HTML inside the Markdown is shown as text, an image as its description.
pub fn html(markdown: &str) -> String {
    let text = markdown.replace([FORMULA_START, FORMULA_END], "\u{fffd}");
    let (text, formulas) = with_placeholders(&text);
    let mut writer = HtmlWriter { formulas: &formulas, code: false, blocks: Vec::new(), events: Vec::new() };
    for event in Parser::new_ext(&text, OPTIONS) {
        writer.take(event);
    }
    let mut out = String::new();
    html::push_html(&mut out, writer.events.into_iter());
    CLEANER.clean(&out).to_string()
}

/// Returns a text as typed, except that its formulas become MathML with their source as a tooltip. Code of a Markdown
/// text contains no formulas.
pub fn text_with_formulas(text: &str) -> Markup {
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for formula in formulas::find(text, &code_ranges(text)) {
        out += &escape::text(&text[at..formula.range.start]);
        let typed = escape::plain(&text[formula.range.clone()]);
        let mathml = PreEscaped(CLEANER.clean(&formula.mathml).to_string());
        out += &template! { bdi title=(typed) { (mathml) } }.into_string();
        at = formula.range.end;
    }
    PreEscaped(out + &escape::text(&text[at..]))
}

/// Returns the byte ranges of the code of a Markdown text, in order.
fn code_ranges(text: &str) -> Vec<Range<usize>> {
    let is_code = |event: &Event| matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_)));
    let events = Parser::new_ext(text, OPTIONS).into_offset_iter();
    events.filter(|(event, _)| is_code(event)).map(|(_, range)| range).collect()
}

/// Replaces the formulas of a text by numbers; returns the text and the formulas.
fn with_placeholders(text: &str) -> (String, Vec<TypedFormula>) {
    if !text.contains(['$', '\\']) {
        return (text.to_string(), Vec::new());
    }
    let (mut out, mut at, mut formulas) = (String::with_capacity(text.len()), 0, Vec::new());
    for formula in formulas::find(text, &code_ranges(text)) {
        out += &text[at..formula.range.start];
        out += &format!("{FORMULA_START}{}{FORMULA_END}", formulas.len());
        at = formula.range.end;
        let typed = text[formula.range.clone()].to_string();
        formulas.push((formula, typed));
    }
    (out + &text[at..], formulas)
}

#[cfg(test)]
mod tests;
