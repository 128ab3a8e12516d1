//! Converts the Markdown of prompts and answers into HTML that runs no code and loads nothing.
//!
//! A model's output is untrusted. pulldown-cmark parses the Markdown; ammonia then keeps only the HTML elements and
//! attributes that are on a list. Model output reaches a page in no other way. Each block gets its text direction from
//! its first letter, formulas become MathML, and invisible characters are shown as their code points.

mod allowlist;
mod formulas;
mod writer;

use allowlist::CLEANER;
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

/// Replaces the formulas of a text by numbers; returns the text and the formulas.
fn with_placeholders(text: &str) -> (String, Vec<TypedFormula>) {
    if !text.contains(['$', '\\']) {
        return (text.to_string(), Vec::new());
    }
    let is_code = |event: &Event| matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_)));
    let events = Parser::new_ext(text, OPTIONS).into_offset_iter();
    let code: Vec<Range<usize>> = events.filter(|(event, _)| is_code(event)).map(|(_, range)| range).collect();
    let (mut out, mut at, mut formulas) = (String::with_capacity(text.len()), 0, Vec::new());
    for formula in formulas::find(text, &code) {
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
