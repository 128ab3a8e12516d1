//! Subscripts: `container[index]` and `container[start:stop:step]`.

use super::error::{TemplateError, TemplateResult};
use super::limits;
use super::value::{DictKey, ENTRY_BYTES, PyValue, TextKey};

/// Converts Python's index, which counts from the end if negative, to a position; `None` if it is out of range.
fn resolve_index(index: i128, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i128 } else { index };
    usize::try_from(index).ok().filter(|i| *i < length)
}

/// Returns `container[index]`; `None` where there is no such item.
pub fn get_item(container: &PyValue, index: &PyValue) -> TemplateResult<Option<PyValue>> {
    let at = || index.as_int();
    Ok(match container {
        PyValue::Dict(dict) => match (index.as_str(), index) {
            (Some(name), _) => dict.get(&TextKey(name)).cloned(),
            (_, PyValue::List(_) | PyValue::Dict(_) | PyValue::Undefined(_)) => None,
            _ => dict.get(&DictKey::of(index.clone())?).cloned(),
        },
        PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => {
            at().and_then(|i| resolve_index(i, items.len())).map(|i| items[i].clone())
        }
        PyValue::Text(text) | PyValue::Markup(text) => match at() {
            None => None,
            Some(i) => {
                limits::spend_copy_steps(text.len())?;
                let found = match i {
                    0.. => usize::try_from(i).ok().and_then(|i| text.chars().nth(i)),
                    _ => usize::try_from(-1 - i).ok().and_then(|i| text.chars().rev().nth(i)),
                };
                found.map(|c| container.same_markup(c)).transpose()?
            }
        },
        PyValue::Range(start, _, step) => {
            let length = container.length()?;
            at().and_then(|i| resolve_index(i, length)).map(|i| PyValue::Int(start + i as i128 * step))
        }
        _ => None,
    })
}

/// Returns `container[start:stop:step]`; `parts` are start, stop and step.
pub fn slice(container: &PyValue, parts: [Option<PyValue>; 3]) -> TemplateResult<PyValue> {
    container.check_defined()?;
    let part = |v: &Option<PyValue>| match v {
        None | Some(PyValue::None) => Ok(None),
        Some(v) => v.expect_int("slice indices").map(Some),
    };
    let (start, stop, step) = (part(&parts[0])?, part(&parts[1])?, part(&parts[2])?.unwrap_or(1));
    if step == 0 {
        return Err(TemplateError::python("slice step cannot be zero"));
    }
    let select = |length: usize| -> Vec<usize> {
        let length = length as i128;
        let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
        let clamp = |n: i128| (if n < 0 { n.saturating_add(length) } else { n }).clamp(low, high);
        let start = start.map_or(if step > 0 { low } else { high }, clamp);
        let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
        let mut out = Vec::new();
        let mut at = start;
        while (step > 0 && at < stop) || (step < 0 && at > stop) {
            out.push(at as usize);
            at = at.saturating_add(step);
        }
        out
    };
    match container {
        PyValue::Text(text) | PyValue::Markup(text) => {
            limits::check_memory(text.len())?;
            let chars: Vec<char> = text.chars().collect();
            container.same_markup(select(chars.len()).into_iter().map(|i| chars[i]).collect::<String>())
        }
        PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => {
            limits::check_memory_for(items.len(), ENTRY_BYTES)?;
            let picked = select(items.len()).into_iter().map(|i| items[i].clone()).collect();
            if matches!(container, PyValue::List(_)) { PyValue::list(picked) } else { PyValue::tuple(picked) }
        }
        PyValue::Range(..) => Err(TemplateError::unsupported("a slice of a range")),
        other => Err(TemplateError::python(format!("'{}' object is not subscriptable", other.type_name()))),
    }
}
