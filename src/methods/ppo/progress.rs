//! How far a run of PPO is, and its tensor in a checkpoint.

use crate::error::Result;
use crate::methods::state::{self, StateTensors};

/// How far a run is. Together with the loader's cursor, the answers and the weights, it decides what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PpoProgress {
    /// Iterations begun so far; selects the random streams of the next one.
    pub iterations: u64,
    /// Answers sampled so far.
    pub episodes: u64,
    /// Optimiser steps of the iteration that were handed out.
    pub steps_done: u64,
    /// Epochs of prompts done before the last iteration.
    pub epoch_before: f64,
    /// Epochs of prompts done after it.
    pub epoch_after: f64,
    /// Weight of the KL divergence in the next iteration.
    pub coefficient: f64,
}

/// The name of the progress in a checkpoint.
const PROGRESS: &str = "standing";

impl PpoProgress {
    /// Adds the progress to a checkpoint.
    pub fn save(self, state: &mut StateTensors) {
        let Self { iterations, episodes, steps_done, epoch_before, epoch_after, coefficient } = self;
        let counts = [iterations as f64, episodes as f64, steps_done as f64];
        state::put(state, PROGRESS, &[&counts[..], &[epoch_before, epoch_after, coefficient]].concat());
    }

    /// Reads the progress from a checkpoint. An error if it is missing or of another length.
    pub fn load(state: &StateTensors) -> Result<Self> {
        let [iterations, episodes, steps_done, epoch_before, epoch_after, coefficient] =
            state::exactly(state, PROGRESS)?;
        let [iterations, episodes, steps_done] = [iterations, episodes, steps_done].map(|n| n as u64);
        Ok(Self { iterations, episodes, steps_done, epoch_before, epoch_after, coefficient })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    /// The tensor of a checkpoint of version 0.1.
    #[test]
    fn the_stored_layout_of_the_progress_is_fixed() {
        let stored = [4.0, 64.0, 3.0, 0.5, 0.75, 0.05];
        let mut state = StateTensors::from([("standing".to_string(), Tensor::from_slice(&stored))]);
        let progress = PpoProgress::load(&state).unwrap();
        let expected = PpoProgress {
            iterations: 4,
            episodes: 64,
            steps_done: 3,
            epoch_before: 0.5,
            epoch_after: 0.75,
            coefficient: 0.05,
        };
        assert_eq!(progress, expected);
        let mut again = StateTensors::new();
        progress.save(&mut again);
        assert_eq!(Vec::<f64>::try_from(&again["standing"]).unwrap(), stored);
        state.insert("standing".into(), Tensor::from_slice(&stored[..4]));
        let error = PpoProgress::load(&state).unwrap_err();
        assert!(error.to_string().contains("`standing` has 4 numbers, expected 6"), "{error}");
    }
}
