//! Rust interface to native/shim.cpp: the parts of libtorch that tch does not bind. All unsafe calls into libtorch are
//! here; those into our own loops and products are in `kernels` and `products`, those into the CUDA driver in `cuda`.

mod arithmetic;
mod attention;
mod autograd;
pub mod cuda;
mod devices;
mod graphs;
pub mod kernels;
mod lists;
mod memory;
pub mod merging;
pub mod products;
mod profile;
pub mod quantised;
mod transfers;
mod wide_products;

pub use arithmetic::{Arithmetic, arithmetic, set_arithmetic};
pub use attention::{EfficientAttention, cached_attention, efficient_varlen, efficient_varlen_backward, flash_varlen};
pub use autograd::{add_gradient, attach_backward, backward, drop_gradients, grad_enabled, learns};
pub(crate) use devices::current_stream;
pub use devices::{rng_state, set_rng_state};
pub use graphs::{Graph, GraphMemory, OwnStream};
pub use lists::{AdamwSettings, add_all, copy_all, fused_adamw, global_norm, scale_all, subtract_all, zero_all};
pub use memory::{
    TensorMemory, cuda_capacity, fill_bytes, install_cpu_allocator, memory, release_cached_cuda_memory, release_mapped,
    reset_peak, trim_cpu_memory,
};
pub use products::{decode_attention, product, product_rows};
pub use profile::{end_profile, start_profile};
pub use transfers::{
    Download, HostCopy, fetch, numbers, read_scalars, stack_scalars, upload, upload_list, upload_slice,
};
pub use wide_products::{add_wide_product, has_wide_products, wide_product};

use std::ffi::{CStr, c_char, c_int};
use tch::{TchError, Tensor};
use torch_sys::C_tensor;

/// The result of a call into libtorch. Where a function cannot return an error, unwrapping one panics as tch's own
/// operators do, which `error::catch_libtorch` turns back into an error.
pub type Result<T, E = TchError> = std::result::Result<T, E>;

unsafe extern "C" {
    fn ft_error() -> *const c_char;
}

fn last_error() -> TchError {
    // SAFETY: ft_error returns a NUL-terminated string owned by the calling thread.
    TchError::Torch(unsafe { CStr::from_ptr(ft_error()) }.to_string_lossy().into_owned())
}

fn check(code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(last_error()) }
}

fn owned(p: *mut C_tensor) -> Result<Tensor> {
    // SAFETY: a non-null pointer from the shim is a tensor that we now own.
    if p.is_null() { Err(last_error()) } else { Ok(unsafe { Tensor::from_ptr(p) }) }
}

fn pointers(tensors: &[&Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|t| t.as_ptr() as *mut C_tensor).collect()
}

fn pointers_of(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|t| t.as_ptr() as *mut C_tensor).collect()
}
