//! Jinja's filters: `value | name(arguments)`.

use super::fault::Fault;
use super::run::{self, Args, Run};
use super::strings::{self, is_space};
use super::value::{self, Result, Value};
use super::{format, json, limits, methods, tests_of_values};
use fancy_regex::Regex;
use std::cmp::Ordering;
use std::sync::LazyLock;

/// The supported filters. The next constant continues the list.
const NAMES: [&str; 45] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
];
const MORE_NAMES: [&str; 2] = ["urlencode", "wordcount"];
/// Filters of jinja2 that end in an error.
const UNSUPPORTED: [&str; 7] = ["filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"];

/// Returns true if jinja2 has a filter of this name, supported here or not.
pub fn exists(name: &str) -> bool {
    NAMES.contains(&name) || MORE_NAMES.contains(&name) || UNSUPPORTED.contains(&name)
}

/// Returns `subject | name(args)`. Fails for an unknown or unsupported filter.
pub fn apply(run: &mut Run, name: &str, subject: Value, args: Args) -> Result<Value> {
    limits::spend(1)?;
    if let Some(text) = subject.as_str() {
        limits::spend_bytes(text.len())?;
    }
    match name {
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let replaced = subject.is_undefined() || boolean.is_some_and(|b| b.truth()) && !subject.truth();
            if replaced { default.map_or_else(|| Value::text(""), Ok) } else { Ok(subject) }
        }
        "tojson" => json::filter(&subject, args),
        "length" | "count" => args.none(name).and_then(|()| Ok(Value::Int(subject.length()? as i128))),
        "list" => args.none(name).and_then(|()| Value::list(subject.items()?)),
        "string" => args.none(name).and_then(|()| soft(&subject)),
        "upper" | "lower" | "capitalize" => {
            args.none(name)?;
            let text = soft(&subject)?;
            methods::call(
                &text,
                if name == "upper" {
                    "upper"
                } else if name == "lower" {
                    "lower"
                } else {
                    "capitalize"
                },
                Args::default(),
            )
        }
        "title" => {
            args.none(name)?;
            let text = soft(&subject)?;
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
            Value::text(out)
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            let text = soft(&subject)?;
            let done = methods::strip(text.as_str().unwrap_or_default(), "strip", chars.as_ref())?;
            if matches!(text, Value::Markup(_)) { Value::markup(done) } else { Value::text(done) }
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let part = |v: Option<Value>| v.ok_or_else(|| Fault::python("replace() needs two arguments"))?.print();
            let count = match count {
                None | Some(Value::None) => -1,
                Some(count) => count.int("count")?,
            };
            methods::replace(&subject.print()?, &part(old)?, &part(new)?, count)
        }
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let width = width.map_or(Ok(80), |w| w.int("width"))?;
            Value::text(methods::justify(&subject.print()?, width, ' ', "center")?)
        }
        "format" => {
            let pattern = subject.print()?;
            let values = match (args.positional.is_empty(), args.named.is_empty()) {
                (false, false) => {
                    return Err(Fault::python("can't handle positional and keyword arguments at the same time"));
                }
                (_, true) => Value::tuple(args.positional)?,
                _ => {
                    let pairs = args.named.into_iter().map(|(k, v)| Ok((value::Key::of(Value::text(k)?)?, v)));
                    Value::dict(pairs.collect::<Result<_>>()?)?
                }
            };
            format::percent(&pattern, &values)
        }
        "indent" => indent(subject, args),
        "truncate" => truncate(subject, args),
        "wordcount" => {
            args.none(name)?;
            let text = subject.print()?;
            limits::spend(text.len() as u64 / 8)?;
            Ok(Value::Int(WORD.find_iter(&text).count() as i128))
        }
        "escape" | "e" | "forceescape" => {
            args.none(name)?;
            match &subject {
                Value::Markup(_) if name != "forceescape" => Ok(subject),
                other => Value::markup(strings::escaped(&other.print()?)?),
            }
        }
        "safe" => args.none(name).and_then(|()| Value::markup(subject.print()?)),
        "urlencode" => args.none(name).and_then(|()| urlencode(&subject)),
        "int" => int(subject, args),
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let found = match subject.defined()? {
                v if v.as_str().is_some() => v.as_str().and_then(strings::parse_float),
                v => v.as_float(),
            };
            Ok(found.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
        "abs" => {
            args.none(name)?;
            match subject.defined()? {
                Value::Float(x) => Ok(Value::Float(x.abs())),
                Value::Long(digits) => Ok(Value::Long(digits.trim_start_matches('-').into())),
                v => match v.as_int() {
                    Some(n) if n < 0 => value::negative(&subject),
                    Some(n) => Ok(Value::Int(n)),
                    None => Err(Fault::python(format!("bad operand type for abs(): '{}'", v.type_name()))),
                },
            }
        }
        "round" => round(subject, args),
        "first" | "last" => {
            args.none(name)?;
            edge(&subject, name == "first")
        }
        "reverse" => {
            args.none(name)?;
            if let Some(text) = subject.as_str() {
                return Value::text(text.chars().rev().collect::<String>());
            }
            Value::stream(subject.items()?.into_iter().rev())
        }
        "items" => {
            args.none(name)?;
            match &subject {
                Value::Undefined(_) => Value::stream([]),
                Value::Dict(dict) => Value::stream(value::pairs(dict)?),
                _ => Err(Fault::python("Can only get item pairs from a mapping.")),
            }
        }
        "attr" => {
            let [attribute] = args.bind(name, ["name"])?;
            let attribute = attribute.ok_or_else(|| Fault::python("attr() needs a name"))?.print()?;
            subject.defined()?;
            Ok(run::own_attribute(&subject, &attribute)?.unwrap_or_else(|| {
                Value::undefined(format!("'{}' object has no attribute '{attribute}'", subject.type_name()))
            }))
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"])?;
            let separator = separator.map_or(Ok(String::new()), |s| s.print())?;
            let path = Path::of(attribute)?;
            let mut out = String::new();
            for (i, item) in subject.items()?.iter().enumerate() {
                if i > 0 {
                    out.push_str(&separator);
                }
                let part = path.get(item)?.print()?;
                limits::room(part.len() + separator.len())?;
                limits::check_length(out.len() + part.len())?;
                out.push_str(&part);
            }
            Value::text(out)
        }
        "map" => map(run, subject, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, subject, args),
        "sort" => sort(subject, args),
        "unique" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let (case, path) = (case.is_some_and(|c| c.truth()), Path::of(attribute)?);
            let mut seen: Vec<Value> = Vec::new();
            let mut kept = Vec::new();
            'items: for item in subject.items()? {
                let key = folded(path.get(&item)?, case)?;
                for other in &seen {
                    if value::equal(other, &key)? {
                        continue 'items;
                    }
                }
                if matches!(key, Value::List(_) | Value::Dict(_)) {
                    return Err(Fault::python(format!("unhashable type: '{}'", key.type_name())));
                }
                seen.push(key);
                kept.push(item);
            }
            Value::stream(kept)
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let (case, path) = (case.is_some_and(|c| c.truth()), Path::of(attribute)?);
            let mut best: Option<(Value, Value)> = None;
            for item in subject.items()? {
                let key = folded(path.get(&item)?, case)?;
                let better = match &best {
                    None => true,
                    Some((old, _)) if name == "min" => value::order(&key, old, "<")? == Some(Ordering::Less),
                    Some((old, _)) => value::order(&key, old, ">")? == Some(Ordering::Greater),
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let path = Path::of(attribute)?;
            let mut total = start.unwrap_or(Value::Int(0));
            if total.as_str().is_some() {
                return Err(Fault::python("sum() can't sum strings [use ''.join(seq) instead]"));
            }
            for item in subject.items()? {
                total = value::binary(super::tree::Binary::Add, &total, &path.get(&item)?)?;
            }
            Ok(total)
        }
        "groupby" => groupby(subject, args),
        "dictsort" => dictsort(subject, args),
        "batch" => {
            let [size, fill] = args.bind(name, ["linecount", "fill_with"])?;
            let size = count(size, name)?;
            let mut rows = Vec::new();
            for chunk in subject.items()?.chunks(size) {
                let mut row = chunk.to_vec();
                if let Some(fill) = fill.as_ref().filter(|f| !matches!(f, Value::None)) {
                    limits::room_for(size, size_of::<Value>())?;
                    row.resize(size, fill.clone());
                }
                rows.push(Value::list(row)?);
            }
            Value::stream(rows)
        }
        "slice" => {
            let [slices, fill] = args.bind(name, ["slices", "fill_with"])?;
            let (slices, items) = (count(slices, name)?, subject.items()?);
            limits::room_for(slices, size_of::<Value>() * 4)?;
            let (each, more) = (items.len() / slices, items.len() % slices);
            let (mut rows, mut at) = (Vec::new(), 0);
            for i in 0..slices {
                let length = each + usize::from(i < more);
                let mut row = items[at..at + length].to_vec();
                at += length;
                if let Some(fill) = fill.as_ref().filter(|f| !matches!(f, Value::None) && i >= more) {
                    row.push(fill.clone());
                }
                rows.push(Value::list(row)?);
            }
            Value::stream(rows)
        }
        name if UNSUPPORTED.contains(&name) => Err(Fault::unsupported(format!("the filter '{name}'"))),
        name => Err(Fault::python(format!("No filter named '{name}'."))),
    }
}

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\w+").unwrap_or_else(|e| unreachable!("{e}")));

