//! What a loss may see of the trunk's inside: what layers give, and the queries and keys of their attention.
//!
//! A layer that runs again in the backward gives leaves to the loss; what the loss leaves on them joins the layer's
//! second run. So a loss over the inside learns the same whether layers are replayed or not.

use crate::nn::{Asked, Pass};
use std::collections::BTreeMap;
use tch::Tensor;

/// Which layers a loss looks at, from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Layers whose results it sees.
    pub states: Vec<usize>,
    /// Layers whose queries and keys it sees.
    pub attention: Vec<usize>,
}

/// What it sees of one packed row.
#[derive(Debug, Default)]
pub struct Inside {
    states: BTreeMap<usize, Tensor>,
    attention: BTreeMap<usize, Asked>,
}

impl Inside {
    /// What layer `i` gave: (T, D), before the final norm.
    pub fn state(&self, i: usize) -> &Tensor {
        self.states.get(&i).unwrap_or_else(|| panic!("nobody looks at what layer {i} gives"))
    }

    /// What the attention of layer `i` is made of.
    pub fn attention(&self, i: usize) -> &Asked {
        self.attention.get(&i).unwrap_or_else(|| panic!("nobody looks at the attention of layer {i}"))
    }

    /// Layer `i` gave `y`: keeps what is looked at.
    pub(super) fn see(&mut self, look: &Look, i: usize, y: &Tensor, pass: &mut Pass) {
        if look.states.contains(&i) {
            self.states.insert(i, y.shallow_clone());
        }
        if let Some(asked) = pass.asked(i) {
            self.attention.insert(i, asked);
        }
    }

    /// As `see`, of a layer that will run again: leaves.
    pub(super) fn see_leaf(&mut self, look: &Look, i: usize, y: &Tensor, pass: &mut Pass) {
        if look.states.contains(&i) {
            self.states.insert(i, y.detach().set_requires_grad(true));
        }
        if let Some(asked) = pass.asked(i) {
            self.attention.insert(i, asked.detach(true));
        }
    }

    /// Layer `i` ran again and gave `y`, whose gradient from above is `g`: all outputs of the layer that have a
    /// gradient, and their gradients.
    pub(super) fn pull(&self, i: usize, y: Tensor, g: Tensor, pass: &mut Pass) -> Vec<(Tensor, Tensor)> {
        let left = |leaf: &Tensor| Some(leaf.grad()).filter(Tensor::defined);
        let g = match self.states.get(&i).and_then(left) {
            Some(own) => g + own,
            None => g,
        };
        let mut pulled = vec![(y, g)];
        if let (Some(leaves), Some(again)) = (self.attention.get(&i), pass.asked(i)) {
            pulled.extend(left(&leaves.q).map(|g| (again.q, g)));
            pulled.extend(left(&leaves.k).map(|g| (again.k, g)));
        }
        pulled
    }
}
