//! Format specifications: width, alignment, sign, precision, type.

use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::strings;
use crate::jinja::strings::justify;
use crate::jinja::value::PyValue;

/// Returns `format(value, spec)`.
pub(super) fn format_value(value: &PyValue, spec: &str) -> TemplateResult<String> {
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
pub(super) fn center_for_format(text: &str, width: i128, fill: char) -> TemplateResult<String> {
    let length = text.chars().count() as i128;
    let left = (width - length).max(0) / 2;
    let text = justify(text, length + left, fill, "rjust")?;
    justify(&text, width, fill, "ljust")
}

/// A format specification: the part after `%` or `:`.
#[derive(Clone, Copy)]
pub(super) struct FormatSpec {
    pub(super) fill: char,
    /// `<`, `>`, `^` or `=` (between sign and digits).
    pub(super) align: char,
    pub(super) sign: char,
    /// `#`
    pub(super) alternate: bool,
    pub(super) width: i128,
    pub(super) precision: Option<i128>,
    pub(super) grouping: Option<char>,
    /// The type, such as `d`; a space if none is given.
    pub(super) kind: char,
}

impl FormatSpec {
    /// Parses a specification; also returns whether it gives an alignment.
    pub(super) fn read(spec: &str) -> TemplateResult<(Self, bool)> {
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
    pub(super) fn integer(&self, value: &PyValue, least_digits: Option<i128>) -> TemplateResult<String> {
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

    pub(super) fn float(&self, value: &PyValue) -> TemplateResult<String> {
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
    pub(super) fn pad(&self, negative: bool, prefix: &str, digits: &str) -> TemplateResult<String> {
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

pub(super) fn grouped(digits: &str, separator: char, size: usize) -> String {
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
pub(super) fn exponent(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Writes `x` as `%g` does: scientific or fixed, by its exponent.
pub(super) fn general_format(x: f64, precision: usize, alternate: bool) -> String {
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
