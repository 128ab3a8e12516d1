//! `text.format(…)`.

use super::spec::*;
use crate::jinja::attributes::{attribute_or_item, item_or_attribute};
use crate::jinja::call_arguments::CallArguments;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::limits;
use crate::jinja::value::PyValue;

/// Returns `text.format(…)`.
pub fn str_format(text: &str, args: CallArguments) -> TemplateResult<PyValue> {
    let mut automatic = Some(0);
    let out = expand_fields(text, &args, &mut automatic, 2)?;
    PyValue::text(out)
}

/// Replaces the fields of a pattern. `automatic` is the number of the next `{}`, `None` after a numbered field;
/// `nested` the levels of fields in specifications that are still allowed.
fn expand_fields(
    text: &str,
    args: &CallArguments,
    automatic: &mut Option<usize>,
    nested: usize,
) -> TemplateResult<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        limits::check_output_length(out.len())?;
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(TemplateError::python("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = rest.char_indices().find(|(_, c)| {
            open += i32::from(*c == '{') - i32::from(*c == '}');
            open == 0
        });
        let (end, _) = end.ok_or_else(|| TemplateError::python("Single '{' encountered in format string"))?;
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let name_end = field.find(['!', ':']).unwrap_or(field.len());
        let (name, tail) = field.split_at(name_end);
        let (conversion, spec) = match tail.strip_prefix('!') {
            Some(tail) => match tail.split_once(':') {
                Some((conversion, spec)) => (Some(conversion), spec),
                None => (Some(tail), ""),
            },
            None => (None, tail.strip_prefix(':').unwrap_or("")),
        };
        let value = field_value(name, args, automatic)?;
        if nested == 0 {
            return Err(TemplateError::python("Max string recursion exceeded"));
        }
        let spec = expand_fields(spec, args, automatic, nested - 1)?;
        let value = match conversion {
            None => value,
            Some("s") => PyValue::text(value.py_str()?)?,
            Some("r") => PyValue::text(value.repr()?)?,
            Some(other) => return Err(TemplateError::unsupported(format!("the conversion '!{other}'"))),
        };
        out.push_str(&format_value(&value, &spec)?);
    }
    out.push_str(rest);
    Ok(out)
}

/// Returns the argument that a field names: `0`, `name`, `a.b[c]`, or nothing for the next one.
fn field_value(name: &str, args: &CallArguments, automatic: &mut Option<usize>) -> TemplateResult<PyValue> {
    let first_end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(first_end);
    let at = match (first, automatic.as_mut()) {
        ("", Some(next)) => {
            *next += 1;
            Some(*next - 1)
        }
        ("", None) => {
            return Err(TemplateError::python(
                "cannot switch from manual field specification to automatic field numbering",
            ));
        }
        (digits, _) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            if automatic.is_some_and(|n| n > 0) {
                return Err(TemplateError::python(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            *automatic = None;
            Some(digits.parse().map_err(|_| TemplateError::python("Too many decimal digits in format string"))?)
        }
        _ => None,
    };
    let found = match at {
        Some(at) => args.positional.get(at).cloned(),
        None => args.named.iter().find(|(n, _)| n == first).map(|(_, v)| v.clone()),
    };
    let mut value = found.ok_or_else(|| match at {
        Some(at) => TemplateError::python(format!("Replacement index {at} out of range for positional args tuple")),
        None => TemplateError::python(format!("KeyError: '{first}'")),
    })?;
    while !path.is_empty() {
        if let Some(inside) = path.strip_prefix('[') {
            let end = inside.find(']').ok_or_else(|| TemplateError::python("Missing ']' in format string"))?;
            let index = &inside[..end];
            let index = match index.parse::<i128>() {
                Ok(n) if index.bytes().all(|b| b.is_ascii_digit()) => PyValue::Int(n),
                _ => PyValue::text(index)?,
            };
            value = item_or_attribute(&value, &index)?.check_defined()?.clone();
            path = &inside[end + 1..];
        } else {
            let inside = &path[1..];
            let end = inside.find(['.', '[']).unwrap_or(inside.len());
            value = attribute_or_item(&value, &inside[..end])?.check_defined()?.clone();
            path = &inside[end..];
        }
    }
    Ok(value)
}
