//! The record files of a run, which are deleted with it.

use crate::error::Result;
use crate::fsutil::io_error;
use crate::runs::{self, folder, tensorboard};
use std::path::Path;

/// Record files that are deleted with an earlier run.
const RECORD_FILES: [&str; 10] = [
    folder::METRICS,
    folder::SAMPLES,
    folder::SUMMARY,
    crate::methods::reward::report_card::FILE,
    crate::models::reward::FILE,
    runs::facts::FACTS,
    runs::trainer_state::FILE,
    runs::page::FILE,
    runs::model_card::FILE,
    runs::lock::FILE,
];

/// Deletes the records of an earlier run.
pub fn clear(out: &Path) -> Result<()> {
    for path in RECORD_FILES.map(|name| out.join(name)).iter().filter(|p| p.exists()) {
        std::fs::remove_file(path).map_err(|e| io_error("removing", path, e))?;
    }
    tensorboard::clear(out)
}
