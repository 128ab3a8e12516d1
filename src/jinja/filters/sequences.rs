//! Filters of sequences: items by an attribute, selected, sorted and grouped.

use crate::jinja::attributes::item_or_attribute;
use crate::jinja::call_arguments::CallArguments;
use crate::jinja::comparison::ordering;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::value::PyValue;
use crate::jinja::{is_tests, limits, value};
use std::cmp::Ordering;

/// The filters `first` and `last`.
pub(super) fn first_or_last(subject: &PyValue, first: bool) -> TemplateResult<PyValue> {
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
pub(super) struct AttributePath(Vec<PyValue>);

impl AttributePath {
    pub(super) fn of(attribute: Option<PyValue>) -> TemplateResult<Self> {
        Ok(Self(match attribute {
            None | Some(PyValue::None) => Vec::new(),
            Some(PyValue::Int(n)) => vec![PyValue::Int(n)],
            Some(name) => match name.as_str() {
                Some(text) => Self::parts(text)?,
                None => return Err(TemplateError::python("an attribute is named by text or a number")),
            },
        }))
    }

    pub(super) fn parts(text: &str) -> TemplateResult<Vec<PyValue>> {
        let part = |p: &str| match p.parse::<i128>() {
            Ok(n) if p.bytes().all(|b| b.is_ascii_digit()) => Ok(PyValue::Int(n)),
            _ => PyValue::text(p),
        };
        text.split('.').map(part).collect()
    }

    pub(super) fn get(&self, item: &PyValue) -> TemplateResult<PyValue> {
        self.get_or(item, None)
    }

    /// Looks the path up in `item`; `default` replaces an undefined value at each step.
    pub(super) fn get_or(&self, item: &PyValue, default: Option<&PyValue>) -> TemplateResult<PyValue> {
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
pub(super) fn case_key(value: PyValue, case_sensitive: bool) -> TemplateResult<PyValue> {
    match value.as_str() {
        Some(text) if !case_sensitive => PyValue::text(text.to_lowercase()),
        _ => Ok(value),
    }
}

/// The filters `select`, `reject`, `selectattr` and `rejectattr`.
pub(super) fn select(name: &str, subject: PyValue, mut args: CallArguments) -> TemplateResult<PyValue> {
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
pub(super) fn sort_by_keys(mut keyed: Vec<(Vec<PyValue>, PyValue)>, reverse: bool) -> TemplateResult<Vec<PyValue>> {
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

pub(super) fn sort(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
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

pub(super) fn groupby(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
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

pub(super) fn dictsort(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
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
