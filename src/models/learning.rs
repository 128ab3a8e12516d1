//! Training: a micro-batch forward and backward, with or without recomputation of layers.

use super::activations::Activations;
use super::adapter_choice::RestoreOnDrop;
use super::checkpoint::expert_number;
use super::loss::{Loss, Metrics, Output};
use super::model::Model;
use super::replayed_inputs::ReplayedInputs;
use crate::error::Result;
use crate::native;
use crate::nn::handed_on::with_gradients;
use crate::nn::{KeptInputs, Param, Producer, Tokens};
use std::rc::Rc;
use tch::Tensor;

/// One micro-batch: a packed row, and a pure function from its hidden states to a loss.
pub trait MicroBatch {
    /// Returns the packed row that is the trunk's input.
    fn tokens(&self) -> &Tokens;
    /// Returns the number of tokens of the row, without padding.
    fn token_count(&self) -> usize {
        self.tokens().len()
    }
    /// Returns how many items the loss sums over. The loop adds them up over the whole optimiser step and divides
    /// once.
    fn items(&self) -> f64;
    /// Returns all tensors that pass and loss read, beside the model's, if the work of batches differs only in the numbers in them:
    /// those of batches of other items, too, with tensors of the same shapes. Metrics are then means over the items. `None` if the
    /// work differs in more.
    fn recorded_inputs(&self) -> Option<Vec<&Tensor>> {
        None
    }
    /// Computes the SUM of the loss over the items. Pure.
    fn loss(&self, out: &Output) -> Loss;
    /// Returns the adapter that the trunk runs with; `None`: the active one.
    fn adapter(&self) -> Option<&str> {
        None
    }
}

/// Which layers are recomputed in the backward pass (activation checkpointing).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerReplay {
    /// None: all activations are kept.
    None,
    /// The first n layers: their activations would be kept the longest.
    First(usize),
    /// All of them: only the inputs of layers are kept.
    All,
}

impl LayerReplay {
    fn layers(self, depth: usize) -> usize {
        match self {
            Self::None => 0,
            Self::First(n) => n.min(depth),
            Self::All => depth,
        }
    }
}

impl Model {
    /// Runs a micro-batch forward and backward under its adapter: adds the gradient of `loss.sum / items` to the
    /// trained parameters, times the factor on the loss if there is one, and returns the loss's metrics. `items` are
    /// those of the whole optimiser step.
    pub fn learn(&self, batch: &dyn MicroBatch, items: f64, replay: LayerReplay) -> Result<Metrics> {
        self.with_batch_adapter(batch, || {
            self.check(batch.tokens(), &[])?;
            let _back = RestoreOnDrop { cell: &self.switches.train, value: self.switches.train.replace(true) };
            let metrics = match replay.layers(self.depth()) {
                0 => self.learn_plain(batch, items),
                layers => self.learn_replayed(batch, items, layers),
            }?;
            self.complete_gradients_of_experts()?;
            Ok(metrics)
        })
    }

    /// Runs `f` with the adapter active that the batch names, or with the active one if it names none.
    pub(super) fn with_batch_adapter<R>(&self, batch: &dyn MicroBatch, f: impl FnOnce() -> R) -> R {
        match batch.adapter() {
            Some(name) => self.with_adapter(Some(name), |_| f()),
            None => f(),
        }
    }

    /// Gives the trained parameters of experts that no token went to a gradient of zeros: in transformers an expert is a part
    /// of a tensor that has one, so that the optimiser's momentum and weight decay go on.
    fn complete_gradients_of_experts(&self) -> Result<()> {
        if self.config.experts.is_none() {
            return Ok(());
        }
        let active = self.switches.active.get();
        let current = |p: &&Param| p.adapter.is_none() || p.adapter == active;
        let of_experts = self.store.trainable().filter(current).filter(|p| expert_number(&p.name).is_some());
        for p in of_experts.filter(|p| !p.tensor.grad().defined()) {
            let same = tch::with_grad(|| p.tensor.view_as(&p.tensor));
            native::backward(&[&same], &[&p.tensor.detach().zeros_like()])?;
        }
        Ok(())
    }

