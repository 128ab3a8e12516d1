//! Tests of src/generate: decoding and sampling.

mod decoding;
mod on_device;
