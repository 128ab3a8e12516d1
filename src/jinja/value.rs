//! Python's values: types, truth, comparison, arithmetic, subscripts, `str()` and `repr()`.
//!
//! Integers have up to 128 bits; arithmetic beyond that is an error. Texts and containers count against the memory
//! limit.

use super::ast::{BinaryOperator, CompareOperator};
use super::error::TemplateError;
use super::interpreter::{Cycler, Joiner, LoopState, MacroValue};
use super::limits::{self, MeteredValue};
use super::strings;
use crate::json as exact;
use indexmap::{Equivalent, IndexMap};
use serde_json::Value as Json;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// A result that fails with the error of a template.
pub type TemplateResult<T> = std::result::Result<T, TemplateError>;
/// The entries of a dict, in the order of insertion.
pub type PyDict = IndexMap<DictKey, PyValue>;
/// The items of a list or tuple: shared, counted against the memory limit.
pub type SharedList = Rc<MeteredValue<Vec<PyValue>>>;
/// A text: shared, counted against the memory limit.
pub type SharedText = Rc<MeteredValue<String>>;

/// A value of a template.
#[derive(Clone)]
pub enum PyValue {
    /// An undefined value: a missing variable, attribute or item. The text is the error that its use raises.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    /// The digits of a number: an integer beyond 128 bits, or a decimal with more digits than a float keeps.
    BigNumber(Rc<str>),
    Float(f64),
    Text(SharedText),
    /// Text that `escape` or `safe` returned (markupsafe's `Markup`): text that is added to it is escaped.
    Markup(SharedText),
    List(SharedList),
    Tuple(SharedList),
    /// A group of `groupby`: a tuple (grouper, list) whose parts are attributes of these names too.
    GroupTuple(SharedList),
    Dict(Rc<MeteredValue<PyDict>>),
    /// `keys()`, `values()` or `items()` of a dict, by that name.
    DictView(&'static str, Rc<MeteredValue<PyDict>>),
    /// Start, stop, step.
    Range(i128, i128, i128),
    /// A generator, as filters return it: it is empty after it was read once.
    Generator(Rc<MeteredValue<RefCell<VecDeque<PyValue>>>>),
    Namespace(Rc<RefCell<PyDict>>),
    Macro(Rc<MacroValue>),
    Loop(Rc<LoopState>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    /// A bound method: its object and its name.
    Method(Rc<(PyValue, &'static str)>),
    /// A global function, by name.
    Function(&'static str),
}

/// Returns true for the digits of a number with a point or an exponent.
pub fn is_decimal(digits: &str) -> bool {
    digits.contains(['.', 'e', 'E'])
}

/// A value that is a key of a dict: hashable in Python.
#[derive(Clone)]
pub struct DictKey(pub PyValue);

impl DictKey {
    /// Fails for a value that Python cannot hash, or that is not supported as a key.
    pub fn of(value: PyValue) -> TemplateResult<Self> {
        let hashable = |v: &PyValue| -> bool {
            matches!(
                v,
                PyValue::None
                    | PyValue::Bool(_)
                    | PyValue::Int(_)
                    | PyValue::BigNumber(_)
                    | PyValue::Float(_)
                    | PyValue::Text(_)
                    | PyValue::Markup(_)
            )
        };
        match &value {
            PyValue::Tuple(items) | PyValue::GroupTuple(items) if items.iter().all(hashable) => Ok(Self(value)),
            v if hashable(v) => Ok(Self(value)),
            PyValue::List(_) | PyValue::Dict(_) => {
                Err(TemplateError::python(format!("unhashable type: '{}'", value.type_name())))
            }
            v => Err(TemplateError::unsupported(format!("a key of type '{}'", v.type_name()))),
        }
    }
}

impl Hash for DictKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            PyValue::Text(text) | PyValue::Markup(text) => text.as_str().hash(state),
            PyValue::Int(n) => n.hash(state),
            PyValue::Bool(b) => i128::from(*b).hash(state),
            PyValue::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => (*x as i128).hash(state),
            PyValue::Float(x) => x.to_bits().hash(state),
            PyValue::BigNumber(digits) => digits.hash(state),
            PyValue::Tuple(items) | PyValue::GroupTuple(items) => {
                items.iter().for_each(|i| DictKey(i.clone()).hash(state))
            }
            _ => 0u8.hash(state),
        }
    }
}

impl PartialEq for DictKey {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0).unwrap_or(false)
    }
}

