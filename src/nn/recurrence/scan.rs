//! The loop of a recurrent layer over time, one node of the graph.
//!
//! At each time one product computes `U h + b'` for all sequences that have a token there. The backward goes back in time;
//! the gradients of U and b' are one product over all tokens at its end (Werbos 1990, backpropagation through time).

use super::cell::{Cell, CellStep};
use super::time_order::TimeOrder;
use crate::nn::autograd::differentiable;
use crate::nn::pass::RecurrenceOptions;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// How a layer's loop is computed.
pub(super) struct Scan {
    pub cell: Cell,
    pub order: Rc<TimeOrder>,
    /// With `truncate: N`, no gradient flows from token n N of a sequence to the tokens before it, for every n (truncated
    /// backpropagation through time, Williams and Peng 1990).
    pub options: RecurrenceOptions,
}

/// What the backward needs, in the order of time.
struct Trace {
    scan: Scan,
    layer: usize,
    weight: Tensor,
    /// The weight of the states or its bias is trained.
    learns: bool,
    /// (B, states * D) before the first token.
    start: Tensor,
    /// (T, states * D) after each token.
    states: Tensor,
    /// (T, kept * D)
    kept: Tensor,
}

impl Scan {
    /// Computes the states after every token in layer `layer`: `from_tokens` (T, gates * D) float32; `weight`
    /// (gates * D, D) and `bias` (gates * D) of the states; `start` (S, states * D), zeros if left out -> (T, states * D).
    pub fn run(
        self,
        layer: usize,
        from_tokens: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        start: Option<&Tensor>,
    ) -> Tensor {
        let order = self.order.clone();
        let forward = || {
            let trace = self.forward(layer, from_tokens, weight, bias, start);
            (order.by_row(&trace.states), trace)
        };
        differentiable(&[from_tokens, weight, bias], forward, Trace::backward)
    }

    fn forward(
        self,
        layer: usize,
        from_tokens: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        start: Option<&Tensor>,
    ) -> Trace {
        let (cell, width) = (self.cell, weight.size()[1]);
        let x = self.order.by_time(from_tokens);
        let (rows, options) = (x.size()[0], (Kind::Float, x.device()));
        let start = match start {
            Some(start) => self.order.of_segments(start),
            None => Tensor::zeros([self.order.count(), cell.states() * width], options),
        };
        let states = Tensor::empty([rows, cell.states() * width], options);
        let kept = Tensor::empty([rows, cell.kept() * width], options);
        let learns = weight.requires_grad() || bias.requires_grad();
        let (weight, transposed) = (weight.detach(), weight.detach().tr());
        let mut before = start.shallow_clone();
        for &(first, count) in self.order.steps() {
            let past = before.narrow(0, 0, count);
            let from_states = bias.addmm(&cell.output(&past), &transposed);
            let CellStep { state, kept: own } = cell.step(&x.narrow(0, first, count), &from_states, &past);
            states.narrow(0, first, count).copy_(&state);
            kept.narrow(0, first, count).copy_(&own);
            before = state;
        }
        Trace { scan: self, layer, weight, learns, start, states, kept }
    }
}

impl Trace {
    /// Returns the gradients of `from_tokens`, weight and bias, given that of the states in the order of the packed row.
    fn backward(&self, g: &Tensor) -> Vec<Option<Tensor>> {
        let Self { scan: Scan { cell, order, .. }, layer, weight, start, states, kept, .. } = self;
        let (g, steps) = (order.by_time(g), order.steps());
        let (rows, width, options) = (g.size()[0], weight.size()[1], (Kind::Float, g.device()));
        let gates = |columns: i64| Tensor::empty([rows, columns], options);
        let (from_tokens, from_states) = (gates(cell.gates() * width), gates(cell.gates() * width));
        let outputs_before = if self.learns { gates(width) } else { gates(0) };
        let RecurrenceOptions { truncate, reach } = &self.scan.options;
        let norms = reach.as_ref().map(|_| Tensor::empty([rows], options));
        // What later tokens give to the states before them.
        let mut later: Option<Tensor> = None;
        for (time, &(first, count)) in steps.iter().enumerate().rev() {
            let g = g.narrow(0, first, count).copy();
            if let Some(later) = &later {
                let _ = g.narrow(0, 0, later.size()[0]).g_add_(later);
            }
            if let Some(norms) = &norms {
                let square = g.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
                norms.narrow(0, first, count).copy_(&square);
            }
            let before = match time {
                0 => start.narrow(0, 0, count),
                _ => states.narrow(0, steps[time - 1].0, count),
            };
            let own = cell.backward(&before, &states.narrow(0, first, count), &kept.narrow(0, first, count), &g);
            from_tokens.narrow(0, first, count).copy_(&own.from_tokens);
            from_states.narrow(0, first, count).copy_(&own.from_states);
            if self.learns {
                outputs_before.narrow(0, first, count).copy_(&cell.output(&before));
            }
            let cut = truncate.is_some_and(|n| time as i64 % n == 0);
            later = (time > 0 && !cut).then(|| {
                let before = own.before;
                let _ = before.narrow(1, 0, width).g_add_(&own.from_states.matmul(weight));
                before
            });
        }
        if let (Some(reach), Some(norms)) = (reach, norms) {
            reach.record(*layer, order, norms);
        }
        let of_states = self.learns.then(|| from_states.tr().matmul(&outputs_before));
        let of_bias = self.learns.then(|| from_states.sum_dim_intlist([0i64].as_slice(), false, Kind::Float));
        vec![Some(order.by_row(&from_tokens)), of_states, of_bias]
    }
}