    fn learn_plain(&self, batch: &dyn MicroBatch, items: f64) -> Result<Metrics> {
        let (x, inside) = {
            let _kept = self.keeps_inputs().then(KeptInputs::begin);
            self.trunk(batch.tokens())
        };
        let Loss { sum, metrics } = self.loss_of(batch, &self.output(x, inside.into()));
        native::backward(&[&sum], &[&self.loss_gradient(&sum, items)])?;
        Ok(metrics)
    }

    /// Does the same with activation checkpointing (Chen et al. 2016, arXiv 1604.06174): of the first `layers` layers
    /// only the inputs are kept, and they run again in the backward, from the same random generator state so that
    /// dropout is the same.
    fn learn_replayed(&self, batch: &dyn MicroBatch, items: f64, layers: usize) -> Result<Metrics> {
        let tokens = batch.tokens();
        let (look, mut inside) = (self.exposed_layers(), Activations::default());
        let mut row = self.whole_row(tokens);
        let virtual_tokens = row.detach_virtual_tokens();
        let mut pass = self.start_pass(&row, &look);
        let mut inputs = ReplayedInputs::new(layers, self.offloads());
        let first = native::rng_state(self.device())?;
        let top = {
            let _no_grad = tch::no_grad_guard();
            let mut x = self.enter(&row, &mut pass);
            pass.cut_off(Producer::Entrance);
            for i in 0..layers {
                inputs.push(&x, native::rng_state(self.device())?)?;
                x = self.decoder.layer(i, &x, &mut pass);
                pass.cut_off(Producer::Layer(i));
                inside.record_leaves(&look, i, &x, &mut pass);
            }
            x.detach().set_requires_grad(true)
        };
        let mut last = top.shallow_clone();
        for i in layers..self.depth() {
            last = self.decoder.layer(i, &last, &mut pass);
            inside.record(&look, i, &last, &mut pass);
        }
        let inside = Rc::new(inside);
        let Loss { sum, metrics } = self.loss_of(batch, &self.output(pass.real_rows(&last), inside.clone()));
        native::backward(&[&sum], &[&self.loss_gradient(&sum, items)])?;
        drop(sum);
        let after = native::rng_state(self.device())?;
        let mut g = top.grad();
        while let Some((x, rng)) = inputs.pop()? {
            native::set_rng_state(self.device(), &rng)?;
            let x = x.detach().set_requires_grad(true);
            let leaves = pass.take_handed_on(Producer::Layer(inputs.len()));
            let y = self.decoder.layer(inputs.len(), &x, &mut pass);
            let mut pulled = inside.outputs_and_gradients(inputs.len(), y, g, &mut pass);
            pulled.extend(with_gradients(&leaves, pass.take_handed_on(Producer::Layer(inputs.len()))));
            let (outputs, gradients): (Vec<&Tensor>, Vec<&Tensor>) = pulled.iter().map(|(y, g)| (y, g)).unzip();
            native::backward(&outputs, &gradients)?;
            g = x.grad();
        }
        native::set_rng_state(self.device(), &first)?;
        let leaves = pass.take_handed_on(Producer::Entrance);
        let entered = self.enter(&row, &mut pass);
        let mut pulled = with_gradients(&leaves, pass.take_handed_on(Producer::Entrance));
        if entered.requires_grad() {
            pulled.push((entered, g));
        }
        if !pulled.is_empty() {
            let (outputs, gradients): (Vec<&Tensor>, Vec<&Tensor>) = pulled.iter().map(|(y, g)| (y, g)).unzip();
            native::backward(&outputs, &gradients)?;
        }
        native::set_rng_state(self.device(), &after)?;
        row.backward(virtual_tokens)?;
        Ok(metrics)
    }
}

impl Model {
    /// Sets a factor on the loss, a float32 scalar on the device, for all later backward passes; `None`: 1. A change of
    /// the tensor changes the factor.
    pub fn set_loss_scale(&self, factor: Option<Tensor>) {
        self.loss_scale.replace(factor);
    }

    /// Returns the gradient of `sum / items`, times the factor on the loss, with respect to `sum`. The backward starts
    /// from it.
    pub(super) fn loss_gradient(&self, sum: &Tensor, items: f64) -> Tensor {
        match &*self.loss_scale.borrow() {
            Some(factor) => factor * (1.0 / items),
            None => sum.full_like(1.0 / items),
        }
    }
}
