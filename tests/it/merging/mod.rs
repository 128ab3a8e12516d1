//! Tests of src/merging, of merging adapters, and of `ft adapter`.

mod adapters;
mod commands;
mod interrupted;
mod peft;
mod results;
mod soups;
