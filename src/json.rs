//! Reads and writes JSON without changing the digits of numbers.
//!
//! A `serde_json::Value` stores 64-bit integers and floats. A longer integer, or a decimal with more digits than a
//! float keeps, would silently become another number, in training and in written rows. Here such a number becomes an
//! object with one private key ([`MARK`]) whose value is the digits; [`to_text`] and the `tojson` filter write it as a
//! number again. serde_json's own solution, `arbitrary_precision`, is a feature of the whole build and breaks tagged
//! enums that contain numbers, such as those of tokenizer.json.

use serde_json::{Map, Value};
use std::borrow::Cow;

/// The key of an object that represents a number by its digits. It begins with a private use character, so no row has
/// it.
const MARK: &str = "\u{F8FF}number";
/// The same key as written in JSON text.
const QUOTED: &str = "\"\u{F8FF}number\"";

/// Parses JSON text; every number keeps its digits.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    match mark_long_numbers(text) {
        Cow::Borrowed(text) => serde_json::from_str(text),
        // Report the error for the original text, whose line and column the user can find.
        Cow::Owned(marked) => serde_json::from_str(&marked)
            .map_err(|e| serde_json::from_str::<serde::de::IgnoredAny>(text).err().unwrap_or(e)),
    }
}

/// Writes `value` as JSON text on one line.
pub fn to_text(value: &Value) -> String {
    restore_numbers(value.to_string())
}

/// Replaces the marker objects in JSON text (written by serde_json, compact or indented) by their numbers.
pub fn restore_numbers(text: String) -> String {
    if !text.contains(QUOTED) {
        return text;
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(at) = rest.find(QUOTED) {
        match mark_around(rest, at) {
            Some((start, digits, end)) => {
                out.push_str(&rest[..start]);
                out.push_str(digits);
                rest = &rest[end..];
            }
            None => {
                out.push_str(&rest[..at + QUOTED.len()]);
                rest = &rest[at + QUOTED.len()..];
            }
        }
    }
    out + rest
}

/// Returns the start of the object around the key at `at`, its digits, and its end; `None` if it is not a marker
/// object.
fn mark_around(text: &str, at: usize) -> Option<(usize, &str, usize)> {
    let start = text[..at].trim_end().strip_suffix('{')?.len();
    let after = text[at + QUOTED.len()..].trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let (digits, after) = after.split_once('"')?;
    let end = after.trim_start().strip_prefix('}')?;
    is_number(digits).then_some((start, digits, text.len() - end.len()))
}

/// Returns the digits if `value` represents a number that a float or a 64-bit integer would change.
pub fn long_number(value: &Value) -> Option<&str> {
    match value {
        Value::Object(map) if map.len() == 1 => map.get(MARK)?.as_str().filter(|d| is_number(d)),
        _ => None,
    }
}

/// Returns the nearest finite float of a number; `None` for other values.
pub fn as_f64(value: &Value) -> Option<f64> {
    long_number(value).map_or_else(|| value.as_f64(), |digits| digits.parse().ok().filter(|x: &f64| x.is_finite()))
}

/// Makes a number from its digits as written in JSON.
pub fn number_from_digits(digits: &str) -> Value {
    let plain = serde_json::from_str(digits).ok().filter(|_| exact(digits));
    plain.unwrap_or_else(|| Value::Object(Map::from_iter([(MARK.to_string(), Value::from(digits))])))
}

/// Replaces the numbers in JSON text that would change by marker objects.
fn mark_long_numbers(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut out, mut copied, mut i) = (String::new(), 0, 0);
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = i;
                while i < bytes.len() && matches!(bytes[i], b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') {
                    i += 1;
                }
                let token = &text[start..i];
                if !exact(token) && is_number(token) {
                    out.push_str(&text[copied..start]);
                    // In Python, `-0` is the integer 0.
                    match token {
                        "-0" => out.push('0'),
                        _ => out.push_str(&format!("{{{QUOTED}:\"{token}\"}}")),
                    }
                    copied = i;
                }
            }
            _ => i += 1,
        }
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Returns true if this is a number by JSON's grammar.
fn is_number(token: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let token = token.strip_prefix('-').unwrap_or(token);
    let (mantissa, exponent) = token.split_once(['e', 'E']).map_or((token, None), |(m, e)| (m, Some(e)));
    let (whole, part) = mantissa.split_once('.').map_or((mantissa, None), |(w, p)| (w, Some(p)));
    let exponent = exponent.map(|e| e.strip_prefix(['+', '-']).unwrap_or(e));
    digits(whole) && (whole == "0" || !whole.starts_with('0')) && part.is_none_or(digits) && exponent.is_none_or(digits)
}