/// Converts to text; text and escaped text stay as they are (markupsafe's `soft_str`).
fn soft(value: &Value) -> Result<Value> {
    match value {
        Value::Text(_) | Value::Markup(_) => Ok(value.clone()),
        other => Value::text(other.print()?),
    }
}

/// Returns the count that `batch` and `slice` take: an integer above 0.
fn count(value: Option<Value>, name: &str) -> Result<usize> {
    let n = value.ok_or_else(|| Fault::python(format!("{name}() needs a number")))?.int(name)?;
    usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| Fault::unsupported(format!("{name}({n})")))
}

fn urlencode(value: &Value) -> Result<Value> {
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
        Value::Dict(dict) => value::pairs(dict)?,
        Value::List(_) | Value::Tuple(_) | Value::View(..) => value.items()?,
        Value::Undefined(_) => Vec::new(),
        other => {
            let text = other.print()?;
            limits::room_for(text.len(), 3)?;
            return Value::text(quoted(&text, "/"));
        }
    };
    let mut parts = Vec::new();
    for pair in pairs {
        match pair.items()?.as_slice() {
            [key, value] => {
                // In a query string, a space becomes a plus sign.
                let quote = |v: &Value| Ok(quoted(&v.print()?, " ").replace(' ', "+"));
                parts.push(format!("{}={}", quote(key)?, quote(value)?));
            }
            _ => return Err(Fault::python("urlencode needs pairs")),
        }
    }
    Value::text(parts.join("&"))
}

