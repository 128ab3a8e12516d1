//! Python's values: types, truth, comparison, arithmetic, subscripts, `str()` and `repr()`.
//!
//! Integers have up to 128 bits; arithmetic beyond that is an error. Texts and containers count against the memory
//! limit.

use super::fault::Fault;
use super::limits::{self, Held};
use super::run::{Cycler, Joiner, Loop, MacroValue};
use super::strings;
use super::tree::{Binary, Compare};
use crate::data::json as exact;
use indexmap::{Equivalent, IndexMap};
use serde_json::Value as Json;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// A result that fails with the error of a template.
pub type Result<T> = std::result::Result<T, Fault>;
/// The entries of a dict, in the order of insertion.
pub type Dict = IndexMap<Key, Value>;
/// The items of a list or tuple: shared, counted against the memory limit.
pub type List = Rc<Held<Vec<Value>>>;
/// A text: shared, counted against the memory limit.
pub type Text = Rc<Held<String>>;

/// A value of a template.
#[derive(Clone)]
pub enum Value {
    /// An undefined value: a missing variable, attribute or item. The text is the error that its use raises.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    /// The digits of a number: an integer beyond 128 bits, or a decimal with more digits than a float keeps.
    Long(Rc<str>),
    Float(f64),
    Text(Text),
    /// Text that `escape` or `safe` returned (markupsafe's `Markup`): text that is added to it is escaped.
    Markup(Text),
    List(List),
    Tuple(List),
    /// A group of `groupby`: a tuple (grouper, list) whose parts are attributes of these names too.
    Group(List),
    Dict(Rc<Held<Dict>>),
    /// `keys()`, `values()` or `items()` of a dict, by that name.
    View(&'static str, Rc<Held<Dict>>),
    /// Start, stop, step.
    Range(i128, i128, i128),
    /// A generator, as filters return it: it is empty after it was read once.
    Stream(Rc<Held<RefCell<VecDeque<Value>>>>),
    Namespace(Rc<RefCell<Dict>>),
    Macro(Rc<MacroValue>),
    Loop(Rc<Loop>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    /// A bound method: its object and its name.
    Method(Rc<(Value, &'static str)>),
    /// A global function, by name.
    Function(&'static str),
}

/// Returns true for the digits of a number with a point or an exponent.
pub fn is_decimal(digits: &str) -> bool {
    digits.contains(['.', 'e', 'E'])
}

/// A value that is a key of a dict: hashable in Python.
#[derive(Clone)]
pub struct Key(pub Value);

impl Key {
    /// Fails for a value that Python cannot hash, or that is not supported as a key.
    pub fn of(value: Value) -> Result<Self> {
        let hashable = |v: &Value| -> bool {
            matches!(
                v,
                Value::None
                    | Value::Bool(_)
                    | Value::Int(_)
                    | Value::Long(_)
                    | Value::Float(_)
                    | Value::Text(_)
                    | Value::Markup(_)
            )
        };
        match &value {
            Value::Tuple(items) | Value::Group(items) if items.iter().all(hashable) => Ok(Self(value)),
            v if hashable(v) => Ok(Self(value)),
            Value::List(_) | Value::Dict(_) => Err(Fault::python(format!("unhashable type: '{}'", value.type_name()))),
            v => Err(Fault::unsupported(format!("a key of type '{}'", v.type_name()))),
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Text(text) | Value::Markup(text) => text.as_str().hash(state),
            Value::Int(n) => n.hash(state),
            Value::Bool(b) => i128::from(*b).hash(state),
            Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => (*x as i128).hash(state),
            Value::Float(x) => x.to_bits().hash(state),
            Value::Long(digits) => digits.hash(state),
            Value::Tuple(items) | Value::Group(items) => items.iter().for_each(|i| Key(i.clone()).hash(state)),
            _ => 0u8.hash(state),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0).unwrap_or(false)
    }
}

impl Eq for Key {}

/// A text to look up in a dict, without making a value of it.
#[derive(Hash)]
pub struct Named<'a>(pub &'a str);

impl Equivalent<Key> for Named<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.as_str() == Some(self.0)
    }
}

/// Bytes counted for an entry of a list; a key and its value in a dict count twice that.
const ENTRY: usize = size_of::<Value>();

impl Value {
    pub fn text(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let bytes = text.len();
        Ok(Value::Text(Rc::new(Held::new(text, bytes, 0)?)))
    }

    pub fn markup(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let bytes = text.len();
        Ok(Value::Markup(Rc::new(Held::new(text, bytes, 0)?)))
    }

    pub fn list(items: Vec<Value>) -> Result<Self> {
        Ok(Value::List(held(items)?))
    }

    pub fn tuple(items: Vec<Value>) -> Result<Self> {
        Ok(Value::Tuple(held(items)?))
    }

    pub fn dict(dict: Dict) -> Result<Self> {
        let (bytes, depth) = (dict.len() * ENTRY * 2, deeper(dict.values()));
        Ok(Value::Dict(Rc::new(Held::new(dict, bytes, depth)?)))
    }

    /// Returns a generator over the items.
    pub fn stream(items: impl IntoIterator<Item = Value>) -> Result<Self> {
        let items: VecDeque<Value> = items.into_iter().collect();
        let (bytes, depth) = (items.len() * ENTRY, deeper(items.iter()));
        Ok(Value::Stream(Rc::new(Held::new(RefCell::new(items), bytes, depth)?)))
    }

    /// Returns the levels of values nested in it. A namespace counts as none: the interpreter empties all namespaces at
    /// the end, so that dropping them does not recurse.
    pub fn depth(&self) -> usize {
        match self {
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.depth(),
            Value::Dict(dict) | Value::View(_, dict) => dict.depth(),
            Value::Stream(stream) => stream.depth(),
            Value::Loop(state) => state.depth_of_values(),
            Value::Cycler(cycler) => cycler.depth_of_values(),
            Value::Method(method) => 1 + method.0.depth(),
            _ => 0,
        }
    }

    /// Returns an undefined value whose use raises `message`.
    pub fn undefined(message: impl Into<Rc<str>>) -> Self {
        Value::Undefined(message.into())
    }

    /// Converts data from the caller of the rendering. Its bytes are counted and never refused.
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n.into()),
                (_, Some(n)) => Value::Int(n.into()),
                _ => {
                    let digits = n.to_string();
                    let integer = digits.trim_start_matches('-').bytes().all(|b| b.is_ascii_digit());
                    match (integer, digits.parse()) {
                        (true, Ok(n)) => Value::Int(n),
                        (true, Err(_)) => Value::Long(digits.into()),
                        _ => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
                    }
                }
            },
            Json::String(text) => Value::given(text),
            Json::Array(items) => {
                let items: Vec<Value> = items.iter().map(Value::from_json).collect();
                let (bytes, depth) = (items.len() * ENTRY, deeper(items.iter()));
                Value::List(Rc::new(Held::given(items, bytes, depth)))
            }
            Json::Object(_) if exact::digits(json).is_some() => {
                let digits = exact::digits(json).unwrap_or_default();
                digits.parse().map_or_else(|_| Value::Long(digits.into()), Value::Int)
            }
            Json::Object(map) => {
                let dict: Dict = map.iter().map(|(k, v)| (Key(Value::given(k)), Value::from_json(v))).collect();
                let (bytes, depth) = (dict.len() * ENTRY * 2, deeper(dict.values()));
                Value::Dict(Rc::new(Held::given(dict, bytes, depth)))
            }
        }
    }

    /// Returns a text from the caller: counted, never refused.
    fn given(text: &str) -> Self {
        Value::Text(Rc::new(Held::given(text.to_string(), text.len(), 0)))
    }

    /// Returns Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Long(digits) if is_decimal(digits) => "float",
            Value::Int(_) | Value::Long(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "str",
            Value::Markup(_) => "Markup",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Group(_) => "_GroupTuple",
            Value::Dict(_) => "dict",
            Value::View("keys", _) => "dict_keys",
            Value::View("values", _) => "dict_values",
            Value::View(..) => "dict_items",
            Value::Range(..) => "range",
            Value::Stream(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Macro(_) => "Macro",
            Value::Loop(_) => "LoopContext",
            Value::Cycler(_) => "Cycler",
            Value::Joiner(_) => "Joiner",
            Value::Method(_) => "builtin_function_or_method",
            Value::Function(_) => "function",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the items of a list or tuple.
    pub fn as_slice(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => Some(items),
            _ => None,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    /// Returns an integer or bool as an integer, as Python takes it for an index or a count.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(n) => Some(*n),
            Value::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }

    /// Returns any number as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            Value::Long(digits) => digits.parse().ok(),
            other => other.as_int().map(|n| n as f64),
        }
    }

    /// Returns the integer; the error says that `what` must be one.
    pub fn int(&self, what: &str) -> Result<i128> {
        self.defined()?;
        self.as_int().ok_or_else(|| Fault::python(format!("{what} must be an integer, not {}", self.type_name())))
    }

    /// Fails for an undefined value, with the message that it carries.
    pub fn defined(&self) -> Result<&Self> {
        match self {
            Value::Undefined(message) => Err(Fault::python(&**message)),
            _ => Ok(self),
        }
    }

    /// `bool()`.
    pub fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Float(x) => *x != 0.0,
            Value::Text(text) | Value::Markup(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => !items.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => !dict.is_empty(),
            Value::Range(..) => self.length().is_ok_and(|n| n > 0),
            _ => true,
        }
    }

    /// `len()`.
    pub fn length(&self) -> Result<usize> {
        Ok(match self {
            Value::Undefined(_) => 0,
            Value::Text(text) | Value::Markup(text) => {
                limits::spend_bytes(text.len())?;
                text.chars().count()
            }
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.len(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len(),
            Value::Range(start, stop, step) => {
                let distance = if *step > 0 { stop - start } else { start - stop };
                usize::try_from((distance + step.abs() - 1).div_euclid(step.abs()).max(0)).unwrap_or(0)
            }
            Value::Loop(state) => state.length(),
            other => return Err(Fault::python(format!("object of type '{}' has no len()", other.type_name()))),
        })
    }

    /// `list(value)`: the items of anything iterable. A generator is empty afterwards.
    pub fn items(&self) -> Result<Vec<Value>> {
        let items: Vec<Value> = match self {
            Value::Undefined(_) => Vec::new(),
            Value::Text(text) | Value::Markup(text) => {
                limits::room_for(text.len(), ENTRY * 2)?;
                text.chars().map(Value::text).collect::<Result<_>>()?
            }
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                limits::room_for(items.len(), ENTRY)?;
                items.to_vec()
            }
            Value::Dict(dict) | Value::View("keys", dict) => dict.keys().map(|k| k.0.clone()).collect(),
            Value::View("values", dict) => dict.values().cloned().collect(),
            Value::View(_, dict) => pairs(dict)?,
            Value::Range(start, _, step) => (0..self.length()? as i128).map(|i| Value::Int(start + i * step)).collect(),
            Value::Stream(stream) => stream.take().into(),
            other => return Err(Fault::python(format!("'{}' object is not iterable", other.type_name()))),
        };
        limits::spend(items.len() as u64 / 8)?;
        Ok(items)
    }

    /// Returns true if a `for` loop accepts the value.
    pub fn is_iterable(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::Text(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_) => true,
            Value::Group(_) | Value::Dict(_) | Value::View(..) | Value::Range(..) | Value::Stream(_) => true,
            Value::Loop(_) => true,
            _ => false,
        }
    }

    /// `str()`.
    pub fn print(&self) -> Result<String> {
        limits::check_depth()?;
        Ok(match self {
            Value::Undefined(_) => String::new(),
            Value::Text(text) | Value::Markup(text) => {
                limits::room(text.len())?;
                text.to_string()
            }
            other => other.repr()?,
        })
    }

    /// `repr()`.
    pub fn repr(&self) -> Result<String> {
        limits::check_depth()?;
        limits::spend(1)?;
        let all = |items: &[Value]| -> Result<String> {
            let parts = items.iter().map(Value::repr).collect::<Result<Vec<_>>>()?;
            limits::room(parts.iter().map(|p| p.len() + 2).sum())?;
            Ok(parts.join(", "))
        };
        let mapping = |dict: &Dict| -> Result<String> {
            let pair = |(k, v): (&Key, &Value)| Ok(format!("{}: {}", k.0.repr()?, v.repr()?));
            let parts = dict.iter().map(pair).collect::<Result<Vec<_>>>()?;
            limits::room(parts.iter().map(|p| p.len() + 2).sum())?;
            Ok(format!("{{{}}}", parts.join(", ")))
        };
        Ok(match self {
            Value::Undefined(_) => "Undefined".into(),
            Value::None => "None".into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Int(n) => n.to_string(),
            Value::Long(digits) => digits.to_string(),
            Value::Float(x) => strings::float(*x),
            Value::Text(text) => strings::repr(text)?,
            Value::Markup(text) => format!("Markup({})", strings::repr(text)?),
            Value::List(items) => format!("[{}]", all(items)?),
            Value::Tuple(items) | Value::Group(items) if items.len() == 1 => format!("({},)", all(items)?),
            Value::Tuple(items) | Value::Group(items) => format!("({})", all(items)?),
            Value::Dict(dict) => mapping(dict)?,
            Value::View(..) => format!("{}([{}])", self.type_name(), all(&self.items()?)?),
            Value::Range(start, stop, 1) => format!("range({start}, {stop})"),
            Value::Range(start, stop, step) => format!("range({start}, {stop}, {step})"),
            Value::Namespace(dict) => format!("<Namespace {}>", mapping(&dict.borrow())?),
            Value::Macro(called) => format!("<Macro {}>", strings::repr(called.name())?),
            other => return Err(Fault::unsupported(format!("printing an object of type '{}'", other.type_name()))),
        })
    }
}

