//! Python's arithmetic operators, for numbers, texts and lists.

use super::ast::BinaryOperator;
use super::error::{TemplateError, TemplateResult};
use super::format::percent_format;
use super::limits;
use super::strings;
use super::value::{ENTRY_BYTES, PyValue, beyond_128_bits};

/// Applies an arithmetic operator, which also concatenates and repeats texts and lists and formats with `%`.
pub fn apply_binary(operator: BinaryOperator, a: &PyValue, b: &PyValue) -> TemplateResult<PyValue> {
    // `%` with a text on the left prints an undefined value as empty text, so it comes before the check.
    if let (BinaryOperator::Mod, PyValue::Text(text)) = (operator, a) {
        return percent_format(text, b);
    }
    a.check_defined()?;
    b.check_defined()?;
    match (operator, a, b) {
        // Text that is added to escaped text is escaped.
        (BinaryOperator::Add, PyValue::Markup(_), PyValue::Text(_) | PyValue::Markup(_))
        | (BinaryOperator::Add, PyValue::Text(_), PyValue::Markup(_)) => {
            let escaped = |side: &PyValue| match side {
                PyValue::Text(text) => strings::html_escaped(text.as_str()),
                other => other.py_str(),
            };
            let [x, y] = [escaped(a)?, escaped(b)?];
            limits::check_memory(x.len() + y.len())?;
            return PyValue::markup([x, y].concat());
        }
        (BinaryOperator::Mul, PyValue::Markup(_), n) if n.as_int().is_some() => return repeat(a, n),
        (BinaryOperator::Mul, n, PyValue::Markup(_)) if n.as_int().is_some() => return repeat(b, n),
        (BinaryOperator::Mod, PyValue::Markup(_), _) => {
            return Err(TemplateError::unsupported("formatting text from `escape` or `safe` with `%`"));
        }
        (BinaryOperator::Add, PyValue::Text(x), PyValue::Text(y)) => {
            limits::check_memory(x.len() + y.len())?;
            return PyValue::text([x.as_str(), y.as_str()].concat());
        }
        (BinaryOperator::Add, PyValue::List(x), PyValue::List(y)) => {
            limits::check_memory_for(x.len() + y.len(), ENTRY_BYTES)?;
            return PyValue::list([x.as_slice(), y.as_slice()].concat());
        }
        (
            BinaryOperator::Add,
            PyValue::Tuple(x) | PyValue::GroupTuple(x),
            PyValue::Tuple(y) | PyValue::GroupTuple(y),
        ) => {
            limits::check_memory_for(x.len() + y.len(), ENTRY_BYTES)?;
            return PyValue::tuple([x.as_slice(), y.as_slice()].concat());
        }
        (BinaryOperator::Mul, sequence, n) if is_repeatable(sequence) && n.as_int().is_some() => {
            return repeat(sequence, n);
        }
        (BinaryOperator::Mul, n, sequence) if is_repeatable(sequence) && n.as_int().is_some() => {
            return repeat(sequence, n);
        }
        _ => {}
    }
    let wrong = || match (operator, a) {
        (BinaryOperator::Add, PyValue::Text(_)) => {
            TemplateError::python(format!("can only concatenate str (not \"{}\") to str", b.type_name()))
        }
        _ => TemplateError::python(format!("unsupported operand types: '{}' and '{}'", a.type_name(), b.type_name())),
    };
    if matches!(a, PyValue::BigNumber(_)) || matches!(b, PyValue::BigNumber(_)) {
        return Err(beyond_128_bits());
    }
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        return integers(operator, x, y);
    }
    let (x, y) = (a.as_float().ok_or_else(wrong)?, b.as_float().ok_or_else(wrong)?);
    floats(operator, x, y).map(PyValue::Float)
}

/// Returns true if the value can be multiplied by an integer to repeat it.
fn is_repeatable(value: &PyValue) -> bool {
    matches!(value, PyValue::Text(_) | PyValue::List(_) | PyValue::Tuple(_) | PyValue::GroupTuple(_))
}