fn indent(subject: Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let flag = |v: Option<Value>| v.is_some_and(|v| v.truth());
    let (first, blank) = (flag(first), flag(blank));
    let margin = match &width {
        None => "    ".to_string(),
        Some(v) => match v.as_str() {
            Some(text) => text.to_string(),
            None => {
                let width = usize::try_from(v.int("width")?.max(0)).unwrap_or(usize::MAX);
                limits::room(width)?;
                " ".repeat(width)
            }
        },
    };
    // As jinja2: with a line end added, so that a text that ends in one has an empty last line.
    let text = format!("{}\n", subject.print()?);
    limits::room_for(text.matches('\n').count() + 1, margin.len())?;
    let lines = methods::lines(&text, false);
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
    Value::text(out)
}

fn truncate(subject: Value, args: Args) -> Result<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), |l| l.int("length"))?;
    let end = end.map_or(Ok("...".to_string()), |e| e.print())?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => leeway.int("leeway")?,
    };
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return Err(Fault::python(format!("expected length >= {end_length}, got {length}")));
    }
    let text = subject.print()?;
    if text.chars().count() as i128 <= length + leeway {
        return Value::text(text);
    }
    let cut: String = text.chars().take((length - end_length) as usize).collect();
    if kill.is_some_and(|k| k.truth()) {
        return Value::text(cut + &end);
    }
    Value::text(cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words).to_string() + &end)
}

fn int(subject: Value, args: Args) -> Result<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let base = base.map_or(Ok(10), |b| b.int("base"))?;
    if !matches!(base, 2 | 8 | 10 | 16) {
        return Err(Fault::unsupported(format!("int of base {base}")));
    }
    let whole = |x: f64| -> Result<Option<i128>> {
        if !x.is_finite() {
            return Ok(None);
        }
        if x.abs() >= 1e38 {
            return Err(Fault::unsupported("an integer beyond 128 bits"));
        }
        Ok(Some(x.trunc() as i128))
    };
    let found = match subject.defined()? {
        Value::Long(_) => return Ok(subject),
        Value::Float(x) => whole(*x)?,
        v => match v.as_str() {
            Some(text) => match strings::parse_int(text, base as u32) {
                Some(n) => Some(n),
                None => strings::parse_float(text).map_or(Ok(None), whole)?,
            },
            None => v.as_int(),
        },
    };
    Ok(found.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
}

