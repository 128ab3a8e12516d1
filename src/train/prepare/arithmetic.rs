//! Applies the settings of a run that decide how exactly, and in which order, libtorch computes on a GPU.

use crate::error::{Error, Result};
use crate::machine;
use crate::native::{self, Arithmetic};
use crate::recipe::sections::RunSection;
use tch::Device;

/// The variable that sizes cuBLAS's buffers, and its values with which sums have a fixed order. `runtime::start` sets it.
const CUBLAS_BUFFERS: &str = "CUBLAS_WORKSPACE_CONFIG";
const FIXED_ORDER: [&str; 2] = [":4096:8", ":16:8"];

/// Applies `run.deterministic` and `run.tf32` to the whole process. Fails if the device cannot follow them.
pub fn apply(run: &RunSection, device: Device) -> Result<()> {
    if let (true, Device::Cuda(_)) = (run.deterministic, device) {
        let found = std::env::var(CUBLAS_BUFFERS).unwrap_or_default();
        if !FIXED_ORDER.contains(&found.as_str()) {
            return Err(Error::user(format!(
                "run.deterministic: with {CUBLAS_BUFFERS}={found}, sums in matrix products have no fixed order"
            ))
            .hint(format!("unset {CUBLAS_BUFFERS}: ft sets it to {}", FIXED_ORDER[0])));
        }
    }
    if run.tf32 && !multiplies_tf32(device) {
        return Err(Error::user(format!("run.tf32: {device:?} does not multiply in TF32"))
            .hint("remove it; GPUs have TF32 from compute capability 8.0"));
    }
    Ok(native::set_arithmetic(Arithmetic { deterministic: run.deterministic, tf32: run.tf32 })?)
}

fn multiplies_tf32(device: Device) -> bool {
    matches!(device, Device::Cuda(i) if machine::cuda_capability(i).is_none_or(|capability| capability >= (8, 0)))
}
