//! The rules that find personal data: a pattern each, with a check that confirms a match.
//!
//! Searching must take time proportional to the length of the text. Patterns therefore have no look-around, and each
//! matches at most a few dozen characters or is never tried twice at the same place. The text around a match is
//! examined in code. A number without a strong check digit is accepted only if it has a distinctive form or follows a
//! word that says what it is.

use super::check;
use super::kind::PersonalDataKind;
use fancy_regex::Regex;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

/// A pattern, and the check of its matches. `core` is the group that is replaced; 0 for the whole match.
pub(super) struct ScrubRule {
    pub kind: PersonalDataKind,
    pub name: &'static str,
    pub pattern: Regex,
    pub core: usize,
    /// Checks a match, given the matched text and the text before it.
    holds: fn(&str, &str) -> bool,
}

/// Returns true for characters of words.
pub(super) fn word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns letters and digits only, in upper case.
pub(super) fn letters_and_digits(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_uppercase).collect()
}

/// Returns true if one of these words occurs in the last characters of `before`.
fn preceded_by(before: &str, words: &[&str]) -> bool {
    const NEAR: usize = 40;
    let tail: String = before.chars().rev().take(NEAR).collect::<Vec<_>>().into_iter().rev().collect();
    let tail = tail.to_lowercase();
    let spoken: Vec<&str> = tail.split(|c: char| !c.is_alphanumeric()).collect();
    words.iter().any(|w| if w.contains(' ') { tail.contains(w) } else { spoken.contains(w) })
}

/// Returns true if the number is written with separators, as its issuer does, not as one run of digits.
fn has_separators(text: &str) -> bool {
    text.contains(['-', ' ', '.'])
}

fn ipv4(text: &str, _: &str) -> bool {
    text.parse::<Ipv4Addr>().is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_broadcast())
}

fn ipv6(text: &str, _: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
        && text.bytes().any(|b| b.is_ascii_digit())
}

const PHONE_WORDS: &[&str] = &[
    "phone",
    "telephone",
    "tel",
    "call",
    "fax",
    "mobile",
    "cell",
    "whatsapp",
    "sms",
    "text",
    "ring",
    "telefon",
    "handy",
    "móvil",
    "teléfono",
    "téléphone",
    "telefono",
    "mobil",
    "telefoon",
    "gsm",
];

/// Accepts a number with a country code, in the form of North America, with a leading 0 and separators, or after a word
/// such as "phone".
fn phone(text: &str, before: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let whole = text.matches('(').count() == text.matches(')').count();
    if !whole || !(7..=15).contains(&digits.len()) || digits.iter().all(|d| *d == digits[0]) {
        return false;
    }
    let abroad = (text.starts_with('+') || (text.starts_with("00") && digits[2] != 0)) && digits.len() >= 9;
    let ten = if digits.len() == 11 && digits[0] == 1 { &digits[1..] } else { &digits[..] };
    let groups: Vec<usize> =
        text.split(|c: char| !c.is_ascii_digit()).filter(|g| !g.is_empty()).map(str::len).collect();
    let american = ten.len() == 10 && ten[0] > 1 && ten[3] > 1 && groups.ends_with(&[3, 3, 4]);
    let trunk = digits[0] == 0 && digits[1] != 0 && (9..=12).contains(&digits.len()) && groups.len() > 1;
    abroad || american || trunk || preceded_by(before, PHONE_WORDS)
}

/// Accepts a day that exists, in numbers with equal separators, or with the name of its month, which must have a
/// capital.
fn date(text: &str, _: &str) -> bool {
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let parts: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|p| !p.is_empty()).collect();
    let numbers: Vec<u32> = parts
        .iter()
        .filter(|p| p.as_bytes()[0].is_ascii_digit())
        .filter_map(|p| p.trim_end_matches(|c: char| c.is_alphabetic()).parse().ok())
        .collect();
    let month = parts.iter().filter(|p| p.as_bytes()[0].is_ascii_uppercase()).find_map(|p| {
        let p = p.to_lowercase();
        MONTHS.iter().position(|m| p.starts_with(m)).map(|i| i as u32 + 1)
    });
    let signs: Vec<char> = text.chars().filter(|c| !c.is_alphanumeric()).collect();
    match (month, &numbers[..]) {
        (Some(month), [d]) => check::day(0, month, *d),
        (Some(month), [d, year]) => check::day(*year, month, *d),
        (None, [a, b, c]) if signs[0] == signs[1] => match parts[0].len() {
            4 => check::day(*a, *b, *c),
            _ => check::day(*c, *b, *a) || check::day(*c, *a, *b),
        },
        _ => false,
    }
}

