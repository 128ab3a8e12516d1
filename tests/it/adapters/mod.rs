//! Tests of src/adapters.

mod kinds;
mod lora_relatives;
mod lycoris;
mod peft;
mod peft_kinds;
mod virtual_tokens;
mod vocabulary;
