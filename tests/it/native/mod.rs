//! Tests of src/native against libtorch.

mod products;
