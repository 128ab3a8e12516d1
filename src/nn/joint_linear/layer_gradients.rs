//! On CUDA: the gradients of all factors of a layer in one launch.
//!
//! They need the gradients and inputs of all linear layers of the layer, which exist at different times. The nodes of the linear layers
//! therefore leave them with a node in front of the layer, which has all factors among its inputs: its backward runs after theirs,
//! because they all depend on its result. What is left there keeps its memory until then.

use super::low_rank::is_computed_at_once;
use crate::native::cuda::{self, FactorProduct};
use crate::nn::autograd::{differentiable, recorded};
use crate::nn::layer_input::{self, LayerInput};
use std::cell::RefCell;
use std::rc::Rc;
use tch::Tensor;

thread_local! {
    static CURRENT: RefCell<Option<Rc<LayerGradients>>> = const { RefCell::new(None) };
}

/// Gradients of a layer's factors that are not computed yet.
pub(super) struct LayerGradients {
    /// The addresses of the factors.
    factors: Vec<usize>,
    waiting: RefCell<Vec<WaitingProduct>>,
}

/// A product whose rows are the gradients of one or several factors.
pub(super) struct WaitingProduct {
    pub wide: Tensor,
    pub narrow: Tensor,
    pub scale: f64,
    pub transposed: bool,
    /// The factors: which, the first row of its gradient, and how many.
    pub of_factors: Vec<(usize, i64, i64)>,
}

impl WaitingProduct {
    pub fn product(&self) -> FactorProduct<'_> {
        let Self { wide, narrow, scale, transposed, .. } = self;
        FactorProduct { wide, narrow, scale: *scale, transposed: *transposed }
    }
}

/// While a value of this type exists, linear layers on this thread leave the gradients of their factors with the node in front of
/// their layer.
pub struct CollectedGradients(());

impl Drop for CollectedGradients {
    fn drop(&mut self) {
        CURRENT.take();
    }
}

impl CollectedGradients {
    /// Returns the input (T, D) of a layer behind a node that computes the gradients of `factors`: those of linear layers all of whose
    /// inputs depend on this one. That takes memory, so it is only done where inputs are kept as well
    /// ([`KeptInputs`](layer_input::KeptInputs)); otherwise returns the input itself.
    pub fn begin(input: LayerInput, factors: impl FnOnce() -> Vec<Tensor>) -> (LayerInput, Option<Self>) {
        let x = &input.x;
        if !layer_input::keeps() || !recorded(&[x]) || cuda::kernels(x.device(), x.kind()).is_none() {
            return (input, None);
        }
        let factors = factors();
        if factors.is_empty() {
            return (input, None);
        }
        let addresses = factors.iter().map(|t| t.data_ptr() as usize).collect();
        let layer = Rc::new(LayerGradients { factors: addresses, waiting: RefCell::default() });
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(&factors).collect();
        let forward = || (x.detach(), layer.clone());
        let x = differentiable(&inputs, forward, |layer, g| {
            std::iter::once(Some(g.shallow_clone())).chain(layer.gradients()).collect()
        });
        CURRENT.replace(Some(layer));
        (input.with_values(x), Some(Self(())))
    }
}

impl LayerGradients {
    /// Returns the node in front of the current layer and the places of these factors in it; `None` if it does not have them.
    pub fn of(factors: &[&Tensor]) -> Option<(Rc<Self>, Vec<usize>)> {
        let layer = CURRENT.with_borrow(Clone::clone)?;
        let place = |t: &&Tensor| layer.factors.iter().position(|address| *address == t.data_ptr() as usize);
        let places = factors.iter().map(place).collect::<Option<_>>()?;
        Some((layer, places))
    }

    /// Leaves products to the node; returns them if it should not compute them.
    pub fn leave(&self, products: Vec<WaitingProduct>) -> Result<(), Vec<WaitingProduct>> {
        if !is_computed_at_once(&products.iter().map(WaitingProduct::product).collect::<Vec<_>>()) {
            return Err(products);
        }
        self.waiting.borrow_mut().extend(products);
        Ok(())
    }

    /// Computes what is waiting. Returns the gradient of each factor, `None` for those that it does not compute.
    fn gradients(&self) -> Vec<Option<Tensor>> {
        let waiting = self.waiting.take();
        let mut gradients: Vec<Option<Tensor>> = self.factors.iter().map(|_| None).collect();
        let Some(first) = waiting.first() else { return gradients };
        let kernels = cuda::kernels(first.wide.device(), first.wide.kind()).expect("asked for before");
        let found = kernels.factor_products(&waiting.iter().map(WaitingProduct::product).collect::<Vec<_>>());
        for (found, product) in found.iter().zip(&waiting) {
            for (factor, row, rows) in &product.of_factors {
                let gradient = found.narrow(0, *row, *rows);
                gradients[*factor] =
                    Some(gradients[*factor].take().map_or(gradient.shallow_clone(), |sum| sum + gradient));
            }
        }
        gradients
    }
}