/// Returns true if a 64-bit integer or a float represents the number exactly as written.
fn exact(token: &str) -> bool {
    if !token.contains(['.', 'e', 'E']) {
        return token != "-0" && (token.len() < 19 || token.parse::<i64>().is_ok() || token.parse::<u64>().is_ok());
    }
    // A float keeps fifteen digits of any number of ordinary size.
    if token.len() <= 16 && !token.contains(['e', 'E']) {
        return true;
    }
    let Ok(float) = token.parse::<f64>() else { return false };
    float.is_finite() && significant(token) == significant(&format!("{float:e}"))
}

/// Returns the significant digits, and the power of ten of the first of them.
fn significant(token: &str) -> (String, i64) {
    let token = token.trim_start_matches('-');
    let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{part}");
    let leading = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0').to_string();
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX / 2);
    match digits.is_empty() {
        true => (digits, 0),
        false => (digits, exponent + whole.len() as i64 - leading as i64),
    }
}

/// Returns the byte position of the first unpaired surrogate escape (`\ud800`–`\udfff`), which is not a character.
pub fn find_lone_surrogate(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let unit = |at: usize| -> Option<u32> {
        let hex = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] != b'\\' {
            i += 1;
            continue;
        }
        match unit(i) {
            Some(0xd800..=0xdbff) if unit(i + 6).is_some_and(|low| (0xdc00..=0xdfff).contains(&low)) => i += 12,
            Some(0xd800..=0xdfff) => return Some(i),
            Some(_) => i += 6,
            None => i += 2,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let kept = [
            "12345678901234567890123",
            "-9223372036854775809",
            "18446744073709551616",
            "0.1234567890123456789",
            "3.141592653589793238462643",
            "1E400",
            "1e-400",
            "123456789012345678.25",
        ];
        for number in kept {
            let row = format!(r#"{{"a":[{number},{{"b":{number}}}],"c":"{number}"}}"#);
            let value = parse(&row).unwrap();
            assert_eq!(long_number(&value["a"][0]), Some(number));
            assert_eq!(value["c"], *number);
            assert_eq!(to_text(&value), row);
            let indented = restore_numbers(serde_json::to_string_pretty(&value).unwrap());
            assert_eq!(indented.matches(number).count(), 3);
            assert!(!indented.contains('\u{F8FF}'), "{indented}");
        }
        let plain = [
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("1.0", "1.0"),
            ("1e5", "100000.0"),
            ("-0.0", "-0.0"),
            ("-0", "0"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("1.50000000000000000000", "1.5"),
            ("1e22", "1e+22"),
            ("0.000", "0.0"),
        ];
        for (number, written) in plain {
            let value = parse(number).unwrap();
            assert!(value.is_number(), "{number}");
            assert_eq!(to_text(&value), written, "{number}");
        }
        assert_eq!(as_f64(&parse("0.1234567890123456789").unwrap()), Some(0.123_456_789_012_345_68));
    }

    #[test]
    fn what_only_looks_like_a_mark_stays() {
        for row in ["[\"{\\\"\u{F8FF}number\\\":\\\"12\\\"}\"]", "[\"\u{F8FF}number\"]", "{\"\u{F8FF}number\":\"x\"}"] {
            assert_eq!(to_text(&parse(row).unwrap()), row);
        }
        for bad in ["01234567890123456789", "[1 2]", "1.e400", "{\"a\": 123456789012345678901234567890-}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_surrogate_without_its_partner_is_found() {
        assert_eq!(find_lone_surrogate(r#""a\ud800 b""#), Some(2));
        assert_eq!(find_lone_surrogate(r#""a\udc00""#), Some(2));
        assert_eq!(find_lone_surrogate(r#""\\ud800 \ud83d\ude42 \u0041""#), None);
    }
}
