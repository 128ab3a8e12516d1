//! `strftime` of a date and time.

use crate::jinja::error::{TemplateError, TemplateResult};

/// The date and time that `strftime_now` formats.
pub type RenderTime = jiff::civil::DateTime;

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
