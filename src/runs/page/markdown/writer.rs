//! Converts the events of the Markdown parser into those of the HTML writer.

use super::allowlist::HIDDEN;
use super::formulas::Formula;
use crate::characters::{code_point, hidden, is_direction_mark};
use maud::{PreEscaped, html};
use pulldown_cmark::{CodeBlockKind, Event, Tag, TagEnd};

/// Delimiters of a formula's number. Formulas contain characters that Markdown would interpret, so they are replaced by
/// numbers while Markdown is parsed. Unicode reserves both characters for internal use by programs.
pub(super) const FORMULA_START: char = '\u{fdd0}';

pub(super) const FORMULA_END: char = '\u{fdd1}';

/// A formula, and its source as typed.
pub(super) type TypedFormula = (Formula, String);

/// Converts the events of the Markdown parser into those of the HTML writer.
pub(super) struct HtmlWriter<'t> {
    pub(super) formulas: &'t [TypedFormula],
    /// Whether the writer is inside a code block.
    pub(super) code: bool,
    /// For each open block: whether it is enclosed in a `div` of its own.
    pub(super) blocks: Vec<bool>,
    pub(super) events: Vec<Event<'t>>,
}

impl<'t> HtmlWriter<'t> {
    pub(super) fn take(&mut self, event: Event<'t>) {
        match event {
            // An annotator must see the text as written, including HTML tags.
            Event::InlineHtml(text) | Event::Text(text) => self.text(&text),
            Event::Html(line) => {
                self.text(line.trim_end_matches('\n'));
                self.events.push(Event::HardBreak);
            }
            Event::Code(text) => {
                let typed = PreEscaped(escape_visible(&self.as_typed(&text)));
                self.events.push(Event::InlineHtml(html! { code dir="auto" { (typed) } }.into_string().into()));
            }
            // Markdown ignores a single line break; here it is shown as one.
            Event::SoftBreak => self.events.push(Event::HardBreak),
            // Showing an image would load it from another site: its description is shown instead.
            Event::Start(Tag::Image { .. }) => self.text("[image: "),
            Event::End(TagEnd::Image) => self.text("]"),
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let dest_url = self.as_typed(&dest_url).into();
                self.events.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
            }
            Event::TaskListMarker(_) => {}
            Event::Start(Tag::HtmlBlock) => {
                self.open();
                self.events.push(Event::Start(Tag::Paragraph));
            }
            Event::End(TagEnd::HtmlBlock) => {
                self.events.push(Event::End(TagEnd::Paragraph));
                self.close();
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                self.open();
                self.code = true;
                // Code in a named language runs from left to right, even if it begins with a comment in another
                // direction.
                let named = matches!(kind, CodeBlockKind::Fenced(language) if !language.trim().is_empty());
                let direction = if named { "ltr" } else { "auto" };
                self.events.push(Event::Html(format!("<pre><code dir=\"{direction}\">").into()));
            }
            Event::End(TagEnd::CodeBlock) => {
                self.events.push(Event::Html("</code></pre>\n".into()));
                self.code = false;
                self.close();
            }
            Event::Start(tag) if is_block(&tag.to_end()) => {
                // Every table gets its own `div`: it scrolls if it is wider than the page.
                if matches!(tag, Tag::Table(_)) {
                    self.enclose()
                } else {
                    self.open()
                }
                self.events.push(Event::Start(tag));
            }
            Event::End(tag) if is_block(&tag) => {
                self.events.push(Event::End(tag));
                self.close();
            }
            other => self.events.push(other),
        }
    }

    /// Begins a block. Only the outermost block gets its direction from its first letter; inner blocks inherit it, so
    /// that all items of a list have their bullets on the same side.
    fn open(&mut self) {
        match self.blocks.is_empty() {
            true => self.enclose(),
            false => self.blocks.push(false),
        }
    }

    fn enclose(&mut self) {
        self.events.push(Event::Html("<div dir=\"auto\">".into()));
        self.blocks.push(true);
    }

    fn close(&mut self) {
        if self.blocks.pop() == Some(true) {
            self.events.push(Event::Html("</div>\n".into()));
        }
    }

    /// Writes text with its formulas.
    fn text(&mut self, text: &str) {
        if self.code {
            let typed = self.as_typed(text);
            self.events.push(Event::InlineHtml(escape_visible(&typed).into()));
            return;
        }
        let mut html = String::new();
        for part in parts(text) {
            match part {
                TextPart::Text(text) => html += &escape_visible(text),
                // `bdi` isolates the formula: its first letter must not change the direction of the words around it.
                TextPart::Formula(i) => {
                    let mathml = PreEscaped(&self.formulas[i].0.mathml);
                    html += &html! { bdi { (mathml) } }.into_string();
                }
            }
        }
        self.events.push(Event::InlineHtml(html.into()));
    }

    /// Returns the text with formulas as they were typed.
    fn as_typed(&self, text: &str) -> String {
        parts(text)
            .map(|part| match part {
                TextPart::Text(text) => text,
                TextPart::Formula(i) => self.formulas[i].1.as_str(),
            })
            .collect()
    }
}

/// A part of a text: plain text, or the number of a formula.
enum TextPart<'t> {
    Text(&'t str),
    Formula(usize),
}

/// Splits a text at its formula numbers.
fn parts(text: &str) -> impl Iterator<Item = TextPart<'_>> {
    text.split(FORMULA_START).enumerate().flat_map(|(i, piece)| {
        let (formula, rest) = match piece.split_once(FORMULA_END).filter(|_| i > 0) {
            Some((number, rest)) => (number.parse().ok().map(TextPart::Formula), rest),
            None => (None, piece),
        };
        formula.into_iter().chain((!rest.is_empty()).then_some(TextPart::Text(rest)))
    })
}

fn is_block(tag: &TagEnd) -> bool {
    matches!(tag, TagEnd::Paragraph | TagEnd::Heading(_) | TagEnd::BlockQuote(_) | TagEnd::List(_) | TagEnd::Table)
}

/// Escapes text for HTML. Each invisible character is replaced by a mark with its code point.
fn escape_visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            // Windows line endings.
            '\r' => {}
            c => match hidden(c) {
                None => out.push(c),
                Some(name) => {
                    if is_direction_mark(c) {
                        out.push(c);
                    }
                    let code = code_point(c);
                    out += &html! { bdi class=(HIDDEN) title={ (code) " " (name) } { (code) } }.into_string();
                }
            },
        }
    }
    out
}
