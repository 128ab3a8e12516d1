//! Jinja's filters: `value | name(arguments)`.

use super::arithmetic::{apply_binary, negative};
use super::attributes::{getattr, item_or_attribute};
use super::call_arguments::CallArguments;
use super::comparison::ordering;
use super::error::{TemplateError, TemplateResult};
use super::filter_names::UNSUPPORTED_FILTERS;
use super::strings::{self, is_space, justify};
use super::value::{self, PyValue};
use super::{format, is_tests, json, limits, methods};
use fancy_regex::Regex;
use std::cmp::Ordering;
use std::sync::LazyLock;

/// Returns `subject | name(args)`. Fails for an unknown or unsupported filter.
pub fn apply(name: &str, subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    limits::spend_steps(1)?;
    if let Some(text) = subject.as_str() {
        limits::spend_copy_steps(text.len())?;
    }
    match name {
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let replaced = subject.is_undefined() || boolean.is_some_and(|b| b.is_truthy()) && !subject.is_truthy();
            if replaced { default.map_or_else(|| PyValue::text(""), Ok) } else { Ok(subject) }
        }
        "tojson" => json::tojson(&subject, args),
        "length" | "count" => args.expect_none(name).and_then(|()| Ok(PyValue::Int(subject.length()? as i128))),
        "list" => args.expect_none(name).and_then(|()| PyValue::list(subject.items()?)),
        "string" => args.expect_none(name).and_then(|()| soft_str(&subject)),
        "upper" | "lower" | "capitalize" => {
            args.expect_none(name)?;
            let text = soft_str(&subject)?;
            methods::call(
                &text,
                if name == "upper" {
                    "upper"
                } else if name == "lower" {
                    "lower"
                } else {
                    "capitalize"
                },
                CallArguments::default(),
            )
        }
        "title" => {
            args.expect_none(name)?;
            let text = soft_str(&subject)?;
            let mut out = String::new();
            let mut first = true;
            for c in text.as_str().unwrap_or_default().chars() {
                let between = c == '-' || is_space(c) || matches!(c, '(' | '{' | '[' | '<');
                if between {
                    out.push(c);
                } else if first {
                    out.extend(c.to_uppercase());
                } else {
                    out.extend(c.to_lowercase());
                }
                first = between;
            }
            PyValue::text(out)
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            let text = soft_str(&subject)?;
            let done = methods::strip(text.as_str().unwrap_or_default(), "strip", chars.as_ref())?;
            text.same_markup(done)
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let part =
                |v: Option<PyValue>| v.ok_or_else(|| TemplateError::python("replace() needs two arguments"))?.py_str();
            let count = match count {
                None | Some(PyValue::None) => -1,
                Some(count) => count.expect_int("count")?,
            };
            methods::replace(&subject.py_str()?, &part(old)?, &part(new)?, count)
        }
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let width = width.map_or(Ok(80), |w| w.expect_int("width"))?;
            subject.same_markup(justify(&subject.py_str()?, width, ' ', "center")?)
        }
        "format" => {
            let pattern = subject.py_str()?;
            let values = match (args.positional.is_empty(), args.named.is_empty()) {
                (false, false) => {
                    return Err(TemplateError::python(
                        "can't handle positional and keyword arguments at the same time",
                    ));
                }
                (_, true) => PyValue::tuple(args.positional)?,
                _ => {
                    let pairs = args.named.into_iter().map(|(k, v)| Ok((value::DictKey::of(PyValue::text(k)?)?, v)));
                    PyValue::dict(pairs.collect::<TemplateResult<_>>()?)?
                }
            };
            format::percent_format(&pattern, &values)
        }
        "indent" => indent(subject, args),
        "truncate" => truncate(subject, args),
        "wordcount" => {
            args.expect_none(name)?;
            let text = subject.py_str()?;
            limits::spend_steps(text.len() as u64 / 8)?;
            Ok(PyValue::Int(WORD.find_iter(&text).count() as i128))
        }
        "escape" | "e" | "forceescape" => {
            args.expect_none(name)?;
            match &subject {
                PyValue::Markup(_) if name != "forceescape" => Ok(subject),
                other => PyValue::markup(strings::html_escaped(&other.py_str()?)?),
            }
        }
        "safe" => args.expect_none(name).and_then(|()| PyValue::markup(subject.py_str()?)),
        "urlencode" => args.expect_none(name).and_then(|()| urlencode(&subject)),
        "int" => int(subject, args),
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let found = match subject.check_defined()? {
                v if v.as_str().is_some() => v.as_str().and_then(strings::parse_float),
                v => v.as_float(),
            };
            Ok(found.map(PyValue::Float).or(default).unwrap_or(PyValue::Float(0.0)))
        }
        "abs" => {
            args.expect_none(name)?;
            match subject.check_defined()? {
                PyValue::Float(x) => Ok(PyValue::Float(x.abs())),
                PyValue::BigNumber(digits) => Ok(PyValue::BigNumber(digits.trim_start_matches('-').into())),
                v => match v.as_int() {
                    Some(n) if n < 0 => negative(&subject),
                    Some(n) => Ok(PyValue::Int(n)),
                    None => Err(TemplateError::python(format!("bad operand type for abs(): '{}'", v.type_name()))),
                },
            }
        }
        "round" => round(subject, args),
        "first" | "last" => {
            args.expect_none(name)?;
            first_or_last(&subject, name == "first")
        }
        "reverse" => {
            args.expect_none(name)?;
            if let Some(text) = subject.as_str() {
                return subject.same_markup(text.chars().rev().collect::<String>());
            }
            PyValue::generator(subject.items()?.into_iter().rev())
        }
        "items" => {
            args.expect_none(name)?;
            match &subject {
                PyValue::Undefined(_) => PyValue::generator([]),
                PyValue::Dict(dict) => PyValue::generator(value::item_tuples(dict)?),
                _ => Err(TemplateError::python("Can only get item pairs from a mapping.")),
            }
        }
        "attr" => {
            let [attribute] = args.bind(name, ["name"])?;
            let attribute = attribute.ok_or_else(|| TemplateError::python("attr() needs a name"))?.py_str()?;
            subject.check_defined()?;
            Ok(getattr(&subject, &attribute)?.unwrap_or_else(|| {
                PyValue::undefined(format!("'{}' object has no attribute '{attribute}'", subject.type_name()))
            }))
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"])?;
            let separator = separator.map_or(Ok(String::new()), |s| s.py_str())?;
            let path = AttributePath::of(attribute)?;
            let mut out = String::new();
            for (i, item) in subject.items()?.iter().enumerate() {
                if i > 0 {
                    out.push_str(&separator);
                }
                let part = path.get(item)?.py_str()?;
                limits::check_memory(part.len() + separator.len())?;
                limits::check_output_length(out.len() + part.len())?;
                out.push_str(&part);
            }
            PyValue::text(out)
        }
        "map" => map(subject, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, subject, args),
        "sort" => sort(subject, args),
        "unique" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let (case, path) = (case.is_some_and(|c| c.is_truthy()), AttributePath::of(attribute)?);
            let mut seen: Vec<PyValue> = Vec::new();
            let mut kept = Vec::new();
            'items: for item in subject.items()? {
                let key = case_key(path.get(&item)?, case)?;
                for other in &seen {
                    if value::equal(other, &key)? {
                        continue 'items;
                    }
                }
                if matches!(key, PyValue::List(_) | PyValue::Dict(_)) {
                    return Err(TemplateError::python(format!("unhashable type: '{}'", key.type_name())));
                }
                seen.push(key);
                kept.push(item);
            }
            PyValue::generator(kept)
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let (case, path) = (case.is_some_and(|c| c.is_truthy()), AttributePath::of(attribute)?);
            let mut best: Option<(PyValue, PyValue)> = None;
            for item in subject.items()? {
                let key = case_key(path.get(&item)?, case)?;
                let better = match &best {
                    None => true,
                    Some((old, _)) if name == "min" => ordering(&key, old, "<")? == Some(Ordering::Less),
                    Some((old, _)) => ordering(&key, old, ">")? == Some(Ordering::Greater),
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or_else(|| PyValue::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let path = AttributePath::of(attribute)?;
            let mut total = start.unwrap_or(PyValue::Int(0));
            if total.as_str().is_some() {
                return Err(TemplateError::python("sum() can't sum strings [use ''.join(seq) instead]"));
            }
            for item in subject.items()? {
                total = apply_binary(super::ast::BinaryOperator::Add, &total, &path.get(&item)?)?;
            }
            Ok(total)
        }
        "groupby" => groupby(subject, args),
        "dictsort" => dictsort(subject, args),
        "batch" => {
            let [size, fill] = args.bind(name, ["linecount", "fill_with"])?;
            let size = positive_count(size, name)?;
            let mut rows = Vec::new();
            for chunk in subject.items()?.chunks(size) {
                let mut row = chunk.to_vec();
                if let Some(fill) = fill.as_ref().filter(|f| !matches!(f, PyValue::None)) {
                    limits::check_memory_for(size, size_of::<PyValue>())?;
                    row.resize(size, fill.clone());
                }
                rows.push(PyValue::list(row)?);
            }
            PyValue::generator(rows)
        }
        "slice" => {
            let [slices, fill] = args.bind(name, ["slices", "fill_with"])?;
            let (slices, items) = (positive_count(slices, name)?, subject.items()?);
            limits::check_memory_for(slices, size_of::<PyValue>() * 4)?;
            let (each, more) = (items.len() / slices, items.len() % slices);
            let (mut rows, mut at) = (Vec::new(), 0);
            for i in 0..slices {
                let length = each + usize::from(i < more);
                let mut row = items[at..at + length].to_vec();
                at += length;
                if let Some(fill) = fill.as_ref().filter(|f| !matches!(f, PyValue::None) && i >= more) {
                    row.push(fill.clone());
                }
                rows.push(PyValue::list(row)?);
            }
            PyValue::generator(rows)
        }
        name if UNSUPPORTED_FILTERS.contains(&name) => Err(TemplateError::unsupported(format!("the filter '{name}'"))),
        name => Err(TemplateError::python(format!("No filter named '{name}'."))),
    }
}

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\w+").unwrap_or_else(|e| unreachable!("{e}")));

