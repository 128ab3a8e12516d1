//! Rust interface to native/shim.cpp: the parts of libtorch that tch does not bind, such as autograd nodes with a
//! Rust backward, fused optimiser steps, generator states and memory statistics. All unsafe calls into libtorch are
//! in this module; those into our own loops and products are in `kernels` and `products`, those into the CUDA driver in
//! `cuda`.

pub mod cuda;
pub mod kernels;
pub mod products;

pub use products::{decode_attention, product, product_rows};

use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

type BackwardFn = extern "C" fn(*mut c_void, *mut *mut C_tensor, c_int, *mut *mut C_tensor, c_int) -> c_int;
type DropFn = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn ft_error() -> *const c_char;
    fn ft_attach(
        ins: *mut *mut C_tensor,
        n_ins: c_int,
        outs: *mut *mut C_tensor,
        n_outs: c_int,
        run: BackwardFn,
        drop: DropFn,
        ctx: *mut c_void,
    ) -> c_int;
    fn ft_backward(outs: *mut *mut C_tensor, grads: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_fused_adamw(
        p: *mut *mut C_tensor,
        g: *mut *mut C_tensor,
        m: *mut *mut C_tensor,
        v: *mut *mut C_tensor,
        step: *mut *mut C_tensor,
        n: c_int,
        lr: f64,
        b1: f64,
        b2: f64,
        decay: f64,
        eps: f64,
    ) -> c_int;
    fn ft_global_norm(g: *mut *mut C_tensor, n: c_int) -> *mut C_tensor;
    fn ft_scale(g: *mut *mut C_tensor, n: c_int, by: *mut C_tensor) -> c_int;
    fn ft_drop_gradients(p: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_rng_get(device_type: c_int, index: c_int) -> *mut C_tensor;
    fn ft_rng_set(device_type: c_int, index: c_int, state: *mut C_tensor) -> c_int;
    fn ft_cuda_memory(index: c_int, out: *mut i64) -> c_int;
    fn ft_cuda_reset_peak(index: c_int) -> c_int;
    fn ft_cuda_stream(index: c_int, out: *mut *mut c_void) -> c_int;
    fn ft_flash_varlen(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        cu: *mut C_tensor,
        longest: i64,
        scale: f64,
    ) -> *mut C_tensor;
    fn ft_cpu_allocator_install();
    fn ft_cpu_allocator_trim();
    fn ft_cpu_memory(out: *mut i64, reset_peak: c_int);
}

fn last_error() -> Error {
    // SAFETY: ft_error returns a NUL-terminated string owned by the calling thread.
    let text = unsafe { CStr::from_ptr(ft_error()) }.to_string_lossy().into_owned();
    tch::TchError::Torch(text).into()
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

type BackwardClosure = Box<dyn FnMut(&[Option<Tensor>]) -> Vec<Option<Tensor>>>;

/// Adds `outputs` to the graph as results of `inputs`. They must be new tensors computed under `no_grad`, not views
/// of inputs. `backward` receives the outputs' gradients (`None` if the loss does not depend on one) and returns one
/// gradient per input (`None` if it needs none).
///
/// The closure runs without gradient tracking, on the autograd engine's thread for the device. It must not capture an
/// output: the graph would then own itself and never be freed.
pub fn attach_backward(
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    backward: impl FnMut(&[Option<Tensor>]) -> Vec<Option<Tensor>> + 'static,
) {
    extern "C" fn run(
        ctx: *mut c_void,
        grads: *mut *mut C_tensor,
        n: c_int,
        out: *mut *mut C_tensor,
        n_out: c_int,
    ) -> c_int {
        // SAFETY: ctx is the Box<Backward> leaked below; grads are owned tensors or null; out has n_out slots.
        let work = AssertUnwindSafe(|| unsafe {
            let closure = &mut *(ctx as *mut BackwardClosure);
            let grads: Vec<Option<Tensor>> =
                (0..n as usize).map(|i| *grads.add(i)).map(|p| (!p.is_null()).then(|| Tensor::from_ptr(p))).collect();
            let _no_grad = tch::no_grad_guard();
            let results = closure(&grads);
            assert_eq!(results.len(), n_out as usize, "one gradient per input");
            for (i, r) in results.into_iter().enumerate() {
                if let Some(t) = r {
                    *out.add(i) = std::mem::ManuallyDrop::new(t).as_mut_ptr();
                }
            }
        });
        if catch_unwind(work).is_ok() { 0 } else { -1 }
    }
    extern "C" fn drop_ctx(ctx: *mut c_void) {
        // SAFETY: called once with the pointer leaked below.
        drop(unsafe { Box::from_raw(ctx as *mut BackwardClosure) });
    }
    let closure: BackwardClosure = Box::new(backward);
    let ctx = Box::into_raw(Box::new(closure)) as *mut c_void;
    let (mut ins, mut outs) = (pointers(inputs), pointers(outputs));
    // SAFETY: the arrays hold live tensors for the duration of the call; ctx is owned by the node from here on.
    let code = unsafe {
        ft_attach(ins.as_mut_ptr(), ins.len() as c_int, outs.as_mut_ptr(), outs.len() as c_int, run, drop_ctx, ctx)
    };
    check(code).expect("outputs of a custom operation are fresh tensors");
}

/// Runs the backward from `outputs`, given their gradients `grads`. Adds the gradients of the leaves to their `.grad`.
pub fn backward(outputs: &[&Tensor], grads: &[&Tensor]) -> Result<()> {
    let (mut o, mut g) = (pointers(outputs), pointers(grads));
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_backward(o.as_mut_ptr(), g.as_mut_ptr(), o.len() as c_int) })
}

