//! The inputs of layers that run again in the backward, on the device or in the host's memory.
//!
//! Where they are kept in the host's memory (`run.offload`), the input of a layer is copied there while the layer runs, and
//! back while the layer above it runs again: at most two of them are on the device (Rajbhandari et al. 2019, arXiv 1910.02054,
//! call this `Pa+cpu`).

use crate::error::Result;
use crate::native::HostCopy;
use tch::Tensor;

/// The inputs of the first layers, with the state of the random generator that each layer began with.
pub(super) struct ReplayedInputs {
    kept: Vec<(LayerInputCopy, Tensor)>,
    layers: usize,
    offload: bool,
}

enum LayerInputCopy {
    Device(Tensor),
    Host(HostCopy),
}

impl ReplayedInputs {
    /// Makes room for the inputs of this number of layers, in the host's memory if `offload` is true.
    pub fn new(layers: usize, offload: bool) -> Self {
        Self { kept: Vec::with_capacity(layers), layers, offload }
    }

    /// Keeps the input (T, D) of the next layer. The last one stays on the device, because it is needed first.
    pub fn push(&mut self, x: &Tensor, rng: Tensor) -> Result<()> {
        if let Some((LayerInputCopy::Host(below), _)) = self.kept.last_mut() {
            below.release()?;
        }
        let stays = !self.offload || self.kept.len() + 1 == self.layers;
        let copy = match stays {
            true => LayerInputCopy::Device(x.shallow_clone()),
            false => LayerInputCopy::Host(HostCopy::begin(&x.contiguous())?),
        };
        self.kept.push((copy, rng));
        Ok(())
    }

    /// Takes the input of the highest layer that is left, and begins to fetch that of the layer below it.
    pub fn pop(&mut self) -> Result<Option<(Tensor, Tensor)>> {
        let Some((copy, rng)) = self.kept.pop() else { return Ok(None) };
        let x = match copy {
            LayerInputCopy::Device(x) => x,
            LayerInputCopy::Host(copy) => copy.take()?,
        };
        if let Some((LayerInputCopy::Host(below), _)) = self.kept.last_mut() {
            below.fetch()?;
        }
        Ok(Some((x, rng)))
    }

    /// Returns the number of inputs that are left.
    pub fn len(&self) -> usize {
        self.kept.len()
    }
}
