//! Products on a GPU whose results are float32, whatever the factors are: nothing is rounded or cast behind them.

use super::{Result, check};
use std::ffi::c_int;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_wide_product(sum: *mut C_tensor, a: *mut C_tensor, b: *mut C_tensor, keep: f64, factor: f64) -> c_int;
}

/// Returns true if the product of matrices like `t` can be computed with a float32 result.
pub fn has_wide_products(t: &Tensor) -> bool {
    t.device().is_cuda() && matches!(t.kind(), Kind::Float | Kind::BFloat16 | Kind::Half)
}

/// Returns `factor a b` in float32: (m, k) x (k, n) -> (m, n).
pub fn wide_product(a: &Tensor, b: &Tensor, factor: f64) -> Tensor {
    let product = Tensor::empty([a.size()[0], b.size()[1]], (Kind::Float, a.device()));
    compute(&product, a, b, 0.0, factor).expect("matrices that fit");
    product
}

/// Adds `a b` to `sum` (m, n), float32.
pub fn add_wide_product(sum: &Tensor, a: &Tensor, b: &Tensor) {
    compute(sum, a, b, 1.0, 1.0).expect("matrices that fit");
}

fn compute(sum: &Tensor, a: &Tensor, b: &Tensor, keep: f64, factor: f64) -> Result<()> {
    let [sum, a, b] = [sum, a, b].map(|t| t.as_ptr() as *mut C_tensor);
    // SAFETY: live tensors during the call.
    check(unsafe { ft_wide_product(sum, a, b, keep, factor) })
}