/// Converts to text; text and escaped text stay as they are (markupsafe's `soft_str`).
fn soft_str(value: &PyValue) -> TemplateResult<PyValue> {
    match value {
        PyValue::Text(_) | PyValue::Markup(_) => Ok(value.clone()),
        other => PyValue::text(other.py_str()?),
    }
}

/// Returns the count that `batch` and `slice` take: an integer above 0.
fn positive_count(value: Option<PyValue>, name: &str) -> TemplateResult<usize> {
    let n = value.ok_or_else(|| TemplateError::python(format!("{name}() needs a number")))?.expect_int(name)?;
    usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| TemplateError::unsupported(format!("{name}({n})")))
}

fn urlencode(value: &PyValue) -> TemplateResult<PyValue> {
    fn quoted(text: &str, safe: &str) -> String {
        let mut out = String::new();
        for byte in text.bytes() {
            let c = char::from(byte);
            match c {
                c if c.is_ascii_alphanumeric() || "_.-~".contains(c) || c.is_ascii() && safe.contains(c) => out.push(c),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    }
    let pairs = match value {
        PyValue::Dict(dict) => value::item_tuples(dict)?,
        PyValue::List(_) | PyValue::Tuple(_) | PyValue::DictView(..) => value.items()?,
        PyValue::Undefined(_) => Vec::new(),
        other => {
            let text = other.py_str()?;
            limits::check_memory_for(text.len(), 3)?;
            return PyValue::text(quoted(&text, "/"));
        }
    };
    let mut parts = Vec::new();
    for pair in pairs {
        match pair.items()?.as_slice() {
            [key, value] => {
                // In a query string, a space becomes a plus sign.
                let quote = |v: &PyValue| Ok(quoted(&v.py_str()?, " ").replace(' ', "+"));
                parts.push(format!("{}={}", quote(key)?, quote(value)?));
            }
            _ => return Err(TemplateError::python("urlencode needs pairs")),
        }
    }
    PyValue::text(parts.join("&"))
}

fn indent(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let flag = |v: Option<PyValue>| v.is_some_and(|v| v.is_truthy());
    let (first, blank) = (flag(first), flag(blank));
    let margin = match &width {
        None => "    ".to_string(),
        Some(v) => match v.as_str() {
            Some(text) => text.to_string(),
            None => {
                let width = usize::try_from(v.expect_int("width")?.max(0)).unwrap_or(usize::MAX);
                limits::check_memory(width)?;
                " ".repeat(width)
            }
        },
    };
    // As jinja2: with a line end added, so that a text that ends in one has an empty last line.
    let text = format!("{}\n", subject.py_str()?);
    limits::check_memory_for(text.matches('\n').count() + 1, margin.len())?;
    let lines = methods::split_lines(&text, false);
    let mut out = String::new();
    if first {
        out.push_str(&margin);
    }
    if blank {
        out.push_str(&lines.join(&format!("\n{margin}")));
    } else {
        for (i, line) in lines.iter().enumerate() {
            if i > 0 {
                out.push('\n');
                if !line.is_empty() {
                    out.push_str(&margin);
                }
            }
            out.push_str(line);
        }
    }
    subject.same_markup(out)
}

fn truncate(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), |l| l.expect_int("length"))?;
    let end = match end {
        Some(end) if end.as_str().is_some() => end,
        other => PyValue::text(other.map_or(Ok("...".to_string()), |e| e.py_str())?)?,
    };
    let leeway = match leeway {
        None | Some(PyValue::None) => 5,
        Some(leeway) => leeway.expect_int("leeway")?,
    };
    let end_length = end.length()? as i128;
    if length < end_length || leeway < 0 {
        return Err(TemplateError::python(format!("expected length >= {end_length}, got {length}")));
    }
    let text = subject.py_str()?;
    if text.chars().count() as i128 <= length + leeway {
        return subject.same_markup(text);
    }
    let cut: String = text.chars().take((length - end_length) as usize).collect();
    let words = cut.rsplit_once(' ').filter(|_| !kill.is_some_and(|k| k.is_truthy())).map_or(cut.as_str(), |(w, _)| w);
    super::arithmetic::apply_binary(super::ast::BinaryOperator::Add, &subject.same_markup(words)?, &end)
}

