//! Tests of src/generate: decoding and sampling.

mod adapters_by_row;
mod decoding;
mod long;
mod on_device;
mod recorded;
