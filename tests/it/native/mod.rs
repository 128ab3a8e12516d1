//! Tests of src/native against libtorch.

mod cuda;
mod ggml;
mod products;
mod quantised;
