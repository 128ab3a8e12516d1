//! What an update rule is: the state that it keeps for a parameter, and one step over parameters.
//!
//! A rule sees float32 parameters and gradients and knows neither names, groups, clipping nor files. The layout says
//! what the state is, so that memory can be told before a run and a checkpoint can be checked.

use crate::error::Result;
use crate::nn::{Layer, Param};
use tch::{Device, Kind, Tensor};

/// What a rule may know of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    pub shape: Vec<i64>,
    pub layer: Layer,
    /// Part of an adapter.
    pub adapter: bool,
    /// A linear layer's weight that lies as (in, out).
    pub transposed: bool,
}

impl Form {
    pub fn of(p: &Param) -> Self {
        Self { shape: p.tensor.size(), layer: p.layer, adapter: p.adapter.is_some(), transposed: p.transposed }
    }

    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// One tensor of a parameter's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub shape: Vec<i64>,
    pub kind: Kind,
}

impl Field {
    /// A float32 tensor.
    pub fn float(name: &'static str, shape: &[i64]) -> Self {
        Self { name, shape: shape.to_vec(), kind: Kind::Float }
    }

    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<i64>() as u64 * self.kind.elt_size_in_bytes() as u64
    }
}

/// A parameter at a step: float32, updated in place with its state.
pub struct Slot<'a> {
    pub form: &'a Form,
    pub param: Tensor,
    pub grad: Tensor,
    pub state: &'a [Tensor],
}

impl Slot<'_> {
    /// The same slot once more; tensors are shared.
    pub fn share(&self) -> Self {
        Self { form: self.form, param: self.param.shallow_clone(), grad: self.grad.shallow_clone(), state: self.state }
    }
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub lr: f64,
    pub decay: f64,
    /// Counted from 1.
    pub step: u64,
}

/// An update rule.
pub trait Rule {
    /// The state of a parameter, in the order in which `update` sees it.
    fn layout(&self, form: &Form) -> Vec<Field>;

    /// The state before the first step.
    fn fresh(&self, form: &Form, param: &Tensor) -> Vec<Tensor> {
        zeros(&self.layout(form), param.device())
    }

    /// Once a step, before its updates; `lr` is that of parameters outside of any group.
    fn begin(&mut self, _lr: f64) {}

    /// One step over parameters that share a learning rate and a weight decay.
    fn update(&self, slots: &[Slot], pace: Pace) -> Result<()>;

    /// The weights to measure and to keep, where they are others than those that learn: float32.
    fn averaged(&self, _param: &Tensor, _state: &[Tensor]) -> Option<Tensor> {
        None
    }

    /// Numbers that a rule keeps beside its tensors, for a checkpoint.
    fn numbers(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Puts such a number back.
    fn set_number(&mut self, _name: &str, _value: f64) {}

    /// Bytes of state for a parameter.
    fn bytes(&self, form: &Form) -> u64 {
        self.layout(form).iter().map(Field::bytes).sum()
    }
}

/// Zeros of a layout.
pub fn zeros(layout: &[Field], device: Device) -> Vec<Tensor> {
    layout.iter().map(|f| Tensor::zeros(f.shape.as_slice(), (f.kind, device))).collect()
}
