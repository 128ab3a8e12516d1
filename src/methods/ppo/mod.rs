//! Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) on language models (Ouyang et al. 2022, arXiv
//! 2203.02155): answers are sampled, rewarded, and made more or less likely, while the policy stays near a reference.
//!
//! One base carries all models: the policy is the trained adapter; the value function is a head on the policy's hidden
//! states, or an adapter of its own; the reference is the base without adapters, or with the adapter that the run
//! started from. If the base itself is trained, the reference is a frozen copy.
//!
//! An iteration: sample answers to some prompts and reward them; compute log-probabilities under policy and reference,
//! and values, for each of their tokens, in packed rows without gradient; then make `epochs` passes of `mini_batches`
//! optimiser steps each. Every sum runs over real tokens, never over padding.
//!
//! `spec`: the recipe's section. `rows`: what is read before the model is loaded. `answers`: what an iteration trains
//! on. `advantage`, `kl`, `loss`: the formulas, pure. `update`: micro-batches. `alarms`: problems found in the
//! metrics. Invariant: an iteration is a function of the weights, the prompts, the seed and its number.

pub mod advantage;
pub mod alarms;
mod answers;
pub mod kl;
pub mod loss;
mod rows;
pub mod spec;
mod update;

pub use rows::{parts, rows};
pub use spec::PpoSpec;

use super::reference::ReferenceModel;
use super::rollout::sample_state::StateTensors;
use super::rollout::{
    self, HeldOutPrompts, PromptData, RolloutSampler, SampledAnswer, packed, reference_log_probs, stats,
};
use super::{Alarm, Means, Method, SamplePrompt, SelectionMetric, TrainingStep};
use crate::data::batch::{Loader, LoaderCursor};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::rng;
use crate::stats::moments::{mean, mean_and_sample_variance};
use advantage::{explained_variance, gae, token_rewards, whiten};
use alarms::PpoMonitor;
use answers::{AnswerTokenStats, IterationAnswers, score_samples};
use kl::KlCoefficient;
use rand::seq::SliceRandom;
use spec::{KlPlace, ValueSpec};
use std::path::Path;
use tch::Tensor;
use update::{PpoUpdate, ValueFunction};

/// The name of the adapter that holds the value function.
pub const VALUE: &str = "value";

/// The recipe's section of this method, for messages.
const KEYS: &str = "method.ppo";

/// The PPO method.
pub struct Ppo {
    spec: PpoSpec,
    train: RolloutSampler,
    held_out: Option<HeldOutPrompts>,
    reference: ReferenceModel,
    place: ValueFunction,
    /// Iterates over the training prompts.
    loader: Loader,
    /// Maximum number of tokens in a packed row.
    budget: usize,
    seed: u64,
    coefficient: KlCoefficient,
    watch: PpoMonitor,
    /// Iterations begun so far; selects the random streams of the next one.
    iterations: u64,
    /// Answers sampled so far.
    episodes: u64,
    /// Epochs of prompts done before and after the last iteration.
    epoch: (f64, f64),
    /// What the iteration trains on, and how many of its optimiser steps were handed out.
    answers: Option<IterationAnswers>,
    done: u64,
}

impl Ppo {
    /// Creates the method. `train` samples answers to the training prompts, `held_out` to the validation prompts.
    pub fn new(
        spec: PpoSpec,
        train: RolloutSampler,
        held_out: Option<HeldOutPrompts>,
        reference: ReferenceModel,
        PromptData { loader, budget, seed, .. }: PromptData,
    ) -> Self {
        let kl = &spec.kl;
        let coefficient = match kl.target {
            Some(target) => KlCoefficient::adaptive(kl.coef, target, kl.horizon),
            None => KlCoefficient::fixed(kl.coef),
        };
        let place = match &spec.value {
            ValueSpec::Head(head) => {
                let adapter = (!matches!(reference, ReferenceModel::FrozenCopy(_))).then_some(VALUE);
                ValueFunction::Head { adapter, detach: head.detach }
            }
            ValueSpec::Adapter(_) => ValueFunction::Adapter(VALUE),
        };
        let watch = PpoMonitor::new(spec.alarms.clone(), KEYS);
        Self {
            spec,
            train,
            held_out,
            reference,
            place,
            loader,
            budget,
            seed,
            coefficient,
            watch,
            iterations: 0,
            episodes: 0,
            epoch: (0.0, 0.0),
            answers: None,
            done: 0,
        }
    }

