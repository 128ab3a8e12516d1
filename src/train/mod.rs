//! Training: the one loop that serves every method.

pub mod optim;
pub mod schedule;