fn round(subject: Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.map_or(Ok(0), |p| p.int("precision"))?;
    let method = method.map_or(Ok("common".to_string()), |m| m.print())?;
    if !matches!(method.as_str(), "common" | "ceil" | "floor") {
        return Err(Fault::python("method must be common, ceil or floor"));
    }
    let number = subject.defined()?.as_float();
    let x =
        number.ok_or_else(|| Fault::python(format!("type {} doesn't define __round__ method", subject.type_name())))?;
    if !(0..=300).contains(&precision) {
        return Err(Fault::unsupported(format!("round to {precision} digits")));
    }
    match (method.as_str(), &subject) {
        ("common", Value::Float(_)) if x.is_finite() => {
            // The exact decimal digits of the float, rounded half to even, as Python does.
            format!("{x:.*}", precision as usize).parse().map(Value::Float).map_err(|_| Fault::python("round"))
        }
        ("common", Value::Bool(b)) => Ok(Value::Int((*b).into())),
        ("common", _) => Ok(subject),
        (method, _) => {
            let power = 10f64.powi(precision as i32);
            let scaled = x * power;
            Ok(Value::Float(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / power))
        }
    }
}

/// The filters `first` and `last`.
fn edge(subject: &Value, first: bool) -> Result<Value> {
    let none = || Value::undefined(format!("No {} item, sequence was empty.", if first { "first" } else { "last" }));
    if let Some(text) = subject.as_str() {
        let c = if first { text.chars().next() } else { text.chars().next_back() };
        return c.map_or_else(|| Ok(none()), Value::text);
    }
    if let Value::Stream(stream) = subject {
        if first {
            return Ok(stream.borrow_mut().pop_front().unwrap_or_else(none));
        }
        return Err(Fault::python("'generator' object is not reversible"));
    }
    let items = subject.items()?;
    Ok(if first { items.first() } else { items.last() }.cloned().unwrap_or_else(none))
}

/// The attribute argument of a filter: a path such as `a.b.0`, or an index. Empty: the item itself.
struct Path(Vec<Value>);

impl Path {
    fn of(attribute: Option<Value>) -> Result<Self> {
        Ok(Self(match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Int(n)) => vec![Value::Int(n)],
            Some(name) => match name.as_str() {
                Some(text) => Self::parts(text)?,
                None => return Err(Fault::python("an attribute is named by text or a number")),
            },
        }))
    }

    fn parts(text: &str) -> Result<Vec<Value>> {
        let part = |p: &str| match p.parse::<i128>() {
            Ok(n) if p.bytes().all(|b| b.is_ascii_digit()) => Ok(Value::Int(n)),
            _ => Value::text(p),
        };
        text.split('.').map(part).collect()
    }

    fn get(&self, item: &Value) -> Result<Value> {
        self.get_or(item, None)
    }

    /// Looks the path up in `item`; `default` replaces an undefined value at each step.
    fn get_or(&self, item: &Value, default: Option<&Value>) -> Result<Value> {
        let mut value = item.clone();
        for part in &self.0 {
            value = run::subscript(&value, part)?;
            if let (Value::Undefined(_), Some(default)) = (&value, default) {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

/// Returns the key that a value is compared by: a text in lower case, unless the comparison is case-sensitive.
fn folded(value: Value, case_sensitive: bool) -> Result<Value> {
    match value.as_str() {
        Some(text) if !case_sensitive => Value::text(text.to_lowercase()),
        _ => Ok(value),
    }
}

fn map(run: &mut Run, subject: Value, mut args: Args) -> Result<Value> {
    // As jinja2: an empty or undefined subject gives no items and no error, whatever the arguments are. So do the
    // filters `select` and `reject` below.
    if !subject.truth() {
        return Value::stream(Vec::new());
    }
    if args.positional.is_empty() && args.named.iter().any(|(n, _)| n == "attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let path = Path::of(attribute)?;
        let default = default.filter(|d| !matches!(d, Value::None));
        let mapped = subject.items()?.iter().map(|i| path.get_or(i, default.as_ref())).collect::<Result<Vec<_>>>()?;
        return Value::stream(mapped);
    }
    if args.positional.is_empty() {
        return Err(Fault::python("map requires a filter argument"));
    }
    let name = args.positional.remove(0).print()?;
    let mut mapped = Vec::new();
    for item in subject.items()? {
        let args = Args { positional: args.positional.clone(), named: args.named.clone() };
        mapped.push(apply(run, &name, item, args)?);
    }
    Value::stream(mapped)
}

/// The filters `select`, `reject`, `selectattr` and `rejectattr`.
fn select(name: &str, subject: Value, mut args: Args) -> Result<Value> {
    if !subject.truth() {
        return Value::stream(Vec::new());
    }
    let path = match name.ends_with("attr") {
        true if args.positional.is_empty() => return Err(Fault::python("Missing parameter for attribute name")),
        true => Path::of(Some(args.positional.remove(0)))?,
        false => Path(Vec::new()),
    };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0).print()?) };
    let mut kept = Vec::new();
    for item in subject.items()? {
        let value = path.get(&item)?;
        let holds = match &test {
            None => value.truth(),
            Some(test) => {
                let args = Args { positional: args.positional.clone(), named: args.named.clone() };
                tests_of_values::holds(test, &value, args)?
            }
        };
        if holds == name.starts_with("select") {
            kept.push(item);
        }
    }
    Value::stream(kept)
}

