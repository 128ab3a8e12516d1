//! Tests of src/adapters.

mod kinds;
mod peft;
mod peft_kinds;
mod virtual_tokens;
