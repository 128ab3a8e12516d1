//! Tests of src/nn: layers without a model family.

mod attention;
mod cuda_attention;
mod ggml;
mod heads;
mod quantised;
mod ropes;
