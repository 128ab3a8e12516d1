//! Attributes: `object.name`, also where it is an item.

use super::error::{TemplateError, TemplateResult};
use super::method_names::bound_method;
use super::subscript::get_item;
use super::value::{PyValue, TextKey};
use std::rc::Rc;

/// Attributes of Python's numbers that are not reproduced: their use is an error, as they are not undefined in Python.
const OTHER_ATTRIBUTES: [&str; 12] = [
    "real",
    "imag",
    "numerator",
    "denominator",
    "bit_length",
    "bit_count",
    "conjugate",
    "is_integer",
    "as_integer_ratio",
    "to_bytes",
    "from_bytes",
    "hex",
];

/// Returns `object.name`: its attribute, else its item, else undefined.
pub fn attribute_or_item(of: &PyValue, name: &str) -> TemplateResult<PyValue> {
    of.check_defined()?;
    if let Some(found) = getattr(of, name)? {
        return Ok(found);
    }
    match of {
        PyValue::Dict(dict) => {
            if let Some(found) = dict.get(&TextKey(name)) {
                return Ok(found.clone());
            }
        }
        PyValue::Int(_) | PyValue::Bool(_) | PyValue::Float(_) | PyValue::BigNumber(_)
            if OTHER_ATTRIBUTES.contains(&name) =>
        {
            return Err(TemplateError::unsupported(format!("the attribute '{name}' of a number")));
        }
        _ => {}
    }
    Ok(undefined_attribute(of, name))
}

/// Returns `object[index]`: its item, else its attribute, else undefined.
pub fn item_or_attribute(of: &PyValue, index: &PyValue) -> TemplateResult<PyValue> {
    of.check_defined()?;
    if let Some(found) = get_item(of, index)? {
        return Ok(found);
    }
    match index.as_str() {
        Some(name) => Ok(getattr(of, name)?.unwrap_or_else(|| undefined_attribute(of, name))),
        None => {
            Ok(PyValue::undefined(format!("{} has no element {}", kind_name(of), index.py_str().unwrap_or_default())))
        }
    }
}

fn kind_name(of: &PyValue) -> String {
    match of {
        PyValue::None => "'None'".into(),
        other => format!("'{} object'", other.type_name().to_lowercase()),
    }
}

fn undefined_attribute(of: &PyValue, name: &str) -> PyValue {
    PyValue::undefined(format!("{} has no attribute '{name}'", kind_name(of)))
}

/// Returns what Python's `getattr` would: methods, and the attributes of Jinja's own objects (`loop`, `cycler`,
/// namespaces). Names with two leading underscores are undefined, as in the sandbox.
pub fn getattr(of: &PyValue, name: &str) -> TemplateResult<Option<PyValue>> {
    if name.starts_with("__") {
        return Ok(Some(PyValue::undefined(format!(
            "access to attribute '{name}' of '{}' object is refused by the sandbox.",
            of.type_name()
        ))));
    }
    let index = |n: usize| Ok(Some(PyValue::Int(n as i128)));
    Ok(match of {
        PyValue::Namespace(dict) => dict.borrow().get(&TextKey(name)).cloned(),
        PyValue::GroupTuple(parts) => match name {
            "grouper" => parts.first().cloned(),
            "list" => parts.get(1).cloned(),
            _ => bound_method(of, name)?,
        },
        PyValue::Loop(state) => {
            let (at, length) = (state.at.get(), state.items.len());
            match name {
                "index" => return index(at + 1),
                "index0" => return index(at),
                "revindex" => return index(length - at),
                "revindex0" => return index(length - at - 1),
                "length" => return index(length),
                "depth" => return index(state.depth + 1),
                "depth0" => return index(state.depth),
                "first" => Some(PyValue::Bool(at == 0)),
                "last" => Some(PyValue::Bool(at + 1 == length)),
                "previtem" => Some(match at.checked_sub(1) {
                    Some(before) => state.items[before].clone(),
                    None => PyValue::undefined("there is no previous item"),
                }),
                "nextitem" => Some(match state.items.get(at + 1) {
                    Some(next) => next.clone(),
                    None => PyValue::undefined("there is no next item"),
                }),
                "cycle" => Some(PyValue::Method(Rc::new((of.clone(), "cycle")))),
                "changed" => Some(PyValue::Method(Rc::new((of.clone(), "changed")))),
                _ => None,
            }
        }
        PyValue::Cycler(cycler) => match name {
            "current" => Some(cycler.items[cycler.at.get()].clone()),
            "next" => Some(PyValue::Method(Rc::new((of.clone(), "next")))),
            "reset" => Some(PyValue::Method(Rc::new((of.clone(), "reset")))),
            _ => None,
        },
        PyValue::Macro(_) => match name {
            "name" | "arguments" | "catch_kwargs" | "catch_varargs" | "caller" => {
                return Err(TemplateError::unsupported(format!("the attribute '{name}' of a macro")));
            }
            _ => None,
        },
        other => bound_method(other, name)?,
    })
}
