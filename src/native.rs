//! Rust interface to native/shim.cpp: the parts of libtorch that tch does not bind, such as autograd nodes with a
//! Rust backward, fused optimiser steps, transfers that do not wait, generator states and memory statistics. All unsafe
//! calls into libtorch are in this module; those into our own loops and products are in `kernels` and `products`, those
//! into the CUDA driver in `cuda`.

pub mod cuda;
pub mod kernels;
pub mod products;
pub mod quantised;

pub use products::{decode_attention, product, product_rows};

use crate::error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

/// The result of a call into libtorch. Where a function cannot return an error, unwrapping one panics as tch's own
/// operators do, which `error::catch_libtorch` turns back into an error.
pub type Result<T, E = TchError> = std::result::Result<T, E>;

type BackwardFn = extern "C" fn(*mut c_void, *mut *mut C_tensor, c_int, *mut *mut C_tensor, c_int) -> c_int;
type DropFn = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn ft_error() -> *const c_char;
    fn ft_set_error(message: *const c_char);
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
        skip: *mut C_tensor,
    ) -> c_int;
    fn ft_global_norm(g: *mut *mut C_tensor, n: c_int) -> *mut C_tensor;
    fn ft_scale(g: *mut *mut C_tensor, n: c_int, by: *mut C_tensor) -> c_int;
    fn ft_copy_all(to: *mut *mut C_tensor, from: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_add_all(t: *mut *mut C_tensor, more: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_subtract_all(t: *mut *mut C_tensor, by: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_drop_gradients(p: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_upload(t: *mut *mut C_tensor, n: c_int, index: c_int, out: *mut *mut C_tensor) -> c_int;
    fn ft_download(t: *mut C_tensor) -> *mut c_void;
    fn ft_download_wait(download: *mut c_void) -> *mut C_tensor;
    fn ft_download_drop(download: *mut c_void);
    fn ft_rng_get(device_type: c_int, index: c_int) -> *mut C_tensor;
    fn ft_rng_set(device_type: c_int, index: c_int, state: *mut C_tensor) -> c_int;
    fn ft_cuda_memory(index: c_int, out: *mut i64) -> c_int;
    fn ft_cuda_reset_peak(index: c_int) -> c_int;
    fn ft_profile_start(cuda: c_int) -> c_int;
    fn ft_profile_end(path: *const c_char) -> c_int;
    fn ft_cuda_stream(index: c_int, out: *mut *mut c_void) -> c_int;
    fn ft_flash_varlen(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        cu: *mut C_tensor,
        longest: i64,
        scale: f64,
    ) -> *mut C_tensor;
    fn ft_cached_attention(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        query_bounds: *mut C_tensor,
        starts: *mut C_tensor,
        held: *mut C_tensor,
        queries: i64,
        scale: f64,
    ) -> *mut C_tensor;
    fn ft_efficient_varlen(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        cu: *mut C_tensor,
        longest: i64,
        scale: f64,
        with_lse: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn ft_efficient_varlen_backward(
        g: *mut C_tensor,
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        result: *mut C_tensor,
        lse: *mut C_tensor,
        cu: *mut C_tensor,
        longest: i64,
        scale: f64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn ft_cpu_allocator_install();
    fn ft_cpu_allocator_trim();
    fn ft_cpu_memory(out: *mut i64, reset_peak: c_int);
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

type BackwardClosure = Box<dyn FnMut(&[Option<Tensor>]) -> Vec<Option<Tensor>>>;

/// Adds `outputs` to the graph as results of `inputs`. They must be new tensors computed under `no_grad`, not views
/// of inputs. `backward` receives the outputs' gradients (`None` if the loss does not depend on one) and returns one
/// gradient per input (`None` if it needs none).
///
/// The closure runs without gradient tracking, on the autograd engine's thread for the device. It must not capture an
/// output: the graph would then own itself and never be freed. If an operation of libtorch fails in it, for lack of
/// memory for example, the backward pass fails with that operation's message.
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
        let work = || unsafe {
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
        };
        match error::catch_in_callback(work) {
            Ok(()) => 0,
            Err(cause) => {
                let cause = CString::new(cause.replace('\0', " ")).unwrap_or_default();
                // SAFETY: a NUL-terminated string, which the shim copies.
                unsafe { ft_set_error(cause.as_ptr()) };
                -1
            }
        }
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
/// already incremented step counts (float32 scalars). If `skip`, a float32 scalar on the same device, is 1, nothing is
/// changed.
pub fn fused_adamw(
    p: &[Tensor],
    g: &[Tensor],
    m: &[Tensor],
    v: &[Tensor],
    steps: &[Tensor],
    with: AdamwSettings,
    skip: Option<&Tensor>,
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
            skip.map_or(std::ptr::null_mut(), |t| t.as_ptr() as *mut C_tensor),
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

/// Copies each tensor of `from` into that of `to`, converting its dtype. On a GPU this takes few launches.
pub fn copy_all(to: &[Tensor], from: &[Tensor]) -> Result<()> {
    assert_eq!(to.len(), from.len(), "lists of one length");
    let (mut to, mut from) = (pointers_of(to), pointers_of(from));
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_copy_all(to.as_mut_ptr(), from.as_mut_ptr(), to.len() as c_int) })
}

/// Adds each tensor of `more` to that of `tensors`, in place. On a GPU this takes few launches.
pub fn add_all(tensors: &[Tensor], more: &[Tensor]) -> Result<()> {
    assert_eq!(tensors.len(), more.len(), "lists of one length");
    let (mut t, mut more) = (pointers_of(tensors), pointers_of(more));
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_add_all(t.as_mut_ptr(), more.as_mut_ptr(), t.len() as c_int) })
}

/// Subtracts each tensor of `by` from that of `tensors`, in place. On a GPU this takes few launches.
pub fn subtract_all(tensors: &[Tensor], by: &[Tensor]) -> Result<()> {
    assert_eq!(tensors.len(), by.len(), "lists of one length");
    let (mut t, mut by) = (pointers_of(tensors), pointers_of(by));
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_subtract_all(t.as_mut_ptr(), by.as_mut_ptr(), t.len() as c_int) })
}

/// Removes the parameters' gradients, so that the next backward stores new ones instead of adding to zeros.
pub fn drop_gradients<'t>(parameters: impl Iterator<Item = &'t Tensor>) {
    let mut p: Vec<*mut C_tensor> = parameters.map(|t| t.as_ptr() as *mut C_tensor).collect();
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_drop_gradients(p.as_mut_ptr(), p.len() as c_int) }).expect("leaves have room for a gradient");
}

