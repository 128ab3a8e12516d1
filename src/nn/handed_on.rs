//! Tensors that a layer makes for later layers, beside its result: keys and values that later layers read instead of making
//! their own, or vectors that are computed before the first layer and of which each layer reads a part.
//!
//! They belong to a pass. Where layers run again in the backward, later layers read leaves in their place
//! ([`ForwardPass::cut_off`]), which collect the gradients until what made them runs again ([`with_gradients`]).

use super::layer_input::LayerInput;
use super::ops;
use super::pass::ForwardPass;
use super::rope::Rope;
use std::collections::BTreeMap;
use tch::Tensor;

/// What makes tensors for later layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Producer {
    /// What is computed between embedding and first layer.
    Entrance,
    /// The layer with this number.
    Layer(usize),
}

/// The tensors of a pass that later layers read.
pub(super) type HandedOn = BTreeMap<Producer, Vec<Tensor>>;

/// Where the cache has the keys and values of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedKeys {
    /// The layer that made them.
    pub layer: usize,
    /// This layer writes them.
    pub write: bool,
}

impl ForwardPass<'_> {
    /// Says that every layer is run once in this pass, each on the result of the one before, in one graph. A layer may then
    /// normalise its result for the next one, together with its last addition.
    pub fn in_order(mut self) -> Self {
        self.in_order = true;
        self
    }

    /// Returns true if every layer is run once, each on the result of the one before.
    pub fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// Gives the next layer its input, normalised.
    pub fn prepare_input(&mut self, input: LayerInput) {
        self.next_input = Some(input);
    }

    /// Takes the input that the layer before has normalised; `None` if it has not.
    pub fn take_input(&mut self) -> Option<LayerInput> {
        self.next_input.take()
    }

    /// Rotates the queries (T, H, E) of a layer without keys of its own by the angles of their positions, as
    /// [`ForwardPass::rotate`] does.
    pub fn rotate_queries(&mut self, rope: &Rope, q: &Tensor) -> Tensor {
        let (cos, sin) = self.angles(rope, q.kind());
        let (rotated, size) = (rope.size(), q.size()[2]);
        if rotated == size {
            return ops::rotate(q, &cos, &sin);
        }
        let turned = ops::rotate(&q.narrow(2, 0, rotated).contiguous(), &cos, &sin);
        Tensor::cat(&[turned, q.narrow(2, rotated, size - rotated)], 2)
    }

    /// Keeps tensors for later layers, in place of those that `from` has made before.
    pub fn hand_on(&mut self, from: Producer, tensors: Vec<Tensor>) {
        self.handed_on.insert(from, tensors);
    }

    /// Returns what `from` has made for later layers.
    ///
    /// # Panics
    /// If it has not run.
    pub fn handed_on(&self, from: Producer) -> &[Tensor] {
        self.handed_on.get(&from).unwrap_or_else(|| panic!("{from:?} has not run before a layer that reads from it"))
    }

    /// Puts leaves that collect gradients in place of what `from` has made.
    pub fn cut_off(&mut self, from: Producer) {
        for t in self.handed_on.get_mut(&from).into_iter().flatten() {
            *t = t.detach().set_requires_grad(true);
        }
    }

    /// Takes what `from` has made; empty if that is nothing.
    pub fn take_handed_on(&mut self, from: Producer) -> Vec<Tensor> {
        self.handed_on.remove(&from).unwrap_or_default()
    }
}

/// Returns tensors that were made again, `again`, with the gradients of the leaves that stood for them: those that have both.
pub fn with_gradients(leaves: &[Tensor], again: Vec<Tensor>) -> Vec<(Tensor, Tensor)> {
    assert_eq!(leaves.len(), again.len(), "as many tensors as before");
    let gradient = |(leaf, t): (&Tensor, Tensor)| {
        let g = leaf.grad();
        (g.defined() && t.requires_grad()).then_some((t, g))
    };
    leaves.iter().zip(again).filter_map(gradient).collect()
}