/// Returns a shared list that counts against the memory limit.
fn held(items: Vec<Value>) -> Result<List> {
    let (bytes, depth) = (items.len() * ENTRY, deeper(items.iter()));
    Ok(Rc::new(Held::new(items, bytes, depth)?))
}

/// Returns the depth of a container with these values: one more than the deepest of them.
pub fn deeper<'v>(values: impl Iterator<Item = &'v Value>) -> usize {
    1 + values.map(Value::depth).max().unwrap_or(0)
}

/// Returns the entries of a dict as (key, value) tuples.
pub fn pairs(dict: &Dict) -> Result<Vec<Value>> {
    dict.iter().map(|(k, v)| Value::tuple(vec![k.0.clone(), v.clone()])).collect()
}

/// `==`.
pub fn equal(a: &Value, b: &Value) -> Result<bool> {
    limits::check_depth()?;
    limits::spend(1)?;
    let sequences = |a: &[Value], b: &[Value]| -> Result<bool> {
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
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(a) | Value::Markup(a), Value::Text(b) | Value::Markup(b)) => {
            limits::spend_bytes(a.len().min(b.len()))?;
            a.as_str() == b.as_str()
        }
        (Value::Long(a), Value::Long(b)) => a == b,
        (Value::Int(_) | Value::Bool(_), Value::Int(_) | Value::Bool(_)) => a.as_int() == b.as_int(),
        (Value::Float(_), Value::Float(_) | Value::Int(_) | Value::Bool(_))
        | (Value::Int(_) | Value::Bool(_), Value::Float(_)) => compare_numbers(a, b) == Some(Ordering::Equal),
        (Value::List(a), Value::List(b)) => sequences(a, b)?,
        (Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => sequences(a, b)?,
        (Value::Dict(a), Value::Dict(b)) => {
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
        (Value::Range(..), Value::Range(..)) => sequences(&a.items()?, &b.items()?)?,
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Stream(a), Value::Stream(b)) => Rc::ptr_eq(a, b),
        (Value::View(a, _), Value::View(b, _)) if a == b => {
            return Err(Fault::unsupported("comparing the views of dicts"));
        }
        (Value::Method(_), Value::Method(_)) | (Value::Function(_), Value::Function(_)) => {
            return Err(Fault::unsupported("comparing functions"));
        }
        _ => false,
    })
}

