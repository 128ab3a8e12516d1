//! Tests of src/models: families, weights, number formats.

mod deepseek;
mod experts;
mod families;
mod gemma3n;
mod gguf_base;
mod gpt_oss;
mod hostile;
mod new_models;
mod number_formats;
mod parity;
mod parity_table;
mod properties;
mod quantised;
mod recurrent;
mod stored;
mod tiled;