fn int(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let base = base.map_or(Ok(10), |b| b.expect_int("base"))?;
    if !matches!(base, 2 | 8 | 10 | 16) {
        return Err(TemplateError::unsupported(format!("int of base {base}")));
    }
    let whole = |x: f64| -> TemplateResult<Option<i128>> {
        if !x.is_finite() {
            return Ok(None);
        }
        if x.abs() >= 1e38 {
            return Err(TemplateError::unsupported("an integer beyond 128 bits"));
        }
        Ok(Some(x.trunc() as i128))
    };
    let found = match subject.check_defined()? {
        PyValue::BigNumber(_) => return Ok(subject),
        PyValue::Float(x) => whole(*x)?,
        v => match v.as_str() {
            Some(text) => match strings::parse_int(text, base as u32) {
                Some(n) => Some(n),
                None => strings::parse_float(text).map_or(Ok(None), whole)?,
            },
            None => v.as_int(),
        },
    };
    Ok(found.map(PyValue::Int).or(default).unwrap_or(PyValue::Int(0)))
}

fn round(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.map_or(Ok(0), |p| p.expect_int("precision"))?;
    let method = method.map_or(Ok("common".to_string()), |m| m.py_str())?;
    if !matches!(method.as_str(), "common" | "ceil" | "floor") {
        return Err(TemplateError::python("method must be common, ceil or floor"));
    }
    let number = subject.check_defined()?.as_float();
    let x = number.ok_or_else(|| {
        TemplateError::python(format!("type {} doesn't define __round__ method", subject.type_name()))
    })?;
    if !(0..=300).contains(&precision) {
        return Err(TemplateError::unsupported(format!("round to {precision} digits")));
    }
    match (method.as_str(), &subject) {
        ("common", PyValue::Float(_)) if x.is_finite() => {
            // The exact decimal digits of the float, rounded half to even, as Python does.
            format!("{x:.*}", precision as usize)
                .parse()
                .map(PyValue::Float)
                .map_err(|_| TemplateError::python("round"))
        }
        ("common", PyValue::Bool(b)) => Ok(PyValue::Int((*b).into())),
        ("common", _) => Ok(subject),
        (method, _) => {
            let power = 10f64.powi(precision as i32);
            let scaled = x * power;
            Ok(PyValue::Float(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / power))
        }
    }
}