/// Sorts the items by their keys, stable also in reverse. Fails if two keys cannot be compared.
fn sorted(mut keyed: Vec<(Vec<Value>, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let mut fault = None;
    limits::spend(keyed.len() as u64 * 4)?;
    keyed.sort_by(|a, b| {
        for (a, b) in a.0.iter().zip(&b.0) {
            let order = match value::equal(a, b) {
                Ok(true) => continue,
                Ok(false) => value::order(a, b, "<"),
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

fn sort(subject: Value, args: Args) -> Result<Value> {
    let [reverse, case, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    let flag = |v: Option<Value>| v.is_some_and(|v| v.truth());
    let (reverse, case) = (flag(reverse), flag(case));
    let paths = match attribute.as_ref().and_then(Value::as_str) {
        Some(several) => several.split(',').map(|p| Path::parts(p).map(Path)).collect::<Result<Vec<_>>>()?,
        None => vec![Path::of(attribute)?],
    };
    let mut keyed = Vec::new();
    for item in subject.items()? {
        let keys = paths.iter().map(|p| folded(p.get(&item)?, case)).collect::<Result<Vec<_>>>()?;
        keyed.push((keys, item));
    }
    Value::list(sorted(keyed, reverse)?)
}

fn groupby(subject: Value, args: Args) -> Result<Value> {
    let [attribute, default, case] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let case = case.is_some_and(|c| c.truth());
    let path = Path::of(attribute)?;
    let default = default.filter(|d| !matches!(d, Value::None));
    let mut keyed = Vec::new();
    for item in subject.items()? {
        let key = path.get_or(&item, default.as_ref())?;
        keyed.push((vec![folded(key.clone(), case)?], Value::tuple(vec![key, item])?));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in sorted(keyed, false)? {
        let Some([key, item]) = pair.as_slice() else { continue };
        let folded_key = folded(key.clone(), case)?;
        match groups.last_mut() {
            Some((last, items)) if value::equal(&folded(last.clone(), case)?, &folded_key)? => items.push(item.clone()),
            _ => groups.push((key.clone(), vec![item.clone()])),
        }
    }
    let mut out = Vec::new();
    for (key, items) in groups {
        match Value::tuple(vec![key, Value::list(items)?])? {
            Value::Tuple(parts) => out.push(Value::Group(parts)),
            other => out.push(other),
        }
    }
    Value::list(out)
}

fn dictsort(subject: Value, args: Args) -> Result<Value> {
    let [case, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let flag = |v: Option<Value>| v.is_some_and(|v| v.truth());
    let (case, reverse) = (flag(case), flag(reverse));
    let by_value = match by.as_ref().map(Value::as_str) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(Fault::python("You can only sort by either \"key\" or \"value\"")),
    };
    let Value::Dict(dict) = &subject else {
        return Err(Fault::python(format!("'{}' object has no attribute 'items'", subject.type_name())));
    };
    let mut keyed = Vec::new();
    for (key, value) in dict.iter() {
        let by = if by_value { value.clone() } else { key.0.clone() };
        keyed.push((vec![folded(by, case)?], Value::tuple(vec![key.0.clone(), value.clone()])?));
    }
    Value::list(sorted(keyed, reverse)?)
}
