//! Answers to held-out prompts before and after training: means for validation, and a comparison at the end of the
//! run.

use super::answer::SampledAnswer;
use super::sample_state;
use super::sampler::RolloutSampler;
use super::stats;
use crate::error::Result;
use crate::fsutil::{excerpt, write_json};
use crate::methods::contract::Means;
use crate::methods::state::StateTensors;
use crate::models::Model;
use crate::stats::{bootstrap::mean_interval, moments::mean};
use crate::{report, rng};
use serde::Serialize;
use std::path::Path;

/// Number of answers whose text is stored for people to read.
const SHOWN: usize = 16;
/// Number of answers printed on the terminal.
const TOLD: usize = 2;
/// Number of bootstrap resamples.
const DRAWS: usize = 10_000;

/// Held-out prompts, with the answers before the first optimiser step.
pub struct HeldOutPrompts {
    rollout: RolloutSampler,
    baseline: Vec<SampledAnswer>,
    sources: usize,
}

/// The comparison of answers before and after training, written to `held_out.json`.
#[derive(Debug, Serialize)]
pub struct HeldOutComparison {
    /// Number of prompts.
    pub prompts: usize,
    /// Mean reward before training.
    pub reward_before: f64,
    /// Mean reward after training.
    pub reward_after: f64,
    /// Mean of the differences.
    pub difference: f64,
    /// 95 % interval of the difference, from a paired bootstrap over prompts (percentiles).
    pub interval: (f64, f64),
    /// Number of prompts whose answer after training has a higher reward.
    pub better: usize,
    /// Number of prompts whose answer after training has a lower reward.
    pub worse: usize,
    /// Share of prompts whose answer after training is better; an equally good one counts half.
    pub win_rate: f64,
    /// The first prompts with their answers.
    pub samples: Vec<BeforeAfter>,
}

/// The answers to one prompt.
#[derive(Debug, Serialize)]
pub struct BeforeAfter {
    /// The prompt as the model sees it.
    pub prompt: String,
    /// The last line of the prompt, without the marks of the chat template.
    pub asked: String,
    /// The answer before training.
    pub before: HeldOutAnswer,
    /// The answer after training.
    pub after: HeldOutAnswer,
}

/// An answer as it is written to `held_out.json`.
#[derive(Debug, Serialize)]
pub struct HeldOutAnswer {
    /// The answer's text.
    pub text: String,
    /// The weighted sum of its rewards.
    pub reward: f64,
    /// The reward from each source.
    pub rewards: Vec<f64>,
    /// False if it was truncated.
    pub ended: bool,
}

impl From<&SampledAnswer> for HeldOutAnswer {
    fn from(s: &SampledAnswer) -> Self {
        Self { text: s.text.clone(), reward: s.reward, rewards: s.rewards.clone(), ended: s.ended }
    }
}

impl HeldOutPrompts {
    /// Wraps a sampler of held-out prompts.
    pub fn new(rollout: RolloutSampler) -> Self {
        let sources = rollout.sources().count();
        Self { rollout, baseline: Vec::new(), sources }
    }

    /// Returns the sampler of the prompts.
    pub fn rollout(&self) -> &RolloutSampler {
        &self.rollout
    }

    /// Returns true if the prompts were answered before the first step.
    pub fn has_baseline(&self) -> bool {
        !self.baseline.is_empty()
    }

    /// Answers every prompt and returns the answers with their metrics. `first`: no step was made yet, so the end is
    /// compared with these answers.
    pub fn validate(&mut self, model: &Model, first: bool) -> Result<(Vec<SampledAnswer>, Means)> {
        let all: Vec<usize> = (0..self.rollout.prompts().len()).collect();
        let samples = self.rollout.evaluate(model, &all)?;
        let numbers = stats::reward_metrics(&samples, self.rollout.sources());
        let means = numbers.into_iter().chain(stats::completions(&samples)).collect();
        if first {
            self.baseline = samples.clone();
        }
        Ok((samples, means))
    }

    /// Compares the result with the answers before training, reports the comparison and writes `held_out.json`. Does
    /// nothing if there are no answers from before.
    pub fn finish(&mut self, model: &Model, out: &Path, seed: u64) -> Result<()> {
        if self.baseline.is_empty() {
            return Ok(());
        }
        let (after, _) = self.validate(model, false)?;
        let found = self.compare(&after, seed)?;
        report::info(format!(
            "held-out prompts: reward {:.4} -> {:.4}, difference {:+.4} (95 % interval {:+.4} to {:+.4}), {} better, \
             {} worse of {}: win rate {:.1} %",
            found.reward_before,
            found.reward_after,
            found.difference,
            found.interval.0,
            found.interval.1,
            found.better,
            found.worse,
            found.prompts,
            100.0 * found.win_rate
        ));
        for row in found.samples.iter().take(TOLD) {
            report::info(format!("  {}", excerpt(&row.asked)));
            for (when, answer) in [("before", &row.before), ("after", &row.after)] {
                report::info(format!("    {when:>6} {:+.3}  {}", answer.reward, excerpt(answer.text.trim())));
            }
        }
        write_json(&out.join("held_out.json"), &found)
    }

    fn compare(&self, after: &[SampledAnswer], seed: u64) -> Result<HeldOutComparison> {
        let pairs = || self.baseline.iter().zip(after);
        let gains: Vec<f64> = pairs().map(|(a, b)| b.reward - a.reward).collect();
        let rewards = |samples: &[SampledAnswer]| mean(&samples.iter().map(|s| s.reward).collect::<Vec<_>>());
        let row = |(a, b): (&SampledAnswer, &SampledAnswer)| {
            let prompt = &self.rollout.prompts().rows[a.prompt];
            let asked = self.rollout.tokenizer().last_prompt_line(&prompt.ids)?;
            Ok(BeforeAfter { prompt: prompt.text.clone(), asked, before: a.into(), after: b.into() })
        };
        Ok(HeldOutComparison {
            prompts: gains.len(),
            reward_before: rewards(&self.baseline),
            reward_after: rewards(after),
            difference: mean(&gains),
            interval: mean_interval(&gains, DRAWS, &mut rng::stream(seed, "held-out bootstrap", 0)),
            win_rate: mean(&gains.iter().map(|g| 0.5 + 0.5 * sign(*g)).collect::<Vec<_>>()),
            better: gains.iter().filter(|g| **g > 0.0).count(),
            worse: gains.iter().filter(|g| **g < 0.0).count(),
            samples: pairs().take(SHOWN).map(row).collect::<Result<_>>()?,
        })
    }

    /// Saves what a resumed run needs.
    pub fn save(&self, state: &mut StateTensors) {
        if !self.baseline.is_empty() {
            sample_state::save(state, "before", &self.baseline, self.sources);
        }
    }

    /// Loads what `save` saved. Keeps what it has if the checkpoint has no such answers.
    pub fn load(&mut self, state: &StateTensors) -> Result<()> {
        if state.contains_key("before.ids") {
            self.baseline = sample_state::load(state, "before")?;
        }
        Ok(())
    }
}

/// Returns the sign of a number: -1, 0 or 1.
fn sign(x: f64) -> f64 {
    f64::from(u8::from(x > 0.0)) - f64::from(u8::from(x < 0.0))
}