/// Hyperparameters of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub struct AdamwSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub decay: f64,
    /// The number added to the root of the second moment.
    pub eps: f64,
}

/// Runs one fused AdamW step over lists of equal length: parameters, gradients, first and second moments, and the
/// already incremented step counts (float32 scalars).
pub fn fused_adamw(
    p: &[Tensor],
    g: &[Tensor],
    m: &[Tensor],
    v: &[Tensor],
    steps: &[Tensor],
    with: AdamwSettings,
) -> Result<()> {
    let (mut p, mut g, mut m, mut v, mut s) =
        (pointers_of(p), pointers_of(g), pointers_of(m), pointers_of(v), pointers_of(steps));
    let AdamwSettings { lr, betas, decay, eps } = with;
    // SAFETY: live tensors for the duration of the call; all lists have p.len() entries.
    assert!([g.len(), m.len(), v.len(), s.len()].iter().all(|n| *n == p.len()), "lists of one length");
    check(unsafe {
        ft_fused_adamw(
            p.as_mut_ptr(),
            g.as_mut_ptr(),
            m.as_mut_ptr(),
            v.as_mut_ptr(),
            s.as_mut_ptr(),
            p.len() as c_int,
            lr,
            betas.0,
            betas.1,
            decay,
            eps,
        )
    })
}

/// Returns the 2-norm over all tensors together, as a scalar tensor on their device (does not wait for the GPU).
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor> {
    let mut p = pointers_of(tensors);
    // SAFETY: live tensors for the duration of the call.
    owned(unsafe { ft_global_norm(p.as_mut_ptr(), p.len() as c_int) })
}

/// Multiplies every tensor in place by a scalar tensor.
pub fn scale_all(tensors: &[Tensor], by: &Tensor) -> Result<()> {
    let mut p = pointers_of(tensors);
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_scale(p.as_mut_ptr(), p.len() as c_int, by.as_ptr() as *mut C_tensor) })
}

/// Removes the parameters' gradients, so that the next backward stores new ones instead of adding to zeros.
pub fn drop_gradients<'t>(parameters: impl Iterator<Item = &'t Tensor>) {
    let mut p: Vec<*mut C_tensor> = parameters.map(|t| t.as_ptr() as *mut C_tensor).collect();
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_drop_gradients(p.as_mut_ptr(), p.len() as c_int) }).expect("leaves have room for a gradient");
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

/// Computes packed causal attention on CUDA in half precision: q (T, H, E), k and v (T, K, E), segment boundaries
/// `cu` int32 (S + 1) -> (T, H, E). `longest` is the length of the longest segment.
pub fn flash_varlen(q: &Tensor, k: &Tensor, v: &Tensor, cu: &Tensor, longest: i64, scale: f64) -> Result<Tensor> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    // SAFETY: live tensors for the duration of the call.
    owned(unsafe { ft_flash_varlen(p(q), p(k), p(v), p(cu), longest, scale) })
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

/// Returns free and total bytes of a CUDA device.
pub fn cuda_capacity(index: usize) -> Result<(u64, u64)> {
    let mut out = [0i64; 4];
    // SAFETY: `out` has room for what the shim writes.
    check(unsafe { ft_cuda_memory(index as c_int, out.as_mut_ptr()) })?;
    Ok((out[2].max(0) as u64, out[3].max(0) as u64))
}

/// Returns true if operations on this thread are being recorded for a backward pass.
pub fn grad_enabled() -> bool {
    // SAFETY: sets and restores a thread-local flag; the call returns the previous value.
    unsafe {
        let before = torch_sys::at_grad_set_enabled(0);
        torch_sys::at_grad_set_enabled(before);
        before != 0
    }
}
