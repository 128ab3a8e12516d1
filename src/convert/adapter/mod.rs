//! Looks at adapters, compares them, and makes adapters of another rank or from two models.

pub mod diff;
pub mod extract;
pub mod info;
pub mod resize;
mod updates;
