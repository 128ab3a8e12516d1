//! Reports on a project's labels: agreement between annotators, their biases, the ranking of the sources, and how well
//! machines match the verdicts of people. `contents` defines all numbers, which are written as JSON; `measure` computes
//! them, `findings` names problems, `page` shows them.

pub mod contents;
mod elements;
mod findings;
mod measure;
pub mod page;
