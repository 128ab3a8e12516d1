//! Tests of src/runs: the records of a run.

mod records;
