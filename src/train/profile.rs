//! Records what one step of a run executes (`ft train --profile FILE`), as a trace that Perfetto (ui.perfetto.dev) and
//! Chrome show: libtorch's operations, and on a GPU its kernels, copies and waits. It uses the profiler of libtorch, so
//! no other program is needed.

use crate::error::{Context, Error, Result};
use crate::fsutil::absolute;
use crate::native::{end_profile, start_profile};
use std::path::{Path, PathBuf};
use tch::Device;

/// The step that is recorded, counted from the first of this process: the steps before it compile kernels and let the
/// allocator reserve its memory.
const RECORDED: u64 = 3;

/// A profile to be recorded in a run.
pub struct StepProfile {
    file: PathBuf,
    /// The number of steps that the run has done before the recorded one.
    after: u64,
}

impl StepProfile {
    /// Plans to write a profile to `file`, in a run of `total` steps of which `done` were done by earlier processes.
    /// Fails if the run ends before the step that is recorded, or if the folder of `file` does not exist.
    pub fn new(file: &Path, done: u64, total: u64) -> Result<Self> {
        let file = absolute(file);
        if file.is_dir() || !file.parent().is_some_and(Path::is_dir) {
            return Err(Error::user(format!("--profile {}: not a file in an existing folder", file.display())));
        }
        let after = done + RECORDED - 1;
        if after >= total {
            return Err(Error::user(format!(
                "--profile records step {}, but the run ends after step {total}",
                after + 1
            ))
            .hint("give the run more steps (run.steps)"));
        }
        Ok(Self { file, after })
    }

    /// Returns true if the step that follows `done` steps is the one to record.
    pub fn is_due(&self, done: u64) -> bool {
        done == self.after
    }

    /// Runs `step`, which computes on `device`, and writes its profile.
    pub fn record<T>(&self, device: Device, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let what = || format!("the profile {}", self.file.display());
        start_profile(device).context(what)?;
        let result = step();
        end_profile(device, &self.file).context(what)?;
        result
    }
}
