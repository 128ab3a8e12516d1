//! Filters of texts.

use crate::jinja::arithmetic::apply_binary;
use crate::jinja::ast::BinaryOperator;
use crate::jinja::call_arguments::CallArguments;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::value::PyValue;
use crate::jinja::{limits, methods, value};

/// Converts to text; text and escaped text stay as they are (markupsafe's `soft_str`).
pub(super) fn soft_str(value: &PyValue) -> TemplateResult<PyValue> {
    match value {
        PyValue::Text(_) | PyValue::Markup(_) => Ok(value.clone()),
        other => PyValue::text(other.py_str()?),
    }
}

pub(super) fn urlencode(value: &PyValue) -> TemplateResult<PyValue> {
    fn quoted(text: &str, safe: &str) -> String {
        let mut out = String::new();
        for byte in text.bytes() {
            let c = char::from(byte);
            match c {
                c if c.is_ascii_alphanumeric() || "_.-~".contains(c) || c.is_ascii() && safe.contains(c) => out.push(c),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    }
    let pairs = match value {
        PyValue::Dict(dict) => value::item_tuples(dict)?,
        PyValue::List(_) | PyValue::Tuple(_) | PyValue::DictView(..) => value.items()?,
        PyValue::Undefined(_) => Vec::new(),
        other => {
            let text = other.py_str()?;
            limits::check_memory_for(text.len(), 3)?;
            return PyValue::text(quoted(&text, "/"));
        }
    };
    let mut parts = Vec::new();
    for pair in pairs {
        match pair.items()?.as_slice() {
            [key, value] => {
                // In a query string, a space becomes a plus sign.
                let quote = |v: &PyValue| Ok(quoted(&v.py_str()?, " ").replace(' ', "+"));
                parts.push(format!("{}={}", quote(key)?, quote(value)?));
            }
            _ => return Err(TemplateError::python("urlencode needs pairs")),
        }
    }
    PyValue::text(parts.join("&"))
}

pub(super) fn indent(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let flag = |v: Option<PyValue>| v.is_some_and(|v| v.is_truthy());
    let (first, blank) = (flag(first), flag(blank));
    let margin = match &width {
        None => "    ".to_string(),
        Some(v) => match v.as_str() {
            Some(text) => text.to_string(),
            None => {
                let width = usize::try_from(v.expect_int("width")?.max(0)).unwrap_or(usize::MAX);
                limits::check_memory(width)?;
                " ".repeat(width)
            }
        },
    };
    // As jinja2: with a line end added, so that a text that ends in one has an empty last line.
    let text = format!("{}\n", subject.py_str()?);
    limits::check_memory_for(text.matches('\n').count() + 1, margin.len())?;
    let lines = methods::split_lines(&text, false);
    let mut out = String::new();
    if first {
        out.push_str(&margin);
    }
    if blank {
        out.push_str(&lines.join(&format!("\n{margin}")));
    } else {
        for (i, line) in lines.iter().enumerate() {
            if i > 0 {
                out.push('\n');
                if !line.is_empty() {
                    out.push_str(&margin);
                }
            }
            out.push_str(line);
        }
    }
    subject.same_markup(out)
}

pub(super) fn truncate(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), |l| l.expect_int("length"))?;
    let end = match end {
        Some(end) if end.as_str().is_some() => end,
        other => PyValue::text(other.map_or(Ok("...".to_string()), |e| e.py_str())?)?,
    };
    let leeway = match leeway {
        None | Some(PyValue::None) => 5,
        Some(leeway) => leeway.expect_int("leeway")?,
    };
    let end_length = end.length()? as i128;
    if length < end_length || leeway < 0 {
        return Err(TemplateError::python(format!("expected length >= {end_length}, got {length}")));
    }
    let text = subject.py_str()?;
    if text.chars().count() as i128 <= length + leeway {
        return subject.same_markup(text);
    }
    let cut: String = text.chars().take((length - end_length) as usize).collect();
    let words = cut.rsplit_once(' ').filter(|_| !kill.is_some_and(|k| k.is_truthy())).map_or(cut.as_str(), |(w, _)| w);
    apply_binary(BinaryOperator::Add, &subject.same_markup(words)?, &end)
}
