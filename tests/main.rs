//! The one integration binary: each topic is a module (every extra binary would link libtorch again).

mod recipe;
mod convert;
mod data;
mod setup;
mod generate;
mod adapters;
mod commands;
mod architecture;
mod hostile;
mod parity;
mod properties;
mod support;
mod trajectories;
