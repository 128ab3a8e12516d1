//! Copies between host and device that make the program wait once or not at all.

use super::{Result, check, last_error, owned, pointers_of};
use std::ffi::{c_int, c_void};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_upload(t: *mut *mut C_tensor, n: c_int, index: c_int, out: *mut *mut C_tensor) -> c_int;
    fn ft_download(t: *mut C_tensor) -> *mut c_void;
    fn ft_download_wait(download: *mut c_void) -> *mut C_tensor;
    fn ft_download_drop(download: *mut c_void);
    fn ft_offload(t: *mut C_tensor) -> *mut c_void;
    fn ft_offload_release(copy: *mut c_void) -> c_int;
    fn ft_offload_fetch(copy: *mut c_void, index: c_int) -> c_int;
    fn ft_offload_take(copy: *mut c_void) -> *mut C_tensor;
    fn ft_offload_drop(copy: *mut c_void);
}

/// Copies CPU tensors to a device; for the CPU they are returned themselves. On CUDA they are copied in one transfer,
/// through page-locked memory, and the program does not wait for it.
pub fn upload<const N: usize>(tensors: [Tensor; N], device: Device) -> [Tensor; N] {
    upload_list(tensors.into(), device).try_into().expect("as many as were given")
}

/// Does the same for a list of any length.
pub fn upload_list(tensors: Vec<Tensor>, device: Device) -> Vec<Tensor> {
    let Device::Cuda(index) = device else { return tensors };
    let tensors: Vec<Tensor> = tensors.iter().map(Tensor::contiguous).collect();
    let (mut from, mut to) = (pointers_of(&tensors), vec![std::ptr::null_mut(); tensors.len()]);
    // SAFETY: live CPU tensors during the call; `to` has a slot for each.
    check(unsafe { ft_upload(from.as_mut_ptr(), from.len() as c_int, index as c_int, to.as_mut_ptr()) })
        .expect("room for a copy on the device");
    to.into_iter().map(|p| owned(p).expect("made by the call")).collect()
}

/// Returns the numbers as a tensor on `device`, without waiting for the device.
pub fn upload_slice<T: tch::kind::Element>(numbers: &[T], device: Device) -> Tensor {
    let [t] = upload([Tensor::from_slice(numbers)], device);
    t
}

/// A copy of a tensor to the host that runs while the program goes on.
pub struct Download(DownloadState);

enum DownloadState {
    /// The tensor was on the CPU already.
    Here(Tensor),
    /// The shim's copy, owned.
    Coming(*mut c_void),
}

impl Download {
    /// Begins the copy, after all operations that the device was given so far. The tensor must not be changed later.
    pub fn begin(t: &Tensor) -> Result<Self> {
        if t.device() == Device::Cpu {
            return Ok(Self(DownloadState::Here(t.shallow_clone())));
        }
        // SAFETY: `t` lives during the call.
        let copy = unsafe { ft_download(t.as_ptr() as *mut C_tensor) };
        if copy.is_null() { Err(last_error()) } else { Ok(Self(DownloadState::Coming(copy))) }
    }

    /// Waits until the copy is done, not for later operations of the device, and returns it.
    pub fn wait(self) -> Result<Tensor> {
        match &self.0 {
            DownloadState::Here(t) => Ok(t.shallow_clone()),
            // SAFETY: the copy is alive until this value is dropped.
            DownloadState::Coming(copy) => owned(unsafe { ft_download_wait(*copy) }),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let DownloadState::Coming(copy) = self.0 {
            // SAFETY: owned, and dropped once.
            unsafe { ft_download_drop(copy) }
        }
    }
}

/// A CUDA tensor that is kept in page-locked memory of the host until it is needed again. It is copied there and back on a
/// stream of its own, while the device computes; the program waits for neither.
pub struct HostCopy {
    copy: *mut c_void,
    index: usize,
    /// True while the device has the tensor, too.
    on_device: bool,
}

impl HostCopy {
    /// Begins to copy a contiguous tensor to the host, after all operations that the device was given so far. It must not be
    /// changed later.
    pub fn begin(t: &Tensor) -> Result<Self> {
        let Device::Cuda(index) = t.device() else { panic!("a tensor on the CPU is in the host's memory already") };
        assert!(t.is_contiguous(), "the copy has the bytes of the tensor");
        // SAFETY: `t` lives during the call.
        let copy = unsafe { ft_offload(t.as_ptr() as *mut C_tensor) };
        if copy.is_null() { Err(last_error()) } else { Ok(Self { copy, index, on_device: true }) }
    }

    /// Gives up the tensor on the device. Operations that the device is given later wait for the copy.
    pub fn release(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.on_device, false) {
            // SAFETY: the copy is alive until this value is dropped, and has a tensor on the device.
            check(unsafe { ft_offload_release(self.copy) })?;
        }
        Ok(())
    }

    /// Begins to copy the tensor back, after all operations that the device was given so far.
    pub fn fetch(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.on_device, true) {
            // SAFETY: the copy is alive until this value is dropped.
            check(unsafe { ft_offload_fetch(self.copy, self.index as c_int) })?;
        }
        Ok(())
    }

    /// Returns the tensor on its device. Operations that the device is given later wait for the copy.
    pub fn take(mut self) -> Result<Tensor> {
        self.fetch()?;
        // SAFETY: the copy is alive until this value is dropped, and has a tensor on the device.
        owned(unsafe { ft_offload_take(self.copy) })
    }
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        // SAFETY: owned, and dropped once.
        unsafe { ft_offload_drop(self.copy) }
    }
}

/// Reads scalars, from a device with one transfer and one wait.
pub fn read_scalars(scalars: &[&Tensor]) -> Vec<f64> {
    match scalars.first().map(|t| t.device()) {
        None => Vec::new(),
        Some(Device::Cpu) => scalars.iter().map(|t| t.double_value(&[])).collect(),
        Some(_) => numbers(&stack_scalars(scalars).to_device(Device::Cpu)),
    }
}

/// Joins scalars of one device to one float64 tensor: (N).
pub fn stack_scalars(scalars: &[&Tensor]) -> Tensor {
    let wide: Vec<Tensor> = scalars.iter().map(|t| t.to_kind(tch::Kind::Double)).collect();
    Tensor::stack(&wide, 0)
}

/// Returns the numbers of a float64 tensor (N) on the CPU.
pub fn numbers(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t).expect("a list of float64 on the CPU")
}

/// Returns tensors of one device on the CPU; the program waits once for all of them.
pub fn fetch<const N: usize>(tensors: [&Tensor; N]) -> [Tensor; N] {
    let mut left = N;
    tensors.map(|t| {
        left -= 1;
        match t.device() {
            Device::Cpu => t.shallow_clone(),
            // Copies are done in the order in which they were asked for: to wait for the last one is enough.
            _ => t.to_dtype_layout((t.kind(), Device::Cpu), left > 0, false),
        }
    })
}
