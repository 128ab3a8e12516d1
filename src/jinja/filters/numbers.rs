//! Filters of numbers, and the numbers that filters take.

use crate::jinja::call_arguments::CallArguments;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::strings;
use crate::jinja::value::PyValue;

/// Returns the count that `batch` and `slice` take: an integer above 0.
pub(super) fn positive_count(value: Option<PyValue>, name: &str) -> TemplateResult<usize> {
    let n = value.ok_or_else(|| TemplateError::python(format!("{name}() needs a number")))?.expect_int(name)?;
    usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| TemplateError::unsupported(format!("{name}({n})")))
}

pub(super) fn int(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let base = base.map_or(Ok(10), |b| b.expect_int("base"))?;
    if !matches!(base, 2 | 8 | 10 | 16) {
        return Err(TemplateError::unsupported(format!("int of base {base}")));
    }
    let whole = |x: f64| -> TemplateResult<Option<i128>> {
        if !x.is_finite() {
            return Ok(None);
        }
        if x.abs() >= 1e38 {
            return Err(TemplateError::unsupported("an integer beyond 128 bits"));
        }
        Ok(Some(x.trunc() as i128))
    };
    let found = match subject.check_defined()? {
        PyValue::BigNumber(_) => return Ok(subject),
        PyValue::Float(x) => whole(*x)?,
        v => match v.as_str() {
            Some(text) => match strings::parse_int(text, base as u32) {
                Some(n) => Some(n),
                None => strings::parse_float(text).map_or(Ok(None), whole)?,
            },
            None => v.as_int(),
        },
    };
    Ok(found.map(PyValue::Int).or(default).unwrap_or(PyValue::Int(0)))
}

pub(super) fn round(subject: PyValue, args: CallArguments) -> TemplateResult<PyValue> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.map_or(Ok(0), |p| p.expect_int("precision"))?;
    let method = method.map_or(Ok("common".to_string()), |m| m.py_str())?;
    if !matches!(method.as_str(), "common" | "ceil" | "floor") {
        return Err(TemplateError::python("method must be common, ceil or floor"));
    }
    let number = subject.check_defined()?.as_float();
    let x = number.ok_or_else(|| {
        TemplateError::python(format!("type {} doesn't define __round__ method", subject.type_name()))
    })?;
    if !(0..=300).contains(&precision) {
        return Err(TemplateError::unsupported(format!("round to {precision} digits")));
    }
    match (method.as_str(), &subject) {
        ("common", PyValue::Float(_)) if x.is_finite() => {
            // The exact decimal digits of the float, rounded half to even, as Python does.
            format!("{x:.*}", precision as usize)
                .parse()
                .map(PyValue::Float)
                .map_err(|_| TemplateError::python("round"))
        }
        ("common", PyValue::Bool(b)) => Ok(PyValue::Int((*b).into())),
        ("common", _) => Ok(subject),
        (method, _) => {
            let power = 10f64.powi(precision as i32);
            let scaled = x * power;
            Ok(PyValue::Float(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / power))
        }
    }
}
