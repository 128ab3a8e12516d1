//! Tests of src/rewards.

mod sources;
