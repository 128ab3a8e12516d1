//! Methods of texts, lists and dicts, as in Python.

mod characters;
mod parts;

use super::call_arguments::CallArguments;
use super::error::{TemplateError, TemplateResult};
use super::format::str_format;
use super::limits;
use super::loop_methods::call_jinja_method;
use super::strings::{is_printable, is_space, justify};
use super::value::{self, DictKey, PyValue};
use characters::{all_chars, is_decimal, is_letter, is_numeric, is_title, swapcase, title};
pub use characters::{capitalize, is_cased};
pub use parts::{replace, split_lines, strip};
use parts::{split, text_argument, text_between, texts};

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
