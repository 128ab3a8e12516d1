//! Lets machines compare answers. `judge` defines what a machine is asked and how its opinions become votes; the
//! machines are reward models (`reward`), language models with a rubric (`language`) and programs (`command`).

pub mod command;
pub mod judge;
pub mod language;
pub mod reward;
