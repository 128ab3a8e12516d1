//! What Python's built-in functions say of a value: `bool`, `len`, `iter`, `str` and `repr`.

use super::error::{TemplateError, TemplateResult};
use super::limits;
use super::strings;
use super::value::{DictKey, ENTRY_BYTES, PyDict, PyValue, item_tuples};

impl PyValue {
    /// Returns the integer; the error says that `what` must be one.
    pub fn expect_int(&self, what: &str) -> TemplateResult<i128> {
        self.check_defined()?;
        self.as_int()
            .ok_or_else(|| TemplateError::python(format!("{what} must be an integer, not {}", self.type_name())))
    }

    /// Fails for an undefined value, with the message that it carries.
    pub fn check_defined(&self) -> TemplateResult<&Self> {
        match self {
            PyValue::Undefined(message) => Err(TemplateError::python(&**message)),
            _ => Ok(self),
        }
    }

    /// Returns Python's `bool(value)`.
    pub fn is_truthy(&self) -> bool {
        match self {
            PyValue::Undefined(_) | PyValue::None => false,
            PyValue::Bool(b) => *b,
            PyValue::Int(n) => *n != 0,
            PyValue::Float(x) => *x != 0.0,
            PyValue::Text(text) | PyValue::Markup(text) => !text.is_empty(),
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => !items.is_empty(),
            PyValue::Dict(dict) | PyValue::DictView(_, dict) => !dict.is_empty(),
            PyValue::Range(..) => self.length().is_ok_and(|n| n > 0),
            _ => true,
        }
    }

    /// Returns Python's `len(value)`. Fails for values without a length.
    pub fn length(&self) -> TemplateResult<usize> {
        Ok(match self {
            PyValue::Undefined(_) => 0,
            PyValue::Text(text) | PyValue::Markup(text) => {
                limits::spend_copy_steps(text.len())?;
                text.chars().count()
            }
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => items.len(),
            PyValue::Dict(dict) | PyValue::DictView(_, dict) => dict.len(),
            PyValue::Range(start, stop, step) => {
                let distance = if *step > 0 { stop - start } else { start - stop };
                usize::try_from((distance + step.abs() - 1).div_euclid(step.abs()).max(0)).unwrap_or(0)
            }
            PyValue::Loop(state) => state.length(),
            other => return Err(TemplateError::python(format!("object of type '{}' has no len()", other.type_name()))),
        })
    }

    /// Returns Python's `list(value)`: the items of anything iterable. A generator is empty afterwards.
    pub fn items(&self) -> TemplateResult<Vec<PyValue>> {
        let items: Vec<PyValue> = match self {
            PyValue::Undefined(_) => Vec::new(),
            PyValue::Text(text) | PyValue::Markup(text) => {
                limits::check_memory_for(text.len(), ENTRY_BYTES * 2)?;
                text.chars().map(PyValue::text).collect::<TemplateResult<_>>()?
            }
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => {
                limits::check_memory_for(items.len(), ENTRY_BYTES)?;
                items.to_vec()
            }
            PyValue::Dict(dict) | PyValue::DictView("keys", dict) => dict.keys().map(|k| k.0.clone()).collect(),
            PyValue::DictView("values", dict) => dict.values().cloned().collect(),
            PyValue::DictView(_, dict) => item_tuples(dict)?,
            PyValue::Range(start, _, step) => {
                (0..self.length()? as i128).map(|i| PyValue::Int(start + i * step)).collect()
            }
            PyValue::Generator(stream) => stream.take().into(),
            other => return Err(TemplateError::python(format!("'{}' object is not iterable", other.type_name()))),
        };
        limits::spend_steps(items.len() as u64 / 8)?;
        Ok(items)
    }

    /// Returns true if a `for` loop accepts the value.
    pub fn is_iterable(&self) -> bool {
        match self {
            PyValue::Undefined(_) | PyValue::Text(_) | PyValue::Markup(_) | PyValue::List(_) | PyValue::Tuple(_) => {
                true
            }
            PyValue::GroupTuple(_)
            | PyValue::Dict(_)
            | PyValue::DictView(..)
            | PyValue::Range(..)
            | PyValue::Generator(_) => true,
            PyValue::Loop(_) => true,
            _ => false,
        }
    }

    /// Returns Python's `str(value)`.
    pub fn py_str(&self) -> TemplateResult<String> {
        limits::check_depth()?;
        Ok(match self {
            PyValue::Undefined(_) => String::new(),
            PyValue::Text(text) | PyValue::Markup(text) => {
                limits::check_memory(text.len())?;
                text.to_string()
            }
            other => other.repr()?,
        })
    }

    /// Returns Python's `repr(value)`.
    pub fn repr(&self) -> TemplateResult<String> {
        limits::check_depth()?;
        limits::spend_steps(1)?;
        let all = |items: &[PyValue]| -> TemplateResult<String> {
            let parts = items.iter().map(PyValue::repr).collect::<TemplateResult<Vec<_>>>()?;
            limits::check_memory(parts.iter().map(|p| p.len() + 2).sum())?;
            Ok(parts.join(", "))
        };
        let mapping = |dict: &PyDict| -> TemplateResult<String> {
            let pair = |(k, v): (&DictKey, &PyValue)| Ok(format!("{}: {}", k.0.repr()?, v.repr()?));
            let parts = dict.iter().map(pair).collect::<TemplateResult<Vec<_>>>()?;
            limits::check_memory(parts.iter().map(|p| p.len() + 2).sum())?;
            Ok(format!("{{{}}}", parts.join(", ")))
        };
        Ok(match self {
            PyValue::Undefined(_) => "Undefined".into(),
            PyValue::None => "None".into(),
            PyValue::Bool(true) => "True".into(),
            PyValue::Bool(false) => "False".into(),
            PyValue::Int(n) => n.to_string(),
            PyValue::BigNumber(digits) => digits.to_string(),
            PyValue::Float(x) => strings::float_repr(*x),
            PyValue::Text(text) => strings::text_repr(text)?,
            PyValue::Markup(text) => format!("Markup({})", strings::text_repr(text)?),
            PyValue::List(items) => format!("[{}]", all(items)?),
            PyValue::Tuple(items) | PyValue::GroupTuple(items) if items.len() == 1 => format!("({},)", all(items)?),
            PyValue::Tuple(items) | PyValue::GroupTuple(items) => format!("({})", all(items)?),
            PyValue::Dict(dict) => mapping(dict)?,
            PyValue::DictView(..) => format!("{}([{}])", self.type_name(), all(&self.items()?)?),
            PyValue::Range(start, stop, 1) => format!("range({start}, {stop})"),
            PyValue::Range(start, stop, step) => format!("range({start}, {stop}, {step})"),
            PyValue::Namespace(dict) => format!("<Namespace {}>", mapping(&dict.borrow())?),
            PyValue::Macro(called) => format!("<Macro {}>", strings::text_repr(called.name())?),
            other => {
                return Err(TemplateError::unsupported(format!("printing an object of type '{}'", other.type_name())));
            }
        })
    }
}