    /// Computes log-probabilities under policy and reference, and values, for each answer token. Advantages and
    /// returns are left empty.
    fn measure(&self, model: &Model, samples: &[SampledAnswer]) -> Result<Vec<AnswerTokenStats>> {
        let (temperature, budget) = (self.spec.sampling.temperature, self.budget);
        let own = score_samples(model, samples, budget, |out, row| {
            let log_probs = out.scores(&row.at, &row.targets, temperature, false).log_probs;
            let values = match self.place {
                ValueFunction::Head { .. } => self.place.values(out, &row.at),
                ValueFunction::Adapter(_) => log_probs.zeros_like(),
            };
            [log_probs, values]
        })?;
        let mut numbers: Vec<AnswerTokenStats> = own
            .into_iter()
            .map(|[log_probs, values]| AnswerTokenStats { log_probs, values, ..AnswerTokenStats::default() })
            .collect();
        if let ValueFunction::Adapter(name) = self.place {
            let values = model.with_adapter(Some(name), |model| {
                score_samples(model, samples, budget, |out, row| [self.place.values(out, &row.at)])
            })?;
            numbers.iter_mut().zip(values).for_each(|(n, [v])| n.values = v);
        }
        let reference = reference_log_probs(&self.reference, model, samples, temperature, budget)?;
        numbers.iter_mut().zip(reference).for_each(|(n, r)| n.reference = r);
        Ok(numbers)
    }

    /// Samples and rewards the answers of the next iteration and computes their advantages; returns its metrics.
    fn begin_iteration(&mut self, model: &Model) -> Result<Vec<(String, f64)>> {
        let step = self.loader.next();
        let prompts: Vec<usize> = step.rows.into_iter().flatten().collect();
        self.epoch = (self.epoch.1, step.epoch);
        let samples = self.train.sample(model, &prompts, self.spec.answers, self.iterations)?;
        self.iterations += 1;
        let mut numbers = self.measure(model, &samples)?;
        let coefficient = self.coefficient.value;
        let divergence = self.divergence(&numbers);
        let weight = if self.spec.kl.place == KlPlace::Reward { coefficient } else { 0.0 };
        let mut given: Vec<Vec<f64>> = divergence
            .iter()
            .zip(&samples)
            .map(|(d, s)| token_rewards(&d.iter().map(|k| weight * k).collect::<Vec<_>>(), s.reward))
            .collect();
        if self.spec.whiten_rewards {
            whiten(&mut given, false);
        }
        let values: Vec<Vec<f64>> = numbers.iter().map(|n| wide(&n.values)).collect();
        let (gamma, lambda) = (self.spec.gamma, self.spec.lambda);
        let mut advantages: Vec<Vec<f64>> = given.iter().zip(&values).map(|(r, v)| gae(r, v, gamma, lambda)).collect();
        let returns: Vec<Vec<f64>> = advantages.iter().zip(&values).map(|(a, v)| add(a, v)).collect();
        let explained = explained_variance(&values.concat(), &returns.concat());
        if self.spec.whiten_advantages {
            whiten(&mut advantages, true);
        }
        for ((n, a), r) in numbers.iter_mut().zip(&advantages).zip(&returns) {
            (n.advantages, n.returns) = (narrow(a), narrow(r));
        }
        let mut means = self.objective_metrics(&samples, &numbers, coefficient);
        means.extend(stats::completions(&samples));
        means.extend(stats::reward_metrics(&samples, self.train.sources()));
        means.extend(explained.map(|e| ("value/explained_variance".to_string(), e)));
        let learnt: Vec<Vec<f32>> = numbers.iter().map(|n| n.log_probs.clone()).collect();
        means.extend(stats::drift_metrics(&samples, &learnt));
        self.episodes += samples.len() as u64;
        means.push(("episode".into(), self.episodes as f64));
        let per_answer: Vec<f64> = divergence.iter().map(|d| d.iter().sum()).collect();
        self.coefficient.update(mean(&per_answer), samples.len());
        (self.answers, self.done) = (Some(IterationAnswers { samples, numbers, coefficient }), 0);
        Ok(means)
    }

