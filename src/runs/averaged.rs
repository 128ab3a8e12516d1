//! A result that is the mean of a run's last checkpoints, as `summary.json` records it under `average`.

use super::number::number;
use serde::{Deserialize, Serialize};

/// Which checkpoints were averaged, and how the mean validates beside the last weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AveragedResult {
    /// The steps of the checkpoints, in ascending order.
    pub steps: Vec<u64>,
    /// The metric that the method aims at.
    pub metric: String,
    /// Its value with the mean; `None` without validation rows.
    pub value: Option<f64>,
    /// Its value with the weights of the last step.
    pub last_value: Option<f64>,
}

impl AveragedResult {
    /// Describes the result in words; `best`: step and value of the best validation.
    pub fn describe(&self, best: Option<(u64, f64)>) -> String {
        let steps: Vec<String> = self.steps.iter().map(u64::to_string).collect();
        let mut text = format!("the average of the checkpoints of steps {}", steps.join(", "));
        let Some(value) = self.value else { return text };
        text += &format!(": validation {} {}", self.metric, number(value));
        let last = self.last_value.map(|last| format!("last {}", number(last)));
        let best = best.map(|(step, value)| format!("best {} at step {step}", number(value)));
        let others: Vec<String> = last.into_iter().chain(best).collect();
        if !others.is_empty() {
            text += &format!(" ({})", others.join(", "));
        }
        text
    }
}
