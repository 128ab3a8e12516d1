//! How exactly, and in which order, libtorch computes on a GPU: settings of the whole process.

use super::{Result, check};
use std::ffi::c_int;

unsafe extern "C" {
    fn ft_set_arithmetic(deterministic: c_int, tf32: c_int) -> c_int;
    fn ft_arithmetic(out: *mut c_int) -> c_int;
}

/// Settings of libtorch's arithmetic that hold for the whole process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// Operations whose sums have no fixed order on a GPU use a slower way that has one, or fail if there is none.
    pub deterministic: bool,
    /// The factors of float32 products are rounded to 10 bits of mantissa on a GPU.
    pub tf32: bool,
}

/// Changes the settings of the whole process.
pub fn set_arithmetic(with: Arithmetic) -> Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { ft_set_arithmetic(with.deterministic.into(), with.tf32.into()) })
}

/// Returns the settings in use.
pub fn arithmetic() -> Result<Arithmetic> {
    let mut out = [0; 2];
    // SAFETY: `out` has room for two numbers.
    check(unsafe { ft_arithmetic(out.as_mut_ptr()) })?;
    Ok(Arithmetic { deterministic: out[0] != 0, tf32: out[1] != 0 })
}
