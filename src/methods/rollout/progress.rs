//! How far a run of rollouts is, and its tensor in a checkpoint.

use crate::error::Result;
use crate::methods::state::{self, StateTensors};

/// How far a run is. Together with the loader's cursor, the answers and the weights, it decides what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RolloutProgress {
    /// Number of the next round of sampling; it selects the random streams.
    pub stream: u64,
    /// Tokens of all prompts and answers sampled so far.
    pub tokens_seen: f64,
    /// Epochs of prompts done after the last round of sampling.
    pub epoch: f64,
    /// Optimiser steps made on the answers sampled last.
    pub steps_done: usize,
}

/// The name of the progress in a checkpoint.
const PROGRESS: &str = "standing";

impl RolloutProgress {
    /// Adds the progress to a checkpoint.
    pub fn save(self, state: &mut StateTensors) {
        let Self { stream, tokens_seen, epoch, steps_done } = self;
        state::put(state, PROGRESS, &[stream as f64, tokens_seen, epoch, steps_done as f64]);
    }

    /// Reads the progress from a checkpoint. An error if it is missing or of another length.
    pub fn load(state: &StateTensors) -> Result<Self> {
        let [stream, tokens_seen, epoch, steps_done] = state::exactly(state, PROGRESS)?;
        Ok(Self { stream: stream as u64, tokens_seen, epoch, steps_done: steps_done as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    /// The tensor of a checkpoint of version 0.1.
    #[test]
    fn the_stored_layout_of_the_progress_is_fixed() {
        let stored = [5.0, 1234.0, 0.75, 2.0];
        let mut state = StateTensors::from([("standing".to_string(), Tensor::from_slice(&stored))]);
        let progress = RolloutProgress::load(&state).unwrap();
        assert_eq!(progress, RolloutProgress { stream: 5, tokens_seen: 1234.0, epoch: 0.75, steps_done: 2 });
        let mut again = StateTensors::new();
        progress.save(&mut again);
        assert_eq!(Vec::<f64>::try_from(&again["standing"]).unwrap(), stored);
        state.insert("standing".into(), Tensor::from_slice(&stored[..3]));
        let error = RolloutProgress::load(&state).unwrap_err();
        assert!(format!("{error:?}").contains("checkpoint is damaged"), "{error:?}");
    }
}
