//! Checks that there is room for a folder before it is written.

use crate::error::{Error, Result};
use std::path::Path;

/// Fails if the disk of `folder` does not have room for `bytes` more.
pub(in crate::convert) fn check_disk_space(folder: &Path, bytes: u64) -> Result<()> {
    match crate::machine::free_disk(folder) {
        Some(free) if free < bytes + (64 << 20) => {
            let show = crate::report::bytes;
            Err(Error::user(format!("{}: {} needed, {} free", folder.display(), show(bytes), show(free)))
                .hint("free disk space, or choose a folder on another disk"))
        }
        _ => Ok(()),
    }
}
