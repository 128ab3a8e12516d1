//! Tests of src/native against libtorch.

mod cuda;
mod products;
mod quantised;
