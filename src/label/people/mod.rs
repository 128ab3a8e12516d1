//! Lets people compare answers.
//!
//! `screen` defines what an annotator sees and sends, `request` what is asked of the desk, `task` what the assignment
//! answers. `assignment` knows who holds which task, and `next_task` chooses the next one. `desk` saves every vote, in
//! a `transaction` of the store, before it acknowledges it. For an admin, `overview` computes the progress and
//! `adjudication` saves final decisions.

pub mod adjudication;
pub mod assignment;
pub mod desk;
mod next_task;
pub mod overview;
pub mod request;
pub mod screen;
pub mod task;
mod transaction;
