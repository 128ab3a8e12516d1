//! What an ONNX model says (<https://onnx.ai/onnx/repo-docs/IR.html>): a graph of operators, with constants inside and weights in
//! a file beside it.
//!
//! graph: the parts of a graph, and whether it is well formed. builder: adds operators to one. message: its encoding as protobuf.

mod builder;
mod graph;
mod message;

pub use builder::GraphBuilder;
pub use graph::{
    AttributeValue, Dimension, ElementType, Graph, GraphOperator, Initializer, InitializerData, TensorPort, Value,
};
pub use message::{OPSET, decode, encode};
