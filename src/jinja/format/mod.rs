//! Formats by a pattern as Python does: `%`, `str.format`, and `strftime`.

mod fields;
mod percent;
mod spec;
mod time;

pub use fields::str_format;
pub use percent::percent_format;
pub use time::{RenderTime, strftime};
