//! Rows of tokens in the order of the experts that compute them, and back.
//!
//! Letters: T tokens, k experts for each of them, P = k T pairs of a token and an expert. Both directions read their
//! input by index, and each is the backward of the other, so that no result depends on an order of additions.

use crate::native;
use crate::nn::autograd::differentiable;
use tch::{Device, Kind, Tensor};

/// Where each pair of a token and an expert is computed: the pairs sorted by expert, and within an expert by token.
pub(super) struct Dispatch {
    /// (P) the token of each sorted pair.
    tokens: Tensor,
    /// (P) the index of each sorted pair among all pairs in the order of tokens.
    pairs: Tensor,
    /// (P) the place of each pair, in the order of tokens, among the sorted ones.
    places: Tensor,
    /// Experts that have tokens, each with their number, in ascending order; empty if only the device knows.
    groups: Vec<(usize, i64)>,
    /// k
    chosen: i64,
}

impl Dispatch {
    /// Sorts the pairs of `choices` (T, k) on the CPU: the numbers of the experts of each token, int64, below `experts`. The
    /// rows that are to be sorted are on `device`.
    pub fn new(choices: &Tensor, experts: usize, device: Device) -> Self {
        let (count, chosen) = choices.size2().expect("experts of each token");
        let ids = choices.reshape([-1]);
        let ids = Vec::<i64>::try_from(&ids).expect("a row of whole numbers");
        let mut counts = vec![0i64; experts];
        ids.iter().for_each(|&e| counts[e as usize] += 1);
        let mut next: Vec<i64> = counts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
        let pairs = (count * chosen) as usize;
        let (mut tokens, mut order, mut places) = (vec![0i64; pairs], vec![0i64; pairs], vec![0i64; pairs]);
        for (pair, &e) in ids.iter().enumerate() {
            let place = next[e as usize];
            next[e as usize] += 1;
            places[pair] = place;
            order[place as usize] = pair as i64;
            tokens[place as usize] = pair as i64 / chosen;
        }
        let [tokens, pairs, places] =
            native::upload([tokens, order, places].map(|list| Tensor::from_slice(&list)), device);
        let groups = counts.into_iter().enumerate().filter(|(_, n)| *n > 0).collect();
        Self { tokens, pairs, places, groups, chosen }
    }

    /// Sorts the pairs of `choices` (T, k) on their device, without a wait. Also returns the number of sorted pairs up to the last one of
    /// each expert: (E) int32.
    pub fn on_device(choices: &Tensor, experts: i64) -> (Self, Tensor) {
        let chosen = choices.size()[1];
        let options = (Kind::Int64, choices.device());
        let (ids, pairs) = choices.reshape([-1]).sort_stable(true, 0, false);
        let places = pairs.empty_like().scatter(0, &pairs, &Tensor::arange(pairs.size()[0], options));
        let ends = Tensor::arange(experts, options).searchsorted(&ids, true, true, "right", None::<&Tensor>);
        (Self { tokens: pairs.divide_scalar_mode(chosen, "floor"), pairs, places, groups: Vec::new(), chosen }, ends)
    }

    /// Returns the experts that have tokens, with the number of their tokens; their rows follow each other in this order.
    pub fn groups(&self) -> &[(usize, i64)] {
        &self.groups
    }

    /// Returns the tokens of each expert, in the order of [`groups`](Self::groups): (n) indices of rows.
    pub fn tokens_of_groups(&self) -> Vec<Tensor> {
        self.tokens.split_with_sizes(self.sizes(), 0)
    }

    /// Returns the parts of a sorted tensor (P, …) that belong to each group.
    pub fn split(&self, sorted: &Tensor) -> Vec<Tensor> {
        sorted.split_with_sizes(self.sizes(), 0)
    }

    fn sizes(&self) -> Vec<i64> {
        self.groups.iter().map(|(_, n)| *n).collect()
    }

    /// Returns numbers of the pairs (T, k) in their sorted order: (P, 1).
    pub fn sort_pairs(&self, numbers: &Tensor) -> Tensor {
        let (shape, places) = (numbers.size(), self.places.shallow_clone());
        differentiable(
            &[numbers],
            || (numbers.reshape([-1]).index_select(0, &self.pairs).unsqueeze(-1), (places, shape)),
            |(places, shape), g| vec![Some(g.reshape([-1]).index_select(0, places).view(shape.as_slice()))],
        )
    }