    /// Estimates the KL divergence of each token.
    fn divergence(&self, numbers: &[AnswerTokenStats]) -> Vec<Vec<f64>> {
        let estimator = self.spec.kl.estimator;
        numbers.iter().map(|n| n.log_ratios().into_iter().map(|d| estimator.estimate(d)).collect()).collect()
    }

    /// Computes TRL's `objective/…` metrics over real tokens, and the number of answers that ended.
    fn objective_metrics(
        &self,
        samples: &[SampledAnswer],
        numbers: &[AnswerTokenStats],
        coefficient: f64,
    ) -> Vec<(String, f64)> {
        let sum = |x: &[f64]| x.iter().sum::<f64>();
        let kl: Vec<f64> = self.divergence(numbers).iter().map(|d| sum(d)).collect();
        let surprise: Vec<f64> = numbers.iter().map(|n| -sum(&wide(&n.log_probs))).collect();
        let tokens: f64 = samples.iter().map(|s| s.length() as f64).sum();
        let (kl_mean, kl_variance) = mean_and_sample_variance(kl.iter().copied());
        let score = samples.iter().map(|s| s.reward).sum::<f64>() / samples.len() as f64;
        vec![
            ("objective/kl".to_string(), kl_mean),
            ("objective/kl_error".into(), (kl_variance / kl.len() as f64).sqrt()),
            ("objective/kl_coef".into(), coefficient),
            ("objective/entropy".into(), mean(&surprise)),
            ("objective/token_entropy".into(), sum(&surprise) / tokens),
            ("objective/non_score_reward".into(), -coefficient * kl_mean),
            ("objective/rlhf_reward".into(), score - coefficient * kl_mean),
            ("objective/scores".into(), score),
            ("val/num_eos_tokens".into(), samples.iter().filter(|s| s.ended).count() as f64),
        ]
    }

    /// Returns the indices of the answers of one optimiser step of the iteration.
    fn mini_batch(&self, answers: usize, step: u64) -> Vec<usize> {
        let (parts, step) = (self.spec.mini_batches, step as usize);
        let (pass, part) = (step / parts, step % parts);
        let mut order: Vec<usize> = (0..answers).collect();
        let place = self.iterations * self.spec.epochs as u64 + pass as u64;
        order.shuffle(&mut rng::stream(self.seed, "mini-batches", place));
        order[part * answers / parts..(part + 1) * answers / parts].to_vec()
    }

    fn update(&self, coefficient: f64) -> PpoUpdate {
        let spec = &self.spec;
        let in_loss = spec.kl.place == KlPlace::Loss;
        PpoUpdate {
            weights: loss::PpoLossWeights {
                clip: spec.clip,
                clip_value: spec.clip_value,
                value: spec.value_coef,
                entropy: spec.entropy_coef,
                kl: in_loss.then_some((spec.kl.estimator, coefficient)),
            },
            temperature: spec.sampling.temperature,
            place: self.place,
        }
    }
}

impl Method for Ppo {
    fn next_step(&mut self, model: &Model) -> Result<TrainingStep> {
        let fresh = self.answers.is_none() || self.done >= self.spec.steps();
        let means = if fresh { self.begin_iteration(model)? } else { Vec::new() };
        let Some(answers) = &self.answers else { return Err(Error::bug("an iteration without answers")) };
        let update = self.update(answers.coefficient);
        let chosen = self.mini_batch(answers.samples.len(), self.done);
        let micro = packed::pack_rows(&answers.samples, &chosen, self.budget)
            .iter()
            .flat_map(|row| update.batches(answers, row, model.device()))
            .collect();
        self.done += 1;
        let share = self.done as f64 / self.spec.steps() as f64;
        Ok(TrainingStep { micro_batches: micro, epoch: self.epoch.0 + share * (self.epoch.1 - self.epoch.0), means })
    }