/// The filters `first` and `last`.
fn first_or_last(subject: &PyValue, first: bool) -> TemplateResult<PyValue> {
    let none = || PyValue::undefined(format!("No {} item, sequence was empty.", if first { "first" } else { "last" }));
    if let Some(text) = subject.as_str() {
        // As in Python: iterating over `Markup` gives plain text, taking its last item gives `Markup`.
        let c = if first {
            text.chars().next().map(PyValue::text)
        } else {
            text.chars().next_back().map(|c| subject.same_markup(c))
        };
        return c.unwrap_or_else(|| Ok(none()));
    }
    if let PyValue::Generator(stream) = subject {
        if first {
            return Ok(stream.borrow_mut().pop_front().unwrap_or_else(none));
        }
        return Err(TemplateError::python("'generator' object is not reversible"));
    }
    let items = subject.items()?;
    Ok(if first { items.first() } else { items.last() }.cloned().unwrap_or_else(none))
}

/// The attribute argument of a filter: a path such as `a.b.0`, or an index. Empty: the item itself.
struct AttributePath(Vec<PyValue>);

impl AttributePath {
    fn of(attribute: Option<PyValue>) -> TemplateResult<Self> {
        Ok(Self(match attribute {
            None | Some(PyValue::None) => Vec::new(),
            Some(PyValue::Int(n)) => vec![PyValue::Int(n)],
            Some(name) => match name.as_str() {
                Some(text) => Self::parts(text)?,
                None => return Err(TemplateError::python("an attribute is named by text or a number")),
            },
        }))
    }

