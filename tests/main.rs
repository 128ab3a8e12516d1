//! The one integration binary: each topic is a module (every extra binary would link libtorch again).

mod adapters;
mod architecture;
mod commands;
mod convert;
mod data;
mod fuzz;
mod generate;
mod hostile;
mod hostile_files;
mod parity;
mod properties;
mod recipe;
mod selftest;
mod setup;
mod support;
mod trajectories;
