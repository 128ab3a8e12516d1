//! Finds where NaN or infinity first appears: runs a packed row again and checks every layer's output and gradient.
//!
//! Slow, so only for a step that has already failed. Dropout is off, so a failure that depended on a certain dropout
//! mask may not be found.

use super::activations::Activations;
use super::learning::MicroBatch;
use super::loss::Loss;
use super::model::Model;
use crate::error::Result;
use crate::native;
use crate::nn::Producer;
use crate::nn::handed_on::with_gradients;
use std::fmt;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The part of a training step in which the first non-finite number was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFiniteStage {
    /// A weight that is not trained.
    FrozenWeights,
    /// A weight that is trained.
    TrainedWeights,
    /// The output of a layer.
    Forward,
    /// The loss.
    Loss,
    /// A gradient.
    Backward,
}

/// The first tensor that holds NaN or infinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstNonFinite {
    /// The part of the step.
    pub stage: NonFiniteStage,
    /// The parameter's name, or which output or gradient of which layer.
    pub place: String,
    /// Number of NaN values.
    pub nan: i64,
    /// Number of infinite values.
    pub infinite: i64,
    /// Number of all values of the tensor.
    pub all: i64,
    /// The largest magnitude of the finite input that the tensor was computed from, if it has one.
    pub input: Option<String>,
}

impl NonFiniteStage {
    /// Returns the name for messages.
    pub fn name(self) -> &'static str {
        match self {
            NonFiniteStage::FrozenWeights => "frozen weights",
            NonFiniteStage::TrainedWeights => "trained weights",
            NonFiniteStage::Forward => "forward",
            NonFiniteStage::Loss => "loss",
            NonFiniteStage::Backward => "backward",
        }
    }
}

impl fmt::Display for FirstNonFinite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {} NaN and {} infinite of {} numbers", self.place, self.nan, self.infinite, self.all)?;
        match &self.input {
            Some(largest) => write!(f, "; its input is finite, with a largest magnitude of {largest}"),
            None => Ok(()),
        }
    }
}

/// Returns a finding if the tensor contains NaN or infinity, otherwise `None`.
fn check_finite(
    t: &Tensor,
    stage: NonFiniteStage,
    place: impl Into<String>,
    input: Option<&Tensor>,
) -> Option<FirstNonFinite> {
    let count = |t: Tensor| t.sum(Kind::Int64).int64_value(&[]);
    if count(t.isfinite().logical_not()) == 0 {
        return None;
    }
    let largest = |t: &Tensor| format!("{:.3e}", t.abs().max().to_kind(Kind::Double).double_value(&[]));
    let (nan, infinite) = (count(t.isnan()), count(t.isinf()));
    Some(FirstNonFinite { stage, place: place.into(), nan, infinite, all: t.numel() as i64, input: input.map(largest) })
}

impl Model {
    /// Returns the first tensor with NaN or infinity, in this order: weights, forward of the batch, loss, backward.
    /// `None` if all are finite. Adds to the parameters' gradients, which must be dropped afterwards.
    pub fn find_non_finite(&self, batch: &dyn MicroBatch, items: f64) -> Result<Option<FirstNonFinite>> {
        self.with_batch_adapter(batch, || self.search_non_finite(batch, items))
    }

    fn search_non_finite(&self, batch: &dyn MicroBatch, items: f64) -> Result<Option<FirstNonFinite>> {
        let tokens = batch.tokens();
        self.check(tokens, &[])?;
        for p in self.store.iter() {
            let (stage, what) = match p.trainable() {
                true => (NonFiniteStage::TrainedWeights, "trained weight"),
                false => (NonFiniteStage::FrozenWeights, "weight"),
            };
            if let Some(found) = check_finite(&p.tensor.detach(), stage, format!("{what} `{}`", p.name), None) {
                return Ok(Some(found));
            }
        }
        let (look, mut inside) = (self.exposed_layers(), Activations::default());
        let mut row = self.whole_row(tokens);
        let virtual_tokens = row.detach_virtual_tokens();
        let mut pass = row.pass(None).capture_attention(&look.attention);
        let mut inputs = Vec::with_capacity(self.depth());
        let top = {
            let _no_grad = tch::no_grad_guard();
            let mut x = self.enter(&row, &mut pass);
            if let Some(found) = check_finite(&x, NonFiniteStage::Forward, "output of the embedding", None) {
                return Ok(Some(found));
            }
            pass.cut_off(Producer::Entrance);
            for i in 0..self.depth() {
                let y = self.decoder.layer(i, &x, &mut pass);
                if let Some(found) = check_finite(&y, NonFiniteStage::Forward, format!("output of layer {i}"), Some(&x))
                {
                    return Ok(Some(found));
                }
                pass.cut_off(Producer::Layer(i));
                inside.record_leaves(&look, i, &y, &mut pass);
                inputs.push(std::mem::replace(&mut x, y));
            }
            let last = self.decoder.finish(&pass.real_rows(&x));
            if let Some(found) = check_finite(&last, NonFiniteStage::Forward, "output of the final norm", Some(&x)) {
                return Ok(Some(found));
            }
            x.detach().set_requires_grad(true)
        };
        let inside = Rc::new(inside);
        let out = self.output(pass.real_rows(&top), inside.clone());
        let hidden = out.hidden.detach();
        let Loss { sum, .. } = batch.loss(&out);
        if let Some(found) =
            check_finite(&sum.detach(), NonFiniteStage::Loss, "the loss over the output head", Some(&hidden))
        {
            return Ok(Some(found));
        }
        native::backward(&[&sum], &[&self.loss_gradient(&sum, items)])?;
        drop((sum, out));
        let mut g = top.grad();
        if let Some(found) = check_finite(&g, NonFiniteStage::Backward, "gradient that leaves the output head", None) {
            return Ok(Some(found));
        }
        while let Some(x) = inputs.pop() {
            let i = inputs.len();
            let x = x.detach().set_requires_grad(true);
            let leaves = pass.take_handed_on(Producer::Layer(i));
            let y = self.decoder.layer(i, &x, &mut pass);
            let mut pulled = inside.outputs_and_gradients(i, y, g, &mut pass);
            pulled.extend(with_gradients(&leaves, pass.take_handed_on(Producer::Layer(i))));
            let (outputs, gradients): (Vec<&Tensor>, Vec<&Tensor>) = pulled.iter().map(|(y, g)| (y, g)).unzip();
            native::backward(&outputs, &gradients)?;
            let (below, above) = (x.grad(), &pulled[0].1);
            if let Some(found) =
                check_finite(&below, NonFiniteStage::Backward, format!("gradient that leaves layer {i}"), Some(above))
            {
                return Ok(Some(found));
            }
            g = below;
        }
        row.backward(virtual_tokens)?;
        let bad = self.store.trainable().find_map(|p| {
            let gradient = p.tensor.grad();
            gradient
                .defined()
                .then(|| check_finite(&gradient, NonFiniteStage::Backward, format!("gradient of `{}`", p.name), None))?
        });
        Ok(bad)
    }
}
