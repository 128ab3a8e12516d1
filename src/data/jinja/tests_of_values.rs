//! Jinja's tests, the names after `is`: `x is defined`, `x is divisibleby 2`.

use super::fault::Fault;
use super::run::Args;
use super::tree::Compare;
use super::value::{self, Result, Value};
use super::{filters, methods};
use std::rc::Rc;

/// Returns the result of `subject is name(args)`. Fails for an unknown test.
pub fn holds(name: &str, subject: &Value, args: Args) -> Result<bool> {
    let operator = match name {
        "==" | "eq" | "equalto" => Some(Compare::Eq),
        "!=" | "ne" => Some(Compare::Ne),
        "<" | "lt" | "lessthan" => Some(Compare::Lt),
        "<=" | "le" => Some(Compare::Le),
        ">" | "gt" | "greaterthan" => Some(Compare::Gt),
        ">=" | "ge" => Some(Compare::Ge),
        "in" => Some(Compare::In),
        _ => None,
    };
    if let Some(operator) = operator {
        let other = one(name, args)?;
        return value::compare(operator, subject, &other);
    }
    match name {
        "divisibleby" => {
            let (n, by) = (subject.int("divisibleby")?, one(name, args)?.int("divisibleby")?);
            if by == 0 {
                return Err(Fault::python("integer modulo by zero"));
            }
            return Ok(n % by == 0);
        }
        "sameas" => return same(subject, &one(name, args)?),
        _ => args.none(name)?,
    }
    Ok(match name {
        "defined" => !subject.is_undefined(),
        "undefined" => subject.is_undefined(),
        "none" => matches!(subject, Value::None),
        "boolean" => matches!(subject, Value::Bool(_)),
        "true" => matches!(subject, Value::Bool(true)),
        "false" => matches!(subject, Value::Bool(false)),
        "float" => subject.type_name() == "float",
        "integer" => matches!(subject, Value::Int(_) | Value::Long(_)) && subject.type_name() == "int",
        "number" => matches!(subject, Value::Int(_) | Value::Long(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(subject, Value::Text(_) | Value::Markup(_)),
        "mapping" => matches!(subject, Value::Dict(_)),
        "sequence" => matches!(
            subject,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::Markup(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Group(_)
                | Value::Dict(_)
                | Value::Range(..)
        ),
        "iterable" => subject.is_iterable(),
        "callable" => matches!(
            subject,
            Value::Undefined(_)
                | Value::Macro(_)
                | Value::Method(_)
                | Value::Function(_)
                | Value::Joiner(_)
                | Value::Loop(_)
        ),
        "escaped" => matches!(subject, Value::Markup(_)),
        "odd" => subject.int("odd")?.rem_euclid(2) == 1,
        "even" => subject.int("even")?.rem_euclid(2) == 0,
        "lower" | "upper" => methods::is_cased(&subject.print()?, name == "upper"),
        "filter" => subject.as_str().is_some_and(filters::exists),
        "test" => return Err(Fault::unsupported("the test 'test'")),
        name => return Err(Fault::python(format!("No test named '{name}'."))),
    })
}

/// Returns the one argument of a test.
fn one(name: &str, args: Args) -> Result<Value> {
    let [other] = args.bind(name, [""])?;
    other.ok_or_else(|| Fault::python(format!("the test '{name}' needs a value to compare with")))
}

/// Returns Python's `a is b`. Fails where it depends on which equal objects CPython happens to share.
fn same(a: &Value, b: &Value) -> Result<bool> {
    let small = |n: &i128| (-5..=256).contains(n);
    Ok(match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) if small(a) || small(b) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) if Rc::ptr_eq(a, b) => true,
        (Value::Dict(a), Value::Dict(b)) if Rc::ptr_eq(a, b) => true,
        (Value::Text(a), Value::Text(b)) if Rc::ptr_eq(a, b) => true,
        (Value::List(_) | Value::Dict(_), Value::List(_) | Value::Dict(_)) => false,
        (a, b) if a.type_name() != b.type_name() => false,
        (a, b) => match value::equal(a, b)? {
            true => return Err(Fault::unsupported(format!("'sameas' of two {} that are equal", a.type_name()))),
            false => false,
        },
    })
}
