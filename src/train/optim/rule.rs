//! Defines update rules: the state that a rule keeps for each parameter, and one update of a list of parameters.
//!
//! A rule sees float32 parameters and gradients; it knows neither names, groups, clipping nor files. Its layout
//! describes the state, so that memory can be predicted before a run and a checkpoint can be validated.

use crate::error::Result;
use crate::nn::{LayerKind, Param};
use tch::{Device, Kind, Tensor};

/// Properties of a parameter that a rule may depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterInfo {
    /// Shape of the parameter.
    pub shape: Vec<i64>,
    /// Kind of its layer.
    pub layer: LayerKind,
    /// Part of an adapter.
    pub adapter: bool,
    /// The weight of a linear layer is stored as (in, out) instead of (out, in).
    pub transposed: bool,
}

impl ParameterInfo {
    /// Describes a parameter.
    pub fn of(p: &Param) -> Self {
        // Factors of single features are no matrices, however they are written.
        let layer = if p.scale { LayerKind::Norm } else { p.layer };
        Self { shape: p.tensor.size(), layer, adapter: p.adapter.is_some(), transposed: p.transposed }
    }

    /// Returns the number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// Name, shape and number format of one tensor of a parameter's state.
#[derive(Debug, Clone, PartialEq)]
pub struct StateField {
    /// Name in checkpoints.
    pub name: &'static str,
    /// Shape of the tensor.
    pub shape: Vec<i64>,
    /// Number format of the tensor.
    pub kind: Kind,
}

impl StateField {
    /// Describes a float32 tensor.
    pub fn float(name: &'static str, shape: &[i64]) -> Self {
        Self { name, shape: shape.to_vec(), kind: Kind::Float }
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<i64>() as u64 * self.kind.elt_size_in_bytes() as u64
    }
}

/// A parameter with its gradient, both float32, and its state. The update changes parameter and state in place.
pub struct ParameterUpdate<'a> {
    /// Shape and kind of the parameter.
    pub form: &'a ParameterInfo,
    /// The parameter; updated in place.
    pub param: Tensor,
    /// Its gradient.
    pub grad: Tensor,
    /// Its state; updated in place.
    pub state: &'a [Tensor],
}

impl ParameterUpdate<'_> {
    /// Returns a copy that shares the tensors.
    pub fn shallow_clone(&self) -> Self {
        Self { form: self.form, param: self.param.shallow_clone(), grad: self.grad.shallow_clone(), state: self.state }
    }
}

/// Learning rate, weight decay and step number of one update.
#[derive(Debug, Clone, Copy)]
pub struct StepSize {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
    /// Number of this update of the parameter, counted from 1.
    pub step: u64,
}

/// An update rule such as AdamW.
pub trait UpdateRule {
    /// Describes the state tensors of a parameter, in the order in which `update` receives them.
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField>;

    /// Creates the state before the first step: zeros, unless the rule needs something else.
    fn initial_state(&self, form: &ParameterInfo, param: &Tensor) -> Vec<Tensor> {
        zeros(&self.layout(form), param.device())
    }

    /// Called once per step, before its updates. `lr` is the learning rate of parameters outside of any group.
    fn begin(&mut self, _lr: f64) {}

    /// Takes back the last `begin`: the updates of its step were skipped.
    fn uncount(&mut self) {}

    /// Updates parameters that share learning rate, weight decay and step number. If `skip`, a float32 scalar on the
    /// parameters' device, is 1, nothing is changed, so that a step need not wait until it is known to be finite.
    fn update(&self, slots: &[ParameterUpdate], pace: StepSize, skip: Option<&Tensor>) -> Result<()>;

    /// Returns the averaged weights (float32) that are to be measured and kept instead of the trained ones; `None` for
    /// a rule that does not average.
    fn averaged(&self, _param: &Tensor, _state: &[Tensor]) -> Option<Tensor> {
        None
    }

    /// Returns the numbers, by name, that a checkpoint must store in addition to the state tensors.
    fn scalar_state(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Restores one of these numbers.
    fn set_scalar(&mut self, _name: &str, _value: f64) {}

    /// Returns the bytes of a parameter's state.
    fn bytes(&self, form: &ParameterInfo) -> u64 {
        self.layout(form).iter().map(StateField::bytes).sum()
    }
}

/// Creates the tensors of a layout, filled with zeros.
pub fn zeros(layout: &[StateField], device: Device) -> Vec<Tensor> {
    layout.iter().map(|f| Tensor::zeros(f.shape.as_slice(), (f.kind, device))).collect()
}
