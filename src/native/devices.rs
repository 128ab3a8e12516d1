//! The state that libtorch keeps for each device: random generator, current stream.

use super::{Result, check, owned};
use std::ffi::{c_int, c_void};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_rng_get(device_type: c_int, index: c_int) -> *mut C_tensor;
    fn ft_rng_set(device_type: c_int, index: c_int, state: *mut C_tensor) -> c_int;
    fn ft_cuda_stream(index: c_int, out: *mut *mut c_void) -> c_int;
}

fn device_code(device: Device) -> (c_int, c_int) {
    match device {
        Device::Cuda(i) => (1, i as c_int),
        _ => (0, -1),
    }
}

/// Returns the state of libtorch's random generator for a device, as a byte tensor.
pub fn rng_state(device: Device) -> Result<Tensor> {
    let (kind, index) = device_code(device);
    // SAFETY: plain call.
    owned(unsafe { ft_rng_get(kind, index) })
}

/// Restores a state of libtorch's random generator for a device.
pub fn set_rng_state(device: Device, state: &Tensor) -> Result<()> {
    let (kind, index) = device_code(device);
    // SAFETY: `state` lives during the call.
    check(unsafe { ft_rng_set(kind, index, state.as_ptr() as *mut C_tensor) })
}

/// Returns the driver's handle of the stream that libtorch now queues a device's operations on; null for the CPU.
pub(crate) fn current_stream(device: Device) -> Result<*mut c_void> {
    let mut stream = std::ptr::null_mut();
    if let Device::Cuda(index) = device {
        // SAFETY: the result has room for a handle.
        check(unsafe { ft_cuda_stream(index as c_int, &mut stream) })?;
    }
    Ok(stream)
}
