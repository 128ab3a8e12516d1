//! Methods of texts, lists and dicts, as in Python.

use super::call_arguments::CallArguments;
use super::error::{TemplateError, TemplateResult};
use super::format::str_format;
use super::limits;
use super::loop_methods::call_jinja_method;
use super::strings::{is_printable, is_space, justify};
use super::value::{self, DictKey, PyValue};
use fancy_regex::Regex;
use std::sync::LazyLock;

/// Calls a bound method.
pub fn call(of: &PyValue, name: &str, args: CallArguments) -> TemplateResult<PyValue> {
    limits::spend_steps(1)?;
    match of {
        PyValue::Text(text) => {
            limits::spend_copy_steps(text.len())?;
            call_text_method(text, name, args)
        }
        // markupsafe escapes text that a method adds. Methods that only remove or change letters need no escaping.
        PyValue::Markup(text) => match (name, call_text_method(text, name, args)?) {
            ("strip" | "lstrip" | "rstrip" | "lower" | "upper" | "title" | "capitalize", PyValue::Text(done)) => {
                Ok(PyValue::Markup(done))
            }
            (_, done @ (PyValue::Int(_) | PyValue::Bool(_))) => Ok(done),
            (name, _) => {
                Err(TemplateError::unsupported(format!("the method '{name}' of text from `escape` or `safe`")))
            }
        },
        PyValue::Dict(dict) => match name {
            "get" => {
                let [key, default] = args.bind("get", ["", ""])?;
                let key = key.ok_or_else(|| TemplateError::python("get expected at least 1 argument, got 0"))?;
                let found = match &key {
                    PyValue::Undefined(_) => None,
                    key => dict.get(&DictKey::of(key.clone())?).cloned(),
                };
                Ok(found.or(default).unwrap_or(PyValue::None))
            }
            "copy" => {
                args.expect_none(name)?;
                Ok(of.clone())
            }
            "items" => args.expect_none(name).map(|()| PyValue::DictView("items", dict.clone())),
            "keys" => args.expect_none(name).map(|()| PyValue::DictView("keys", dict.clone())),
            _ => args.expect_none(name).map(|()| PyValue::DictView("values", dict.clone())),
        },
        PyValue::List(_) | PyValue::Tuple(_) | PyValue::GroupTuple(_) | PyValue::Range(..) => {
            if name == "copy" {
                args.expect_none(name)?;
                return Ok(of.clone());
            }
            let [wanted, from, to] = args.bind(name, ["", "", ""])?;
            let wanted =
                wanted.ok_or_else(|| TemplateError::python(format!("{name}() takes at least one argument")))?;
            if from.is_some() || to.is_some() {
                return Err(TemplateError::unsupported(format!("{name}() of a list with bounds")));
            }
            let mut found = Vec::new();
            for (i, item) in of.items()?.iter().enumerate() {
                if value::equal(item, &wanted)? {
                    found.push(i);
                }
            }
            match (name, found.first()) {
                ("count", _) => Ok(PyValue::Int(found.len() as i128)),
                (_, Some(first)) => Ok(PyValue::Int(*first as i128)),
                _ => Err(TemplateError::python(format!("{} is not in list", wanted.repr()?))),
            }
        }
        other => call_jinja_method(other, name, args),
    }
}

/// Returns an argument that must be text.
fn text_argument<'v>(function: &str, value: &'v Option<PyValue>) -> TemplateResult<&'v str> {
    let value = value.as_ref().ok_or_else(|| TemplateError::python(format!("{function}() needs an argument")))?;
    value
        .check_defined()?
        .as_str()
        .ok_or_else(|| TemplateError::python(format!("{function}() argument must be str, not {}", value.type_name())))
}

fn texts(parts: impl IntoIterator<Item = impl Into<String>>) -> TemplateResult<Vec<PyValue>> {
    parts.into_iter().map(PyValue::text).collect()
}

