//! Finds LaTeX formulas in a text and converts them to MathML: `$…$`, `$$…$$`, `\(…\)`, `\[…\]`.
//!
//! A dollar may also be a currency sign, and `\[` may be an escaped bracket of Markdown. So a formula must look like
//! one, and the LaTeX parser must accept it; everything else stays as typed.

use crate::characters::hidden;
use pulldown_latex::config::DisplayMode;
use pulldown_latex::{Event, Parser, ParserError, RenderConfig, Storage, push_mathml};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Largest length of a formula in bytes. Longer ones stay as typed, to bound the time of parsing.
const MAX_LENGTH: usize = 4000;

/// Largest depth of nested braces.
const MAX_DEPTH: usize = 60;

/// A formula in a text.
#[derive(Debug, PartialEq)]
pub struct Formula {
    /// Byte range in the text, including the delimiters.
    pub range: Range<usize>,
    pub mathml: String,
}

/// Delimiters of a formula.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Delimiter {
    Dollar,
    Dollars,
    Parenthesis,
    Bracket,
}

impl Delimiter {
    /// Returns the delimiter that a text begins with.
    fn at(text: &str) -> Option<Self> {
        [Self::Dollars, Self::Dollar, Self::Parenthesis, Self::Bracket]
            .into_iter()
            .find(|d| text.starts_with(d.opens()))
    }

    fn opens(self) -> &'static str {
        match self {
            Self::Dollar => "$",
            Self::Dollars => "$$",
            Self::Parenthesis => "\\(",
            Self::Bracket => "\\[",
        }
    }

    fn closes(self) -> &'static str {
        match self {
            Self::Dollar => "$",
            Self::Dollars => "$$",
            Self::Parenthesis => "\\)",
            Self::Bracket => "\\]",
        }
    }

    fn is_display(self) -> bool {
        matches!(self, Self::Dollars | Self::Bracket)
    }
}

/// Finds the formulas of a Markdown text that the LaTeX parser accepts. `code` are the byte ranges of its code, in
/// order; they contain no formulas.
pub fn find(text: &str, code: &[Range<usize>]) -> Vec<Formula> {
    let mut found = Vec::new();
    let (mut at, mut codes) = (0, code.iter().peekable());
    while at < text.len() {
        while codes.next_if(|c| c.end <= at).is_some() {}
        let end = codes.peek().map_or(text.len(), |c| c.start);
        if at >= end {
            at = codes.peek().map_or(text.len(), |c| c.end);
            continue;
        }
        let rest = &text[at..end];
        let Some(next) = rest.find(['$', '\\']) else {
            at = end;
            continue;
        };
        at += next;
        at += match formula(text, at, end) {
            Ok(formula) => {
                let length = formula.range.len();
                found.push(formula);
                length
            }
            Err(passed) => passed,
        };
    }
    found
}

/// Parses the formula that begins at byte `at`. The error is the number of bytes to skip, as no formula begins there.
fn formula(text: &str, at: usize, end: usize) -> Result<Formula, usize> {
    let rest = &text[at..end];
    let Some(delimiter) = Delimiter::at(rest) else {
        // Skip a backslash and the character it escapes.
        return Err(1 + rest[1..].chars().next().map_or(0, char::len_utf8));
    };
    let opens = delimiter.opens().len();
    if delimiter == Delimiter::Dollars && rest.starts_with("$$$") {
        return Err(rest.len() - rest.trim_start_matches('$').len());
    }
    let content = content(&rest[opens..], delimiter).ok_or(opens)?;
    let range = at..at + opens + content.len() + delimiter.closes().len();
    let before = text[..at].chars().next_back();
    let after = text[range.end..].chars().next();
    if !stands_alone(content, delimiter, before, after) || is_prose(content, delimiter) {
        return Err(opens);
    }
    let quoted = text[..at].rsplit('\n').next().is_some_and(|line| line.trim_start().starts_with('>'));
    let content = if quoted { without_quote_marks(content) } else { content.to_string() };
    match mathml(&content, delimiter.is_display()) {
        Some(mathml) => Ok(Formula { range, mathml }),
        None => Err(opens),
    }
}

