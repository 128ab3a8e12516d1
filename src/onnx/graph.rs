//! The parts of a graph.

use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;

/// The name of a tensor in a graph: an input, an initializer, or the result of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Value(Rc<str>);

impl Value {
    /// Returns the value of this name.
    pub fn named(name: impl AsRef<str>) -> Self {
        Self(name.as_ref().into())
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ElementType {
    /// 32-bit float.
    Float,
    /// Whole numbers from 0 to 255.
    Uint8,
    /// Whole numbers of 64 bits.
    Int64,
    /// Truth values.
    Bool,
    /// 16-bit float.
    Float16,
    /// 64-bit float.
    Double,
    /// The upper 16 bits of a 32-bit float.
    Bfloat16,
}

impl ElementType {
    const ALL: [Self; 7] =
        [Self::Float, Self::Uint8, Self::Int64, Self::Bool, Self::Float16, Self::Double, Self::Bfloat16];

    /// Returns the number of the type in files (`TensorProto.DataType`).
    pub fn id(self) -> i64 {
        match self {
            Self::Float => 1,
            Self::Uint8 => 2,
            Self::Int64 => 7,
            Self::Bool => 9,
            Self::Float16 => 10,
            Self::Double => 11,
            Self::Bfloat16 => 16,
        }
    }

    /// Returns the type with this number; `None` for one that is not written here.
    pub fn of_id(id: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// Returns the size of an element in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Uint8 | Self::Bool => 1,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Float => 4,
            Self::Int64 | Self::Double => 8,
        }
    }

    /// Returns the name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float32",
            Self::Uint8 => "uint8",
            Self::Int64 => "int64",
            Self::Bool => "bool",
            Self::Float16 => "float16",
            Self::Double => "float64",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// The length of a tensor along one dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    /// A number.
    Fixed(i64),
    /// Any number, the same wherever this name stands.
    Named(String),
}

impl From<i64> for Dimension {
    fn from(length: i64) -> Self {
        Self::Fixed(length)
    }
}

impl From<&str> for Dimension {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPort {
    /// The tensor.
    pub value: Value,
    /// The type of its elements.
    pub kind: ElementType,
    /// Its shape.
    pub shape: Vec<Dimension>,
}

/// A setting of an operator.
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f32),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// A word.
    Text(String),
}

/// One operator and what it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphOperator {
    /// The operator of the standard, as `MatMul`.
    pub operator: String,
    /// Its name, which no other has.
    pub name: String,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// What it computes.
    pub outputs: Vec<Value>,
    /// Its settings.
    pub attributes: Vec<(String, AttributeValue)>,
}

/// A tensor that is part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Initializer {
    /// The tensor.
    pub value: Value,
    /// The type of its elements.
    pub kind: ElementType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its numbers.
    pub data: InitializerData,
}

impl Initializer {
    /// Returns the size of its numbers in bytes, as type and shape say.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.kind.bytes(), |bytes, n| bytes.saturating_mul(*n))
    }
}

/// Where the numbers of an initializer are.
#[derive(Debug, Clone, PartialEq)]
pub enum InitializerData {
    /// In the graph's own file: the numbers, little-endian.
    Inside(Vec<u8>),
    /// In a file beside it, from `offset` on.
    Beside {
        /// The file's name.
        file: String,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
}

/// A graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    /// What the caller gives.
    pub inputs: Vec<TensorPort>,
    /// What the caller gets.
    pub outputs: Vec<TensorPort>,
    /// The operators; each reads what comes before it.
    pub operators: Vec<GraphOperator>,
    /// Constants and weights.
    pub initializers: Vec<Initializer>,
}

impl Graph {
    /// Returns what is wrong with the graph, if anything is: an operator that reads what nothing before it computes, two tensors or
    /// operators of one name, an output or initializer without use or value, numbers that do not fill their shape.
    pub fn problem(&self) -> Option<String> {
        let mut known: HashSet<&Value> = HashSet::new();
        let given = self.inputs.iter().map(|port| &port.value);
        for value in given.chain(self.initializers.iter().map(|initializer| &initializer.value)) {
            if !known.insert(value) {
                return Some(format!("two tensors are called {value}"));
            }
        }
        for initializer in &self.initializers {
            let found = match &initializer.data {
                InitializerData::Inside(bytes) => bytes.len() as u64,
                InitializerData::Beside { length, .. } => *length,
            };
            if found != initializer.bytes() {
                let (value, expected) = (&initializer.value, initializer.bytes());
                return Some(format!("{value} has {found} bytes, and its shape {expected}"));
            }
        }
        let (mut names, mut read) = (HashSet::new(), HashSet::new());
        for operator in &self.operators {
            if !names.insert(&operator.name) {
                return Some(format!("two operators are called {}", operator.name));
            }
            // A name may be empty: an optional input that is left out.
            for input in operator.inputs.iter().filter(|input| !input.name().is_empty()) {
                if !known.contains(input) {
                    return Some(format!("{} reads {input}, which nothing before it computes", operator.name));
                }
                read.insert(input);
            }
            if let Some(twice) = operator.outputs.iter().find(|output| !known.insert(output)) {
                return Some(format!("two tensors are called {twice}"));
            }
        }
        if let Some(port) = self.outputs.iter().find(|port| !known.contains(&port.value)) {
            return Some(format!("nothing computes the output {}", port.value));
        }
        let idle = self.initializers.iter().find(|initializer| !read.contains(&initializer.value));
        idle.map(|initializer| format!("nothing reads {}", initializer.value))
    }
}
