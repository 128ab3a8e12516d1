//! Tests of src/adapters.

mod peft;
mod virtual_tokens;
