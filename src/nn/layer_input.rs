//! The input of linear layers, and what their backward keeps of it.

use crate::native;
use std::rc::Rc;
use tch::Tensor;

/// The input of linear layers. Instead of keeping it for the backward, it may be recomputed there from tensors that
/// are kept anyway.
pub struct LayerInput {
    /// (T, D) the input's values.
    pub x: Tensor,
    pub(super) recompute: Option<Rc<dyn Fn() -> Tensor>>,
}

impl LayerInput {
    /// Returns the same input for other layers.
    pub fn shallow_clone(&self) -> Self {
        Self { x: self.x.shallow_clone(), recompute: self.recompute.clone() }
    }

    /// Returns an input that is kept for the backward.
    pub fn kept(x: &Tensor) -> Self {
        Self { x: x.shallow_clone(), recompute: None }
    }

    /// Returns an input that the backward recomputes instead of keeping. `again` returns a closure that computes the
    /// same tensor, bit for bit, and that must not hold a graph; it is called only if gradients are being recorded.
    pub fn recomputable<F: Fn() -> Tensor + 'static>(x: Tensor, again: impl FnOnce() -> F) -> Self {
        let again = native::grad_enabled().then(|| Rc::new(again()) as Rc<dyn Fn() -> Tensor>);
        Self { x, recompute: again }
    }
}

impl From<&Tensor> for LayerInput {
    fn from(x: &Tensor) -> Self {
        Self::kept(x)
    }
}
