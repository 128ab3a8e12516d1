//! The gradient of a loss with respect to the weights of a sum of adapters.
//!
//! Every tensor T of the merged adapter is an affine function of the weights: `T = T₀ + Σᵢ wᵢ Dᵢ`. In a LoRA that has the
//! factors of all adapters side by side, Dᵢ is adapter i's scaled A in its rows of A, and B does not depend on the weights. So
//! `∂loss/∂wᵢ = Σ_T ⟨∂loss/∂T, Dᵢ⟩` over the tensors T that the weight belongs to, and ∂loss/∂T is what training the merged
//! adapter computes.

use super::groups::WeightGroups;
use crate::adapters::file::tensor_name;
use crate::adapters::merging::WeightedAdapter;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::eval::merge_losses::LoadedMerge;
use crate::methods::sft::SupervisedBatch;
use crate::models::learning::LayerReplay;
use crate::models::{Metrics, MicroBatch};
use crate::native;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Most tokens of a packed row, unless one example alone is longer. The activations of a row are in memory together.
const PACK_TOKENS: usize = 1024;

/// What the weights of one adapter do to one tensor of the merged adapter.
struct Direction {
    /// The tensor in the model.
    tensor: Tensor,
    /// The adapter.
    part: usize,
    /// The places of its weights. Of several, each is that of one row, a component.
    places: Range<usize>,
    /// The first of these rows.
    first_row: i64,
    /// The derivative of the tensor with respect to one weight, or the sum of those with respect to all; of the tensor's shape,
    /// float32.
    change: Tensor,
}

/// A loss and its gradient.
pub struct LossGradient {
    /// The mean loss over the supervised tokens.
    pub loss: f64,
    /// Its derivatives with respect to the weights, (adapter, place).
    pub gradient: Vec<Vec<f64>>,
}

/// Computes the gradient with respect to the weights of a sum.
pub struct SumGradient<'a> {
    merge: &'a LoadedMerge<'a>,
    directions: Vec<Direction>,
    /// Number of adapters, and of the weights of each.
    size: (usize, usize),
}

impl<'a> SumGradient<'a> {
    /// Finds what each weight does to the merged adapter, whose method must be a sum. Changes the weights of `parts`.
    pub fn new(merge: &'a LoadedMerge<'a>, groups: &WeightGroups, parts: &mut [WeightedAdapter]) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let mut with_one = |one: Option<usize>| {
            for (i, part) in parts.iter_mut().enumerate() {
                part.weights = if one == Some(i) { 1.0 } else { 0.0 }.into();
            }
            merge.adapter(parts)
        };
        let without = with_one(None)?.tensors;
        let mut directions = Vec::new();
        for part in 0..groups.parts() {
            let with = with_one(Some(part))?;
            for param in merge.model().params().adapter(0) {
                let name = tensor_name(param, &with.tensors);
                let (Some(one), Some(none)) = (with.tensors.get(&name), without.get(&name)) else { continue };
                let change = one.to_kind(Kind::Float) - none.to_kind(Kind::Float);
                if change.abs().max().double_value(&[]) == 0.0 {
                    continue;
                }
                let adapted = with.spec.module_of(&param.name).map(|module| format!("{module}.weight"));
                let tensor = adapted.as_deref().unwrap_or(&param.name);
                let places = groups.places(part, tensor).ok_or_else(|| {
                    Error::bug(format!("`{}` of the merged adapter changes no known tensor of the base", param.name))
                })?;
                let earlier = (0..part).filter_map(|part| groups.places(part, tensor));
                let first_row = earlier.map(|places| places.len() as i64).sum();
                if places.len() > 1 && adapted.is_none() {
                    return Err(Error::user(format!("`{tensor}`: the merged change is no product of two factors"))
                        .hint("weights by component need adapters that are LoRAs: search by module"));
                }
                directions.push(Direction { tensor: param.tensor.shallow_clone(), part, places, first_row, change });
            }
        }
        Ok(Self { merge, directions, size: (groups.parts(), groups.names.len()) })
    }

    /// Returns the mean loss over the supervised tokens of examples, with the weights that the model has now, and its
    /// gradient. Fails if it is not finite.
    pub fn of(&self, examples: &[&Example]) -> Result<LossGradient> {
        let model = self.merge.model();
        let leaves = || model.params().adapter(0).map(|param| &param.tensor);
        let batches: Vec<SupervisedBatch> =
            packs(examples).into_iter().map(|pack| SupervisedBatch::new(pack, model.device())).collect();
        let items: f64 = batches.iter().map(MicroBatch::items).sum();
        native::drop_gradients(leaves());
        let mut metrics = Metrics::default();
        for batch in &batches {
            metrics.merge(model.learn(batch, items.max(1.0), LayerReplay::None)?);
        }
        let mut gradient = vec![vec![0.0; self.size.1]; self.size.0];
        // All of them come from the device in one transfer.
        let slopes: Vec<Tensor> = self.directions.iter().map(Direction::slopes).collect();
        let slopes = if slopes.is_empty() { Vec::new() } else { numbers(&Tensor::cat(&slopes, 0)) };
        let places = self.directions.iter().flat_map(|d| d.places.clone().map(move |place| (d.part, place)));
        places.zip(slopes).for_each(|((part, place), slope)| gradient[part][place] += slope);
        native::drop_gradients(leaves());
        let loss = metrics.means().get("loss").copied().unwrap_or(f64::NAN);
        if !loss.is_finite() || gradient.iter().flatten().any(|g| !g.is_finite()) {
            return Err(Error::user(format!("the loss of the merge is {loss}, and its gradient is not finite"))
                .hint("a weight has become too large, or an adapter is damaged: search by adapter, or on other rows"));
        }
        Ok(LossGradient { loss, gradient })
    }
}

impl Direction {
    /// Returns the derivatives of the loss with respect to the weights, as far as they are due to this tensor: one for each
    /// place, float64, on the device.
    fn slopes(&self) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let (grad, count) = (self.tensor.grad(), self.places.len() as i64);
        if !grad.defined() {
            return Tensor::zeros([count], (Kind::Double, self.change.device()));
        }
        let products = grad * &self.change;
        match count {
            1 => products.sum(Kind::Double).view([1]),
            _ => products.narrow(0, self.first_row, count).sum_dim_intlist([1].as_slice(), false, Kind::Double),
        }
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t).expect("a vector of float64")
}

/// Cuts examples into packed rows of at most [`PACK_TOKENS`] tokens, in their order.
fn packs<'e, 'a>(examples: &'e [&'a Example]) -> Vec<&'e [&'a Example]> {
    let (mut packs, mut from) = (Vec::new(), 0);
    while from < examples.len() {
        let mut held = 0;
        let fits = |e: &&&Example| {
            held += e.ids.len();
            held <= PACK_TOKENS
        };
        let to = from + examples[from..].iter().take_while(fits).count().max(1);
        packs.push(&examples[from..to]);
        from = to;
    }
    packs
}