/// Compares two numbers exactly, as Python does: an integer is not rounded to a float first. `None` with a NaN.
fn compare_numbers(a: &Value, b: &Value) -> Option<Ordering> {
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
pub fn order(a: &Value, b: &Value, operator: &str) -> Result<Option<Ordering>> {
    limits::check_depth()?;
    limits::spend(1)?;
    let number = |v: &Value| matches!(v, Value::Int(_) | Value::Bool(_) | Value::Float(_));
    Ok(match (a, b) {
        (Value::Text(a) | Value::Markup(a), Value::Text(b) | Value::Markup(b)) => {
            limits::spend_bytes(a.len().min(b.len()))?;
            Some(a.as_str().cmp(b.as_str()))
        }
        (a, b) if number(a) && number(b) => compare_numbers(a, b),
        (Value::List(x), Value::List(y)) | (Value::Tuple(x) | Value::Group(x), Value::Tuple(y) | Value::Group(y)) => {
            for (a, b) in x.iter().zip(y.iter()) {
                if !equal(a, b)? {
                    return order(a, b, operator);
                }
            }
            Some(x.len().cmp(&y.len()))
        }
        (Value::Long(_), _) | (_, Value::Long(_)) => return Err(long()),
        _ => {
            a.defined()?;
            b.defined()?;
            return Err(Fault::python(format!(
                "'{operator}' not supported between instances of '{}' and '{}'",
                a.type_name(),
                b.type_name()
            )));
        }
    })
}

/// `item in container`.
pub fn contains(container: &Value, item: &Value) -> Result<bool> {
    Ok(match container {
        Value::Text(text) | Value::Markup(text) => {
            limits::spend_bytes(text.len())?;
            let part = item.defined()?.as_str().ok_or_else(|| {
                Fault::python(format!("'in <string>' requires string as left operand, not {}", item.type_name()))
            })?;
            text.contains(part)
        }
        Value::Dict(dict) | Value::View("keys", dict) => match item {
            Value::Undefined(_) => false,
            item => dict.contains_key(&Key::of(item.clone())?),
        },
        Value::Namespace(_) | Value::Macro(_) | Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            return Err(Fault::python(format!("argument of type '{}' is not iterable", container.type_name())));
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
pub fn compare(operator: Compare, a: &Value, b: &Value) -> Result<bool> {
    let ordered =
        |name: &str, wanted: fn(Ordering) -> bool| -> Result<bool> { Ok(order(a, b, name)?.is_some_and(wanted)) };
    match operator {
        Compare::Eq => equal(a, b),
        Compare::Ne => Ok(!equal(a, b)?),
        Compare::Lt => ordered("<", Ordering::is_lt),
        Compare::Le => ordered("<=", Ordering::is_le),
        Compare::Gt => ordered(">", Ordering::is_gt),
        Compare::Ge => ordered(">=", Ordering::is_ge),
        Compare::In => contains(b, a),
        Compare::NotIn => Ok(!contains(b, a)?),
    }
}

fn long() -> Fault {
    Fault::unsupported("arithmetic beyond 128 bits")
}

/// Applies an arithmetic operator, which also concatenates and repeats texts and lists and formats with `%`.
pub fn binary(operator: Binary, a: &Value, b: &Value) -> Result<Value> {
    // `%` with a text on the left prints an undefined value as empty text, so it comes before the check.
    if let (Binary::Mod, Value::Text(text)) = (operator, a) {
        return super::format::percent(text, b);
    }
    a.defined()?;
    b.defined()?;
    match (operator, a, b) {
        // Text that is added to escaped text is escaped.
        (Binary::Add, Value::Markup(_), Value::Text(_) | Value::Markup(_))
        | (Binary::Add, Value::Text(_), Value::Markup(_)) => {
            let escaped = |side: &Value| match side {
                Value::Text(text) => strings::escaped(text.as_str()),
                other => other.print(),
            };
            let [x, y] = [escaped(a)?, escaped(b)?];
            limits::room(x.len() + y.len())?;
            return Value::markup([x, y].concat());
        }
        (Binary::Mul, Value::Markup(_), n) if n.as_int().is_some() => return repeat(a, n),
        (Binary::Mul, n, Value::Markup(_)) if n.as_int().is_some() => return repeat(b, n),
        (Binary::Mod, Value::Markup(_), _) => {
            return Err(Fault::unsupported("formatting text from `escape` or `safe` with `%`"));
        }
        (Binary::Add, Value::Text(x), Value::Text(y)) => {
            limits::room(x.len() + y.len())?;
            return Value::text([x.as_str(), y.as_str()].concat());
        }
        (Binary::Add, Value::List(x), Value::List(y)) => {
            limits::room_for(x.len() + y.len(), ENTRY)?;
            return Value::list([x.as_slice(), y.as_slice()].concat());
        }
        (Binary::Add, Value::Tuple(x) | Value::Group(x), Value::Tuple(y) | Value::Group(y)) => {
            limits::room_for(x.len() + y.len(), ENTRY)?;
            return Value::tuple([x.as_slice(), y.as_slice()].concat());
        }
        (Binary::Mul, Value::Text(_) | Value::List(_) | Value::Tuple(_), n) if n.as_int().is_some() => {
            return repeat(a, n);
        }
        (Binary::Mul, n, Value::Text(_) | Value::List(_) | Value::Tuple(_)) if n.as_int().is_some() => {
            return repeat(b, n);
        }
        _ => {}
    }
    let wrong = || match (operator, a) {
        (Binary::Add, Value::Text(_)) => {
            Fault::python(format!("can only concatenate str (not \"{}\") to str", b.type_name()))
        }
        _ => Fault::python(format!("unsupported operand types: '{}' and '{}'", a.type_name(), b.type_name())),
    };
    if matches!(a, Value::Long(_)) || matches!(b, Value::Long(_)) {
        return Err(long());
    }
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        return integers(operator, x, y);
    }
    let (x, y) = (a.as_float().ok_or_else(wrong)?, b.as_float().ok_or_else(wrong)?);
    floats(operator, x, y).map(Value::Float)
}

/// `value * times`.
fn repeat(what: &Value, times: &Value) -> Result<Value> {
    let times = usize::try_from(times.as_int().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
    match what {
        Value::Text(text) => {
            limits::room_for(times, text.len())?;
            Value::text(text.repeat(times))
        }
        Value::Markup(text) => {
            limits::room_for(times, text.len())?;
            Value::markup(text.repeat(times))
        }
        other => {
            let items = other.as_slice().unwrap_or_default();
            limits::room_for(times, items.len() * ENTRY)?;
            let items = (0..times).flat_map(|_| items.iter().cloned()).collect();
            if matches!(other, Value::Tuple(_)) { Value::tuple(items) } else { Value::list(items) }
        }
    }
}

fn integers(operator: Binary, x: i128, y: i128) -> Result<Value> {
    let zero = || Fault::python("division by zero");
    let whole = match operator {
        Binary::Add => x.checked_add(y),
        Binary::Sub => x.checked_sub(y),
        Binary::Mul => x.checked_mul(y),
        Binary::Div if y == 0 => return Err(zero()),
        Binary::Div if x.unsigned_abs() >> 53 > 0 || y.unsigned_abs() >> 53 > 0 => {
            return Err(Fault::unsupported("division of integers beyond 53 bits"));
        }
        Binary::Div => return Ok(Value::Float(x as f64 / y as f64)),
        Binary::FloorDiv | Binary::Mod if y == 0 => return Err(zero()),
        Binary::FloorDiv => {
            let (quotient, rest) = (x.checked_div(y).ok_or_else(long)?, x.checked_rem(y).ok_or_else(long)?);
            Some(quotient - i128::from(rest != 0 && (rest < 0) != (y < 0)))
        }
        Binary::Mod => {
            let rest = x.checked_rem(y).ok_or_else(long)?;
            Some(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest })
        }
        Binary::Pow if y < 0 && x == 0 => return Err(Fault::python("0.0 cannot be raised to a negative power")),
        Binary::Pow if y < 0 => return Ok(Value::Float((x as f64).powf(y as f64))),
        Binary::Pow => match u32::try_from(y) {
            Ok(y) => x.checked_pow(y),
            Err(_) => None,
        },
    };
    whole.map(Value::Int).ok_or_else(long)
}

fn floats(operator: Binary, x: f64, y: f64) -> Result<f64> {
    let divides = matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod);
    if divides && y == 0.0 {
        return Err(Fault::python("float division by zero"));
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
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Mod => modulo(),
        Binary::FloorDiv => {
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
        Binary::Pow if x == 0.0 && y < 0.0 => return Err(Fault::python("0.0 cannot be raised to a negative power")),
        Binary::Pow if x < 0.0 && y.fract() != 0.0 => return Err(Fault::unsupported("complex numbers")),
        Binary::Pow => {
            let result = x.powf(y);
            if result.is_infinite() && x.is_finite() && y.is_finite() {
                return Err(Fault::python("Numerical result out of range"));
            }
            result
        }
    })
}

/// `-value`.
pub fn negative(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(x) => Ok(Value::Float(-x)),
        Value::Long(digits) => Ok(Value::Long(match digits.strip_prefix('-') {
            Some(positive) => positive.into(),
            None => format!("-{digits}").into(),
        })),
        other => match other.as_int() {
            Some(n) => n.checked_neg().map(Value::Int).ok_or_else(long),
            None => Err(Fault::python(format!("bad operand type for unary -: '{}'", other.type_name()))),
        },
    }
}

/// `+value`.
pub fn positive(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(_) | Value::Long(_) => Ok(value.clone()),
        other => match other.as_int() {
            Some(n) => Ok(Value::Int(n)),
            None => Err(Fault::python(format!("bad operand type for unary +: '{}'", other.type_name()))),
        },
    }
}