impl Eq for DictKey {}

/// A text to look up in a dict, without making a value of it.
#[derive(Hash)]
pub struct TextKey<'a>(pub &'a str);

impl Equivalent<DictKey> for TextKey<'_> {
    fn equivalent(&self, key: &DictKey) -> bool {
        key.0.as_str() == Some(self.0)
    }
}

/// Bytes counted for an entry of a list; a key and its value in a dict count twice that.
const ENTRY_BYTES: usize = size_of::<PyValue>();

impl PyValue {
    pub fn text(text: impl Into<String>) -> TemplateResult<Self> {
        let text = text.into();
        let bytes = text.len();
        Ok(PyValue::Text(Rc::new(MeteredValue::new(text, bytes, 0)?)))
    }

    pub fn markup(text: impl Into<String>) -> TemplateResult<Self> {
        let text = text.into();
        let bytes = text.len();
        Ok(PyValue::Markup(Rc::new(MeteredValue::new(text, bytes, 0)?)))
    }

    /// Returns `text` as `Markup` if this value is, else as plain text: what Python's methods and indices of a text give.
    pub fn same_markup(&self, text: impl Into<String>) -> TemplateResult<Self> {
        if matches!(self, PyValue::Markup(_)) { Self::markup(text) } else { Self::text(text) }
    }

    pub fn list(items: Vec<PyValue>) -> TemplateResult<Self> {
        Ok(PyValue::List(shared_list(items)?))
    }

    pub fn tuple(items: Vec<PyValue>) -> TemplateResult<Self> {
        Ok(PyValue::Tuple(shared_list(items)?))
    }

    pub fn dict(dict: PyDict) -> TemplateResult<Self> {
        let (bytes, depth) = (dict.len() * ENTRY_BYTES * 2, container_depth(dict.values()));
        Ok(PyValue::Dict(Rc::new(MeteredValue::new(dict, bytes, depth)?)))
    }

    /// Returns a generator over the items.
    pub fn generator(items: impl IntoIterator<Item = PyValue>) -> TemplateResult<Self> {
        let items: VecDeque<PyValue> = items.into_iter().collect();
        let (bytes, depth) = (items.len() * ENTRY_BYTES, container_depth(items.iter()));
        Ok(PyValue::Generator(Rc::new(MeteredValue::new(RefCell::new(items), bytes, depth)?)))
    }

    /// Returns the levels of values nested in it. A namespace counts as none: the interpreter empties all namespaces at
    /// the end, so that dropping them does not recurse.
    pub fn depth(&self) -> usize {
        match self {
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => items.depth(),
            PyValue::Dict(dict) | PyValue::DictView(_, dict) => dict.depth(),
            PyValue::Generator(stream) => stream.depth(),
            PyValue::Loop(state) => state.depth_of_values(),
            PyValue::Cycler(cycler) => cycler.depth_of_values(),
            PyValue::Method(method) => 1 + method.0.depth(),
            _ => 0,
        }
    }

    /// Returns an undefined value whose use raises `message`.
    pub fn undefined(message: impl Into<Rc<str>>) -> Self {
        PyValue::Undefined(message.into())
    }