/// Computes `value * times`. A group of `groupby` becomes a plain tuple.
fn repeat(what: &PyValue, times: &PyValue) -> TemplateResult<PyValue> {
    let times = usize::try_from(times.as_int().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
    match what {
        PyValue::Text(text) => {
            limits::check_memory_for(times, text.len())?;
            PyValue::text(text.repeat(times))
        }
        PyValue::Markup(text) => {
            limits::check_memory_for(times, text.len())?;
            PyValue::markup(text.repeat(times))
        }
        other => {
            let items = other.as_slice().unwrap_or_default();
            limits::check_memory_for(times, items.len() * ENTRY_BYTES)?;
            let items = (0..times).flat_map(|_| items.iter().cloned()).collect();
            if matches!(other, PyValue::List(_)) { PyValue::list(items) } else { PyValue::tuple(items) }
        }
    }
}

fn integers(operator: BinaryOperator, x: i128, y: i128) -> TemplateResult<PyValue> {
    let zero = || TemplateError::python("division by zero");
    let whole = match operator {
        BinaryOperator::Add => x.checked_add(y),
        BinaryOperator::Sub => x.checked_sub(y),
        BinaryOperator::Mul => x.checked_mul(y),
        BinaryOperator::Div if y == 0 => return Err(zero()),
        BinaryOperator::Div if x.unsigned_abs() >> 53 > 0 || y.unsigned_abs() >> 53 > 0 => {
            return Err(TemplateError::unsupported("division of integers beyond 53 bits"));
        }
        BinaryOperator::Div => return Ok(PyValue::Float(x as f64 / y as f64)),
        BinaryOperator::FloorDiv | BinaryOperator::Mod if y == 0 => return Err(zero()),
        BinaryOperator::FloorDiv => {
            let (quotient, rest) =
                (x.checked_div(y).ok_or_else(beyond_128_bits)?, x.checked_rem(y).ok_or_else(beyond_128_bits)?);
            Some(quotient - i128::from(rest != 0 && (rest < 0) != (y < 0)))
        }
        BinaryOperator::Mod => {
            let rest = x.checked_rem(y).ok_or_else(beyond_128_bits)?;
            Some(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest })
        }
        BinaryOperator::Pow if y < 0 && x == 0 => {
            return Err(TemplateError::python("0.0 cannot be raised to a negative power"));
        }
        BinaryOperator::Pow if y < 0 => return Ok(PyValue::Float((x as f64).powf(y as f64))),
        BinaryOperator::Pow => match u32::try_from(y) {
            Ok(y) => x.checked_pow(y),
            Err(_) => None,
        },
    };
    whole.map(PyValue::Int).ok_or_else(beyond_128_bits)
}

fn floats(operator: BinaryOperator, x: f64, y: f64) -> TemplateResult<f64> {
    let divides = matches!(operator, BinaryOperator::Div | BinaryOperator::FloorDiv | BinaryOperator::Mod);
    if divides && y == 0.0 {
        return Err(TemplateError::python("float division by zero"));
    }
    // As CPython: the remainder has the divisor's sign, and the quotient is computed from the remainder.
    let modulo = || {
        let rest = x % y;
        if rest == 0.0 {
            0.0f64.copysign(y)
        } else if (rest < 0.0) != (y < 0.0) {
            rest + y
        } else {
            rest
        }
    };
    Ok(match operator {
        BinaryOperator::Add => x + y,
        BinaryOperator::Sub => x - y,
        BinaryOperator::Mul => x * y,
        BinaryOperator::Div => x / y,
        BinaryOperator::Mod => modulo(),
        BinaryOperator::FloorDiv => {
            let rest = x % y;
            let mut quotient = (x - rest) / y;
            if rest != 0.0 && (rest < 0.0) != (y < 0.0) {
                quotient -= 1.0;
            }
            let floor = quotient.floor();
            if quotient == 0.0 {
                0.0f64.copysign(x / y)
            } else if quotient - floor > 0.5 {
                floor + 1.0
            } else {
                floor
            }
        }
        BinaryOperator::Pow if x == 0.0 && y < 0.0 => {
            return Err(TemplateError::python("0.0 cannot be raised to a negative power"));
        }
        BinaryOperator::Pow if x < 0.0 && y.fract() != 0.0 => {
            return Err(TemplateError::unsupported("complex numbers"));
        }
        BinaryOperator::Pow => {
            let result = x.powf(y);
            if result.is_infinite() && x.is_finite() && y.is_finite() {
                return Err(TemplateError::python("Numerical result out of range"));
            }
            result
        }
    })
}

/// Computes `-value`.
pub fn negative(value: &PyValue) -> TemplateResult<PyValue> {
    match value.check_defined()? {
        PyValue::Float(x) => Ok(PyValue::Float(-x)),
        PyValue::BigNumber(digits) => Ok(PyValue::BigNumber(match digits.strip_prefix('-') {
            Some(positive) => positive.into(),
            None => format!("-{digits}").into(),
        })),
        other => match other.as_int() {
            Some(n) => n.checked_neg().map(PyValue::Int).ok_or_else(beyond_128_bits),
            None => Err(TemplateError::python(format!("bad operand type for unary -: '{}'", other.type_name()))),
        },
    }
}

/// Computes `+value`.
pub fn positive(value: &PyValue) -> TemplateResult<PyValue> {
    match value.check_defined()? {
        PyValue::Float(_) | PyValue::BigNumber(_) => Ok(value.clone()),
        other => match other.as_int() {
            Some(n) => Ok(PyValue::Int(n)),
            None => Err(TemplateError::python(format!("bad operand type for unary +: '{}'", other.type_name()))),
        },
    }
}