/// Copies CPU tensors to a device; for the CPU they are returned themselves. On CUDA they are copied in one transfer,
/// through page-locked memory, and the program does not wait for it.
pub fn upload<const N: usize>(tensors: [Tensor; N], device: Device) -> [Tensor; N] {
    let Device::Cuda(index) = device else { return tensors };
    let tensors = tensors.map(|t| t.contiguous());
    let (mut from, mut to) = (pointers_of(&tensors), [std::ptr::null_mut(); N]);
    // SAFETY: live CPU tensors during the call; `to` has N slots.
    check(unsafe { ft_upload(from.as_mut_ptr(), N as c_int, index as c_int, to.as_mut_ptr()) })
        .expect("room for a copy on the device");
    to.map(|p| owned(p).expect("made by the call"))
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

/// Computes packed causal attention by the flash kernel of CUDA (compute capability 8.0 and newer) in half precision:
/// q (T, H, E), k and v (T, K, E), segment boundaries `cu` int32 (S + 1) -> (T, H, E), differentiable. `longest` is the
/// length of the longest segment. E is a multiple of 8 up to 256.
pub fn flash_varlen(q: &Tensor, k: &Tensor, v: &Tensor, cu: &Tensor, longest: i64, scale: f64) -> Result<Tensor> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    // SAFETY: live tensors for the duration of the call.
    owned(unsafe { ft_flash_varlen(p(q), p(k), p(v), p(cu), longest, scale) })
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

/// Computes attention to cached keys on CUDA: q (1, B * `queries`, 1, E), keys and values (1, rows, 1, E). Query group
/// b attends to the `held[b]` rows from `starts[b]` on; `bounds`: first query of each group (B + 1), `starts` (B + 1)
/// and `held` (B), all int32 -> (1, B * `queries`, 1, E).
pub fn cached_attention(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    [bounds, starts, held]: [&Tensor; 3],
    queries: i64,
    scale: f64,
) -> Result<Tensor> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    // SAFETY: live tensors for the duration of the call.
    owned(unsafe { ft_cached_attention(p(q), p(k), p(v), p(bounds), p(starts), p(held), queries, scale) })
}