    fn parts(text: &str) -> TemplateResult<Vec<PyValue>> {
        let part = |p: &str| match p.parse::<i128>() {
            Ok(n) if p.bytes().all(|b| b.is_ascii_digit()) => Ok(PyValue::Int(n)),
            _ => PyValue::text(p),
        };
        text.split('.').map(part).collect()
    }

    fn get(&self, item: &PyValue) -> TemplateResult<PyValue> {
        self.get_or(item, None)
    }

    /// Looks the path up in `item`; `default` replaces an undefined value at each step.
    fn get_or(&self, item: &PyValue, default: Option<&PyValue>) -> TemplateResult<PyValue> {
        let mut value = item.clone();
        for part in &self.0 {
            value = item_or_attribute(&value, part)?;
            if let (PyValue::Undefined(_), Some(default)) = (&value, default) {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

/// Returns the key that a value is compared by: a text in lower case, unless the comparison is case-sensitive.
fn case_key(value: PyValue, case_sensitive: bool) -> TemplateResult<PyValue> {
    match value.as_str() {
        Some(text) if !case_sensitive => PyValue::text(text.to_lowercase()),
        _ => Ok(value),
    }
}

fn map(subject: PyValue, mut args: CallArguments) -> TemplateResult<PyValue> {
    // As jinja2: an empty or undefined subject gives no items and no error, whatever the arguments are. So do the
    // filters `select` and `reject` below.
    if !subject.is_truthy() {
        return PyValue::generator(Vec::new());
    }
    if args.positional.is_empty() && args.named.iter().any(|(n, _)| n == "attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let path = AttributePath::of(attribute)?;
        let default = default.filter(|d| !matches!(d, PyValue::None));
        let mapped =
            subject.items()?.iter().map(|i| path.get_or(i, default.as_ref())).collect::<TemplateResult<Vec<_>>>()?;
        return PyValue::generator(mapped);
    }
    if args.positional.is_empty() {
        return Err(TemplateError::python("map requires a filter argument"));
    }
    let name = args.positional.remove(0).py_str()?;
    let mut mapped = Vec::new();
    for item in subject.items()? {
        let args = CallArguments { positional: args.positional.clone(), named: args.named.clone() };
        mapped.push(apply(&name, item, args)?);
    }
    PyValue::generator(mapped)
}

/// The filters `select`, `reject`, `selectattr` and `rejectattr`.
fn select(name: &str, subject: PyValue, mut args: CallArguments) -> TemplateResult<PyValue> {
    if !subject.is_truthy() {
        return PyValue::generator(Vec::new());
    }
    let path = match name.ends_with("attr") {
        true if args.positional.is_empty() => {
            return Err(TemplateError::python("Missing parameter for attribute name"));
        }
        true => AttributePath::of(Some(args.positional.remove(0)))?,
        false => AttributePath(Vec::new()),
    };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0).py_str()?) };
    let mut kept = Vec::new();
    for item in subject.items()? {
        let value = path.get(&item)?;
        let holds = match &test {
            None => value.is_truthy(),
            Some(test) => {
                let args = CallArguments { positional: args.positional.clone(), named: args.named.clone() };
                is_tests::test_holds(test, &value, args)?
            }
        };
        if holds == name.starts_with("select") {
            kept.push(item);
        }
    }
    PyValue::generator(kept)
}

/// Sorts the items by their keys, stable also in reverse. Fails if two keys cannot be compared.
fn sort_by_keys(mut keyed: Vec<(Vec<PyValue>, PyValue)>, reverse: bool) -> TemplateResult<Vec<PyValue>> {
    let mut fault = None;
    limits::spend_steps(keyed.len() as u64 * 4)?;
    keyed.sort_by(|a, b| {
        for (a, b) in a.0.iter().zip(&b.0) {
            let order = match value::equal(a, b) {
                Ok(true) => continue,
                Ok(false) => ordering(a, b, "<"),
                Err(e) => Err(e),
            };
            match order {
                Ok(order) => {
                    let order = order.unwrap_or(Ordering::Equal);
                    return if reverse { order.reverse() } else { order };
                }
                Err(e) => {
                    fault.get_or_insert(e);
                    return Ordering::Equal;
                }
            }
        }
        Ordering::Equal
    });
    match fault {
        Some(fault) => Err(fault),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn sort(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [reverse, case, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    let flag = |v: Option<PyValue>| v.is_some_and(|v| v.is_truthy());
    let (reverse, case) = (flag(reverse), flag(case));
    let paths = match attribute.as_ref().and_then(PyValue::as_str) {
        Some(several) => several
            .split(',')
            .map(|p| AttributePath::parts(p).map(AttributePath))
            .collect::<TemplateResult<Vec<_>>>()?,
        None => vec![AttributePath::of(attribute)?],
    };
    let mut keyed = Vec::new();
    for item in subject.items()? {
        let keys = paths.iter().map(|p| case_key(p.get(&item)?, case)).collect::<TemplateResult<Vec<_>>>()?;
        keyed.push((keys, item));
    }
    PyValue::list(sort_by_keys(keyed, reverse)?)
}

fn groupby(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [attribute, default, case] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let case = case.is_some_and(|c| c.is_truthy());
    let path = AttributePath::of(attribute)?;
    let default = default.filter(|d| !matches!(d, PyValue::None));
    let mut keyed = Vec::new();
    for item in subject.items()? {
        let key = path.get_or(&item, default.as_ref())?;
        keyed.push((vec![case_key(key.clone(), case)?], PyValue::tuple(vec![key, item])?));
    }
    let mut groups: Vec<(PyValue, Vec<PyValue>)> = Vec::new();
    for pair in sort_by_keys(keyed, false)? {
        let Some([key, item]) = pair.as_slice() else { continue };
        let folded_key = case_key(key.clone(), case)?;
        match groups.last_mut() {
            Some((last, items)) if value::equal(&case_key(last.clone(), case)?, &folded_key)? => {
                items.push(item.clone())
            }
            _ => groups.push((key.clone(), vec![item.clone()])),
        }
    }
    let mut out = Vec::new();
    for (key, items) in groups {
        match PyValue::tuple(vec![key, PyValue::list(items)?])? {
            PyValue::Tuple(parts) => out.push(PyValue::GroupTuple(parts)),
            other => out.push(other),
        }
    }
    PyValue::list(out)
}

fn dictsort(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [case, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let flag = |v: Option<PyValue>| v.is_some_and(|v| v.is_truthy());
    let (case, reverse) = (flag(case), flag(reverse));
    let by_value = match by.as_ref().map(PyValue::as_str) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(TemplateError::python("You can only sort by either \"key\" or \"value\"")),
    };
    let PyValue::Dict(dict) = &subject else {
        return Err(TemplateError::python(format!("'{}' object has no attribute 'items'", subject.type_name())));
    };
    let mut keyed = Vec::new();
    for (key, value) in dict.iter() {
        let by = if by_value { value.clone() } else { key.0.clone() };
        keyed.push((vec![case_key(by, case)?], PyValue::tuple(vec![key.0.clone(), value.clone()])?));
    }
    PyValue::list(sort_by_keys(keyed, reverse)?)
}

#[cfg(test)]
mod tests {
    use crate::jinja::JinjaTemplate;

    /// The results are jinja2's (3.1.6).
    #[test]
    fn escaped_text_stays_escaped_as_in_python_and_a_group_can_be_repeated() {
        for (expression, expected) in [
            ("('a'|escape)[0] + '<'", "a&lt;"),
            ("('a'|escape)|last + '<'", "a&lt;"),
            ("('a'|escape)|first + '<'", "a<"),
            ("('ab'|escape)|reverse + '<'", "ba&lt;"),
            ("('a'|escape)|center(3) + '<'", " a &lt;"),
            ("('a\nb'|escape)|indent(2) + '<'", "a\n  b&lt;"),
            ("('aaa bbb ccc'|escape)|truncate(300) + '<'", "aaa bbb ccc&lt;"),
            ("('aaa bbb ccc'|escape)|truncate(9, true, '', 0) + '<'", "aaa bbb c&lt;"),
            ("('aaa bbb ccc ddd eee'|escape)|truncate(9, false, '<', 0)", "aaa bbb&lt;"),
            ("('aaa bbb ccc ddd eee'|escape)|truncate(9, true, '<'|safe, 0)", "aaa bbb <"),
            ("'aaa bbb ccc ddd eee'|truncate(9, true, '<'|escape, 0)", "aaa b&lt;"),
            ("'aaa bbb ccc ddd eee'|truncate(9, false, '<', 0)", "aaa bbb<"),
            ("[{'k': 1}]|groupby('k')|first * 2", "(1, [{'k': 1}], 1, [{'k': 1}])"),
            ("2 * ([{'k': 1}]|groupby('k')|first)", "(1, [{'k': 1}], 1, [{'k': 1}])"),
        ] {
            let template = JinjaTemplate::compile(&format!("{{{{ {expression} }}}}")).unwrap();
            let found =
                template.render(&serde_json::Map::new(), jiff::civil::DateTime::constant(2026, 1, 1, 0, 0, 0, 0));
            assert_eq!(found.unwrap(), expected, "{expression}");
        }
    }
}
