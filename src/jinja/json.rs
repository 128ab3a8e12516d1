//! The filter `tojson`: `json.dumps` as transformers calls it.

use super::call_arguments::CallArguments;
use super::error::{TemplateError, TemplateResult};
use super::limits;
use super::strings;
use super::value::{PyDict, PyValue};
use std::fmt::Write;

/// The settings of `json.dumps`.
struct JsonDumper {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// Applies the filter `tojson`. Non-ASCII text is kept, and nothing is escaped for HTML, unlike jinja2's own filter.
pub fn tojson(value: &PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [ensure_ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(PyValue::None) => None,
        Some(v) => match v.as_str() {
            Some(text) => Some(text.to_string()),
            None => {
                let width = usize::try_from(v.expect_int("indent")?.max(0)).unwrap_or(usize::MAX);
                limits::check_memory(width)?;
                Some(" ".repeat(width))
            }
        },
    };
    let (item_separator, key_separator) = match separators {
        None | Some(PyValue::None) => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some(pair) => match pair.items()?.as_slice() {
            [PyValue::Text(item), PyValue::Text(key)] => (item.to_string(), key.to_string()),
            _ => return Err(TemplateError::python("separators must be two texts")),
        },
    };
    let flag = |v: Option<PyValue>| v.is_some_and(|v| v.is_truthy());
    let (sort_keys, ensure_ascii) = (flag(sort_keys), flag(ensure_ascii));
    let dumps = JsonDumper { indent, item_separator, key_separator, sort_keys, ensure_ascii };
    let mut out = String::new();
    dumps.value(value, 0, &mut out)?;
    PyValue::text(out)
}

impl JsonDumper {
    fn value(&self, value: &PyValue, depth: usize, out: &mut String) -> TemplateResult<()> {
        limits::spend_steps(1)?;
        limits::check_depth()?;
        limits::check_output_length(out.len())?;
        match value {
            PyValue::None => out.push_str("null"),
            PyValue::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            PyValue::Int(n) => {
                let _ = write!(out, "{n}");
            }
            PyValue::BigNumber(digits) => out.push_str(digits),
            PyValue::Float(x) => out.push_str(&float(*x)),
            PyValue::Text(text) | PyValue::Markup(text) => {
                limits::check_memory(text.len())?;
                self.string(text, out);
            }
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => {
                self.items(('[', ']'), items.len(), depth, out, |i, out| self.value(&items[i], depth + 1, out))?;
            }
            PyValue::Dict(dict) => self.dict(dict, depth, out)?,
            other => {
                return Err(TemplateError::python(format!(
                    "Object of type {} is not JSON serializable",
                    other.type_name()
                )));
            }
        }
        Ok(())
    }

    fn dict(&self, dict: &PyDict, depth: usize, out: &mut String) -> TemplateResult<()> {
        let mut pairs = Vec::with_capacity(dict.len());
        for (key, value) in dict {
            let name = match &key.0 {
                PyValue::Text(text) | PyValue::Markup(text) => text.to_string(),
                PyValue::None => "null".into(),
                PyValue::Bool(b) => b.to_string(),
                PyValue::Int(n) => n.to_string(),
                PyValue::BigNumber(digits) => digits.to_string(),
                PyValue::Float(x) => float(*x),
                other => {
                    return Err(TemplateError::python(format!(
                        "keys must be str, int, float, bool or None, not {}",
                        other.type_name()
                    )));
                }
            };
            pairs.push((name, value));
        }
        if self.sort_keys {
            if dict.keys().any(|k| k.0.as_str().is_none()) {
                return Err(TemplateError::unsupported("tojson with sort_keys and keys that are no text"));
            }
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.items(('{', '}'), pairs.len(), depth, out, |i, out| {
            self.string(&pairs[i].0, out);
            out.push_str(&self.key_separator);
            self.value(pairs[i].1, depth + 1, out)
        })
    }

    fn items(
        &self,
        (open, close): (char, char),
        n: usize,
        depth: usize,
        out: &mut String,
        write: impl Fn(usize, &mut String) -> TemplateResult<()>,
    ) -> TemplateResult<()> {
        out.push(open);
        for i in 0..n {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.line(depth + 1, out)?;
            write(i, out)?;
        }
        if n > 0 {
            self.line(depth, out)?;
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) -> TemplateResult<()> {
        if let Some(indent) = &self.indent {
            limits::check_memory_for(depth, indent.len())?;
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
        Ok(())
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
                c if (c as u32) < 0x20 || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
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

fn float(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        x => strings::float_repr(x),
    }
}
