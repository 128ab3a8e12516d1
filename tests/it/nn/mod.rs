//! Tests of src/nn: layers without a model family.

mod attention;
mod heads;
mod ropes;