/// Converts Python's index, which counts from the end if negative, to a position; `None` if it is out of range.
fn place(index: i128, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i128 } else { index };
    usize::try_from(index).ok().filter(|i| *i < length)
}

/// Returns `container[index]`; `None` where there is no such item.
pub fn item(container: &Value, index: &Value) -> Result<Option<Value>> {
    let at = || index.as_int();
    Ok(match container {
        Value::Dict(dict) => match (index.as_str(), index) {
            (Some(name), _) => dict.get(&Named(name)).cloned(),
            (_, Value::List(_) | Value::Dict(_) | Value::Undefined(_)) => None,
            _ => dict.get(&Key::of(index.clone())?).cloned(),
        },
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            at().and_then(|i| place(i, items.len())).map(|i| items[i].clone())
        }
        Value::Text(text) | Value::Markup(text) => match at() {
            None => None,
            Some(i) => {
                limits::spend_bytes(text.len())?;
                let found = match i {
                    0.. => usize::try_from(i).ok().and_then(|i| text.chars().nth(i)),
                    _ => usize::try_from(-1 - i).ok().and_then(|i| text.chars().rev().nth(i)),
                };
                found.map(Value::text).transpose()?
            }
        },
        Value::Range(start, _, step) => {
            let length = container.length()?;
            at().and_then(|i| place(i, length)).map(|i| Value::Int(start + i as i128 * step))
        }
        _ => None,
    })
}