/// Returns the text up to the closing delimiter; `None` if it is missing, or if the paragraph ends or another formula
/// begins before it.
fn content(rest: &str, delimiter: Delimiter) -> Option<&str> {
    let mut at = 0;
    while at < rest.len().min(MAX_LENGTH) {
        at += rest[at..].find(['$', '\\', '\n'])?;
        let here = &rest[at..];
        if here.starts_with(delimiter.closes()) {
            return (at <= MAX_LENGTH).then_some(&rest[..at]);
        }
        if here.starts_with('\n') {
            let line = here[1..].split('\n').next().unwrap_or_default();
            if line.trim_start_matches(['>', ' ', '\t', '\r']).is_empty() {
                return None;
            }
            at += 1;
        } else if here.starts_with('$') {
            // A single dollar inside `$$…$$` or `\(…\)` is neither the end of the formula nor valid LaTeX.
            return None;
        } else if here.starts_with(delimiter.opens()) {
            return None;
        } else {
            at += 1 + here[1..].chars().next().map_or(0, char::len_utf8);
        }
    }
    None
}

/// Returns true if the delimiters enclose a formula and are not part of the surrounding words, unlike in `$5-$6`,
/// `A$5`, `$HOME/$USER`, `list\[i\]`.
fn stands_alone(content: &str, delimiter: Delimiter, before: Option<char>, after: Option<char>) -> bool {
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let inner = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    match delimiter {
        Delimiter::Dollar => {
            let last = content.chars().next_back();
            let joins = |c: char| c.is_alphanumeric() || matches!(c, '}' | ')' | ']' | '|' | '!' | '\'');
            inner(content.chars().next())
                && inner(last)
                && !word(before)
                && !after.is_some_and(char::is_numeric)
                // `$n$th`, but not `$HOME/$USER`.
                && (!word(after) || last.is_some_and(joins))
        }
        Delimiter::Bracket => {
            !word(before) && content.contains(|c: char| !c.is_numeric() && !matches!(c, ',' | ' ' | '-'))
        }
        Delimiter::Dollars | Delimiter::Parenthesis => inner(content.trim().chars().next()),
    }
}

/// Returns true if the content is words and not LaTeX: prices with words between them, a remark in escaped brackets.
fn is_prose(content: &str, delimiter: Delimiter) -> bool {
    if content.contains(['\\', '^', '_', '=', '{']) {
        return false;
    }
    let words = content.split(|c: char| !c.is_alphabetic()).map(|w| w.chars().count());
    let (several, longest) = (words.clone().filter(|n| *n >= 2).count(), words.max().unwrap_or(0));
    let price = content.starts_with(|c: char| c.is_numeric()) && several > 0;
    delimiter != Delimiter::Dollars && (several >= 2 || longest >= 4 || price)
}

/// Removes the quotation marks (`>`) at the beginning of lines.
fn without_quote_marks(content: &str) -> String {
    let mut lines = content.split('\n');
    let first = lines.next().unwrap_or_default().to_string();
    lines.fold(first, |all, line| all + "\n" + line.trim_start().trim_start_matches(['>', ' ']))
}

/// Commands that answers use and the library does not know.
const MACROS: [(&str, &str); 3] = [
    ("\\boxed", r"\newcommand{\boxed}[1]{\begin{array}{|c|}\hline #1 \\ \hline\end{array}}"),
    ("\\tag", r"\newcommand{\tag}[1]{\qquad (\text{#1})}"),
    ("\\label", r"\newcommand{\label}[1]{}"),
];

/// Converts a formula to MathML; `None` if the LaTeX parser rejects it.
fn mathml(tex: &str, display: bool) -> Option<String> {
    let depth = tex.bytes().scan(0usize, |depth, b| {
        *depth = match b {
            b'{' => *depth + 1,
            b'}' => depth.saturating_sub(1),
            _ => *depth,
        };
        Some(*depth)
    });
    if tex.trim().is_empty()
        || depth.max().unwrap_or(0) > MAX_DEPTH
        || tex.chars().any(|c| hidden(c).is_some_and(|_| c != '\r'))
    {
        return None;
    }
    let macros: String = MACROS.iter().filter(|(name, _)| tex.contains(name)).map(|(_, tex)| *tex).collect();
    let tex = macros + tex.trim();
    // The library's authors promise that it does not panic, but a model's output must not be able to stop the server.
    catch_unwind(AssertUnwindSafe(|| render_mathml(&tex, display))).ok().flatten()
}