    /// Converts data from the caller of the rendering. Its bytes are counted and never refused.
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => PyValue::None,
            Json::Bool(b) => PyValue::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => PyValue::Int(n.into()),
                (_, Some(n)) => PyValue::Int(n.into()),
                _ => {
                    let digits = n.to_string();
                    let integer = digits.trim_start_matches('-').bytes().all(|b| b.is_ascii_digit());
                    match (integer, digits.parse()) {
                        (true, Ok(n)) => PyValue::Int(n),
                        (true, Err(_)) => PyValue::BigNumber(digits.into()),
                        _ => PyValue::Float(n.as_f64().unwrap_or(f64::NAN)),
                    }
                }
            },
            Json::String(text) => PyValue::caller_text(text),
            Json::Array(items) => {
                let items: Vec<PyValue> = items.iter().map(PyValue::from_json).collect();
                let (bytes, depth) = (items.len() * ENTRY_BYTES, container_depth(items.iter()));
                PyValue::List(Rc::new(MeteredValue::without_limit(items, bytes, depth)))
            }
            Json::Object(_) if exact::long_number(json).is_some() => {
                let digits = exact::long_number(json).unwrap_or_default();
                digits.parse().map_or_else(|_| PyValue::BigNumber(digits.into()), PyValue::Int)
            }
            Json::Object(map) => {
                let dict: PyDict =
                    map.iter().map(|(k, v)| (DictKey(PyValue::caller_text(k)), PyValue::from_json(v))).collect();
                let (bytes, depth) = (dict.len() * ENTRY_BYTES * 2, container_depth(dict.values()));
                PyValue::Dict(Rc::new(MeteredValue::without_limit(dict, bytes, depth)))
            }
        }
    }

    /// Returns a text from the caller: counted, never refused.
    fn caller_text(text: &str) -> Self {
        PyValue::Text(Rc::new(MeteredValue::without_limit(text.to_string(), text.len(), 0)))
    }

    /// Returns Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            PyValue::Undefined(_) => "Undefined",
            PyValue::None => "NoneType",
            PyValue::Bool(_) => "bool",
            PyValue::BigNumber(digits) if is_decimal(digits) => "float",
            PyValue::Int(_) | PyValue::BigNumber(_) => "int",
            PyValue::Float(_) => "float",
            PyValue::Text(_) => "str",
            PyValue::Markup(_) => "Markup",
            PyValue::List(_) => "list",
            PyValue::Tuple(_) => "tuple",
            PyValue::GroupTuple(_) => "_GroupTuple",
            PyValue::Dict(_) => "dict",
            PyValue::DictView("keys", _) => "dict_keys",
            PyValue::DictView("values", _) => "dict_values",
            PyValue::DictView(..) => "dict_items",
            PyValue::Range(..) => "range",
            PyValue::Generator(_) => "generator",
            PyValue::Namespace(_) => "Namespace",
            PyValue::Macro(_) => "Macro",
            PyValue::Loop(_) => "LoopContext",
            PyValue::Cycler(_) => "Cycler",
            PyValue::Joiner(_) => "Joiner",
            PyValue::Method(_) => "builtin_function_or_method",
            PyValue::Function(_) => "function",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            PyValue::Text(text) | PyValue::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the items of a list or tuple.
    pub fn as_slice(&self) -> Option<&[PyValue]> {
        match self {
            PyValue::List(items) | PyValue::Tuple(items) | PyValue::GroupTuple(items) => Some(items),
            _ => None,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, PyValue::Undefined(_))
    }

    /// Returns an integer or bool as an integer, as Python takes it for an index or a count.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            PyValue::Int(n) => Some(*n),
            PyValue::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }

    /// Returns any number as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            PyValue::Float(x) => Some(*x),
            PyValue::BigNumber(digits) => digits.parse().ok(),
            other => other.as_int().map(|n| n as f64),
        }
    }

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

    /// `bool()`.
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

    /// `len()`.
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

    /// `list(value)`: the items of anything iterable. A generator is empty afterwards.
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

    /// `str()`.
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

    /// `repr()`.
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

/// Returns a shared list that counts against the memory limit.
fn shared_list(items: Vec<PyValue>) -> TemplateResult<SharedList> {
    let (bytes, depth) = (items.len() * ENTRY_BYTES, container_depth(items.iter()));
    Ok(Rc::new(MeteredValue::new(items, bytes, depth)?))
}

/// Returns the depth of a container with these values: one more than the deepest of them.
pub fn container_depth<'v>(values: impl Iterator<Item = &'v PyValue>) -> usize {
    1 + values.map(PyValue::depth).max().unwrap_or(0)
}

/// Returns the entries of a dict as (key, value) tuples.
pub fn item_tuples(dict: &PyDict) -> TemplateResult<Vec<PyValue>> {
    dict.iter().map(|(k, v)| PyValue::tuple(vec![k.0.clone(), v.clone()])).collect()
}

