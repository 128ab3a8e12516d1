//! What a recorded decoding step needs of the cache.

use super::KvCache;
use tch::Tensor;

/// Where a tensor lies, and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    address: usize,
    shape: Vec<i64>,
}

impl TensorPlace {
    /// Returns the place of a tensor.
    pub fn of(t: &Tensor) -> Self {
        Self { address: t.data_ptr() as usize, shape: t.size() }
    }
}

impl KvCache {
    /// Returns the places of all that a step of one token for each sequence reads and writes on a device. A recorded step does
    /// the next one as long as they stay the same. [`KvCache::reserve`] must have made room for the step.
    pub fn step_places(&mut self) -> Vec<TensorPlace> {
        (0..self.kept.len()).for_each(|g| _ = self.index(g));
        let indices = self.kept.iter().filter_map(|kept| kept.index.as_ref()).flat_map(|index| index.tensors());
        let tables = self.layers.iter().flatten().flat_map(|(k, v)| [k, v]);
        indices.chain(tables).map(TensorPlace::of).collect()
    }

    /// Counts the token that a recorded step has written for each sequence: on the device the step itself has done so.
    pub fn count_recorded_step(&mut self) {
        self.lengths.iter_mut().for_each(|length| *length += 1);
    }
}
