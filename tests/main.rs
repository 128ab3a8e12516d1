//! The one integration binary: each topic is a module (every extra binary would link libtorch again).

mod adapters;
mod architecture;
mod commands;
mod convert;
mod data;
mod families;
mod fresh;
mod fuzz;
mod generate;
mod generate_commands;
mod hostile;
mod hostile_files;
mod optimisers;
mod parity;
mod preferences;
mod properties;
mod recipe;
mod records;
mod resume;
mod ropes;
mod selftest;
mod setup;
mod sources;
mod support;
mod tokenizer;
mod trajectories;
