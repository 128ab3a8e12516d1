//! `report.html`: a run as one page that needs nothing else. No network, no script but one for the readout of curves.
//!
//! Everything that comes from files or from a model is escaped, and a policy in the page's head lets the browser run
//! nothing but that one script (by its hash) and load nothing at all.

mod card;
mod chart;
pub mod plot;
mod sections;

use super::folder::RunFolder;
use crate::error::Result;
use crate::fsutil::write_atomic;
use base64::Engine;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FILE: &str = "report.html";

const HEAD: &str = include_str!("head.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("hover.js");

/// Reads a run folder and writes its page into it.
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

/// The page.
pub fn render(run: &RunFolder) -> String {
    document(&run.name(), &sections::all(run))
}

/// A page of this style around a body of HTML.
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

/// Text as HTML shows it, in an element or in a quoted attribute; control characters become visible.
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
        assert!(!SCRIPT.contains("</"), "the script would end early");
        assert!(!STYLE.contains("</"), "the style would end early");
        for word in ["innerHTML", "eval(", "fetch(", "http"] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"), "nothing is loaded");
    }
}