fn call_text_method(text: &str, name: &str, args: CallArguments) -> TemplateResult<PyValue> {
    match name {
        "upper" => args.expect_none(name).and_then(|()| PyValue::text(text.to_uppercase())),
        "lower" => args.expect_none(name).and_then(|()| PyValue::text(text.to_lowercase())),
        "capitalize" => args.expect_none(name).and_then(|()| PyValue::text(capitalize(text))),
        "title" => args.expect_none(name).and_then(|()| PyValue::text(title(text))),
        "swapcase" => args.expect_none(name).and_then(|()| PyValue::text(swapcase(text))),
        "casefold" => match text.is_ascii() {
            true => args.expect_none(name).and_then(|()| PyValue::text(text.to_ascii_lowercase())),
            false => Err(TemplateError::unsupported("casefold of text beyond ASCII")),
        },
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, [""])?;
            strip(text, name, chars.as_ref()).and_then(PyValue::text)
        }
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
            split(text, separator, most, name == "rsplit")
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            PyValue::list(texts(split_lines(text, keep.is_some_and(|k| k.is_truthy())))?)
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, [""])?;
            let separator = text_argument(name, &separator)?;
            if separator.is_empty() {
                return Err(TemplateError::python("empty separator"));
            }
            let parts = match (name, text.split_once(separator), text.rsplit_once(separator)) {
                ("partition", Some((a, b)), _) | ("rpartition", _, Some((a, b))) => [a, separator, b],
                ("partition", ..) => [text, "", ""],
                _ => ["", "", text],
            };
            PyValue::tuple(texts(parts)?)
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["", "", "count"])?;
            let count = count.map_or(Ok(-1), |c| c.expect_int("replace()"))?;
            replace(text, text_argument(name, &old)?, text_argument(name, &new)?, count)
        }
        "removeprefix" => {
            let [prefix] = args.bind(name, [""])?;
            let prefix = text_argument(name, &prefix)?;
            PyValue::text(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let [suffix] = args.bind(name, [""])?;
            let suffix = text_argument(name, &suffix)?;
            PyValue::text(text.strip_suffix(suffix).unwrap_or(text))
        }
        "startswith" | "endswith" => {
            let [wanted, from, to] = args.bind(name, ["", "", ""])?;
            let part = text_between(text, &from, &to)?;
            let matches = |v: &PyValue| -> TemplateResult<bool> {
                let wanted = text_argument(name, &Some(v.clone()))?.to_string();
                Ok(part.is_some_and(|p| {
                    if name == "startswith" { p.1.starts_with(&wanted) } else { p.1.ends_with(&wanted) }
                }))
            };
            match wanted.as_ref() {
                Some(PyValue::Tuple(several)) => {
                    for one in several.iter() {
                        if matches(one)? {
                            return Ok(PyValue::Bool(true));
                        }
                    }
                    Ok(PyValue::Bool(false))
                }
                Some(one) => matches(one).map(PyValue::Bool),
                None => Err(TemplateError::python(format!("{name}() takes at least 1 argument (0 given)"))),
            }
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, from, to] = args.bind(name, ["", "", ""])?;
            let wanted = text_argument(name, &wanted)?;
            let part = text_between(text, &from, &to)?;
            if name == "count" {
                let n =
                    part.map_or(
                        0,
                        |(_, p)| if wanted.is_empty() { p.chars().count() + 1 } else { p.matches(wanted).count() },
                    );
                return Ok(PyValue::Int(n as i128));
            }
            let found = part.and_then(|(before, p)| {
                let at = if name.starts_with('r') { p.rfind(wanted) } else { p.find(wanted) };
                at.map(|at| before + p[..at].chars().count())
            });
            match found {
                Some(at) => Ok(PyValue::Int(at as i128)),
                None if name.ends_with("find") => Ok(PyValue::Int(-1)),
                None => Err(TemplateError::python("substring not found")),
            }
        }
        "join" => {
            let [items] = args.bind(name, [""])?;
            let items = items.ok_or_else(|| TemplateError::python("join() takes exactly one argument (0 given)"))?;
            let items = items.check_defined()?.items()?;
            let mut parts = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                parts.push(item.as_str().ok_or_else(|| {
                    TemplateError::python(format!(
                        "sequence item {i}: expected str instance, {} found",
                        item.type_name()
                    ))
                })?);
            }
            limits::check_memory(parts.iter().map(|p| p.len() + text.len()).sum())?;
            PyValue::text(parts.join(text))
        }
        "ljust" | "rjust" | "center" => {
            let [width, fill] = args.bind(name, ["", ""])?;
            let width =
                width.ok_or_else(|| TemplateError::python(format!("{name}() needs a width")))?.expect_int(name)?;
            let fill = match &fill {
                None => ' ',
                some => {
                    let mut chars = text_argument(name, some)?.chars();
                    match (chars.next(), chars.next()) {
                        (Some(c), None) => c,
                        _ => {
                            return Err(TemplateError::python("The fill character must be exactly one character long"));
                        }
                    }
                }
            };
            PyValue::text(justify(text, width, fill, name)?)
        }
        "zfill" => {
            let [width] = args.bind(name, [""])?;
            let width = width
                .ok_or_else(|| TemplateError::python("zfill() takes exactly one argument (0 given)"))?
                .expect_int(name)?;
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(digits) => (&text[..1], digits),
                None => ("", text),
            };
            PyValue::text(format!("{sign}{}", justify(digits, width - sign.len() as i128, '0', "rjust")?))
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = size.map_or(Ok(8), |s| s.expect_int(name))?.clamp(0, 1 << 20) as usize;
            let (mut out, mut column) = (String::new(), 0);
            for c in text.chars() {
                match c {
                    '\t' if size > 0 => {
                        let n = size - column % size;
                        limits::check_memory(n)?;
                        out.extend(std::iter::repeat_n(' ', n));
                        column += n;
                    }
                    '\t' => {}
                    c => {
                        out.push(c);
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            PyValue::text(out)
        }
        "format" => str_format(text, args),
        "isascii" => args.expect_none(name).map(|()| PyValue::Bool(text.is_ascii())),
        "isspace" => args.expect_none(name).map(|()| PyValue::Bool(!text.is_empty() && text.chars().all(is_space))),
        "isprintable" => args.expect_none(name).map(|()| PyValue::Bool(text.chars().all(is_printable))),
        "isupper" | "islower" => args.expect_none(name).map(|()| PyValue::Bool(is_cased(text, name == "isupper"))),
        "istitle" => args.expect_none(name).map(|()| PyValue::Bool(is_title(text))),
        "isalpha" => all_chars(text, name, args, is_letter),
        "isdecimal" => all_chars(text, name, args, |c| Ok(is_decimal(c))),
        "isdigit" | "isnumeric" => all_chars(text, name, args, is_numeric),
        "isalnum" => all_chars(text, name, args, |c| Ok(is_letter(c)? || is_numeric(c)?)),
        name => Err(TemplateError::unsupported(format!("the method '{name}' of text"))),
    }
}

