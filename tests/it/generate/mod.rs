//! Tests of src/generate: decoding and sampling.

mod adapters_by_row;
mod decoding;
mod on_device;