/// Result of [`efficient_varlen`], with what its backward needs.
#[derive(Debug)]
pub struct EfficientAttention {
    /// (1, T, H, E)
    pub out: Tensor,
    /// Log-sum-exp of the scores, (S, H, longest rounded up to a multiple of 32) float32; `None` if it was not asked for.
    pub lse: Option<Tensor>,
}

/// Computes packed causal attention by CUDA's memory-efficient kernel: q, k, v (1, T, H, E), E a multiple of 8,
/// segment boundaries `cu` int32 (S + 1). Computes in float32, float16 and, from compute capability 8.0, bfloat16. Not
/// differentiable: the caller attaches [`efficient_varlen_backward`], for which it asks `with_lse`.
pub fn efficient_varlen(
    [q, k, v]: [&Tensor; 3],
    cu: &Tensor,
    longest: i64,
    scale: f64,
    with_lse: bool,
) -> Result<EfficientAttention> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    let mut out = [std::ptr::null_mut(); 2];
    // SAFETY: live tensors for the duration of the call; `out` has room for two results.
    check(unsafe { ft_efficient_varlen(p(q), p(k), p(v), p(cu), longest, scale, with_lse.into(), out.as_mut_ptr()) })?;
    Ok(EfficientAttention { out: owned(out[0])?, lse: if with_lse { Some(owned(out[1])?) } else { None } })
}

/// Computes the gradients of q, k and v, (1, T, H, E) each, from the gradient `g` of the result of [`efficient_varlen`].
pub fn efficient_varlen_backward(
    g: &Tensor,
    [q, k, v]: [&Tensor; 3],
    (out, lse): (&Tensor, &Tensor),
    cu: &Tensor,
    longest: i64,
    scale: f64,
) -> Result<[Tensor; 3]> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    let mut grads = [std::ptr::null_mut(); 3];
    // SAFETY: live tensors for the duration of the call; `grads` has room for three results.
    check(unsafe {
        ft_efficient_varlen_backward(p(g), p(q), p(k), p(v), p(out), p(lse), p(cu), longest, scale, grads.as_mut_ptr())
    })?;
    let [q, k, v] = grads;
    Ok([owned(q)?, owned(k)?, owned(v)?])
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

/// Returns the bytes of a CUDA device that this process can still allocate, and all its bytes. Memory that libtorch's
/// allocator keeps for reuse counts as free. Initialises CUDA if nothing has yet.
pub fn cuda_capacity(index: usize) -> Result<(u64, u64)> {
    let mut out = [0i64; 4];
    // SAFETY: `out` has room for what the shim writes.
    check(unsafe { ft_cuda_memory(index as c_int, out.as_mut_ptr()) })?;
    Ok((out[2].max(0) as u64, out[3].max(0) as u64))
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

/// Returns true if operations on this thread are being recorded for a backward pass.
pub fn grad_enabled() -> bool {
    // SAFETY: sets and restores a thread-local flag; the call returns the previous value.
    unsafe {
        let before = torch_sys::at_grad_set_enabled(0);
        torch_sys::at_grad_set_enabled(before);
        before != 0
    }
}
