//! Writes `report.html`: a run as a single self-contained page. It needs no network; its only script shows the values
//! of curves under the pointer.
//!
//! Everything that comes from files or from a model is escaped. In addition, a Content-Security-Policy in the page's
//! head allows the browser to run only that script (by its hash) and to load nothing.

mod card;
mod chart;
pub mod plot;
mod sections;

use super::folder::RunFolder;
use crate::characters::{code_point, hidden, is_direction_mark, printable};
use crate::error::Result;
use crate::fsutil::write_atomic;
use base64::Engine;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FILE: &str = "report.html";

const HEAD: &str = include_str!("head.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("hover.js");

/// Reads a run folder and writes its page into it. Returns the page's path.
pub fn write(run: &Path) -> Result<PathBuf> {
    let path = run.join(FILE);
    write_to(&RunFolder::open(run)?, &path)?;
    Ok(path)
}

/// Writes the page of a run to `path`.
pub fn write_to(run: &RunFolder, path: &Path) -> Result<()> {
    let page = render(run);
    write_atomic(path, |w| w.write_all(page.as_bytes()))
}

/// Returns the page of a run as HTML.
pub fn render(run: &RunFolder) -> String {
    document(&run.name(), &sections::render_sections(run))
}

/// Returns a whole page in the style of reports around an HTML body. `title` is escaped, `body` is not.
pub fn document(title: &str, body: &str) -> String {
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    format!(
        "{}<title>{} · ft</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{}\n</main>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n",
        HEAD.replace("SCRIPT_HASH", &hash),
        escape(title),
        body,
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place() {
        assert_eq!(escape("<script>'\"&\u{0}\n"), "&lt;script&gt;&#39;&quot;&amp;\u{fffd}\n");
        assert_eq!(escape("a\u{202e}b\u{200f}"), "a⟨U+202E⟩b\u{200f}");
        let marked = r#"<bdi class="hidden-character" title="U+202E RIGHT-TO-LEFT OVERRIDE">U+202E</bdi>"#;
        assert_eq!(text("<\u{202e}>\r"), format!("&lt;{marked}&gt;␍"));
        assert!(!SCRIPT.contains("</"), "the script would end early");
        assert!(!STYLE.contains("</"), "the style would end early");
        for word in ["innerHTML", "eval(", "fetch(", "http"] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"), "nothing is loaded");
    }
}
