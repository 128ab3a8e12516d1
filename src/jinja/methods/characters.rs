//! Classes of characters, and methods that ask for or change upper and lower case.

use crate::jinja::call_arguments::CallArguments;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::value::PyValue;
use fancy_regex::Regex;
use std::sync::LazyLock;

/// Returns whether `holds` is true for every character and there is one.
pub(super) fn all_chars(
    text: &str,
    name: &str,
    args: CallArguments,
    holds: impl Fn(char) -> TemplateResult<bool>,
) -> TemplateResult<PyValue> {
    args.expect_none(name)?;
    for c in text.chars() {
        if !holds(c)? {
            return Ok(PyValue::Bool(false));
        }
    }
    Ok(PyValue::Bool(!text.is_empty()))
}

pub(super) fn char_class(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|e| unreachable!("{pattern}: {e}"))
}

pub(super) static LETTER: LazyLock<Regex> = LazyLock::new(|| char_class(r"^\p{L}$"));

pub(super) static DECIMAL: LazyLock<Regex> = LazyLock::new(|| char_class(r"^\p{Nd}$"));

pub(super) static OTHER_NUMBER: LazyLock<Regex> =
    LazyLock::new(|| char_class(r"^[\p{Nl}\p{No}〇一二三四五六七八九十百千万億兆]$"));

pub(super) fn is_in_class(regex: &Regex, c: char) -> bool {
    regex.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false)
}

pub(super) fn is_letter(c: char) -> TemplateResult<bool> {
    Ok(if c.is_ascii() { c.is_ascii_alphabetic() } else { is_in_class(&LETTER, c) })
}

pub(super) fn is_decimal(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { is_in_class(&DECIMAL, c) }
}

/// Returns true for a decimal digit. Fails for other numbers (½, Ⅷ, ²): Python classifies them by tables that are not
/// here.
pub(super) fn is_numeric(c: char) -> TemplateResult<bool> {
    if !c.is_ascii() && is_in_class(&OTHER_NUMBER, c) {
        return Err(TemplateError::unsupported(format!("whether {c:?} is a number")));
    }
    Ok(is_decimal(c))
}

pub(super) fn is_cased_char(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || is_titlecase(c)
}

pub(super) fn is_titlecase(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
        || ('\u{1f88}'..='\u{1fff}').contains(&c)
            && !c.is_lowercase()
            && c.to_lowercase().next() != Some(c)
            && c.to_uppercase().count() > 1
}

/// Returns `isupper` or `islower`: true if all cased letters have this case and there is one.
pub fn is_cased(text: &str, upper: bool) -> bool {
    let wrong = |c: char| is_titlecase(c) || if upper { c.is_lowercase() } else { c.is_uppercase() };
    text.chars().any(is_cased_char) && !text.chars().any(wrong)
}

/// Returns `istitle`: true if words begin with a capital and have no other one, and there is a cased letter.
pub(super) fn is_title(text: &str) -> bool {
    let (mut inside, mut cased) = (false, false);
    for c in text.chars() {
        let capital = c.is_uppercase() || is_titlecase(c);
        if capital && inside || c.is_lowercase() && !inside {
            return false;
        }
        inside = is_cased_char(c);
        cased |= inside;
    }
    cased
}

/// Appends the title-case form of a letter.
pub(super) fn push_title(c: char, out: &mut String) {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => out.push('ǅ'),
        'Ǉ' | 'ǈ' | 'ǉ' => out.push('ǈ'),
        'Ǌ' | 'ǋ' | 'ǌ' => out.push('ǋ'),
        'Ǳ' | 'ǲ' | 'ǳ' => out.push('ǲ'),
        'ŉ' => out.push_str("ʼN"),
        // A letter whose upper case is two letters has one capital: ß becomes Ss.
        c => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            upper.for_each(|rest| out.extend(rest.to_lowercase()));
        }
    }
}

pub fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        push_title(first, &mut out);
        out.push_str(&chars.as_str().to_lowercase());
    }
    out
}

pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            push_title(c, &mut out)
        }
        inside = is_cased_char(c);
    }
    out
}

pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() { out.extend(c.to_lowercase()) } else { out.extend(c.to_uppercase()) }
    }
    out
}
