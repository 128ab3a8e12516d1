//! Tests of src/merging, of merging adapters and models, and of `ft adapter`.

mod adapters;
mod commands;
mod experts;
mod interrupted;
mod model_commands;
mod models;
mod peft;
mod results;
mod soups;
mod trained_weights;
