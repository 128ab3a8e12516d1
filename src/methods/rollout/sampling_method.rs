//! The method that samples answers, trains on them for several steps, and samples again: everything GRPO and RLOO
//! share. A method adds how rewards become advantages, and its loss (`PolicyObjective`).
//!
//! Sampled answers are scored once more in the form in which they are trained on, packed and without a KV cache. These
//! are the old log-probabilities, so the ratios of the first step are 1 in every dtype; the difference from the
//! log-probabilities computed while sampling is reported. Answers with advantage 0 add no gradient and are left out of
//! the forward pass; they still count in every mean.
//!
//! Invariant: the progress of the method is (cursor, state). What is sampled next depends on this and on the weights
//! only.

use super::objective::{Advantages, LossUnit, PolicyBatch, PolicyObjective, RolloutRewards, SkippedAnswers};
use super::packed::{self, PackedSamples};
use super::rows::{self, PromptData};
use super::sample_state::{self, StateTensors};
use super::{
    HeldOutPrompts, LimitSpec, RolloutMonitor, RolloutSampler, SampledAnswer, log_probs, reference_log_probs, stats,
};
use crate::data::batch::{Loader, LoaderCursor};
use crate::error::{Error, Result};
use crate::methods::reference::ReferenceModel;
use crate::methods::{Alarm, Means, Method, MicroBatch, SamplePrompt, SelectionMetric, TrainingStep};
use crate::models::Model;
use crate::rng;
use crate::stats::moments::mean;
use rand::seq::SliceRandom;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Tensor};

/// Describes how sampled answers are trained on.
#[derive(Debug, Clone)]
pub struct RolloutPlan {
    /// Number of answers to each prompt.
    pub answers: usize,
    /// Passes over the sampled answers, and optimiser steps per pass.
    pub passes: usize,
    pub mini_batches: usize,
    /// Leave truncated answers out of the loss.
    pub mask_truncated: bool,
    /// How many further rounds of sampling may replace prompts whose answers all got the same reward.
    pub resample: usize,
    /// True if the reference model is needed.
    pub reference: bool,
    /// True if the loss needs the entropy with its gradient.
    pub entropy: bool,
    /// True if answers with advantage 0 can be left out of the forward pass: the loss has no other term that moves
    /// them.
    pub sparse: bool,
    pub limits: LimitSpec,
}

/// A sampled answer with what its loss needs.
struct AnswerWithAdvantage {
    sample: SampledAnswer,
    old: Vec<f32>,
    reference: Option<Vec<f32>>,
    advantage: f64,
}

/// The method on a set of prompts.
pub struct SamplingMethod<R> {
    rule: Rc<R>,
    plan: RolloutPlan,
    rollout: RolloutSampler,
    held_out: Option<HeldOutPrompts>,
    reference: Option<ReferenceModel>,
    loader: Loader,
    budget: usize,
    seed: u64,
    watch: RolloutMonitor,
    /// Number of the next round of sampling; it selects the random streams.
    stream: u64,
    /// Tokens of all prompts and answers sampled so far.
    seen: f64,
    /// Epochs of prompts done after the last round of sampling.
    epoch: f64,
    /// The answers sampled last, and how many optimiser steps were made on them.
    answers: Vec<AnswerWithAdvantage>,
    done: usize,
}

