//! Tests of src/nn: layers without a model family.

mod attention;
mod cuda_attention;
mod fp8;
mod ggml;
mod heads;
mod quantised;
mod ropes;
