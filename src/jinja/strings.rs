//! Reads and writes texts and numbers as Python does: `repr`, `int(…)`, `float(…)`, whitespace, HTML escapes.

use super::error::TemplateResult;
use super::limits;
use fancy_regex::Regex;
use std::fmt::Write;
use std::sync::LazyLock;

/// Returns true for whitespace as `str.strip()` and `\s` define it.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Non-ASCII characters that `repr` escapes: separators, controls, formats, and code points that Unicode does not
/// assign.
static UNPRINTABLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[\p{C}\p{Z}]$").unwrap_or_else(|e| unreachable!("{e}")));

/// Returns `str.isprintable` of one character.
pub fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\0'..='\u{a0}' => false,
        c => !UNPRINTABLE.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(true),
    }
}

/// Returns `repr(x)` of a float: the shortest digits that read back as `x`, with an exponent below 1e-4 and from
/// 1e16 on.
pub fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    // Rust's debug format has Python's thresholds but writes `1e16` for `1e+16`.
    let text = format!("{x:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", digits.strip_suffix(".0").unwrap_or(digits), exponent.abs())
        }
        None => text,
    }
}

/// Returns `repr(text)`: in single quotes, or in double quotes where that needs no escape.
pub fn text_repr(text: &str) -> TemplateResult<String> {
    super::limits::check_memory(text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let _ = match c as u32 {
                    code @ ..0x100 => write!(out, "\\x{code:02x}"),
                    code @ ..0x1_0000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    Ok(out)
}

/// Returns Python's `int(text, base)`; `None` if Python raises an error, or beyond 128 bits.
pub fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let digits = match base {
        16 => lower.strip_prefix("0x").map(|d| d.strip_prefix('_').unwrap_or(d)).unwrap_or(&lower),
        8 => lower.strip_prefix("0o").map(|d| d.strip_prefix('_').unwrap_or(d)).unwrap_or(&lower),
        2 => lower.strip_prefix("0b").map(|d| d.strip_prefix('_').unwrap_or(d)).unwrap_or(&lower),
        _ => &lower,
    };
    let plain = without_underscores(digits)?;
    if plain.is_empty() || !plain.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let value = i128::from_str_radix(&plain, base).ok()?;
    Some(if negative { -value } else { value })
}

/// Returns Python's `float(text)`; `None` if Python raises an error.
pub fn parse_float(text: &str) -> Option<f64> {
    let plain = without_underscores(text.trim_matches(is_space))?;
    let body = plain.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let word = matches!(body.as_str(), "inf" | "infinity" | "nan");
    let number = body.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+' | b'-'));
    if !(word || number) || plain.len() - body.len() > 1 {
        return None;
    }
    plain.parse().ok()
}

/// Removes single underscores between digits; `None` where Python does not allow one.
fn without_underscores(digits: &str) -> Option<String> {
    let bytes = digits.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_alphanumeric);
    let fine = bytes.iter().enumerate().all(|(i, b)| *b != b'_' || digit(i.checked_sub(1)) && digit(Some(i + 1)));
    fine.then(|| digits.replace('_', ""))
}

/// Escapes text for HTML, as markupsafe does.
pub fn html_escaped(text: &str) -> TemplateResult<String> {
    limits::check_memory_for(text.len(), 5)?;
    Ok(text
        .replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;"))
}

/// Pads a text to `width` as the method `name` does: `ljust`, `rjust` or `center`.
pub fn justify(text: &str, width: i128, fill: char, name: &str) -> TemplateResult<String> {
    let length = text.chars().count();
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(length);
    limits::check_memory_for(missing, fill.len_utf8())?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // As CPython: an odd space goes to the left if the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let pad = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(format!("{}{text}{}", pad(left), pad(missing - left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python() {
        let pairs = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e22, "1e+22"),
            (123456789.25, "123456789.25"),
        ];
        for (x, text) in pairs {
            assert_eq!(float_repr(x), text);
        }
    }

    #[test]
    fn repr_as_python() {
        for (text, python) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("x\ny\\", r"'x\ny\\'"),
            ("both ' and \"", r#"'both \' and "'"#),
            ("\u{1}ä", r"'\x01ä'"),
            ("a\u{200b}\u{2028}b🙂", r"'a\u200b\u2028b🙂'"),
        ] {
            assert_eq!(text_repr(text).unwrap(), python);
        }
    }

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        for (text, number) in [(" 12 ", Some(12)), ("-1_000", Some(-1000)), ("1__0", None), ("1.5", None), ("", None)] {
            assert_eq!(parse_int(text, 10), number, "{text:?}");
        }
        for (text, number) in
            [("1.5", Some(1.5)), ("1_0e2", Some(1000.0)), ("x", None), ("--1", None), (".5", Some(0.5))]
        {
            assert_eq!(parse_float(text), number, "{text:?}");
        }
    }
}
