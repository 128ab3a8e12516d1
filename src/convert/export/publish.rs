//! Writes a directory under a temporary name and moves it into place once it is verified.

use crate::convert::verify::report::{ExportReport, ExportVerdict, REPORT};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::nn::safetensors::TensorHeader;
use crate::nn::weights;
use std::path::{Path, PathBuf};
use tch::Kind;

/// Lets `fill` write and verify a folder under a temporary name, adds the report and moves the folder to its place. If
/// the verdict is `failed`, the folder is kept as `NAME.failed` and an error is returned.
pub(in crate::convert) fn publish(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<ExportReport>,
) -> Result<ExportReport> {
    let folder: PathBuf = folder.components().collect(); // without a slash at the end
    let mut done = None;
    let failed = PathBuf::from(format!("{}.failed", folder.display()));
    fsutil::replace_dir(&folder, |temp| {
        let report = fill(temp)?;
        fsutil::write_json(&temp.join(REPORT), &report)?;
        if report.verdict == ExportVerdict::Failed {
            let _ = std::fs::remove_dir_all(&failed);
            std::fs::rename(temp, &failed).map_err(|e| fsutil::io_error("moving", &failed, e))?;
            let shown = report.problems.iter().take(12).cloned().collect::<Vec<_>>().join("\n  ");
            return Err(Error::user(format!(
                "{}: the written files differ from the model in memory:\n  {shown}",
                folder.display()
            ))
            .hint(format!("the full report and the files are in {}", failed.display())));
        }
        done = Some(report);
        Ok(())
    })?;
    done.ok_or_else(|| Error::bug("a folder was published without a report"))
}

/// Returns the header of a tensor to be written.
pub(in crate::convert) fn tensor_entry(name: &str, shape: &[i64], kind: Kind) -> Result<TensorHeader> {
    Ok(TensorHeader::new(name, weights::dtype_of(kind)?, shape.iter().map(|&n| n as usize).collect::<Vec<_>>()))
}
