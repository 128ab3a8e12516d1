//! Tests of src/adapters.

mod peft;