impl<R: PolicyObjective + 'static> SamplingMethod<R> {
    /// Creates the method. `rollout` samples answers to the training prompts, `held_out` to the validation prompts.
    pub fn new(
        rule: R,
        plan: RolloutPlan,
        rollout: RolloutSampler,
        held_out: Option<HeldOutPrompts>,
        prompted: PromptData,
        model: &Model,
    ) -> Result<Self> {
        let reference = plan.reference.then(|| ReferenceModel::of(model)).transpose()?;
        let PromptData { loader, budget, seed, .. } = prompted;
        Ok(Self {
            rule: Rc::new(rule),
            watch: RolloutMonitor::new(plan.limits.clone()),
            plan,
            rollout,
            held_out,
            reference,
            loader,
            budget,
            seed,
            stream: 0,
            seen: 0.0,
            epoch: 0.0,
            answers: Vec::new(),
            done: 0,
        })
    }

    /// Returns the number of optimiser steps per round of sampling.
    fn steps(&self) -> usize {
        self.plan.passes * self.plan.mini_batches
    }

    /// Samples answers, has them rewarded and computes their advantages; returns the metrics of this rollout.
    fn draw(&mut self, model: &Model) -> Result<Vec<(String, f64)>> {
        let mut numbers = Vec::new();
        let samples = self.sample_groups(model, &mut numbers)?;
        self.seen += samples.iter().map(|s| s.ids.len() as f64).sum::<f64>();
        let temperature = self.rollout.spec().temperature;
        let learnt = log_probs(model, &samples, temperature, self.budget, true)?;
        let reference = self.reference.as_ref();
        let reference =
            reference.map(|r| reference_log_probs(r, model, &samples, temperature, self.budget)).transpose()?;
        let sums = reference.as_ref().map(|r| log_ratio_sums(&learnt.log_probs, r));
        let rewards: Vec<f64> = samples.iter().map(|s| s.reward).collect();
        let lengths: Vec<f64> = samples.iter().map(|s| s.length() as f64).collect();
        let answers = self.plan.answers;
        let drawn =
            RolloutRewards { rewards: &rewards, answers_per_prompt: answers, lengths: &lengths, kl: sums.as_deref() };
        let Advantages { values, uniform_share: flat, more } = self.rule.advantages(&drawn);
        numbers.push(("num_tokens".into(), self.seen));
        numbers.extend(stats::completions(&samples));
        numbers.extend(stats::reward_metrics(&samples, self.rollout.sources()));
        numbers.push(("frac_reward_zero_std".into(), flat));
        let entropy: Vec<f64> = learnt.entropy.iter().flatten().flatten().map(|x| f64::from(*x)).collect();
        numbers.push(("entropy".into(), mean(&entropy)));
        numbers.extend(stats::drift_metrics(&samples, &learnt.log_probs));
        numbers.extend(sums.iter().map(|sums| ("objective/kl".to_string(), mean(sums))));
        numbers.extend(more);
        let mut reference = reference.map(Vec::into_iter);
        let answers = samples.into_iter().zip(learnt.log_probs).zip(values);
        self.answers = answers
            .map(|((sample, old), advantage)| AnswerWithAdvantage {
                sample,
                old,
                reference: reference.as_mut().and_then(Iterator::next),
                advantage,
            })
            .collect();
        self.done = 0;
        Ok(numbers)
    }

    /// Samples answers. Groups whose rewards are all equal are replaced by groups for other prompts, as often as the
    /// plan allows (dynamic sampling, DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2).
    fn sample_groups(&mut self, model: &Model, numbers: &mut Vec<(String, f64)>) -> Result<Vec<SampledAnswer>> {
        let (mut informative, mut uniform): (Vec<SampledAnswer>, Vec<SampledAnswer>) = (Vec::new(), Vec::new());
        let (mut wanted, mut draws) = (0, 0);
        loop {
            let step = self.loader.next();
            self.epoch = step.epoch;
            let prompts: Vec<usize> = step.rows.into_iter().flatten().collect();
            wanted = wanted.max(prompts.len());
            let drawn = self.rollout.sample(model, &prompts, self.plan.answers, self.stream)?;
            self.stream += 1;
            draws += 1;
            for group in drawn.chunks(self.plan.answers) {
                let differ = group.iter().any(|s| s.reward != group[0].reward);
                if differ { &mut informative } else { &mut uniform }.extend_from_slice(group);
            }
            if informative.len() >= wanted * self.plan.answers || draws > self.plan.resample {
                break;
            }
        }
        if self.plan.resample > 0 {
            numbers.push(("resampled".into(), f64::from(draws as u32 - 1)));
        }
        informative.extend(uniform);
        informative.truncate(wanted * self.plan.answers);
        Ok(informative)
    }

    /// Returns the indices of the answers of the next mini-batch, in training order.
    fn mini_batch(&self) -> Vec<usize> {
        let (pass, part) = (self.done / self.plan.mini_batches, self.done % self.plan.mini_batches);
        let mut order: Vec<usize> = (0..self.answers.len()).collect();
        if self.plan.mini_batches > 1 {
            order.shuffle(&mut rng::stream(self.seed, &format!("mini-batches {}", self.stream), pass as u64));
        }
        let (from, to) =
            (part * order.len() / self.plan.mini_batches, (part + 1) * order.len() / self.plan.mini_batches);
        order[from..to].to_vec()
    }

    /// Packs the answers of the next optimiser step into rows.
    fn policy_batches(&self, device: Device) -> Vec<Box<dyn MicroBatch>> {
        let chosen = self.mini_batch();
        let sample = |i: &usize| &self.answers[*i].sample;
        let learnt = |i: &&usize| !self.plan.mask_truncated || sample(i).ended;
        let moves = |i: &&usize| !self.plan.sparse || self.answers[**i].advantage != 0.0;
        let tokens: f64 = chosen.iter().filter(learnt).map(|i| sample(i).length() as f64).sum();
        let items = match self.rule.items() {
            LossUnit::Tokens => tokens,
            LossUnit::Sequences => chosen.len() as f64,
        };
        let mut kept: Vec<usize> = chosen.iter().filter(learnt).filter(moves).copied().collect();
        // If no answer has an advantage, the shortest one is still run, so that the step has a forward pass and
        // metrics. If every answer is truncated and masked, it is run as a placeholder whose loss is zero.
        let shortest = |of: &mut dyn Iterator<Item = &usize>| of.min_by_key(|i| sample(i).ids.len()).copied();
        let void = !chosen.iter().any(|i| learnt(&i));
        if kept.is_empty() {
            kept.extend(shortest(&mut chosen.iter().filter(|i| void || learnt(i))));
        }
        let mut idle = SkippedAnswers {
            sequences: (chosen.iter().filter(learnt).count() as f64 - kept.len() as f64).max(0.0),
            tokens: (tokens - kept.iter().map(|i| sample(i).length() as f64).sum::<f64>()).max(0.0),
        };
        let mut left = items.max(1.0);
        let samples: Vec<SampledAnswer> = kept.iter().map(|i| sample(i).clone()).collect();
        let order: Vec<usize> = (0..kept.len()).collect();
        let rows = packed::pack_rows(&samples, &order, self.budget);
        let last = rows.len().saturating_sub(1);
        let mut lessons: Vec<Box<dyn MicroBatch>> = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let row: Vec<&AnswerWithAdvantage> = row.iter().map(|i| &self.answers[kept[*i]]).collect();
            let packed = PackedSamples::new(&row.iter().map(|a| &a.sample).collect::<Vec<_>>(), device);
            let own = match self.rule.items() {
                LossUnit::Tokens => packed.count(),
                LossUnit::Sequences => row.len() as f64,
            };
            // The last row also counts the skipped answers, so that all rows together count every item once.
            let own = if n == last { left } else { own };
            left -= own;
            let column = |of: &dyn Fn(&AnswerWithAdvantage) -> Vec<f32>| {
                Tensor::from_slice(&row.iter().flat_map(|a| of(a)).collect::<Vec<f32>>()).to_device(device)
            };
            lessons.push(Box::new(PolicyBatch {
                rule: self.rule.clone(),
                old: column(&|a| a.old.clone()),
                reference: self.reference.as_ref().map(|_| column(&|a| a.reference.clone().unwrap_or_default())),
                advantages: column(&|a| vec![a.advantage as f32]),
                temperature: self.rollout.spec().temperature,
                entropy: self.plan.entropy,
                items: own,
                per_token: items.max(1.0) / tokens.max(1.0),
                idle: if n == last { std::mem::take(&mut idle) } else { SkippedAnswers::default() },
                no_trainable_answer: void,
                packed,
            }));
        }
        lessons
    }
}

