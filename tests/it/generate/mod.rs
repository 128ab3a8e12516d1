//! Tests of src/generate: decoding and sampling.

mod decoding;
