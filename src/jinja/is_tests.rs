//! Jinja's tests, the names after `is`: `x is defined`, `x is divisibleby 2`.

use super::ast::CompareOperator;
use super::call_arguments::CallArguments;
use super::comparison::compare;
use super::error::{TemplateError, TemplateResult};
use super::value::{self, PyValue};
use super::{filter_names, methods};
use std::rc::Rc;

/// Returns the result of `subject is name(args)`. Fails for an unknown test.
pub fn test_holds(name: &str, subject: &PyValue, args: CallArguments) -> TemplateResult<bool> {
    let operator = match name {
        "==" | "eq" | "equalto" => Some(CompareOperator::Eq),
        "!=" | "ne" => Some(CompareOperator::Ne),
        "<" | "lt" | "lessthan" => Some(CompareOperator::Lt),
        "<=" | "le" => Some(CompareOperator::Le),
        ">" | "gt" | "greaterthan" => Some(CompareOperator::Gt),
        ">=" | "ge" => Some(CompareOperator::Ge),
        "in" => Some(CompareOperator::In),
        _ => None,
    };
    if let Some(operator) = operator {
        let other = single_argument(name, args)?;
        return compare(operator, subject, &other);
    }
    match name {
        "divisibleby" => {
            let (n, by) = (subject.expect_int("divisibleby")?, single_argument(name, args)?.expect_int("divisibleby")?);
            if by == 0 {
                return Err(TemplateError::python("integer modulo by zero"));
            }
            return Ok(n % by == 0);
        }
        "sameas" => return is_same_object(subject, &single_argument(name, args)?),
        _ => args.expect_none(name)?,
    }
    Ok(match name {
        "defined" => !subject.is_undefined(),
        "undefined" => subject.is_undefined(),
        "none" => matches!(subject, PyValue::None),
        "boolean" => matches!(subject, PyValue::Bool(_)),
        "true" => matches!(subject, PyValue::Bool(true)),
        "false" => matches!(subject, PyValue::Bool(false)),
        "float" => subject.type_name() == "float",
        "integer" => matches!(subject, PyValue::Int(_) | PyValue::BigNumber(_)) && subject.type_name() == "int",
        "number" => matches!(subject, PyValue::Int(_) | PyValue::BigNumber(_) | PyValue::Float(_) | PyValue::Bool(_)),
        "string" => matches!(subject, PyValue::Text(_) | PyValue::Markup(_)),
        "mapping" => matches!(subject, PyValue::Dict(_)),
        "sequence" => matches!(
            subject,
            PyValue::Undefined(_)
                | PyValue::Text(_)
                | PyValue::Markup(_)
                | PyValue::List(_)
                | PyValue::Tuple(_)
                | PyValue::GroupTuple(_)
                | PyValue::Dict(_)
                | PyValue::Range(..)
        ),
        "iterable" => subject.is_iterable(),
        "callable" => matches!(
            subject,
            PyValue::Undefined(_)
                | PyValue::Macro(_)
                | PyValue::Method(_)
                | PyValue::Function(_)
                | PyValue::Joiner(_)
                | PyValue::Loop(_)
        ),
        "escaped" => matches!(subject, PyValue::Markup(_)),
        "odd" => subject.expect_int("odd")?.rem_euclid(2) == 1,
        "even" => subject.expect_int("even")?.rem_euclid(2) == 0,
        "lower" | "upper" => methods::is_cased(&subject.py_str()?, name == "upper"),
        "filter" => subject.as_str().is_some_and(filter_names::exists),
        "test" => return Err(TemplateError::unsupported("the test 'test'")),
        name => return Err(TemplateError::python(format!("No test named '{name}'."))),
    })
}

/// Returns the one argument of a test.
fn single_argument(name: &str, args: CallArguments) -> TemplateResult<PyValue> {
    let [other] = args.bind(name, [""])?;
    other.ok_or_else(|| TemplateError::python(format!("the test '{name}' needs a value to compare with")))
}

/// Returns Python's `a is b`. Fails where it depends on which equal objects CPython happens to share.
fn is_same_object(a: &PyValue, b: &PyValue) -> TemplateResult<bool> {
    let small = |n: &i128| (-5..=256).contains(n);
    Ok(match (a, b) {
        (PyValue::None, PyValue::None) => true,
        (PyValue::Bool(a), PyValue::Bool(b)) => a == b,
        (PyValue::Int(a), PyValue::Int(b)) if small(a) || small(b) => a == b,
        (PyValue::List(a), PyValue::List(b)) | (PyValue::Tuple(a), PyValue::Tuple(b)) if Rc::ptr_eq(a, b) => true,
        (PyValue::Dict(a), PyValue::Dict(b)) if Rc::ptr_eq(a, b) => true,
        (PyValue::Text(a), PyValue::Text(b)) if Rc::ptr_eq(a, b) => true,
        (PyValue::List(_) | PyValue::Dict(_), PyValue::List(_) | PyValue::Dict(_)) => false,
        (a, b) if a.type_name() != b.type_name() => false,
        (a, b) => match value::equal(a, b)? {
            true => {
                return Err(TemplateError::unsupported(format!("'sameas' of two {} that are equal", a.type_name())));
            }
            false => false,
        },
    })
}
