//! Tests of src/nn: layers without a model family.

mod attention;
mod cuda_attention;
mod heads;
mod quantised;
mod ropes;