    /// Returns the row of each sorted pair's token: (T, D) -> (P, D).
    pub fn gather(&self, x: &Tensor) -> Tensor {
        let (places, chosen) = (self.places.shallow_clone(), self.chosen);
        differentiable(
            &[x],
            || (x.index_select(0, &self.tokens), places),
            move |places, g| vec![Some(sum_of_pairs(g, places, chosen))],
        )
    }

    /// Returns the sum of each token's rows: sorted (P, D) -> (T, D).
    pub fn sum(&self, sorted: &Tensor) -> Tensor {
        differentiable(
            &[sorted],
            || (sum_of_pairs(sorted, &self.places, self.chosen), self.tokens.shallow_clone()),
            |tokens, g| vec![Some(g.index_select(0, tokens))],
        )
    }
}

/// Returns the sum of the `chosen` rows of each token: sorted (P, D) -> (T, D). `places` (P) are those of the pairs in the
/// order of tokens.
fn sum_of_pairs(sorted: &Tensor, places: &Tensor, chosen: i64) -> Tensor {
    let rows = sorted.index_select(0, places); // in the order of tokens
    match chosen {
        1 => rows,
        _ => rows.view([-1, chosen, sorted.size()[1]]).sum_dim_intlist([1i64].as_slice(), false, sorted.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    fn choices() -> Tensor {
        Tensor::from_slice(&[2i64, 0, 4, 2, 0, 2, 4, 5]).view([4, 2])
    }

    #[test]
    fn pairs_are_sorted_by_expert_and_then_by_token() {
        let d = Dispatch::new(&choices(), 6, Device::Cpu);
        assert_eq!(d.groups(), [(0, 2), (2, 3), (4, 2), (5, 1)]);
        let list = |t: &Tensor| Vec::<i64>::try_from(t).unwrap();
        assert_eq!(list(&d.tokens), [0, 2, 0, 1, 2, 1, 3, 3]);
        assert_eq!(list(&d.pairs), [1, 4, 0, 3, 5, 2, 6, 7]);
        let of_each: Vec<Vec<i64>> = d.tokens_of_groups().iter().map(list).collect();
        assert_eq!(of_each, [vec![0, 2], vec![0, 1, 2], vec![1, 3], vec![3]]);
        let (same, _) = Dispatch::on_device(&choices(), 6);
        assert_eq!([&same.tokens, &same.pairs, &same.places].map(list), [&d.tokens, &d.pairs, &d.places].map(list));
    }

    /// Values and gradients of the three operations equal those of libtorch's own.
    #[test]
    fn rows_go_to_their_experts_and_back() {
        tch::manual_seed(4);
        let (d, x, sorted, numbers) =
            (Dispatch::new(&choices(), 6, Device::Cpu), leaf(&[4, 3]), leaf(&[8, 3]), leaf(&[4, 2]));
        let learn = |y: Tensor, leaf: &Tensor| {
            (&y * Tensor::arange(y.numel() as i64, (Kind::Float, Device::Cpu)).view_as(&y)).sum(Kind::Float).backward();
            let g = leaf.grad().copy();
            native::drop_gradients(std::iter::once(leaf));
            [y.detach(), g]
        };
        let same = |a: [Tensor; 2], b: [Tensor; 2]| a.iter().zip(&b).all(|(a, b)| a.allclose(b, 1e-6, 1e-6, false));
        assert!(same(learn(d.gather(&x), &x), learn(x.index_select(0, &d.tokens), &x)));
        let added = |sorted: &Tensor| x.detach().zeros_like().index_add(0, &d.tokens, sorted);
        assert!(same(learn(d.sum(&sorted), &sorted), learn(added(&sorted), &sorted)));
        let picked = |n: &Tensor| n.view([-1]).index_select(0, &d.pairs).unsqueeze(-1);
        assert!(same(learn(d.sort_pairs(&numbers), &numbers), learn(picked(&numbers), &numbers)));
    }
}
