//! Rust interface to native/decode.cpp: matrix products and attention of decoding steps on the CPU.
//!
//! Weights and x may be float32 or bfloat16. bfloat16 weights with float32 x are converted as they are read, which
//! gives the same bits as a float32 copy without its memory. bfloat16 x needs bfloat16 weights. Nothing here has a
//! gradient.

use std::ffi::c_int;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_product(
        level: c_int,
        x: *mut C_tensor,
        w: *mut C_tensor,
        bias: *mut C_tensor,
        onto: *mut C_tensor,
    ) -> *mut C_tensor;
    fn ft_product_rows(x_half: bool, w_half: bool) -> i64;
    fn ft_decode_attention(
        level: c_int,
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        keys: *mut C_tensor,
        values: *mut C_tensor,
        held: *const i64,
        slots: i64,
        window: i64,
        scale: f64,
        sinks: *mut C_tensor,
    ) -> *mut C_tensor;
    fn ft_attention_exponential(level: c_int, x: *mut C_tensor) -> *mut C_tensor;
    fn ft_isa() -> c_int;
}

/// The build of the kernels for one instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelBuild(c_int);

impl KernelBuild {
    pub(super) const BEST: Self = Self(-1);

    /// Returns the number that native/decode.cpp knows the build by.
    pub(super) fn number(self) -> c_int {
        self.0
    }

    /// Returns the builds that this processor can run, from the smallest instruction set to the largest.
    pub fn available() -> impl Iterator<Item = Self> {
        // SAFETY: plain call.
        (0..=unsafe { ft_isa() }).map(Self)
    }

    /// Computes [`product`] by this build's kernels, for any number of rows.
    pub fn product(self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Option<Tensor> {
        // SAFETY: live tensors for the duration of the call; the result is ours.
        unsafe { owned(ft_product(self.0, raw(x), raw(w), raw_or_null(bias), raw_or_null(onto))) }
    }

    /// Computes e^x as the softmax of [`decode_attention`] does; `None` unless x is float32, contiguous and of a
    /// multiple of 16 numbers.
    pub fn exponential(self, x: &Tensor) -> Option<Tensor> {
        // SAFETY: a live tensor for the duration of the call; the result is ours.
        unsafe { owned(ft_attention_exponential(self.0, raw(x))) }
    }

    /// Computes [`decode_attention`] by this build's kernels.
    pub fn decode_attention(
        self,
        q: &Tensor,
        (k, v): (&Tensor, &Tensor),
        (keys, values): (&Tensor, &Tensor),
        held: &[i64],
        window: Option<i64>,
        (scale, sinks): (f64, Option<&Tensor>),
    ) -> Option<Tensor> {
        // SAFETY: live tensors for the duration of the call, `held` has the length given; the result is ours.
        unsafe {
            let slots = held.len() as i64;
            let made = ft_decode_attention(
                self.0,
                raw(q),
                raw(k),
                raw(v),
                raw(keys),
                raw(values),
                held.as_ptr(),
                slots,
                window.unwrap_or(i64::MAX),
                scale,
                raw_or_null(sinks),
            );
            owned(made)
        }
    }
}

pub(super) fn raw(t: &Tensor) -> *mut C_tensor {
    t.as_ptr() as *mut C_tensor
}

pub(super) fn raw_or_null(t: Option<&Tensor>) -> *mut C_tensor {
    t.map_or(std::ptr::null_mut(), raw)
}

/// # Safety
/// `made` must be null or a tensor that nothing else owns.
pub(super) unsafe fn owned(made: *mut C_tensor) -> Option<Tensor> {
    // SAFETY: guaranteed by the caller.
    (!made.is_null()).then(|| unsafe { Tensor::from_ptr(made) })
}

/// Computes `x (…, k) @ w (n, k)^T + bias` in the dtype of x; with `onto`, adds it to that tensor in place. Up to
/// [`product_rows`] rows, a row's bits do not depend on the other rows. `None` if there is no kernel for these
/// tensors, or if libtorch's product is as fast.
pub fn product(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Option<Tensor> {
    KernelBuild::BEST.product(x, w, bias, onto)
}

/// Returns the number of rows of x up to which [`product`] uses our own kernels on this CPU, for which a row's bits
/// do not depend on its batch.
pub fn product_rows(x: Kind, w: Kind) -> i64 {
    // SAFETY: plain call.
    unsafe { ft_product_rows(x == Kind::BFloat16, w == Kind::BFloat16) }
}

/// Computes one decoding step of attention on the CPU: writes k and v (S, K, E), given as `new`, after the `held[s]`
/// tokens of each slot s of the `tables` (slots, K, capacity, E), and attends from q (S, H, E) to all of the slot's
/// tokens, or to the last ones in the `window` -> (S, H, E). `sinks` (H), float32: a further score of each head, whose value is
/// 0. `None` if there is no kernel for these tensors; nothing is
/// written then.
pub fn decode_attention(
    q: &Tensor,
    new: (&Tensor, &Tensor),
    tables: (&Tensor, &Tensor),
    held: &[i64],
    window: Option<i64>,
    (scale, sinks): (f64, Option<&Tensor>),
) -> Option<Tensor> {
    KernelBuild::BEST.decode_attention(q, new, tables, held, window, (scale, sinks))
}