/// `==`.
pub fn equal(a: &PyValue, b: &PyValue) -> TemplateResult<bool> {
    limits::check_depth()?;
    limits::spend_steps(1)?;
    let sequences = |a: &[PyValue], b: &[PyValue]| -> TemplateResult<bool> {
        if a.len() != b.len() {
            return Ok(false);
        }
        for (a, b) in a.iter().zip(b) {
            if !equal(a, b)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    Ok(match (a, b) {
        (PyValue::Undefined(_), PyValue::Undefined(_)) | (PyValue::None, PyValue::None) => true,
        (PyValue::Text(a) | PyValue::Markup(a), PyValue::Text(b) | PyValue::Markup(b)) => {
            limits::spend_copy_steps(a.len().min(b.len()))?;
            a.as_str() == b.as_str()
        }
        (PyValue::BigNumber(a), PyValue::BigNumber(b)) => a == b,
        (PyValue::Int(_) | PyValue::Bool(_), PyValue::Int(_) | PyValue::Bool(_)) => a.as_int() == b.as_int(),
        (PyValue::Float(_), PyValue::Float(_) | PyValue::Int(_) | PyValue::Bool(_))
        | (PyValue::Int(_) | PyValue::Bool(_), PyValue::Float(_)) => compare_numbers(a, b) == Some(Ordering::Equal),
        (PyValue::List(a), PyValue::List(b)) => sequences(a, b)?,
        (PyValue::Tuple(a) | PyValue::GroupTuple(a), PyValue::Tuple(b) | PyValue::GroupTuple(b)) => sequences(a, b)?,
        (PyValue::Dict(a), PyValue::Dict(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.iter() {
                match b.get(key) {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (PyValue::Range(..), PyValue::Range(..)) => sequences(&a.items()?, &b.items()?)?,
        (PyValue::Namespace(a), PyValue::Namespace(b)) => Rc::ptr_eq(a, b),
        (PyValue::Macro(a), PyValue::Macro(b)) => Rc::ptr_eq(a, b),
        (PyValue::Generator(a), PyValue::Generator(b)) => Rc::ptr_eq(a, b),
        (PyValue::DictView(a, _), PyValue::DictView(b, _)) if a == b => {
            return Err(TemplateError::unsupported("comparing the views of dicts"));
        }
        (PyValue::Method(_), PyValue::Method(_)) | (PyValue::Function(_), PyValue::Function(_)) => {
            return Err(TemplateError::unsupported("comparing functions"));
        }
        _ => false,
    })
}

/// Compares two numbers exactly, as Python does: an integer is not rounded to a float first. `None` with a NaN.
fn compare_numbers(a: &PyValue, b: &PyValue) -> Option<Ordering> {
    let with_float = |n: i128, x: f64| -> Option<Ordering> {
        if x.is_nan() {
            return None;
        }
        if x.abs() >= 1e38 {
            return Some(if x > 0.0 { Ordering::Less } else { Ordering::Greater });
        }
        let order = n.cmp(&(x.floor() as i128));
        Some(if order.is_eq() && x.fract() != 0.0 { Ordering::Less } else { order })
    };
    match (a.as_int(), b.as_int()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        (Some(n), None) => with_float(n, b.as_float()?),
        (None, Some(n)) => with_float(n, a.as_float()?).map(Ordering::reverse),
        (None, None) => a.as_float()?.partial_cmp(&b.as_float()?),
    }
}

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

/// `item in container`.
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

fn beyond_128_bits() -> TemplateError {
    TemplateError::unsupported("arithmetic beyond 128 bits")
}

/// Applies an arithmetic operator, which also concatenates and repeats texts and lists and formats with `%`.
pub fn apply_binary(operator: BinaryOperator, a: &PyValue, b: &PyValue) -> TemplateResult<PyValue> {
    // `%` with a text on the left prints an undefined value as empty text, so it comes before the check.
    if let (BinaryOperator::Mod, PyValue::Text(text)) = (operator, a) {
        return super::format::percent_format(text, b);
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

/// `value * times`. A group of `groupby` becomes a plain tuple.
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

/// `-value`.
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

/// `+value`.
pub fn positive(value: &PyValue) -> TemplateResult<PyValue> {
    match value.check_defined()? {
        PyValue::Float(_) | PyValue::BigNumber(_) => Ok(value.clone()),
        other => match other.as_int() {
            Some(n) => Ok(PyValue::Int(n)),
            None => Err(TemplateError::python(format!("bad operand type for unary +: '{}'", other.type_name()))),
        },
    }
}

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

/// `container[start:stop:step]`.
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
