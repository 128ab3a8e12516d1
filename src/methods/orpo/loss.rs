//! The loss of odds-ratio preference optimisation (arXiv 2403.07691, eqs. 4 to 7).
//!
//! With `l(y)` the MEAN log-probability of an answer's tokens, and `odds(y) = exp(l) / (1 - exp(l))`:
//!
//! ```text
//! loss = nll(chosen) - b log s(log odds(chosen) - log odds(rejected))
//! ```
//!
//! `nll(chosen)` is `-l(chosen)`. With `learn_prompt`, as in TRL, the mean includes the prompt's tokens; it is taken
//! for each pair by itself, where TRL takes it over all tokens of a batch. A mean closer to zero than 1e-7 is replaced
//! by -1e-7: TRL's odds are infinite there.

use crate::methods::pairs::PairStatistics;
use tch::Tensor;

/// Computes the log-odds of the chosen answer minus those of the rejected one: (P), from mean log-probabilities.
pub fn log_odds(means: &PairStatistics) -> Tensor {
    let log_odds = |mean: &Tensor| {
        let mean = mean.clamp_max(-1e-7);
        &mean - (-mean.expm1()).log()
    };
    means.map(log_odds).difference()
}
