//! Mistakes in a recipe, and the report that shows all of them.
//!
//! A mistake has a position in a source: the recipe file, or one `--set`. Lines count from 1; columns count characters,
//! from 0 in memory and from 1 in messages. Knows neither YAML nor the schema.

use crate::error::Error;

/// A range of characters on one line of a source. `source` 0 is the recipe file, `n` the n-th `--set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct SourceSpan {
    /// 0 for the recipe file; i for the i-th `--set`, counted from 1.
    pub source: usize,
    /// Line, counted from 1.
    pub line: usize,
    /// Column, counted from 1.
    pub col: usize,
    /// Length of the marked text.
    pub len: usize,
}

impl SourceSpan {
    /// Returns the position of the first character of a source.
    pub fn start(source: usize) -> Self {
        Self { source, line: 1, col: 0, len: 1 }
    }
}

/// A mistake with its position and a hint for correcting it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Where the mistake is.
    pub at: SourceSpan,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Mistake {
    /// Creates a mistake without a hint.
    pub fn new(at: SourceSpan, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), hint: None }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The texts that mistakes have positions in.
pub(super) struct SourceTexts<'a> {
    /// Name of the recipe file.
    pub name: &'a str,
    /// Text of the recipe file.
    pub text: &'a str,
    /// The `--set` arguments.
    pub sets: &'a [String],
}

impl SourceTexts<'_> {
    /// Combines all mistakes into one error, ordered by position in the file, then by `--set`.
    pub fn report(&self, mut mistakes: Vec<Mistake>) -> Error {
        mistakes.sort_by_key(|m| m.at);
        mistakes.dedup();
        let last_hint = mistakes.last_mut().and_then(|m| m.hint.take());
        let shown: Vec<String> = mistakes.iter().map(|m| self.show(m)).collect();
        // The terminal puts `error: ` before the first and `hint: ` before the last; the ones between carry their own.
        let error = Error::user(shown.join("\nerror: "));
        last_hint.into_iter().fold(error, Error::hint)
    }

    fn show(&self, m: &Mistake) -> String {
        let mut out = match m.at.source {
            0 => {
                let line = self.text.lines().nth(m.at.line.saturating_sub(1)).unwrap_or("");
                let place = format!("{}:{}:{}: {}", self.name, m.at.line, m.at.col + 1, m.message);
                format!("{place}\n{}", excerpt(line, m.at))
            }
            n => format!("--set {}: {}", self.sets[n - 1], m.message),
        };
        if let Some(hint) = &m.hint {
            out.push_str("\nhint: ");
            out.push_str(hint);
        }
        out
    }
}

/// Returns a source line with carets below the mistake. Of a long line, only the part around the carets is shown.
fn excerpt(line: &str, at: SourceSpan) -> String {
    const WIDTH: usize = 120;
    let clean: Vec<char> = line.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let start = if at.col + at.len.min(WIDTH / 2) > WIDTH { at.col.saturating_sub(WIDTH / 3) } else { 0 };
    let shown: String = clean.iter().skip(start).take(WIDTH).collect();
    let before: String = clean.iter().skip(start).take(at.col - start).collect();
    let marked: String = clean.iter().skip(at.col).take(at.len).take(WIDTH).collect();
    let (left, right) = (if start > 0 { "…" } else { "" }, if clean.len() > start + WIDTH { "…" } else { "" });
    let number = at.line.to_string();
    let indent = console::measure_text_width(&before) + left.chars().count();
    let carets = console::measure_text_width(&marked).max(1);
    let (gap, pad, under) = (" ".repeat(number.len()), " ".repeat(indent), "^".repeat(carets));
    format!("  {number} | {left}{shown}{right}\n  {gap} | {pad}{under}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_and_long_lines_keep_the_carets_under_the_mistake() {
        let at = SourceSpan { source: 0, line: 3, col: 4, len: 2 };
        assert_eq!(excerpt("日本: ab", at), "  3 | 日本: ab\n    |       ^^");
        let long = format!("{}mistake{}", "x".repeat(200), "y".repeat(200));
        let shown = excerpt(&long, SourceSpan { source: 0, line: 1, col: 200, len: 7 });
        let (line, carets) = shown.split_once('\n').unwrap();
        let column = carets.chars().position(|c| c == '^').unwrap();
        assert_eq!(line.chars().skip(column).take(7).collect::<String>(), "mistake");
        assert!(line.chars().count() < 140);
    }
}