/// `container[start:stop:step]`.
pub fn slice(container: &Value, parts: [Option<Value>; 3]) -> Result<Value> {
    container.defined()?;
    let part = |v: &Option<Value>| match v {
        None | Some(Value::None) => Ok(None),
        Some(v) => v.int("slice indices").map(Some),
    };
    let (start, stop, step) = (part(&parts[0])?, part(&parts[1])?, part(&parts[2])?.unwrap_or(1));
    if step == 0 {
        return Err(Fault::python("slice step cannot be zero"));
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
        Value::Text(text) | Value::Markup(text) => {
            limits::room(text.len())?;
            let like =
                |s: String| if matches!(container, Value::Markup(_)) { Value::markup(s) } else { Value::text(s) };
            let chars: Vec<char> = text.chars().collect();
            like(select(chars.len()).into_iter().map(|i| chars[i]).collect())
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            limits::room_for(items.len(), ENTRY)?;
            let picked = select(items.len()).into_iter().map(|i| items[i].clone()).collect();
            if matches!(container, Value::List(_)) { Value::list(picked) } else { Value::tuple(picked) }
        }
        Value::Range(..) => Err(Fault::unsupported("a slice of a range")),
        other => Err(Fault::python(format!("'{}' object is not subscriptable", other.type_name()))),
    }
}
