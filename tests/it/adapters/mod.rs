//! Tests of src/adapters.

mod lora_relatives;
mod peft;
