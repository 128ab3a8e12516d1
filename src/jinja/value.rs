//! Python's values: types, truth, equality, `str()` and `repr()`; and the objects of Jinja that are values too.
//!
//! Integers have up to 128 bits; arithmetic beyond that is an error. Texts and containers count against the memory
//! limit.

use super::ast::{ForLoop, MacroDefinition, SharedName};
use super::error::{TemplateError, TemplateResult};
use super::limits::{self, MeteredValue};
use crate::json as exact;
use indexmap::{Equivalent, IndexMap};
use serde_json::Value as Json;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

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
pub(super) const ENTRY_BYTES: usize = size_of::<PyValue>();

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

    /// Returns `text` as `Markup` if this value is `Markup`, else as plain text, as Python's methods and indices of a
    /// text do.
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

/// Returns Python's `a == b`.
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
pub(super) fn compare_numbers(a: &PyValue, b: &PyValue) -> Option<Ordering> {
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

pub(super) fn beyond_128_bits() -> TemplateError {
    TemplateError::unsupported("arithmetic beyond 128 bits")
}

/// The variables of a block by name. Those of the outer scopes can be read but not assigned, as in Jinja.
pub struct VariableScope {
    pub(super) variables: RefCell<Vec<(SharedName, PyValue)>>,
    pub(super) outer: Option<Rc<VariableScope>>,
}

impl VariableScope {
    pub(super) fn new(outer: Option<&Rc<VariableScope>>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), outer: outer.cloned() })
    }

    pub(super) fn get(&self, name: &str) -> Option<PyValue> {
        let mut scope = self;
        loop {
            if let Some((_, value)) = scope.variables.borrow().iter().rfind(|(n, _)| **n == *name) {
                return Some(value.clone());
            }
            scope = scope.outer.as_deref()?;
        }
    }

    pub(super) fn set(&self, name: &SharedName, value: PyValue) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = value,
            None => variables.push((name.clone(), value)),
        }
    }
}

/// A macro, or the block of a `call`, with the scope in which it was defined.
pub struct MacroValue {
    pub(super) definition: Arc<MacroDefinition>,
    pub(super) scope: Rc<VariableScope>,
}

impl MacroValue {
    /// Returns the name of the macro.
    pub fn name(&self) -> &str {
        &self.definition.name
    }
}

/// The variable `loop` in the body of a loop.
pub struct LoopState {
    pub(super) items: Vec<PyValue>,
    pub(super) at: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Vec<PyValue>>>,
    /// For `loop(…)` in a recursive loop: the statement and the scope around it.
    pub(super) recursion: Option<(Arc<ForLoop>, Rc<VariableScope>)>,
    pub(super) nesting: usize,
}

impl LoopState {
    /// Returns the levels of values nested in its items.
    pub fn depth_of_values(&self) -> usize {
        self.nesting
    }

    /// Returns the number of its items.
    pub fn length(&self) -> usize {
        self.items.len()
    }
}

/// The result of `cycler(…)`, which goes round its values.
pub struct Cycler {
    pub(super) items: Vec<PyValue>,
    pub(super) at: Cell<usize>,
    pub(super) nesting: usize,
}

impl Cycler {
    /// Returns the levels of values nested in its items.
    pub fn depth_of_values(&self) -> usize {
        self.nesting
    }
}

/// The result of `joiner(…)`: empty text at its first call, then the separator.
pub struct Joiner {
    pub(super) separator: PyValue,
    pub(super) used: Cell<bool>,
}