    /// Answers the validation prompts, with the same random streams each time. The divergence is weighted with its
    /// first coefficient, so that validations can be compared.
    fn validate(&mut self, model: &Model) -> Result<Option<Means>> {
        let Some(held_out) = &mut self.held_out else { return Ok(None) };
        let (samples, mut means) = held_out.validate(model, self.iterations == 0)?;
        let numbers = self.measure(model, &samples)?;
        means.extend(self.objective_metrics(&samples, &numbers, self.spec.kl.coef));
        Ok(Some(means))
    }

    fn selection_metric(&self) -> SelectionMetric {
        SelectionMetric { metric: "objective/rlhf_reward", higher: true }
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.check(means)
    }

    fn prompts(&self, most: usize) -> Vec<SamplePrompt> {
        let valid = self.held_out.as_ref().map(|h| h.rollout().prompts());
        rollout::rows::sample_prompts(valid, self.train.prompts(), self.train.tokenizer(), most)
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        self.loader.steps_for(epochs) * self.spec.steps()
    }

    fn cursor(&self) -> LoaderCursor {
        self.loader.cursor()
    }

    fn rewind(&mut self, at: LoaderCursor) -> Result<()> {
        self.loader.rewind(at)
    }

    fn state(&self) -> StateTensors {
        let mut state = StateTensors::new();
        let standing = [
            self.iterations as f64,
            self.episodes as f64,
            self.done as f64,
            self.epoch.0,
            self.epoch.1,
            self.coefficient.value,
        ];
        state.insert("standing".into(), Tensor::from_slice(&standing));
        state.insert("alarms".into(), Tensor::from_slice(&self.watch.numbers()));
        if let Some(held_out) = &self.held_out {
            held_out.save(&mut state);
        }
        // If every step on these answers was made, the next step samples new ones, so they need not be saved.
        if let Some(answers) = self.answers.as_ref().filter(|_| self.done < self.spec.steps()) {
            answers.save(&mut state, self.train.sources().count());
        }
        state
    }

    fn restore(&mut self, state: StateTensors) -> Result<()> {
        let numbers = |name: &str| -> Result<Vec<f64>> {
            Ok(Vec::<f64>::try_from(state.get(name).ok_or_else(|| damaged(&format!("no tensor `{name}`")))?)?)
        };
        let standing = numbers("standing")?;
        let [iterations, episodes, done, before, after, coefficient] = standing[..] else {
            return Err(damaged(&format!("`standing` has {} numbers, expected 6", standing.len())));
        };
        (self.iterations, self.episodes, self.done) = (iterations as u64, episodes as u64, done as u64);
        (self.epoch, self.coefficient.value) = ((before, after), coefficient);
        self.watch.restore(&numbers("alarms")?);
        if let Some(held_out) = &mut self.held_out {
            held_out.load(&state)?;
        }
        self.answers = IterationAnswers::load(&state)?;
        Ok(())
    }

    fn finish(&mut self, model: &Model, out: &Path) -> Result<()> {
        let Some(held_out) = &mut self.held_out else { return Ok(()) };
        if !held_out.has_baseline() {
            // The prompts were not answered at the start. The reference model is what the policy was then, so let it
            // answer.
            self.reference.with(model, |reference| held_out.validate(reference, true))?;
        }
        held_out.finish(model, out, self.seed)
    }
}

/// Creates the error for a method.safetensors that cannot be read.
fn damaged(what: &str) -> Error {
    Error::user(format!("method.safetensors: {what}"))
        .hint("the checkpoint is damaged: go back to an earlier one, or start anew with --overwrite")
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