/// Returns whether `holds` is true for every character and there is one.
fn all_chars(
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

fn char_class(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|e| unreachable!("{pattern}: {e}"))
}

static LETTER: LazyLock<Regex> = LazyLock::new(|| char_class(r"^\p{L}$"));

static DECIMAL: LazyLock<Regex> = LazyLock::new(|| char_class(r"^\p{Nd}$"));

static OTHER_NUMBER: LazyLock<Regex> =
    LazyLock::new(|| char_class(r"^[\p{Nl}\p{No}〇一二三四五六七八九十百千万億兆]$"));

fn is_in_class(regex: &Regex, c: char) -> bool {
    regex.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false)
}

fn is_letter(c: char) -> TemplateResult<bool> {
    Ok(if c.is_ascii() { c.is_ascii_alphabetic() } else { is_in_class(&LETTER, c) })
}

fn is_decimal(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { is_in_class(&DECIMAL, c) }
}

/// Returns true for a decimal digit. Fails for other numbers (½, Ⅷ, ²): Python classifies them by tables that are not
/// here.
fn is_numeric(c: char) -> TemplateResult<bool> {
    if !c.is_ascii() && is_in_class(&OTHER_NUMBER, c) {
        return Err(TemplateError::unsupported(format!("whether {c:?} is a number")));
    }
    Ok(is_decimal(c))
}

fn is_cased_char(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || is_titlecase(c)
}

fn is_titlecase(c: char) -> bool {
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
fn is_title(text: &str) -> bool {
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
fn push_title(c: char, out: &mut String) {
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

fn title(text: &str) -> String {
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

fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() { out.extend(c.to_lowercase()) } else { out.extend(c.to_uppercase()) }
    }
    out
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
fn text_between<'t>(
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

fn split(text: &str, separator: Option<PyValue>, most: Option<PyValue>, from_end: bool) -> TemplateResult<PyValue> {
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
fn split_whitespace(text: &str, most: usize, from_end: bool) -> TemplateResult<PyValue> {
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
