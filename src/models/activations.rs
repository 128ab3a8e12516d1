//! Shows a loss the inside of the model: hidden states after chosen layers, queries and keys of their attention, and the
//! routing of layers of experts.
//!
//! With activation checkpointing a layer runs twice, the first time without a graph. A loss over its activations then
//! gets leaves instead; the gradients that the loss leaves on them are added when the layer runs again in the
//! backward. So the gradients are the same whether layers are replayed or not.

use crate::nn::{ForwardPass, QueriesAndKeys, RouterStatistics};
use std::collections::BTreeMap;
use tch::Tensor;

/// The layers whose activations a loss gets, counted from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExposedLayers {
    /// Layers whose hidden states it gets.
    pub states: Vec<usize>,
    /// Layers whose queries and keys it gets.
    pub attention: Vec<usize>,
}

/// The activations of one packed row that a loss gets.
#[derive(Debug, Default)]
pub struct Activations {
    states: BTreeMap<usize, Tensor>,
    attention: BTreeMap<usize, QueriesAndKeys>,
    /// Of every layer of experts, if the model is trained.
    routing: BTreeMap<usize, RouterStatistics>,
}

impl Activations {
    /// Returns the hidden states after layer `i`: (T, D), before the final norm. Panics if they were not requested.
    pub fn hidden_state(&self, i: usize) -> &Tensor {
        self.states.get(&i).unwrap_or_else(|| panic!("the hidden states of layer {i} were not requested"))
    }

    /// Returns queries and keys of layer `i`. Panics if they were not requested.
    pub fn attention(&self, i: usize) -> &QueriesAndKeys {
        self.attention.get(&i).unwrap_or_else(|| panic!("the attention of layer {i} was not requested"))
    }

    /// Returns the statistics of the routing of each layer of experts, in their order.
    pub fn routing(&self) -> impl Iterator<Item = &RouterStatistics> {
        self.routing.values()
    }

    /// Records the activations of layer `i`, whose output is `y`, if `look` requests them.
    pub(super) fn record(&mut self, look: &ExposedLayers, i: usize, y: &Tensor, pass: &mut ForwardPass) {
        if look.states.contains(&i) {
            self.states.insert(i, pass.real_rows(y));
        }
        if let Some(asked) = pass.take_captured(i) {
            self.attention.insert(i, asked);
        }
        if let Some(routing) = pass.take_routing(i) {
            self.routing.insert(i, routing);
        }
    }

    /// Does the same for a layer that will run again in the backward: records leaves that collect the loss's gradients.
    pub(super) fn record_leaves(&mut self, look: &ExposedLayers, i: usize, y: &Tensor, pass: &mut ForwardPass) {
        if look.states.contains(&i) {
            self.states.insert(i, pass.real_rows(y).detach().set_requires_grad(true));
        }
        if let Some(asked) = pass.take_captured(i) {
            self.attention.insert(i, asked.detach(true));
        }
        if let Some(routing) = pass.take_routing(i) {
            self.routing.insert(i, routing.as_leaves());
        }
    }

    /// Returns all outputs of layer `i` to run the backward from, with their gradients: its second output `y` with
    /// the gradient `g` from the layer above, plus what the loss left on the recorded leaves.
    pub(super) fn outputs_and_gradients(
        &self,
        i: usize,
        y: Tensor,
        g: Tensor,
        pass: &mut ForwardPass,
    ) -> Vec<(Tensor, Tensor)> {
        let left = |leaf: &Tensor| Some(leaf.grad()).filter(Tensor::defined);
        let g = match self.states.get(&i).and_then(left) {
            Some(own) => g + pass.all_rows(&own),
            None => g,
        };
        let mut pulled = vec![(y, g)];
        if let (Some(leaves), Some(again)) = (self.attention.get(&i), pass.take_captured(i)) {
            pulled.extend(left(&leaves.q).map(|g| (again.q, g)));
            pulled.extend(left(&leaves.k).map(|g| (again.k, g)));
        }
        if let (Some(leaves), Some(again)) = (self.routing.get(&i), pass.take_routing(i)) {
            pulled.extend(left(&leaves.probabilities).map(|g| (again.probabilities, g)));
            pulled.extend(left(&leaves.squares).map(|g| (again.squares, g)));
        }
        pulled
    }
}
