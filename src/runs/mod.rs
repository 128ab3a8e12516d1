//! Reads, diagnoses and shows run folders.
//!
//! facts (`run.json`) and history (`metrics.jsonl`) are recorded by the trainer; folder reads a whole run folder.
//! diagnose finds problems; page writes `report.html`, terminal shows the same on a terminal, diff compares two runs.
//! model_card completes the README.md of a result. tensorboard and trainer_state write the curves for other programs.
//! lock (`ft.lock`) records the hashes of all inputs and of the result: inputs finds the files, hash computes and
//! remembers their hashes, recipe_hash hashes the recipe.
//! number formats numbers for people; averaged describes a result that is a mean of checkpoints.
//! Nothing here knows a model or a tensor.

pub mod averaged;
pub mod diagnose;
pub mod diff;
pub mod facts;
pub mod folder;
pub mod hash;
pub mod history;
pub mod inputs;
pub mod lock;
pub mod model_card;
pub mod number;
pub mod page;
mod recipe_hash;
pub mod tensorboard;
pub mod terminal;
pub mod trainer_state;
