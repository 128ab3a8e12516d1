//! Operations on lists of tensors, for optimisers: on a GPU each takes few launches, however long its lists are.

use super::{Result, check, owned, pointers_of};
use std::ffi::c_int;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
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
    fn ft_zero_all(t: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_add_all(t: *mut *mut C_tensor, more: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_subtract_all(t: *mut *mut C_tensor, by: *mut *mut C_tensor, n: c_int) -> c_int;
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

/// Sets every tensor to zero.
pub fn zero_all(tensors: &[Tensor]) -> Result<()> {
    let mut p = pointers_of(tensors);
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_zero_all(p.as_mut_ptr(), p.len() as c_int) })
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