/// All rules. If matches overlap, that of the earlier rule wins.
pub(super) static RULES: LazyLock<Vec<ScrubRule>> = LazyLock::new(|| {
    let rule = |kind, name, pattern: &str, core, holds| ScrubRule {
        kind,
        name,
        pattern: Regex::new(pattern).expect("patterns are constant"),
        core,
        holds,
    };
    let national =
        |name, pattern: &str, holds: fn(&str, &str) -> bool| rule(PersonalDataKind::National, name, pattern, 0, holds);
    vec![
        rule(
            PersonalDataKind::Email,
            "email",
            r"[\p{L}\p{N}._%+'-]+@[\p{L}\p{N}][\p{L}\p{N}.-]*\.\p{L}{2,24}",
            0,
            |_, _| true,
        ),
        rule(
            PersonalDataKind::Iban,
            "iban",
            r"(?i)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?",
            0,
            |text, _| check::iban(&letters_and_digits(text)),
        ),
        rule(PersonalDataKind::Card, "card", r"[0-9](?:[ -]?[0-9]){12,18}", 0, |text, _| {
            check::card(&letters_and_digits(text))
        }),
        rule(
            PersonalDataKind::MedicalRecord,
            "medical record",
            r"(?i)\b(?:MRN|medical record(?: number| no\.?| id)?|patient(?: id| number| no\.?)|chart(?: number| no\.?)|hospital(?: number| no\.?)|health record(?: number| no\.?))(?:\s+is)?[\s:#=]{1,4}((?:[A-Z]{0,4}-?)?[0-9][A-Z0-9-]{3,19})",
            1,
            |text, _| text.chars().filter(char::is_ascii_digit).count() >= 4,
        ),
        national(
            "fr",
            r"(?i)[1-478] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
            |text, _| check::fr(&letters_and_digits(text)),
        ),
        national("cn", r"(?i)[1-9][0-9]{16}[0-9X]", |text, _| check::cn(&letters_and_digits(text))),
        national("it", r"(?i)[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", |text, _| {
            check::it(&letters_and_digits(text))
        }),
        national("se", r"(?:19|20)?[0-9]{6}[-+]?[0-9]{4}", |text, _| check::se(&letters_and_digits(text))),
        national("fi", r"(?i)[0-3][0-9][01][0-9]{3}[-+A-F][0-9]{3}[0-9A-Y]", |text, _| {
            check::fi(&text[..6].chars().chain(text[7..].chars()).collect::<String>().to_uppercase())
        }),
        national("es", r"(?i)(?:[0-9]{8}|[XYZ][- ]?[0-9]{7})[- ]?[A-Z]", |text, _| {
            check::es(&letters_and_digits(text))
        }),
        national("br", r"[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}", |text, _| check::br(&letters_and_digits(text))),
        national("pl", r"[0-9]{11}", |text, _| check::pl(text)),
        national("de", r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", |text, before| {
            check::de(&letters_and_digits(text))
                && preceded_by(before, &["steuer", "idnr", "tin", "tax", "steueridentifikationsnummer"])
        }),
        national("us", r"[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}", |text, before| {
            check::us(&letters_and_digits(text))
                && (has_separators(text) || preceded_by(before, &["ssn", "social security"]))
        }),
        national("uk", r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{4}", |text, before| {
            check::uk(&letters_and_digits(text)) && (text.contains(' ') || preceded_by(before, &["nhs"]))
        }),
        national("ca", r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{3}", |text, before| {
            check::ca(&letters_and_digits(text))
                && (has_separators(text) || preceded_by(before, &["sin", "social insurance"]))
        }),
        national("nl", r"[0-9]{4}\.?[0-9]{2}\.?[0-9]{3}", |text, before| {
            check::nl(&letters_and_digits(text))
                && (has_separators(text) || preceded_by(before, &["bsn", "burgerservicenummer", "sofinummer"]))
        }),
        rule(PersonalDataKind::Ip, "ip", r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", 0, ipv4),
        rule(PersonalDataKind::Ip, "ip", r"(?i)[0-9A-F]{0,4}(?::[0-9A-F]{0,4}){2,8}(?:\.[0-9]{1,3}){0,3}", 0, ipv6),
        rule(PersonalDataKind::Date, "date", r"[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}", 0, date),
        rule(PersonalDataKind::Date, "date", r"[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2})", 0, date),
        rule(
            PersonalDataKind::Date,
            "date",
            r"(?i)[0-9]{1,2}(?:st|nd|rd|th)?(?: of)?[ -](?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?(?:,?[ -][0-9]{4})?",
            0,
            date,
        ),
        rule(
            PersonalDataKind::Date,
            "date",
            r"(?i)(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.? [0-9]{1,2}(?:st|nd|rd|th)?(?:,? [0-9]{4})?",
            0,
            date,
        ),
        rule(PersonalDataKind::Phone, "phone", r"(?:\+|00)?\(?[0-9](?:[ ./-]?[()]?[ ]?[0-9]){6,14}", 0, phone),
    ]
});

impl ScrubRule {
    /// Returns the part of a match that the rule accepts: all of it, or, for numbers in groups, all but the last few
    /// groups, which may belong to something else.
    pub fn accepted_range(&self, text: &str, mut at: Range<usize>) -> Option<Range<usize>> {
        loop {
            let value = &text[at.clone()];
            // Case-insensitive patterns also match some letters outside ASCII, which no number contains.
            let plain = value.is_ascii();
            if plain && stands_apart(text, &at) && (self.holds)(value, &text[..at.start]) {
                return Some(at);
            }
            let grouped =
                matches!(self.kind, PersonalDataKind::Card | PersonalDataKind::Iban | PersonalDataKind::Phone);
            let cut = value.rfind([' ', '-', '/', '.']).filter(|_| grouped)?;
            at.end = at.start + value[..cut].trim_end_matches(|c: char| !c.is_alphanumeric()).len();
            if at.is_empty() {
                return None;
            }
        }
    }
}

/// Returns true if a number is not part of a longer word or number, also across one dot or dash. Always true for
/// matches without digits.
pub(super) fn stands_apart(text: &str, at: &Range<usize>) -> bool {
    let joined = |side: &mut dyn Iterator<Item = char>| match side.next() {
        Some('.' | '-') => side.next().is_some_and(|c| c.is_ascii_digit()),
        other => other.is_some_and(word),
    };
    let numeric = text[at.clone()].bytes().any(|b| b.is_ascii_digit());
    !numeric || (!joined(&mut text[..at.start].chars().rev()) && !joined(&mut text[at.end..].chars()))
}
