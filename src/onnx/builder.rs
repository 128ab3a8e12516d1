//! Adds operators to a graph.

use super::graph::{
    AttributeValue, Dimension, ElementType, Graph, GraphOperator, Initializer, InitializerData, TensorPort, Value,
};
use std::collections::HashMap;

/// A graph that is being built.
#[derive(Default)]
pub struct GraphBuilder {
    graph: Graph,
    /// What names of operators begin with.
    scope: String,
    /// How many operators there are of each name.
    counts: HashMap<String, usize>,
    /// Constants by type, shape and numbers, so that each is there once.
    constants: HashMap<(i64, Vec<u64>, Vec<u8>), Value>,
}

impl GraphBuilder {
    /// Lets names of operators begin with `scope` from now on.
    pub fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Returns what names of operators begin with.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Returns the graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, kind: ElementType, shape: Vec<Dimension>) -> Value {
        let value = Value::named(name);
        self.graph.inputs.push(TensorPort { value: value.clone(), kind, shape });
        value
    }

    /// Declares a tensor an output.
    pub fn output(&mut self, value: &Value, kind: ElementType, shape: Vec<Dimension>) {
        self.graph.outputs.push(TensorPort { value: value.clone(), kind, shape });
    }

    /// Adds an operator with one result.
    pub fn add(&mut self, operator: &str, inputs: &[&Value]) -> Value {
        self.add_with(operator, inputs, &[])
    }

    /// Adds an operator with settings and one result.
    pub fn add_with(&mut self, operator: &str, inputs: &[&Value], attributes: &[(&str, AttributeValue)]) -> Value {
        let [value] = self.add_for(operator, inputs, attributes);
        value
    }

    /// Adds an operator with several results.
    pub fn add_for<const N: usize>(
        &mut self,
        operator: &str,
        inputs: &[&Value],
        attributes: &[(&str, AttributeValue)],
    ) -> [Value; N] {
        let name = self.free_name(operator);
        let outputs = std::array::from_fn(|i| Value::named(if i == 0 { name.clone() } else { format!("{name}.{i}") }));
        self.push(operator, name, inputs, outputs.to_vec(), attributes);
        outputs
    }

    /// Adds an operator whose result has a name of its own.
    pub fn add_as(
        &mut self,
        result: &str,
        operator: &str,
        inputs: &[&Value],
        attributes: &[(&str, AttributeValue)],
    ) -> Value {
        let (name, value) = (self.free_name(operator), Value::named(result));
        self.push(operator, name, inputs, vec![value.clone()], attributes);
        value
    }

    fn push(
        &mut self,
        operator: &str,
        name: String,
        inputs: &[&Value],
        outputs: Vec<Value>,
        attributes: &[(&str, AttributeValue)],
    ) {
        let attributes = attributes.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let inputs = inputs.iter().map(|value| (*value).clone()).collect();
        self.graph.operators.push(GraphOperator { operator: operator.into(), name, inputs, outputs, attributes });
    }

    fn free_name(&mut self, operator: &str) -> String {
        let name = format!("{}/{operator}", self.scope);
        let count = self.counts.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}_{count}") }
    }

    /// Adds a tensor whose numbers are somewhere else.
    pub fn weight(&mut self, name: &str, kind: ElementType, shape: Vec<u64>, data: InitializerData) -> Value {
        let value = Value::named(name);
        self.graph.initializers.push(Initializer { value: value.clone(), kind, shape, data });
        value
    }

    /// Returns a constant; one of equal type, shape and numbers exists once.
    pub fn constant(&mut self, kind: ElementType, shape: &[u64], data: Vec<u8>) -> Value {
        let key = (kind.id(), shape.to_vec(), data);
        if let Some(value) = self.constants.get(&key) {
            return value.clone();
        }
        let value = Value::named(format!("constant_{}", self.constants.len()));
        let data = InitializerData::Inside(key.2.clone());
        self.graph.initializers.push(Initializer { value: value.clone(), kind, shape: key.1.clone(), data });
        self.constants.insert(key, value.clone());
        value
    }

    /// Returns a list of whole numbers as a constant: (n).
    pub fn integers(&mut self, list: &[i64]) -> Value {
        let data = list.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(ElementType::Int64, &[list.len() as u64], data)
    }

    /// Returns a whole number as a constant without dimensions.
    pub fn integer(&mut self, n: i64) -> Value {
        self.constant(ElementType::Int64, &[], n.to_le_bytes().to_vec())
    }

    /// Returns a float32 as a constant without dimensions.
    pub fn float(&mut self, x: f32) -> Value {
        self.constant(ElementType::Float, &[], x.to_le_bytes().to_vec())
    }

    /// Returns float32 numbers of a shape as a constant.
    pub fn floats(&mut self, list: &[f32], shape: &[u64]) -> Value {
        self.constant(ElementType::Float, shape, list.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Returns a float64 list of a shape as a constant.
    pub fn doubles(&mut self, list: &[f64], shape: &[u64]) -> Value {
        self.constant(ElementType::Double, shape, list.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Converts a tensor to another type.
    pub fn cast(&mut self, x: &Value, to: ElementType) -> Value {
        self.add_with("Cast", &[x], &[("to", AttributeValue::Int(to.id()))])
    }

    /// Gives a tensor another shape; a length of 0 is that of the same dimension, -1 what is left.
    pub fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.integers(shape);
        self.add("Reshape", &[x, &shape])
    }

    /// Exchanges the dimensions of a tensor.
    pub fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.add_with("Transpose", &[x], &[("perm", AttributeValue::Ints(order.to_vec()))])
    }

    /// Adds dimensions of length 1 at these places of the result.
    pub fn unsqueeze(&mut self, x: &Value, places: &[i64]) -> Value {
        let places = self.integers(places);
        self.add("Unsqueeze", &[x, &places])
    }

    /// Joins tensors along a dimension.
    pub fn concat(&mut self, parts: &[&Value], dimension: i64) -> Value {
        self.add_with("Concat", parts, &[("axis", AttributeValue::Int(dimension))])
    }

    /// Splits a tensor along a dimension into parts of these lengths.
    pub fn split<const N: usize>(&mut self, x: &Value, lengths: [i64; N], dimension: i64) -> [Value; N] {
        let lengths = self.integers(&lengths);
        self.add_for("Split", &[x, &lengths], &[("axis", AttributeValue::Int(dimension))])
    }

    /// Multiplies by a number; a factor of 1 is left out.
    pub fn scale(&mut self, x: &Value, factor: f64) -> Value {
        if factor == 1.0 {
            return x.clone();
        }
        let factor = self.float(factor as f32);
        self.add("Mul", &[x, &factor])
    }

    /// Bounds numbers smoothly: `c tanh(x / c)`.
    pub fn cap(&mut self, x: &Value, bound: f64) -> Value {
        let bound = self.float(bound as f32);
        let scaled = self.add("Div", &[x, &bound]);
        let tanh = self.add("Tanh", &[&scaled]);
        self.add("Mul", &[&tanh, &bound])
    }
}
