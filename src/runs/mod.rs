//! Run folders: what a run leaves behind, read and shown.
//!
//! facts (`run.json`) and history (`metrics.jsonl`) are what the trainer notes down; folder reads a run whole; diagnose
//! finds what is wrong with it; page makes `report.html`, terminal the same for a terminal, diff compares two runs;
//! tensorboard and trainer_state write the same numbers for other programs; lock says what a run was made of.
//! Nothing here knows a model or a tensor.

pub mod diagnose;
pub mod diff;
pub mod facts;
pub mod folder;
pub mod hash;
pub mod history;
pub mod lock;
pub mod page;
mod preference;
pub mod tensorboard;
pub mod terminal;
pub mod trainer_state;

pub use diagnose::{Finding, Patient, diagnose};
pub use facts::{Environment, Facts, Software};
pub use folder::{RunFolder, Sample, State};
pub use history::{Aim, History, Point, Validation};
pub use lock::{Drift, Lock};
