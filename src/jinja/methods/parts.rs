//! Methods that strip, split and replace.

use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::limits;
use crate::jinja::strings::is_space;
use crate::jinja::value::PyValue;

/// Returns an argument that must be text.
pub(super) fn text_argument<'v>(function: &str, value: &'v Option<PyValue>) -> TemplateResult<&'v str> {
    let value = value.as_ref().ok_or_else(|| TemplateError::python(format!("{function}() needs an argument")))?;
    value
        .check_defined()?
        .as_str()
        .ok_or_else(|| TemplateError::python(format!("{function}() argument must be str, not {}", value.type_name())))
}

pub(super) fn texts(parts: impl IntoIterator<Item = impl Into<String>>) -> TemplateResult<Vec<PyValue>> {
    parts.into_iter().map(PyValue::text).collect()
}

/// Removes whitespace, or the given characters, as the method `name` does: `strip`, `lstrip` or `rstrip`.
pub fn strip(text: &str, name: &str, chars: Option<&PyValue>) -> TemplateResult<String> {
    let chars = match chars {
        None | Some(PyValue::None) => None,
        some => Some(text_argument(name, &some.cloned())?.to_string()),
    };
    let goes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(goes) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(goes) }.to_string())
}

/// Returns the text between two indices and the number of characters before it; `None` if the indices are out of range.
pub(super) fn text_between<'t>(
    text: &'t str,
    from: &Option<PyValue>,
    to: &Option<PyValue>,
) -> TemplateResult<Option<(usize, &'t str)>> {
    if from.is_none() && to.is_none() {
        return Ok(Some((0, text)));
    }
    let length = text.chars().count() as i128;
    let place = |v: &Option<PyValue>, default: i128| -> TemplateResult<i128> {
        Ok(match v {
            None | Some(PyValue::None) => default,
            Some(v) => {
                let n = v.expect_int("slice indices")?;
                if n < 0 { (n + length).max(0) } else { n }
            }
        })
    };
    let (from, to) = (place(from, 0)?, place(to, length)?.min(length));
    if from > length || from > to {
        return Ok(None);
    }
    let byte = |n: i128| text.char_indices().nth(n as usize).map_or(text.len(), |(at, _)| at);
    Ok(Some((from as usize, &text[byte(from)..byte(to)])))
}

pub(super) fn split(
    text: &str,
    separator: Option<PyValue>,
    most: Option<PyValue>,
    from_end: bool,
) -> TemplateResult<PyValue> {
    let most = most.map_or(Ok(-1), |m| m.expect_int("maxsplit"))?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    limits::check_memory_for(text.len() / 8, size_of::<PyValue>())?;
    if matches!(separator, None | Some(PyValue::None)) {
        return split_whitespace(text, most, from_end);
    }
    let separator = text_argument("split", &separator)?;
    if separator.is_empty() {
        return Err(TemplateError::python("empty separator"));
    }
    let pieces = most.saturating_add(1);
    let mut parts: Vec<&str> =
        if from_end { text.rsplitn(pieces, separator).collect() } else { text.splitn(pieces, separator).collect() };
    if from_end {
        parts.reverse();
    }
    PyValue::list(texts(parts)?)
}

/// Splits as `split` and `rsplit` do without a separator: into the words between runs of whitespace.
pub(super) fn split_whitespace(text: &str, most: usize, from_end: bool) -> TemplateResult<PyValue> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        rest = if from_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        let cut = if from_end {
            rest.char_indices().rfind(|(_, c)| is_space(*c))
        } else {
            rest.char_indices().find(|(_, c)| is_space(*c))
        };
        let Some((at, c)) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        if from_end {
            parts.push(&rest[at + c.len_utf8()..]);
            rest = &rest[..at];
        } else {
            parts.push(&rest[..at]);
            rest = &rest[at..];
        }
    }
    if from_end {
        parts.reverse();
    }
    PyValue::list(texts(parts)?)
}

/// Splits as `splitlines` does; with `keep`, lines keep their ends.
pub fn split_lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut out, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let Some((at, c)) = rest.char_indices().find(|(_, c)| ends(*c)) else {
            out.push(rest);
            break;
        };
        let length = if rest[at..].starts_with("\r\n") { 2 } else { c.len_utf8() };
        out.push(&rest[..if keep { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    out
}

/// Replaces the first `count` occurrences, as `replace` does; a negative count replaces all.
pub fn replace(text: &str, old: &str, new: &str, count: i128) -> TemplateResult<PyValue> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    limits::check_memory_for(found.min(most), new.len())?;
    limits::check_memory(text.len())?;
    PyValue::text(text.replacen(old, new, most))
}
