//! Escapes text for HTML. Everything on a page that comes from files, people or models passes through here.
//!
//! maud escapes `&`, `<`, `>` and `"` in what a template splices in. These functions also make control characters and
//! invisible characters visible, so templates splice in [`plain`], [`named`] or
//! [`text_with_formulas`](super::markdown::text_with_formulas) instead of bare text.

use crate::characters::{code_point, hidden, is_direction_mark, printable};
use maud::{Markup, PreEscaped};
use std::fmt::Write;

/// Escapes a text for an HTML element or a quoted attribute. Control characters become visible; invisible characters,
/// such as those that change the direction of text, are replaced by their code points.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\r' => out.push('␍'),
            c if c.is_control() => out.push('\u{fffd}'),
            c if hidden(c).is_some() && !is_direction_mark(c) => out += &printable(c.encode_utf8(&mut [0; 4])),
            c => out.push(c),
        }
    }
    out
}

/// Escapes a text of people or models for an HTML element. Like [`escape`], but invisible characters become marks with
/// their code point and name.
pub fn text(said: &str) -> String {
    let mut out = String::with_capacity(said.len() + 16);
    let mut from = 0;
    for (at, c) in said.char_indices() {
        let Some(name) = hidden(c).filter(|_| c != '\r') else { continue };
        out += &escape(&said[from..at]);
        if is_direction_mark(c) {
            out.push(c);
        }
        let code = code_point(c);
        let _ = write!(out, r#"<bdi class="hidden-character" title="{code} {name}">{code}</bdi>"#);
        from = at + c.len_utf8();
    }
    out + &escape(&said[from..])
}

/// Escapes a name or title and isolates its text direction, so that it and the text around it do not reorder each
/// other.
pub fn name(said: &str) -> String {
    format!("<bdi>{}</bdi>", text(said))
}

/// Returns a text of ft or of a file for a template, escaped by [`escape`].
pub fn plain(said: &str) -> Markup {
    PreEscaped(escape(said))
}

/// Returns a name or title for a template, escaped by [`name`].
pub fn named(said: &str) -> Markup {
    PreEscaped(name(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place() {
        assert_eq!(escape("<script>'\"&\u{0}\n"), "&lt;script&gt;&#39;&quot;&amp;\u{fffd}\n");
        assert_eq!(escape("a\u{202e}b\u{200f}"), "a⟨U+202E⟩b\u{200f}");
        let marked = r#"<bdi class="hidden-character" title="U+202E RIGHT-TO-LEFT OVERRIDE">U+202E</bdi>"#;
        assert_eq!(text("<\u{202e}>\r"), format!("&lt;{marked}&gt;␍"));
    }
}
