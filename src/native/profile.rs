//! Profiles of this process, recorded by the profiler inside libtorch.

use super::{Result, check};
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tch::{Device, TchError};

unsafe extern "C" {
    fn ft_profile_start(cuda: c_int) -> c_int;
    fn ft_profile_end(path: *const c_char) -> c_int;
}

/// Starts to record the operations of this process; on a CUDA `device` also its kernels, copies and waits. Fails if a
/// profile is being recorded already.
pub fn start_profile(device: Device) -> Result<()> {
    wait_for(device);
    // SAFETY: takes a number.
    check(unsafe { ft_profile_start(device.is_cuda().into()) })
}

/// Ends the profile that [`start_profile`] began, after what `device` still has to do, and writes it to the new file
/// `path`, in Chrome's trace format.
pub fn end_profile(device: Device, path: &Path) -> Result<()> {
    wait_for(device);
    let path =
        CString::new(path.as_os_str().as_bytes()).map_err(|e| TchError::Convert(format!("{}: {e}", path.display())))?;
    // SAFETY: a NUL-terminated string that lives until the call returns.
    check(unsafe { ft_profile_end(path.as_ptr()) })
}

fn wait_for(device: Device) {
    if let Device::Cuda(i) = device {
        tch::Cuda::synchronize(i as i64);
    }
}
