//! Tests of src/native against libtorch.

mod cuda;
mod ggml;
mod graphs;
mod products;
mod quantised;
