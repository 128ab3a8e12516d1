//! The methods that Python's texts, lists and dicts have.

use super::error::{TemplateError, TemplateResult};
use super::value::PyValue;
use std::rc::Rc;

const TEXT_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const SEQUENCE_METHODS: [&str; 2] = ["count", "index"];
const DICT_METHODS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// Methods that change a list or dict: the immutable sandbox refuses them.
const CHANGING_LIST: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const CHANGING_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Returns the method of this name, bound to its object; `None` if Python's type has no such method.
pub fn bound_method(of: &PyValue, name: &str) -> TemplateResult<Option<PyValue>> {
    let known: &[&'static str] = match of {
        PyValue::Text(_) | PyValue::Markup(_) => &TEXT_METHODS,
        PyValue::List(_) | PyValue::Tuple(_) | PyValue::GroupTuple(_) | PyValue::Range(..) => &SEQUENCE_METHODS,
        PyValue::Dict(_) => &DICT_METHODS,
        _ => &[],
    };
    if let Some(method) = known.iter().find(|m| **m == name) {
        return Ok(Some(PyValue::Method(Rc::new((of.clone(), *method)))));
    }
    let refused = || {
        PyValue::undefined(format!(
            "access to attribute '{name}' of '{}' object is refused by the sandbox.",
            of.type_name()
        ))
    };
    Ok(match of {
        PyValue::List(_) if CHANGING_LIST.contains(&name) => Some(refused()),
        PyValue::List(_) if name == "copy" => Some(PyValue::Method(Rc::new((of.clone(), "copy")))),
        PyValue::Dict(_) if CHANGING_DICT.contains(&name) => Some(refused()),
        PyValue::Dict(_) if name == "fromkeys" => return Err(TemplateError::unsupported("dict.fromkeys")),
        _ => None,
    })
}
