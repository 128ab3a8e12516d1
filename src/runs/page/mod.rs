//! Writes `report.html`: a run as a single self-contained page. It needs no network; its only script shows the values
//! of curves under the pointer.
//!
//! Everything that comes from files or from a model is escaped. In addition, a Content-Security-Policy in the page's
//! head allows the browser to run only that script (by its hash) and to load nothing.

mod card;
pub mod chart;
pub mod document;
pub mod escape;
mod histogram;
pub mod markdown;
pub mod plot;
mod sections;
pub mod ticks;

pub use sections::short;

use super::folder::RunFolder;
use crate::error::Result;
use crate::fsutil::write_atomic;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FILE: &str = "report.html";

/// Reads a run folder and writes its page into it. Returns the page's path.
pub fn write(run: &Path) -> Result<PathBuf> {
    let path = run.join(FILE);
    write_to(&RunFolder::open(run)?, &path)?;
    Ok(path)
}

/// Writes the page of a run to `path`.
pub fn write_to(run: &RunFolder, path: &Path) -> Result<()> {
    let page = render(run);
    write_atomic(path, |w| w.write_all(page.as_bytes()))
}

/// Returns the page of a run as HTML.
pub fn render(run: &RunFolder) -> String {
    document::document(&run.name(), &sections::render_sections(run))
}