/// Computes the sum of `a - b` over the tokens of each answer.
fn log_ratio_sums(a: &[Vec<f32>], b: &[Vec<f32>]) -> Vec<f64> {
    let one = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).sum();
    a.iter().zip(b).map(one).collect()
}

impl<R: PolicyObjective + 'static> Method for SamplingMethod<R> {
    fn next_step(&mut self, model: &Model) -> Result<TrainingStep> {
        let fresh = self.answers.is_empty() || self.done >= self.steps();
        let means = if fresh { self.draw(model)? } else { Vec::new() };
        let micro = self.policy_batches(model.device());
        self.done += 1;
        Ok(TrainingStep { micro_batches: micro, epoch: self.epoch, means })
    }

    fn validate(&mut self, model: &Model) -> Result<Option<Means>> {
        let first = self.stream == 0;
        self.held_out.as_mut().map(|h| h.validate(model, first).map(|(_, means)| means)).transpose()
    }

    fn selection_metric(&self) -> SelectionMetric {
        SelectionMetric { metric: "reward", higher: true }
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.check(means)
    }

    fn prompts(&self, most: usize) -> Vec<SamplePrompt> {
        let valid = self.held_out.as_ref().map(|h| h.rollout().prompts());
        rows::sample_prompts(valid, self.rollout.prompts(), self.rollout.tokenizer(), most)
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        self.loader.steps_for(epochs) * self.steps() as u64
    }

    fn cursor(&self) -> LoaderCursor {
        self.loader.cursor()
    }

    fn rewind(&mut self, at: LoaderCursor) -> Result<()> {
        self.loader.rewind(at)
    }

    fn state(&self) -> StateTensors {
        let mut state = StateTensors::new();
        let standing = [self.stream as f64, self.seen, self.epoch, self.done as f64];
        state.insert("standing".into(), Tensor::from_slice(&standing));
        self.watch.save(&mut state);
        if let Some(held_out) = &self.held_out {
            held_out.save(&mut state);
        }
        // If every step on these answers was made, the next step samples new ones, so they need not be saved.
        if self.done < self.steps() && !self.answers.is_empty() {
            let samples: Vec<SampledAnswer> = self.answers.iter().map(|a| a.sample.clone()).collect();
            sample_state::save(&mut state, "drawn", &samples, self.rollout.sources().count());
            let advantages: Vec<f64> = self.answers.iter().map(|a| a.advantage).collect();
            state.insert("advantages".into(), Tensor::from_slice(&advantages));
            let column = |of: &dyn Fn(&AnswerWithAdvantage) -> Vec<f32>| {
                Tensor::from_slice(&self.answers.iter().flat_map(of).collect::<Vec<f32>>())
            };
            state.insert("old".into(), column(&|a| a.old.clone()));
            if self.reference.is_some() {
                state.insert("reference".into(), column(&|a| a.reference.clone().unwrap_or_default()));
            }
        }
        state
    }

    fn restore(&mut self, state: StateTensors) -> Result<()> {
        let broken = |what: &str| {
            Error::user(format!("method.safetensors: {what}"))
                .hint("the checkpoint is damaged: go back to an earlier one, or start anew with --overwrite")
        };
        let standing = state.get("standing").ok_or_else(|| broken("no tensor `standing`"))?;
        let standing = Vec::<f64>::try_from(standing)?;
        let [stream, seen, epoch, done] = standing[..] else {
            return Err(broken("`standing` does not have 4 numbers"));
        };
        (self.stream, self.seen, self.epoch, self.done) = (stream as u64, seen, epoch, done as usize);
        self.watch.load(&state)?;
        if let Some(held_out) = &mut self.held_out {
            held_out.load(&state)?;
        }
        self.answers.clear();
        if !state.contains_key("drawn.ids") {
            return Ok(());
        }
        let samples = sample_state::load(&state, "drawn")?;
        let column = |name: &str| -> Result<Vec<f32>> {
            Ok(Vec::<f32>::try_from(state.get(name).ok_or_else(|| broken(&format!("no tensor `{name}`")))?)?)
        };
        let advantages = state.get("advantages").ok_or_else(|| broken("no tensor `advantages`"))?;
        let advantages = Vec::<f64>::try_from(advantages)?;
        let old = column("old")?;
        let reference = if self.reference.is_some() { Some(column("reference")?) } else { None };
        let tokens: usize = samples.iter().map(SampledAnswer::length).sum();
        let fits = |x: &[f32]| x.len() == tokens;
        if advantages.len() != samples.len() || !fits(&old) || !reference.as_deref().is_none_or(fits) {
            return Err(broken("the lengths of its tensors do not match"));
        }
        let mut from = 0;
        for (sample, advantage) in samples.into_iter().zip(advantages) {
            let own = from..from + sample.length();
            from = own.end;
            let reference = reference.as_ref().map(|r| r[own.clone()].to_vec());
            self.answers.push(AnswerWithAdvantage { sample, old: old[own].to_vec(), reference, advantage });
        }
        Ok(())
    }

    fn finish(&mut self, model: &Model, out: &Path) -> Result<()> {
        self.held_out.as_mut().map_or(Ok(()), |h| h.finish(model, out, self.seed))
    }
}
