//! Formats by a pattern as Python does: `%`, `str.format`, and `strftime`.

use super::attributes::{attribute_or_item, item_or_attribute};
use super::call_arguments::CallArguments;
use super::error::{TemplateError, TemplateResult};
use super::limits;
use super::strings::{self, justify};
use super::value::{PyValue, TextKey};

/// The date and time that `strftime_now` formats.
pub type RenderTime = jiff::civil::DateTime;

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

/// Returns `format(value, spec)`.
fn format_value(value: &PyValue, spec: &str) -> TemplateResult<String> {
    if spec.is_empty() {
        return value.py_str();
    }
    let (spec, aligned) = FormatSpec::read(spec)?;
    match value.check_defined()? {
        PyValue::Text(text) | PyValue::Markup(text) => {
            if !matches!(spec.kind, ' ' | 's') || spec.sign != '-' || spec.alternate || spec.grouping.is_some() {
                return Err(TemplateError::python("Invalid format specifier for a text"));
            }
            let cut: String = text.chars().take(spec.precision.map_or(usize::MAX, |p| p as usize)).collect();
            let name = match (aligned, spec.align) {
                (false, _) | (_, '<') => "ljust",
                (_, '^') => "center",
                (_, '=') => return Err(TemplateError::python("'=' alignment not allowed in string format specifier")),
                _ => "rjust",
            };
            if name == "center" {
                return center_for_format(&cut, spec.width, spec.fill);
            }
            justify(&cut, spec.width, spec.fill, name)
        }
        PyValue::Bool(_) if spec.kind == ' ' => {
            Err(TemplateError::unsupported("format of a bool with a specification"))
        }
        PyValue::Int(_) | PyValue::Bool(_) | PyValue::BigNumber(_) => match spec.kind {
            ' ' | 'd' | 'x' | 'X' | 'o' | 'b' if spec.precision.is_some() => {
                Err(TemplateError::python("Precision not allowed in integer format specifier"))
            }
            ' ' | 'd' => FormatSpec { kind: 'd', ..spec }.integer(value, None),
            'x' | 'X' | 'o' | 'b' => spec.integer(value, None),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => spec.float(value),
            other => Err(TemplateError::unsupported(format!("the format '{other}' of an integer"))),
        },
        PyValue::Float(x) => match spec.kind {
            ' ' if spec.precision.is_none() => {
                let digits = strings::float_repr(x.abs());
                spec.pad(x.is_sign_negative(), "", &digits)
            }
            ' ' => Err(TemplateError::unsupported("format of a float with a precision and no type")),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => spec.float(value),
            other => Err(TemplateError::unsupported(format!("the format '{other}' of a float"))),
        },
        other => {
            Err(TemplateError::python(format!("unsupported format string passed to {}.__format__", other.type_name())))
        }
    }
}

/// Centres for `^`: an odd space goes to the right, unlike in `str.center`.
fn center_for_format(text: &str, width: i128, fill: char) -> TemplateResult<String> {
    let length = text.chars().count() as i128;
    let left = (width - length).max(0) / 2;
    let text = justify(text, length + left, fill, "rjust")?;
    justify(&text, width, fill, "ljust")
}

/// A format specification: the part after `%` or `:`.
#[derive(Clone, Copy)]
struct FormatSpec {
    fill: char,
    /// `<`, `>`, `^` or `=` (between sign and digits).
    align: char,
    sign: char,
    /// `#`
    alternate: bool,
    width: i128,
    precision: Option<i128>,
    grouping: Option<char>,
    /// The type, such as `d`; a space if none is given.
    kind: char,
}

impl FormatSpec {
    /// Parses a specification; also returns whether it gives an alignment.
    fn read(spec: &str) -> TemplateResult<(Self, bool)> {
        let bad = || TemplateError::python("Invalid format specifier");
        let mut chars: &[char] = &spec.chars().collect::<Vec<_>>();
        let is_align = |c: Option<&char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
        let mut read = Self {
            fill: ' ',
            align: '>',
            sign: '-',
            alternate: false,
            width: 0,
            precision: None,
            grouping: None,
            kind: ' ',
        };
        let mut aligned = true;
        if is_align(chars.get(1)) {
            (read.fill, read.align) = (chars[0], chars[1]);
            chars = &chars[2..];
        } else if is_align(chars.first()) {
            read.align = chars[0];
            chars = &chars[1..];
        } else {
            aligned = false;
        }
        if let Some(sign @ ('+' | '-' | ' ')) = chars.first() {
            read.sign = *sign;
            chars = &chars[1..];
        }
        if chars.first() == Some(&'#') {
            read.alternate = true;
            chars = &chars[1..];
        }
        if chars.first() == Some(&'0') {
            if !aligned {
                (read.fill, read.align, aligned) = ('0', '=', true);
            }
            chars = &chars[1..];
        }
        let number = |chars: &mut &[char]| -> TemplateResult<Option<i128>> {
            let digits: String = chars.iter().take_while(|c| c.is_ascii_digit()).collect();
            *chars = &chars[digits.len()..];
            if digits.is_empty() { Ok(None) } else { digits.parse().map(Some).map_err(|_| bad()) }
        };
        read.width = number(&mut chars)?.unwrap_or(0);
        if let Some(grouping @ (',' | '_')) = chars.first() {
            read.grouping = Some(*grouping);
            chars = &chars[1..];
        }
        if chars.first() == Some(&'.') {
            chars = &chars[1..];
            read.precision =
                Some(number(&mut chars)?.ok_or_else(|| TemplateError::python("Format specifier missing precision"))?);
        }
        match chars {
            [] => {}
            [kind] => read.kind = *kind,
            _ => return Err(bad()),
        }
        Ok((read, aligned))
    }