fn render_mathml(tex: &str, display: bool) -> Option<String> {
    let storage = Storage::new();
    let events: Vec<Event> = Parser::new(tex, &storage).collect::<Result<_, _>>().ok()?;
    let display_mode = if display { DisplayMode::Block } else { DisplayMode::Inline };
    let mut out = String::new();
    let events = events.into_iter().map(Ok::<_, ParserError>);
    push_mathml(&mut out, events, RenderConfig { display_mode, ..RenderConfig::default() }).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formulas of a text, as typed.
    fn typed(text: &str) -> Vec<&str> {
        find(text, &[]).into_iter().map(|f| &text[f.range]).collect()
    }

    #[test]
    fn formulas_are_found_and_prices_are_not() {
        for (text, formulas) in [
            ("the mass $m$ and $E = mc^2$.", vec!["$m$", "$E = mc^2$"]),
            ("the $n$th term, ($x_i$)", vec!["$n$", "$x_i$"]),
            ("$$\\int_0^1 x\\,dx = \\tfrac12$$", vec!["$$\\int_0^1 x\\,dx = \\tfrac12$$"]),
            ("$$\na = b\n$$", vec!["$$\na = b\n$$"]),
            ("so \\(a_1 + b_2\\), and\n\\[ \\frac{a}{b} \\]", vec!["\\(a_1 + b_2\\)", "\\[ \\frac{a}{b} \\]"]),
            ("a clearance of $90\\ \\text{mL/min}$ at 5\\$", vec!["$90\\ \\text{mL/min}$"]),
            ("> quoted\n> \\[\n> x = 1\n> \\]", vec!["\\[\n> x = 1\n> \\]"]),
            ("$5 and $6", vec![]),
            ("from $5 to $6, or 5$ to 6$", vec![]),
            ("$5-$6, US$5, A$6 and C$7", vec![]),
            ("$5 (or four$)", vec![]),
            ("|5$|6$|", vec![]),
            ("قیمت $5 یا 6$ ہے", vec![]),
            ("$HOME and $PATH, $HOME/$USER", vec![]),
            ("\\$x\\$ costs \\$5", vec![]),
            ("\\[not a link\\], list\\[i\\] and \\[1, 2\\]", vec![]),
            ("\\(optional\\)", vec![]),
            ("$$$ and $$$", vec![]),
            ("$a\n\nb$", vec![]),
            ("\\(a \\(b", vec![]),
        ] {
            assert_eq!(typed(text), formulas, "{text:?}");
        }
    }

    #[test]
    fn a_formula_that_latex_cannot_read_stays_as_typed() {
        for text in
            ["$\\frac{1}$", "$x^$", "$\\nosuchcommand{x}$", "$}{$", "$a & b$", "$\\begin{matrix}$", "\\[ {x \\]"]
        {
            assert_eq!(typed(text), Vec::<&str>::new(), "{text}");
        }
        let deep = format!("${}x{}$", "{".repeat(1000), "}".repeat(1000));
        let long = format!("${}x$", "x+".repeat(MAX_LENGTH));
        assert!(typed(&deep).is_empty() && typed(&long).is_empty());
        // Invisible characters cannot hide in a formula.
        assert!(typed("$\\text{a\u{202e}b}$").is_empty());
    }

    #[test]
    fn code_is_no_formula() {
        let text = "`$x$` and $y$ and `$z$`";
        let found = find(text, &[0..5, 18..23]);
        assert_eq!(found.iter().map(|f| &text[f.range.clone()]).collect::<Vec<_>>(), ["$y$"]);
    }

    #[test]
    fn common_mathematics_is_read() {
        for tex in [
            r"x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}",
            r"\sum_{i=1}^{n} i = \frac{n(n+1)}{2}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"f(x) = \begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}",
            r"\begin{aligned} a &= b + c \\ &= d \end{aligned}",
            r"\begin{align*} a &= b \\ c &< d \end{align*}",
            r"\mathrm{CrCl} = \frac{(140 - \text{age}) \times \text{weight}}{72 \times S_{Cr}}",
            r"\lim_{x \to \infty} \left( 1 + \frac1x \right)^x = e",
            r"\boxed{42}",
            r"e^{i\pi} + 1 = 0 \tag{1}",
            r"\overline{x} \le \hat{y} \ne \vec{z} \implies \mathbb{R}^n",
            r"37^\circ\mathrm{C},\ 5\,\mu\mathrm{g/kg},\ 30\%",
            r"\operatorname{Var}(X) = \mathbb{E}[X^2] - (\mathbb{E}[X])^2",
        ] {
            let shown = mathml(tex, true).unwrap_or_else(|| panic!("{tex}"));
            assert!(shown.starts_with("<math display=\"block\">") && !shown.contains("merror"), "{tex}: {shown}");
        }
    }
}
