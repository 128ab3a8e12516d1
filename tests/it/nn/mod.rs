//! Tests of src/nn: layers without a model family.

mod heads;
mod ropes;
