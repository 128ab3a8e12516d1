//! Values as Python writes them: `json.dumps` for the `tojson` filter, floats and texts for what a template prints.

use super::json;
use serde_json::Value;
use std::fmt::Write;

/// The arguments of `json.dumps` that templates use.
pub struct Dumps {
    pub indent: Option<usize>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

impl Dumps {
    /// `value` as `json.dumps` writes it.
    pub fn write(&self, value: &Value) -> String {
        let mut out = String::new();
        self.value(value, 0, &mut out);
        out
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => number(n, out),
            Value::String(s) => self.string(s, out),
            Value::Array(items) => {
                self.items(('[', ']'), items.len(), depth, out, |i, out| self.value(&items[i], depth + 1, out))
            }
            number if json::digits(number).is_some() => out.push_str(json::digits(number).unwrap_or_default()),
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(b.0));
                }
                self.items(('{', '}'), pairs.len(), depth, out, |i, out| {
                    self.string(pairs[i].0, out);
                    out.push_str(&self.key_separator);
                    self.value(pairs[i].1, depth + 1, out);
                });
            }
        }
    }

    fn items(
        &self,
        (open, close): (char, char),
        n: usize,
        depth: usize,
        out: &mut String,
        write: impl Fn(usize, &mut String),
    ) {
        out.push(open);
        for i in 0..n {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.line(depth + 1, out);
            write(i, out);
        }
        if n > 0 {
            self.line(depth, out);
        }
        out.push(close);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20
                    || (self.ensure_ascii && !c.is_ascii())
                    || (self.ensure_ascii && c == '\u{7f}') =>
                {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// An integer as it is, a float as Python's `repr` writes it.
fn number(n: &serde_json::Number, out: &mut String) {
    match n.as_f64() {
        Some(x) if n.is_f64() => out.push_str(&float(x)),
        _ => {
            let _ = write!(out, "{n}");
        }
    }
}

/// The shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub fn float(x: f64) -> String {
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

/// `repr(text)`: in single quotes, or in double quotes where that needs no escape.
pub fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
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
            c if (c as u32) < 0x20 || ('\u{7f}'..='\u{a0}').contains(&c) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
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
            assert_eq!(float(x), text);
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
        ] {
            assert_eq!(repr(text), python);
        }
    }
}
