//! Virtual tokens: vectors, or keys and values, that an adapter puts before the tokens of every sequence.
//!
//! An adapter provides [`VirtualTokens`]. A [`VirtualRow`] says how many of them each segment of a packed row begins with
//! and where the real tokens are in the longer row. Rows of virtual tokens exist only between the embedding and the last
//! layer (or only inside attention), so families, losses and whoever counts tokens see real ones alone.

use super::autograd::differentiable;
use super::tokens::{Segments, Tokens};
use crate::native::upload;
use tch::{Device, Kind, Tensor};

/// The name of virtual tokens in files, as in PEFT.
pub const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";

/// Where virtual tokens enter a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualPlace {
    /// As vectors (n, D) before the embedded tokens.
    Input,
    /// As keys and values of every layer: (n, L * 2 * K * E), the keys of the first layer, its values, and so on. Keys
    /// are used as they are, without rotary embedding.
    KeysAndValues,
}

/// The virtual tokens of an adapter.
pub struct VirtualTokens {
    /// n, the number of virtual tokens of a sequence.
    pub count: i64,
    /// Where they enter the model, which says what [`VirtualTokens::encode`] returns.
    pub place: VirtualPlace,
    /// Computes them from the adapter's parameters.
    encoder: Box<dyn Fn() -> Tensor>,
}

impl VirtualTokens {
    /// Creates virtual tokens that `encoder` computes from parameters: (n, width of the place) float32, differentiable.
    pub fn new(count: i64, place: VirtualPlace, encoder: impl Fn() -> Tensor + 'static) -> Self {
        Self { count, place, encoder: Box::new(encoder) }
    }

    /// Returns the virtual tokens in float32: (n, width of the place), differentiable.
    pub fn encode(&self) -> Tensor {
        (self.encoder)().to_kind(Kind::Float)
    }
}

/// Sizes of a model that virtual tokens depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSizes {
    /// D, the width of the residual stream.
    pub width: i64,
    /// L, the number of layers.
    pub depth: i64,
    /// H, the number of query heads.
    pub heads: i64,
    /// K, the number of key and value heads.
    pub kv_heads: i64,
    /// E, the size of a head.
    pub head_dim: i64,
}

impl ModelSizes {
    /// Returns the numbers that one virtual token has at a place.
    pub fn numbers(&self, place: VirtualPlace) -> i64 {
        match place {
            VirtualPlace::Input => self.width,
            VirtualPlace::KeysAndValues => self.depth * 2 * self.kv_heads * self.head_dim,
        }
    }
}

/// A packed row in which segments begin with virtual tokens. T counts real tokens, T' all of them.
pub struct VirtualRow {
    /// The real tokens, at their positions after the virtual ones.
    pub tokens: Tokens,
    /// The segments with their virtual tokens.
    pub segments: Segments,
    /// (T') positions, virtual tokens included.
    pub positions: Tensor,
    /// For each segment, the position of its first real token.
    pub starts: Vec<i64>,
    /// (T) int64: the row of each real token.
    real: Tensor,
    /// (B n) int64: the rows of the virtual tokens of all B segments that have them.
    added: Tensor,
    count: i64,
}

impl VirtualRow {
    /// Puts `count` virtual tokens before each segment that has tokens and begins its sequence. `past[s]` tokens of
    /// segment s's sequence, virtual ones included, were computed before. `None` if no segment begins a sequence.
    pub fn new(tokens: &Tokens, past: &[i64], count: i64, device: Device) -> Option<Self> {
        let lengths = &tokens.segments.lengths;
        let begins: Vec<bool> = lengths.iter().zip(past).map(|(n, p)| *n > 0 && *p == 0).collect();
        if !begins.contains(&true) {
            return None;
        }
        let (mut real, mut added, mut all_positions, mut real_positions) = (vec![], vec![], vec![], vec![]);
        let (mut longer, mut starts, mut row) = (vec![], vec![], 0);
        for ((&n, &past), begins) in lengths.iter().zip(past).zip(begins) {
            let more = if begins { count } else { 0 };
            let start = past + more;
            added.extend(row..row + more);
            real.extend(row + more..row + more + n);
            all_positions.extend(past..start + n);
            real_positions.extend(start..start + n);
            longer.push(more + n);
            starts.push(start);
            row += more + n;
        }
        let numbers = [&real, &added, &all_positions, &real_positions].map(|list: &Vec<i64>| Tensor::from_slice(list));
        let [real, added, positions, real_positions] = upload(numbers, device);
        Some(Self {
            tokens: tokens.at_positions(real_positions),
            segments: Segments::new(longer, device),
            positions,
            starts,
            real,
            added,
            count,
        })
    }

