//! Trains a model: the one loop that serves every method.
//!
//! [`run::run`] is the pipeline: prepare (data, formats, model), start (earlier work in the run's folder),
//! training_loop (steps, validation, checkpoints) and result (the verified export). Records are written along the way.
//! A method only decides which micro-batches make a step and how their loss is computed; gradient accumulation,
//! clipping, the optimiser, validation, checkpoints, records and early stopping are written once, here.
//!
//! step executes one optimiser step, with optim and schedule. checkpoint saves and restores a run; origin decides
//! whether a checkpoint may be resumed; average makes a result that is a mean of checkpoints. memory predicts what a run needs. announce and summary report its beginning and
//! its end; profile records what one step executes.
//!
//! check and fit stop before the model is loaded; suggest measures gradients and trains nothing; replay and verify repeat
//! a run; teach runs the teachers of a distillation.

pub mod optim;
pub mod schedule;

pub mod prepare;

pub mod check;
pub mod fit;
pub mod memory;
mod origin;

mod announce;
mod average;
pub mod checkpoint;
mod profile;
mod records;
mod recurrence;
mod result;
pub mod run;
pub mod start;
mod step;
pub mod summary;
mod training_loop;

pub mod replay;
pub mod suggest;
pub mod teach;
pub mod verify;
