//! Tests of src/runs: the records of a run.

mod model_card;
mod records;
