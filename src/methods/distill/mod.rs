//! Distillation: on each supervised token, the student's distribution is trained to match the teacher's.
//!
//! `loss = sum over supervised t of (1 - c) T^2 D(p_t, q_t) + c (- log q_t(x_t))`, with p (teacher) and q (student) at
//! temperature T, c the share of cross-entropy (at temperature 1), and D one of `divergence`; `matching` may add terms
//! for layers. Distributions are computed from hidden states in chunks of rows, so the logits of a whole row never
//! exist, neither the student's nor the teacher's.
//!
//! Modules:
//! - `spec`: the recipe's section. `divergence`: the formulas, pure.
//! - `teacher`: the teachers' distributions computed during training. `teacher_rows`: teachers with another tokenizer.
//! - `cache`: the distributions on disk. `fill_cache` writes them.
//! - `on_policy`: answers that the student writes. `matching`: losses between layers.
//! - `batch`: a packed row and its loss. `objective`: joins all of these into the method's objective.
//! - `answers`: teachers that write answers for a data set.

pub mod answers;
pub mod batch;
pub mod cache;
pub mod divergence;
pub mod fill_cache;
pub mod matching;
pub mod objective;
mod on_policy;
pub mod spec;
pub mod teacher;
mod teacher_rows;