    /// Writes an integer with at least `least_digits` digits.
    fn integer(&self, value: &PyValue, least_digits: Option<i128>) -> TemplateResult<String> {
        let n = match value {
            PyValue::BigNumber(_) => return Err(TemplateError::unsupported("formatting an integer beyond 128 bits")),
            other => other.expect_int("a number")?,
        };
        let size = n.unsigned_abs();
        let (prefix, digits) = match self.kind {
            'x' => ("0x", format!("{size:x}")),
            'X' => ("0X", format!("{size:X}")),
            'o' => ("0o", format!("{size:o}")),
            'b' => ("0b", format!("{size:b}")),
            _ => ("", size.to_string()),
        };
        let digits = justify(&digits, least_digits.unwrap_or(0), '0', "rjust")?;
        let digits = match (self.grouping, self.kind) {
            (Some(','), kind) if kind != 'd' => return Err(TemplateError::python("Cannot specify ',' with this type")),
            (Some(separator), kind) => grouped(&digits, separator, if kind == 'd' { 3 } else { 4 }),
            _ => digits,
        };
        self.pad(n < 0, if self.alternate { prefix } else { "" }, &digits)
    }

    fn float(&self, value: &PyValue) -> TemplateResult<String> {
        let x = value.as_float().ok_or_else(|| TemplateError::python("must be real number"))?;
        let precision = usize::try_from(self.precision.unwrap_or(6)).unwrap_or(usize::MAX);
        if precision > 1000 {
            return Err(TemplateError::unsupported("a precision beyond 1000"));
        }
        let (size, upper) = (x.abs(), self.kind.is_ascii_uppercase());
        let mut digits = if !size.is_finite() {
            strings::float_repr(size)
        } else {
            match self.kind.to_ascii_lowercase() {
                'f' => format!("{size:.precision$}"),
                '%' => format!("{:.precision$}%", size * 100.0),
                'e' => exponent(size, precision),
                _ => general_format(size, precision.max(1), self.alternate),
            }
        };
        if self.alternate && size.is_finite() && !digits.contains('.') {
            return Err(TemplateError::unsupported("'#' for a float without a fraction"));
        }
        if upper {
            digits = digits.to_uppercase();
        }
        if let Some(separator) = self.grouping {
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits = format!("{}{}", grouped(&digits[..end], separator, 3), &digits[end..]);
        }
        self.pad(x.is_sign_negative() && !x.is_nan(), "", &digits)
    }

    /// Adds sign and prefix to digits and pads them to the width.
    fn pad(&self, negative: bool, prefix: &str, digits: &str) -> TemplateResult<String> {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (_, '+') => "+",
            (_, ' ') => " ",
            _ => "",
        };
        let head = format!("{sign}{prefix}");
        // `=` pads between the sign and the digits.
        if self.align == '=' {
            if self.grouping.is_some() {
                return Err(TemplateError::unsupported("zeros before grouped digits"));
            }
            return Ok(format!("{head}{}", justify(digits, self.width - head.len() as i128, self.fill, "rjust")?));
        }
        let text = format!("{head}{digits}");
        match self.align {
            '<' => justify(&text, self.width, self.fill, "ljust"),
            '^' => center_for_format(&text, self.width, self.fill),
            _ => justify(&text, self.width, self.fill, "rjust"),
        }
    }
}

fn grouped(digits: &str, separator: char, size: usize) -> String {
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

/// Writes `x` as `%e` does.
fn exponent(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Writes `x` as `%g` does: scientific or fixed, by its exponent.
fn general_format(x: f64, precision: usize, alternate: bool) -> String {
    let scientific = exponent(x, precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or_default();
    let trim = |text: String| -> String {
        if alternate || !text.contains('.') {
            return text;
        }
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    if power < -4 || power >= precision as i32 {
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
        return format!("{}e{power}", trim(digits.to_string()));
    }
    let decimals = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    trim(format!("{x:.decimals$}"))
}

/// Returns `datetime.strftime(format)` of a time without a zone, in the C locale. Fails for directives that are not
/// reproduced.
pub fn strftime(format: &str, clock: RenderTime) -> TemplateResult<String> {
    let (mut out, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let flagged = rest.starts_with('-');
        let directive = &rest[usize::from(flagged)..];
        let Some(letter) = directive.chars().next() else {
            return Err(TemplateError::unsupported("a date format that ends in %"));
        };
        rest = &directive[letter.len_utf8()..];
        let pattern = match (letter, flagged) {
            ('%', false) => "%%".to_string(),
            ('z' | 'Z', false) => String::new(),
            ('f', false) => format!("{:06}", clock.subsec_nanosecond() / 1000),
            ('c', false) => "%a %b %e %H:%M:%S %Y".to_string(),
            ('x' | 'D', false) => "%m/%d/%y".to_string(),
            ('X' | 'T', false) => "%H:%M:%S".to_string(),
            ('a' | 'A' | 'b' | 'B' | 'h' | 'p' | 'F' | 'R' | 'n' | 't', false) => format!("%{letter}"),
            (
                'd' | 'e' | 'H' | 'I' | 'j' | 'm' | 'M' | 'S' | 'y' | 'Y' | 'w' | 'u' | 'U' | 'W' | 'V' | 'G' | 'g'
                | 'C',
                _,
            ) => {
                format!("%{}{letter}", if flagged { "-" } else { "" })
            }
            _ => return Err(TemplateError::unsupported(format!("%{letter} in strftime_now"))),
        };
        let text = jiff::fmt::strtime::format(&pattern, clock);
        out.push_str(&text.map_err(|e| TemplateError::unsupported(format!("%{letter} in strftime_now: {e}")))?);
    }
    out.push_str(rest);
    Ok(out)
}
