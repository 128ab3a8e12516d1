//! The one integration binary: each topic is a module (every extra binary would link libtorch again).

mod parity;
mod properties;
mod support;
mod trajectories;
