//! libtorch's attention kernels for CUDA that take segments or cached keys, which tch does not bind.

use super::{Result, check, owned};
use std::ffi::c_int;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_flash_varlen(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        cu: *mut C_tensor,
        longest: i64,
        window: i64,
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
        window: i64,
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
        window: i64,
        scale: f64,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// Computes packed causal attention by the flash kernel of CUDA (compute capability 8.0 and newer) in half precision:
/// q (T, H, E), k and v (T, K, E), segment boundaries `cu` int32 (S + 1) -> (T, H, E), differentiable. `longest` is the
/// length of the longest segment. A query sees the last `window` keys, its own included. E is a multiple of 8 up to 256.
pub fn flash_varlen(
    [q, k, v]: [&Tensor; 3],
    cu: &Tensor,
    longest: i64,
    window: Option<i64>,
    scale: f64,
) -> Result<Tensor> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    // SAFETY: live tensors for the duration of the call.
    owned(unsafe { ft_flash_varlen(p(q), p(k), p(v), p(cu), longest, window.unwrap_or(0), scale) })
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
    window: Option<i64>,
    scale: f64,
    with_lse: bool,
) -> Result<EfficientAttention> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    let mut out = [std::ptr::null_mut(); 2];
    let window = window.unwrap_or(0);
    // SAFETY: live tensors for the duration of the call; `out` has room for two results.
    check(unsafe {
        ft_efficient_varlen(p(q), p(k), p(v), p(cu), longest, window, scale, with_lse.into(), out.as_mut_ptr())
    })?;
    Ok(EfficientAttention { out: owned(out[0])?, lse: if with_lse { Some(owned(out[1])?) } else { None } })
}

/// Computes the gradients of q, k and v, (1, T, H, E) each, from the gradient `g` of the result of [`efficient_varlen`].
pub fn efficient_varlen_backward(
    g: &Tensor,
    [q, k, v]: [&Tensor; 3],
    (out, lse): (&Tensor, &Tensor),
    cu: &Tensor,
    longest: i64,
    window: Option<i64>,
    scale: f64,
) -> Result<[Tensor; 3]> {
    let p = |t: &Tensor| t.as_ptr() as *mut C_tensor;
    let mut grads = [std::ptr::null_mut(); 3];
    let window = window.unwrap_or(0);
    // SAFETY: live tensors for the duration of the call; `grads` has room for three results.
    check(unsafe {
        ft_efficient_varlen_backward(
            p(g),
            p(q),
            p(k),
            p(v),
            p(out),
            p(lse),
            p(cu),
            longest,
            window,
            scale,
            grads.as_mut_ptr(),
        )
    })?;
    let [q, k, v] = grads;
    Ok([owned(q)?, owned(k)?, owned(v)?])
}
