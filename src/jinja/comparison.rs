//! Python's comparison operators, except `==`, which is `value::equal`.

use super::ast::CompareOperator;
use super::error::{TemplateError, TemplateResult};
use super::limits;
use super::value::{DictKey, PyValue, beyond_128_bits, compare_numbers, equal};
use std::cmp::Ordering;

/// Returns the order of two values, `None` with a NaN. Fails for types that Python does not order; the error names
/// `operator`.
pub fn ordering(a: &PyValue, b: &PyValue, operator: &str) -> TemplateResult<Option<Ordering>> {
    limits::check_depth()?;
    limits::spend_steps(1)?;
    let number = |v: &PyValue| matches!(v, PyValue::Int(_) | PyValue::Bool(_) | PyValue::Float(_));
    Ok(match (a, b) {
        (PyValue::Text(a) | PyValue::Markup(a), PyValue::Text(b) | PyValue::Markup(b)) => {
            limits::spend_copy_steps(a.len().min(b.len()))?;
            Some(a.as_str().cmp(b.as_str()))
        }
        (a, b) if number(a) && number(b) => compare_numbers(a, b),
        (PyValue::List(x), PyValue::List(y))
        | (PyValue::Tuple(x) | PyValue::GroupTuple(x), PyValue::Tuple(y) | PyValue::GroupTuple(y)) => {
            for (a, b) in x.iter().zip(y.iter()) {
                if !equal(a, b)? {
                    return ordering(a, b, operator);
                }
            }
            Some(x.len().cmp(&y.len()))
        }
        (PyValue::BigNumber(_), _) | (_, PyValue::BigNumber(_)) => return Err(beyond_128_bits()),
        _ => {
            a.check_defined()?;
            b.check_defined()?;
            return Err(TemplateError::python(format!(
                "'{operator}' not supported between instances of '{}' and '{}'",
                a.type_name(),
                b.type_name()
            )));
        }
    })
}

/// Returns whether `item in container` is true.
pub fn contains(container: &PyValue, item: &PyValue) -> TemplateResult<bool> {
    Ok(match container {
        PyValue::Text(text) | PyValue::Markup(text) => {
            limits::spend_copy_steps(text.len())?;
            let part = item.check_defined()?.as_str().ok_or_else(|| {
                TemplateError::python(format!(
                    "'in <string>' requires string as left operand, not {}",
                    item.type_name()
                ))
            })?;
            text.contains(part)
        }
        PyValue::Dict(dict) | PyValue::DictView("keys", dict) => match item {
            PyValue::Undefined(_) => false,
            item => dict.contains_key(&DictKey::of(item.clone())?),
        },
        PyValue::Namespace(_)
        | PyValue::Macro(_)
        | PyValue::None
        | PyValue::Bool(_)
        | PyValue::Int(_)
        | PyValue::Float(_) => {
            return Err(TemplateError::python(format!("argument of type '{}' is not iterable", container.type_name())));
        }
        other => {
            for candidate in other.items()? {
                if equal(&candidate, item)? {
                    return Ok(true);
                }
            }
            false
        }
    })
}

/// Applies a comparison operator.
pub fn compare(operator: CompareOperator, a: &PyValue, b: &PyValue) -> TemplateResult<bool> {
    let ordered = |name: &str, wanted: fn(Ordering) -> bool| -> TemplateResult<bool> {
        Ok(ordering(a, b, name)?.is_some_and(wanted))
    };
    match operator {
        CompareOperator::Eq => equal(a, b),
        CompareOperator::Ne => Ok(!equal(a, b)?),
        CompareOperator::Lt => ordered("<", Ordering::is_lt),
        CompareOperator::Le => ordered("<=", Ordering::is_le),
        CompareOperator::Gt => ordered(">", Ordering::is_gt),
        CompareOperator::Ge => ordered(">=", Ordering::is_ge),
        CompareOperator::In => contains(b, a),
        CompareOperator::NotIn => Ok(!contains(b, a)?),
    }
}
