//! Tensors computed from an adapter's parameters and kept until these change.

use std::cell::RefCell;
use tch::{Kind, Tensor};

/// Tensors computed from parameters, for decoding. A decoding step is short, so they are computed again only when an
/// optimiser step has changed a parameter.
#[derive(Default)]
pub(super) struct Cached(RefCell<Option<(Vec<i64>, Kind, Vec<Tensor>)>>);

impl Cached {
    /// Returns the tensors that `compute` returns, in dtype `kind`. They are computed, without recording gradients, if
    /// one of `parameters` has changed since the last call, or if that was for another dtype.
    pub fn get<const N: usize>(
        &self,
        kind: Kind,
        parameters: &[&Tensor],
        compute: impl FnOnce() -> [Tensor; N],
    ) -> [Tensor; N] {
        let now: Vec<i64> = parameters.iter().map(|t| t.internal_version()).collect();
        let mut kept = self.0.borrow_mut();
        if kept.as_ref().is_none_or(|(then, of, _)| *then != now || *of != kind) {
            let computed = tch::no_grad(compute).map(|t| t.to_kind(kind));
            *kept = Some((now, kind, computed.into()));
        }
        let (.., tensors) = kept.as_ref().expect("just computed");
        std::array::from_fn(|i| tensors[i].shallow_clone())
    }
}
