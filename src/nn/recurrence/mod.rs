//! Recurrent layers: a state for each sequence, updated token by token.
//!
//! A layer is two linear layers, as in PyTorch: one of the tokens, computed for the whole packed row at once, and one of
//! the state before each token. cell: what a token does to the state, and its backward. time_order: the tokens of a
//! packed row in the order of time. scan: the loop over time, one node of the graph with a hand-written backward.
//! gradient_reach: how much a loss depends on earlier states. The states of decoding are in `nn::state_cache`.

mod cell;
mod gradient_reach;
mod scan;
mod time_order;

pub use cell::Cell;
pub use gradient_reach::GradientReach;
pub use time_order::TimeOrder;

use super::linear::Linear;
use super::pass::ForwardPass;
use super::weight::{cast, is_decoding};
use scan::Scan;
use tch::{Kind, Tensor};

/// One recurrent layer. Its loop computes in float32 in every number format: errors of a state would add up.
pub struct RecurrentLayer {
    /// Which recurrence the layer computes.
    pub cell: Cell,
    /// Of tokens: (T, D) -> (T, gates * D), with a bias.
    pub input: Linear,
    /// Of states: (S, D) -> (S, gates * D), with a bias.
    pub recurrent: Linear,
}

impl RecurrentLayer {
    /// Computes layer `i`: (T, D) -> (T, D), the output of the state after each token. Every segment begins with a state
    /// of zeros, or with the one that it has in the pass's cache.
    pub fn forward(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        let from_tokens = self.input.forward(x).to_kind(Kind::Float); // (T, gates * D)
        let order = pass.time_order();
        let start = pass.states_before(i, self.cell.states() * x.size()[1]); // (S, states * D)
        let y = match &start {
            // A step of decoding: the recurrent layer is computed as others are, row by row under each row's adapter.
            Some(start) if is_decoding() && order.longest() == 1 && order.count() == start.size()[0] => {
                let before = self.cell.output(start);
                let from_states = self.recurrent.forward(&cast(&before, x.kind())).to_kind(Kind::Float);
                let state = self.cell.step(&from_tokens, &from_states, start).state;
                pass.set_states(i, &state);
                self.cell.output(&state)
            }
            _ => {
                let (weight, bias) = self.recurrent.merged();
                let scan = Scan { cell: self.cell, order: order.clone(), options: pass.recurrence().clone() };
                let states = scan.run(i, &from_tokens, &weight, &bias, start.as_ref()); // (T, states * D)
                if start.is_some() {
                    pass.set_states(i, &order.last_of_each(&states, start.as_ref()));
                }
                self.cell.output(&states)
            }
        };
        cast(&y, x.kind())
    }
}
