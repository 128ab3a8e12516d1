//! Memory of tensors: our allocator for the CPU, and how much each device has in use.

use super::{Result, check};
use std::ffi::c_int;
use tch::{Device, Tensor};

unsafe extern "C" {
    fn ft_cpu_allocator_install();
    fn ft_cpu_allocator_trim();
    fn ft_cpu_memory(out: *mut i64, reset_peak: c_int);
    fn ft_cuda_memory(index: c_int, out: *mut i64) -> c_int;
    fn ft_cuda_reset_peak(index: c_int) -> c_int;
    fn ft_cuda_empty_cache() -> c_int;
}

/// Installs our allocator for CPU tensors, which counts their memory and reuses large blocks. To be called before the
/// process creates its first tensor; further calls do nothing.
pub fn install_cpu_allocator() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: plain call; blocks allocated before keep their own deleters.
    ONCE.call_once(|| unsafe { ft_cpu_allocator_install() });
}

/// Returns freed CPU tensor memory to the operating system. Meant for the transition between two phases of a run.
pub fn trim_cpu_memory() {
    // SAFETY: plain call; free blocks hold nothing.
    unsafe { ft_cpu_allocator_trim() };
}

/// Returns memory of CUDA devices that libtorch's allocator keeps for its next tensors to the driver. Waits for the devices.
pub fn release_cached_cuda_memory() -> Result<()> {
    // SAFETY: plain call.
    check(unsafe { ft_cuda_empty_cache() })
}

/// Runs `write` on the bytes of a new contiguous CPU tensor, and returns its result.
pub fn fill_bytes<E>(tensor: &Tensor, write: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    assert!(tensor.device() == Device::Cpu && tensor.is_contiguous(), "the tensor must be contiguous and on the CPU");
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if bytes == 0 {
        return write(&mut []);
    }
    // SAFETY: the tensor's memory is of this size, and nothing else reads or writes it while `write` runs.
    write(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr() as *mut u8, bytes) })
}

/// Lets go of the pages of a file that a tensor of its bytes maps, which then no longer count as this process's memory. Numbers that
/// are read again come from the page cache, or from the file.
///
/// # Safety
/// The tensor must be part of a mapped file, and nobody may have written into it: what was written would be lost.
pub unsafe fn release_mapped(bytes: &Tensor) {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let start = bytes.data_ptr() as usize;
    let size = bytes.numel() * bytes.kind().elt_size_in_bytes();
    // Whole pages only: those at the ends belong to neighbours, too.
    let (from, to) = (start.next_multiple_of(page), (start + size) / page * page);
    if from < to {
        // SAFETY: these pages are mapped from a file and are as they were read, says the caller.
        unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
    }
}

/// Tensor memory of a device in bytes.
#[derive(Debug, Clone, Copy)]
pub struct TensorMemory {
    /// Allocated now.
    pub live: u64,
    /// The most since the last reset.
    pub peak: u64,
}

/// Returns live and peak tensor bytes of a device. On the CPU only memory allocated since `install_cpu_allocator`
/// counts.
pub fn memory(device: Device) -> Result<TensorMemory> {
    let mut out = [0i64; 4];
    match device {
        // SAFETY: `out` has room for what the shim writes.
        Device::Cuda(i) => check(unsafe { ft_cuda_memory(i as c_int, out.as_mut_ptr()) })?,
        _ => unsafe { ft_cpu_memory(out.as_mut_ptr(), 0) },
    }
    Ok(TensorMemory { live: out[0].max(0) as u64, peak: out[1].max(0) as u64 })
}

/// Resets a device's peak to the memory that is allocated now.
pub fn reset_peak(device: Device) -> Result<()> {
    let mut out = [0i64; 4];
    match device {
        Device::Cuda(i) => check(unsafe { ft_cuda_reset_peak(i as c_int) }),
        _ => {
            // SAFETY: `out` has room for what the shim writes.
            unsafe { ft_cpu_memory(out.as_mut_ptr(), 1) };
            Ok(())
        }
    }
}

/// Returns the bytes of a CUDA device that this process can still allocate, and all its bytes. Memory that libtorch's
/// allocator keeps for reuse counts as free. Initialises CUDA if nothing has yet.
pub fn cuda_capacity(index: usize) -> Result<(u64, u64)> {
    let mut out = [0i64; 4];
    // SAFETY: `out` has room for what the shim writes.
    check(unsafe { ft_cuda_memory(index as c_int, out.as_mut_ptr()) })?;
    Ok((out[2].max(0) as u64, out[3].max(0) as u64))
}
