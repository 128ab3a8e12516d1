//! Jinja's filters: `value | name(arguments)`.

mod numbers;
mod sequences;
mod text;

use super::arithmetic::{apply_binary, negative};
use super::attributes::getattr;
use super::call_arguments::CallArguments;
use super::comparison::ordering;
use super::error::{TemplateError, TemplateResult};
use super::filter_names::UNSUPPORTED_FILTERS;
use super::strings::{self, is_space, justify};
use super::value::{self, PyValue};
use super::{format, json, limits, methods};
use fancy_regex::Regex;
use numbers::{int, positive_count, round};
use sequences::{AttributePath, case_key, dictsort, first_or_last, groupby, select, sort};
use std::cmp::Ordering;
use std::sync::LazyLock;
use text::{indent, soft_str, truncate, urlencode};

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
