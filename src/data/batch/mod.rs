//! Which examples make each step: the mix of sources, the order of an epoch, and packing. Works on the lengths of
//! examples alone.

mod loader;
mod mix;
mod pack;

pub use loader::{BatchPlan, Loader, LoaderCursor, StepRows};
pub use mix::SourceMix;
pub use pack::pack;
