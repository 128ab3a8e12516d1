//! `text % value`.

use super::spec::*;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::limits;
use crate::jinja::strings::justify;
use crate::jinja::value::{PyValue, TextKey};

/// Returns `text % value`.
pub fn percent_format(text: &str, value: &PyValue) -> TemplateResult<PyValue> {
    let (tuple, dict) = match value {
        PyValue::Tuple(items) | PyValue::GroupTuple(items) => (Some(items.to_vec()), None),
        PyValue::Dict(dict) => (None, Some(dict.clone())),
        _ => (None, None),
    };
    let single = tuple.is_none();
    let mut arguments = tuple.unwrap_or_else(|| vec![value.clone()]).into_iter();
    let mut used_by_name = false;
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut named = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let Some(dict) = &dict else { return Err(TemplateError::python("format requires a mapping")) };
            let end = inside.find(')').ok_or_else(|| TemplateError::python("incomplete format key"))?;
            let key = &inside[..end];
            named = Some(
                dict.get(&TextKey(key)).cloned().ok_or_else(|| TemplateError::python(format!("KeyError: '{key}'")))?,
            );
            used_by_name = true;
            rest = &inside[end + 1..];
        }
        let mut next =
            || arguments.next().ok_or_else(|| TemplateError::python("not enough arguments for format string"));
        let flags = rest.len() - rest.trim_start_matches(['-', '+', ' ', '#', '0']).len();
        let (flags, after) = rest.split_at(flags);
        rest = after;
        let mut number = |rest: &mut &str| -> TemplateResult<Option<i128>> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                return next()?.expect_int("*").map(Some);
            }
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (digits, after) = rest.split_at(digits);
            *rest = after;
            if digits.is_empty() {
                return Ok(None);
            }
            digits.parse().map(Some).map_err(|_| TemplateError::python("width too big"))
        };
        let mut left = flags.contains('-');
        let mut width = number(&mut rest)?.unwrap_or(0);
        if width < 0 {
            (left, width) = (true, -width);
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            precision = Some(number(&mut rest)?.unwrap_or(0).max(0));
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let conversion = rest.chars().next().ok_or_else(|| TemplateError::python("incomplete format"))?;
        rest = &rest[conversion.len_utf8()..];
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?,
        };
        let spec = FormatSpec {
            fill: if flags.contains('0') && !left { '0' } else { ' ' },
            align: if left {
                '<'
            } else if flags.contains('0') {
                '='
            } else {
                '>'
            },
            sign: if flags.contains('+') {
                '+'
            } else if flags.contains(' ') {
                ' '
            } else {
                '-'
            },
            alternate: flags.contains('#'),
            width,
            precision,
            grouping: None,
            kind: conversion,
        };
        let is_number = matches!(value, PyValue::Int(_) | PyValue::Bool(_) | PyValue::Float(_) | PyValue::BigNumber(_));
        out.push_str(&match conversion {
            's' | 'r' | 'a' => {
                let text = if conversion == 's' { value.py_str()? } else { value.repr()? };
                if conversion == 'a' && !text.is_ascii() {
                    return Err(TemplateError::unsupported("%a of text beyond ASCII"));
                }
                let cut: String = text.chars().take(precision.map_or(usize::MAX, |p| p as usize)).collect();
                justify(&cut, width, ' ', if left { "ljust" } else { "rjust" })?
            }
            'c' => match (&value, value.as_str()) {
                (_, Some(text)) if text.chars().count() == 1 => {
                    justify(text, width, ' ', if left { "ljust" } else { "rjust" })?
                }
                (PyValue::Int(n), _) => {
                    let c = u32::try_from(*n).ok().and_then(char::from_u32);
                    let c = c.ok_or_else(|| TemplateError::python("%c arg not in range(0x110000)"))?;
                    justify(&c.to_string(), width, ' ', if left { "ljust" } else { "rjust" })?
                }
                _ => return Err(TemplateError::python("%c requires int or char")),
            },
            'd' | 'i' | 'u' if is_number => {
                let whole = match value {
                    PyValue::Float(x) if x.is_finite() => PyValue::Int(x.trunc() as i128),
                    PyValue::Float(_) => return Err(TemplateError::python("cannot convert float to integer")),
                    other => other,
                };
                FormatSpec { kind: 'd', precision: None, ..spec }.integer(&whole, precision)?
            }
            'x' | 'X' | 'o' if value.as_int().is_some() => {
                FormatSpec { precision: None, ..spec }.integer(&value, precision)?
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' if is_number => spec.float(&value)?,
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
                value.check_defined()?;
                return Err(TemplateError::python(format!(
                    "%{conversion} format: a number is required, not {}",
                    value.type_name()
                )));
            }
            other => return Err(TemplateError::python(format!("unsupported format character '{other}'"))),
        });
        limits::check_output_length(out.len())?;
    }
    out.push_str(rest);
    let left_over = arguments.next().is_some();
    // Python accepts a single dict or list that the pattern does not use.
    let may_stay =
        single && (dict.is_some() || matches!(value, PyValue::List(_) | PyValue::Namespace(_) | PyValue::Range(..)));
    if left_over && !may_stay && !used_by_name {
        value.check_defined()?;
        return Err(TemplateError::python("not all arguments converted during string formatting"));
    }
    PyValue::text(out)
}
