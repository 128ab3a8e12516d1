//! Tests of src/data: from rows to token ids and masks.

mod columns;
mod examples;
mod laws;
mod preferences;
mod scrub;
mod sources;
mod templates;
mod tokenizer;
