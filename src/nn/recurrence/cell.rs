//! What one token does to the state of a recurrent layer, and the backward of that, in PyTorch's formulas and order of
//! gates (torch.nn.RNN, GRU, LSTM). With a = W x + b of the token and s = U h + b' of the state before it, cut into gates:
//!
//! - RNN (Elman 1990): `h' = tanh(a + s)`
//! - GRU (Cho et al. 2014, arXiv 1406.1078): `r, z = sigmoid(a + s)`, `n = tanh(a_n + r s_n)`, `h' = (1 - z) n + z h`
//! - LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000): `i, f, o = sigmoid(a + s)`, `g = tanh(a_g + s_g)`,
//!   `c' = f c + i g`, `h' = o tanh(c')`
//!
//! The state of an LSTM is h and c, one after the other: (B, 2 D).

use tch::{Kind, Tensor};

/// The recurrence of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// A plain recurrent network with tanh.
    Rnn,
    /// Gated recurrent units: reset, update, new.
    Gru,
    /// Long short-term memory: input, forget, cell, output.
    Lstm,
}

/// One step of B sequences.
pub(super) struct CellStep {
    /// The states after it: (B, states * D).
    pub state: Tensor,
    /// What its backward needs besides states: (B, kept * D).
    pub kept: Tensor,
}

/// The gradients of one step of B sequences.
pub(super) struct CellGradients {
    /// Of `W x + b`: (B, gates * D).
    pub from_tokens: Tensor,
    /// Of `U h + b'`: (B, gates * D).
    pub from_states: Tensor,
    /// Of the states before the step, without what reaches h through `U h`: (B, states * D).
    pub before: Tensor,
}

impl Cell {
    /// Returns the number of gates, each of D numbers.
    pub fn gates(self) -> i64 {
        match self {
            Self::Rnn => 1,
            Self::Gru => 3,
            Self::Lstm => 4,
        }
    }

    /// Returns how many vectors of D numbers the state has.
    pub fn states(self) -> i64 {
        if self == Self::Lstm { 2 } else { 1 }
    }

    /// Returns how many vectors of D numbers a token keeps for the backward besides its state: the gates, and of a GRU
    /// `U_n h + b'_n`.
    pub fn kept(self) -> i64 {
        match self {
            Self::Rnn => 0,
            Self::Gru | Self::Lstm => 4,
        }
    }

    /// Returns the layer's output h of states (…, states * D): (…, D).
    pub(super) fn output(self, states: &Tensor) -> Tensor {
        if self == Self::Lstm { part(states, 0, 1, 2).contiguous() } else { states.shallow_clone() }
    }

    /// Computes one step from the linear layers' results, (B, gates * D) each, and the states before it.
    pub(super) fn step(self, from_tokens: &Tensor, from_states: &Tensor, before: &Tensor) -> CellStep {
        match self {
            Self::Rnn => {
                let none = Tensor::empty([before.size()[0], 0], (Kind::Float, before.device()));
                CellStep { state: (from_tokens + from_states).tanh(), kept: none }
            }
            Self::Gru => {
                let (a, s) = (from_tokens, from_states);
                let gates = (part(a, 0, 2, 3) + part(s, 0, 2, 3)).sigmoid_();
                let (r, z, s_n) = (part(&gates, 0, 1, 2), part(&gates, 1, 1, 2), part(s, 2, 1, 3));
                let n = part(a, 2, 1, 3).addcmul(&r, &s_n).tanh_();
                let state = n.lerp_tensor(before, &z); // n + z (h - n)
                CellStep { state, kept: Tensor::cat(&[&gates, &n, &s_n], 1) }
            }
            Self::Lstm => {
                let kept = from_tokens + from_states;
                let _ = part(&kept, 0, 2, 4).sigmoid_();
                let _ = part(&kept, 2, 1, 4).tanh_();
                let _ = part(&kept, 3, 1, 4).sigmoid_();
                let [i, f, g, o] = quarters(&kept);
                let c = (f * part(before, 1, 1, 2)).addcmul(&i, &g);
                let h = o * c.tanh();
                CellStep { state: Tensor::cat(&[h, c], 1), kept }
            }
        }
    }

    /// Returns the gradients of a step with the states `before` and `after` it, what it kept, and the gradient `g` of the
    /// states after it.
    pub(super) fn backward(self, before: &Tensor, after: &Tensor, kept: &Tensor, g: &Tensor) -> CellGradients {
        match self {
            Self::Rnn => {
                let from_states = g * tanh_slope(after);
                CellGradients { from_tokens: from_states.shallow_clone(), from_states, before: g.zeros_like() }
            }
            Self::Gru => {
                let [r, z, n, s_n] = quarters(kept);
                let g_n = g * (1.0 - &z) * tanh_slope(&n);
                let g_z = g * (before - &n) * sigmoid_slope(&z);
                let g_r = &g_n * &s_n * sigmoid_slope(&r);
                CellGradients {
                    from_tokens: Tensor::cat(&[&g_r, &g_z, &g_n], 1),
                    from_states: Tensor::cat(&[&g_r, &g_z, &(&g_n * &r)], 1),
                    before: g * z,
                }
            }
            Self::Lstm => {
                let [i, f, c_new, o] = quarters(kept);
                let (g_h, bent) = (part(g, 0, 1, 2), part(after, 1, 1, 2).tanh());
                let g_c = part(g, 1, 1, 2).addcmul(&(&g_h * &o), &tanh_slope(&bent));
                let g_i = &g_c * &c_new * sigmoid_slope(&i);
                let g_f = &g_c * part(before, 1, 1, 2) * sigmoid_slope(&f);
                let g_new = &g_c * &i * tanh_slope(&c_new);
                let g_o = &g_h * &bent * sigmoid_slope(&o);
                let from_states = Tensor::cat(&[g_i, g_f, g_new, g_o], 1);
                let before = Tensor::cat(&[g_h.zeros_like(), g_c * f], 1);
                CellGradients { from_tokens: from_states.shallow_clone(), from_states, before }
            }
        }
    }
}

/// Returns `count` of the `of` equal parts of the columns, from part `first` on, as a view.
fn part(t: &Tensor, first: i64, count: i64, of: i64) -> Tensor {
    let width = t.size()[1] / of;
    t.narrow(1, first * width, count * width)
}

fn quarters(t: &Tensor) -> [Tensor; 4] {
    std::array::from_fn(|i| part(t, i as i64, 1, 4))
}

/// Returns the derivative of tanh where its value is y.
fn tanh_slope(y: &Tensor) -> Tensor {
    1.0 - y * y
}

/// Returns the derivative of the sigmoid where its value is y.
fn sigmoid_slope(y: &Tensor) -> Tensor {
    y * (1.0 - y)
}