    /// Inserts the virtual tokens `v` (n, …) before the rows x (T, …) of each segment that begins with them: (T', …), in
    /// the dtype of x. The gradient of v is summed over the segments in float32.
    pub fn insert(&self, x: &Tensor, v: &Tensor) -> Tensor {
        let (real, added) = (self.real.shallow_clone(), self.added.shallow_clone());
        let (mut shape, mut each) = (x.size(), x.size());
        shape[0] = self.segments.total();
        each[0] = self.count;
        let copies: Vec<i64> = [&[-1], each.as_slice()].concat();
        let kind = v.kind();
        let forward = || {
            let mut out = Tensor::empty(&shape, (x.kind(), x.device()));
            let _ = out.index_copy_(0, &real, x);
            let segments = added.size()[0] / self.count;
            let all = v.to_kind(x.kind()).view(each.as_slice()).repeat(repeats(segments, each.len()));
            let _ = out.index_copy_(0, &added, &all);
            (out, (real, added))
        };
        differentiable(&[x, v], forward, move |(real, added), g| {
            let each = g.index_select(0, added).view(copies.as_slice());
            let g_v = each.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
            vec![Some(g.index_select(0, real)), Some(g_v.to_kind(kind))]
        })
    }

    /// Inserts zeros in place of virtual tokens: (T, …) -> (T', …).
    pub fn insert_zeros(&self, x: &Tensor) -> Tensor {
        let mut shape = x.size();
        shape[0] = self.count;
        self.insert(x, &Tensor::zeros(shape, (x.kind(), x.device())))
    }

    /// Removes the rows of virtual tokens: (T', …) -> (T, …).
    pub fn remove(&self, x: &Tensor) -> Tensor {
        let (real, shape) = (self.real.shallow_clone(), x.size());
        let forward = || (x.index_select(0, &real), real);
        differentiable(&[x], forward, move |real, g| {
            let mut all = Tensor::zeros(&shape, (g.kind(), g.device()));
            let _ = all.index_copy_(0, real, g);
            vec![Some(all)]
        })
    }

    /// Returns the positions of the virtual tokens of a sequence: (n).
    pub fn virtual_positions(&self) -> Tensor {
        Tensor::arange(self.count, (Kind::Int64, self.positions.device()))
    }

    /// Splits keys and values of all layers (n, L * 2 * K * E) into those of one layer: (n, K, E) each.
    pub fn of_layer(&self, all: &Tensor, layer: usize, kv_heads: i64, head_dim: i64) -> (Tensor, Tensor) {
        let size = kv_heads * head_dim;
        let part = |i: i64| all.narrow(1, i * size, size).view([self.count, kv_heads, head_dim]);
        (part(2 * layer as i64), part(2 * layer as i64 + 1))
    }
}

/// Returns the argument of `Tensor::repeat` that repeats the first of `dimensions` dimensions.
fn repeats(times: i64, dimensions: usize) -> Vec<i64> {
    let mut repeats = vec![1; dimensions];
    repeats[0] = times;
    repeats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(t: &Tensor) -> Vec<i64> {
        Vec::try_from(t.to_kind(Kind::Int64).view([-1])).unwrap()
    }

    #[test]
    fn segments_that_begin_a_sequence_get_virtual_tokens() {
        let tokens = Tokens::pack_after(&[vec![1, 2], vec![], vec![3], vec![4, 5]], &[0, 0, 7, 0], Device::Cpu);
        let row = VirtualRow::new(&tokens, &[0, 0, 7, 0], 3, Device::Cpu).unwrap();
        assert_eq!(row.segments.lengths, [5, 0, 1, 5]);
        assert_eq!(list(&row.positions), [0, 1, 2, 3, 4, 7, 0, 1, 2, 3, 4]);
        assert_eq!(list(&row.tokens.positions), [3, 4, 7, 3, 4]);
        assert_eq!(row.starts, [3, 0, 7, 3]);
        let x = Tensor::from_slice(&[10i64, 11, 12, 13, 14]).view([5, 1]);
        let v = Tensor::from_slice(&[1i64, 2, 3]).view([3, 1]);
        assert_eq!(list(&row.insert(&x, &v)), [1, 2, 3, 10, 11, 12, 1, 2, 3, 13, 14]);
        assert_eq!(list(&row.remove(&row.insert_zeros(&x))), list(&x));
        assert!(VirtualRow::new(&tokens, &[4, 4, 7, 4], 3, Device::Cpu).is_none());
    }

    #[test]
    fn gradients_of_virtual_tokens_are_sums_over_segments() {
        let options = (Kind::Float, Device::Cpu);
        let tokens = Tokens::pack(&[vec![1, 2], vec![3]], Device::Cpu);
        let row = VirtualRow::new(&tokens, &[0, 0], 2, Device::Cpu).unwrap();
        let (x, v) = (Tensor::ones([3, 1], options), Tensor::ones([2, 1], options));
        let (x, v) = (x.set_requires_grad(true), v.set_requires_grad(true));
        let weights = Tensor::arange(7, options).view([7, 1]);
        (row.insert(&x, &v) * &weights).sum(Kind::Float).backward();
        assert_eq!((list(&x.grad()), list(&v.grad())), (vec![2, 3, 6], vec![4, 6]));
        let y = Tensor::ones([7, 1], options).set_requires_grad(true);
        (row.remove(&y) * Tensor::from_slice(&[5.0f32, 6.0, 7.0]).view([3, 1])).sum(Kind::Float).backward();
        assert_eq!(list(&y.grad()), [0, 0, 5, 6, 0, 0, 7]);
    }
}
