//! The method that samples answers, trains on them for several steps, and samples again: everything GRPO and RLOO
//! share. A method adds how rewards become advantages, and its loss (`objective::PolicyObjective`).
//!
//! Sampled answers are scored once more in the form in which they are trained on, packed and without a KV cache. These
//! are the old log-probabilities, so the ratios of the first step are 1 in every dtype; the difference from the
//! log-probabilities computed while sampling is reported. Answers with advantage 0 add no gradient and are left out of
//! the forward pass; they still count in every mean.
//!
//! Invariant: the progress of the method is (cursor, state). What is sampled next depends on this and on the weights
//! only.

use super::advantages::{Advantages, RolloutRewards};
use super::alarms::{self, RolloutHistory};
use super::answer::{AnswerWithAdvantage, SampledAnswer};
use super::batch::{PolicyBatch, RowContext};
use super::held_out::HeldOutPrompts;
use super::objective::{PolicyObjective, SkippedAnswers};
use super::open::{RolloutPace, open};
use super::progress::RolloutProgress;
use super::prompts::{self, PromptData};
use super::sampler::RolloutSampler;
use super::scoring::{log_probs, reference_log_probs};
use super::spec::{LimitSpec, SamplingSpec};
use super::update::{self, Filters, RolloutCandidate};
use super::{sample_state, stats};
use crate::data::batch::{Loader, LoaderCursor};
use crate::error::Result;
use crate::methods::contract::{Alarm, Means, Method, RecentSteps, SamplePrompt, SelectionMetric, TrainingStep};
use crate::methods::reference::ReferenceModel;
use crate::methods::rows::{DataContext, MethodRows};
use crate::methods::state::StateTensors;
use crate::methods::watch::Watch;
use crate::models::Model;
use crate::models::learning::MicroBatch;
use crate::rewards::RewardSourceSpec;
use crate::rng;
use rand::seq::SliceRandom;
use std::path::Path;
use std::rc::Rc;
use tch::Device;

/// Describes how sampled answers are trained on.
#[derive(Debug, Clone)]
pub struct RolloutPlan {
    /// Number of answers to each prompt.
    pub answers: usize,
    /// Passes over the sampled answers before new ones are sampled.
    pub passes: usize,
    /// Optimiser steps per pass.
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
    /// Limits beyond which an alarm is given.
    pub limits: LimitSpec,
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
    watch: Watch<RolloutHistory>,
    progress: RolloutProgress,
    /// The answers sampled last. Shared with the micro-batches that were not made yet.
    answers: Rc<Vec<AnswerWithAdvantage>>,
    recent: RecentSteps<RolloutStep>,
}

/// An optimiser step on sampled answers.
struct RolloutStep {
    /// The answers of the rollout.
    answers: Rc<Vec<AnswerWithAdvantage>>,
    /// The answers of this step, as indices, in training order.
    mini_batch: Vec<usize>,
    /// Epochs done after the step.
    epoch: f64,
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
            watch: alarms::watch(plan.limits.clone()),
            plan,
            rollout,
            held_out,
            reference,
            loader,
            budget,
            seed,
            progress: RolloutProgress::default(),
            answers: Rc::default(),
            recent: RecentSteps::default(),
        })
    }

    /// Returns the number of optimiser steps per round of sampling.
    fn steps(&self) -> usize {
        self.plan.passes * self.plan.mini_batches
    }

    /// Samples answers, has them rewarded and computes their advantages; returns the metrics of this rollout.
    fn begin_rollout(&mut self, model: &Model) -> Result<Vec<(String, f64)>> {
        let mut numbers = Vec::new();
        let samples = self.sample_groups(model, &mut numbers)?;
        self.progress.tokens_seen += samples.iter().map(|s| s.ids.len() as f64).sum::<f64>();
        let temperature = self.rollout.spec().temperature;
        let scored = log_probs(model, &samples, temperature, self.budget, true)?;
        let reference = self.reference.as_ref();
        let reference =
            reference.map(|r| reference_log_probs(r, model, &samples, temperature, self.budget)).transpose()?;
        let sums = reference.as_ref().map(|r| log_ratio_sums(&scored.log_probs, r));
        let rewards: Vec<f64> = samples.iter().map(|s| s.reward).collect();
        let lengths: Vec<f64> = samples.iter().map(|s| s.length() as f64).collect();
        let answers = self.plan.answers;
        let judged =
            RolloutRewards { rewards: &rewards, answers_per_prompt: answers, lengths: &lengths, kl: sums.as_deref() };
        let Advantages { values, uniform_share, more } = self.rule.advantages(&judged);
        numbers.push(("num_tokens".into(), self.progress.tokens_seen));
        numbers.extend(stats::completions(&samples));
        numbers.extend(stats::reward_metrics(&samples, self.rollout.sources()));
        numbers.push(("frac_reward_zero_std".into(), uniform_share));
        let entropy: Vec<f64> = scored.entropy.iter().flatten().flatten().map(|x| f64::from(*x)).collect();
        numbers.push(("entropy".into(), crate::stats::moments::mean(&entropy)));
        numbers.extend(stats::drift_metrics(&samples, &scored.log_probs));
        numbers.extend(sums.iter().map(|sums| ("objective/kl".to_string(), crate::stats::moments::mean(sums))));
        numbers.extend(more);
        let mut reference = reference.map(Vec::into_iter);
        let answers = samples.into_iter().zip(scored.log_probs).zip(values);
        let answers = answers
            .map(|((sample, old), advantage)| AnswerWithAdvantage {
                sample,
                old,
                reference: reference.as_mut().and_then(Iterator::next),
                advantage,
            })
            .collect();
        self.answers = Rc::new(answers);
        self.progress.steps_done = 0;
        Ok(numbers)
    }

    /// Samples answers. Groups whose rewards are all equal are replaced by groups for other prompts, as often as the
    /// plan allows (dynamic sampling, DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2).
    fn sample_groups(&mut self, model: &Model, numbers: &mut Vec<(String, f64)>) -> Result<Vec<SampledAnswer>> {
        let (mut informative, mut uniform): (Vec<SampledAnswer>, Vec<SampledAnswer>) = (Vec::new(), Vec::new());
        let (mut wanted, mut rounds) = (0, 0);
        loop {
            let step = self.loader.next();
            self.progress.epoch = step.epoch;
            let prompts: Vec<usize> = step.rows.into_iter().flatten().collect();
            wanted = wanted.max(prompts.len());
            let sampled = self.rollout.sample(model, &prompts, self.plan.answers, self.progress.stream)?;
            self.progress.stream += 1;
            rounds += 1;
            for group in sampled.chunks(self.plan.answers) {
                let differ = group.iter().any(|s| s.reward != group[0].reward);
                if differ { &mut informative } else { &mut uniform }.extend_from_slice(group);
            }
            if informative.len() >= wanted * self.plan.answers || rounds > self.plan.resample {
                break;
            }
        }
        if self.plan.resample > 0 {
            numbers.push(("resampled".into(), f64::from(rounds as u32 - 1)));
        }
        informative.extend(uniform);
        informative.truncate(wanted * self.plan.answers);
        Ok(informative)
    }

    /// Returns the indices of the answers of an optimiser step on the current rollout, in training order.
    fn mini_batch(&self, step: usize) -> Vec<usize> {
        let (pass, part) = (step / self.plan.mini_batches, step % self.plan.mini_batches);
        let mut order: Vec<usize> = (0..self.answers.len()).collect();
        if self.plan.mini_batches > 1 {
            let name = format!("mini-batches {}", self.progress.stream);
            order.shuffle(&mut rng::stream(self.seed, &name, pass as u64));
        }
        update::mini_batch(&order, part, self.plan.mini_batches).to_vec()
    }

    /// Returns true if the next step begins a new rollout.
    fn samples_next(&self) -> bool {
        self.answers.is_empty() || self.progress.steps_done >= self.steps()
    }

    /// Returns the micro-batches of an optimiser step: it is decided which answers are run, packed and counted; each
    /// row is uploaded to `device` when it is asked for.
    fn policy_batches(&self, step: &RolloutStep, device: Device) -> TrainingStep {
        let candidates: Vec<RolloutCandidate> = step.answers.iter().map(candidate).collect();
        let filters = Filters { mask_truncated: self.plan.mask_truncated, skip_zero_advantage: self.plan.sparse };
        let selection = update::choose(&candidates, &step.mini_batch, filters);
        let rows = update::pack(&candidates, &selection.run, self.budget);
        let weights = update::weigh(&candidates, &selection, &rows, self.rule.items());
        let items = weights.rows.iter().sum();
        let (rule, answers) = (self.rule.clone(), step.answers.clone());
        let (temperature, entropy, last) = (self.rollout.spec().temperature, self.plan.entropy, rows.len());
        let upload = move |(n, row): (usize, Vec<usize>)| -> Result<Box<dyn MicroBatch>> {
            let context = RowContext {
                temperature,
                entropy,
                items: weights.rows[n],
                per_token: weights.per_token,
                skipped: if n + 1 == last { weights.skipped } else { SkippedAnswers::default() },
                placeholder: selection.placeholder,
            };
            let row: Vec<&AnswerWithAdvantage> = row.iter().map(|i| &answers[*i]).collect();
            Ok(Box::new(PolicyBatch::upload(&row, context, rule.clone(), device)))
        };
        let micro_batches = Box::new(rows.into_iter().enumerate().map(upload));
        TrainingStep { items, micro_batches, epoch: step.epoch, means: Vec::new() }
    }
}

/// Returns what the choice of answers needs to know of one.
fn candidate(answer: &AnswerWithAdvantage) -> RolloutCandidate {
    RolloutCandidate { advantage: answer.advantage, ..RolloutCandidate::of(&answer.sample) }
}

/// Reads the prompts of a method that alternates sampling and training, and opens its sources of rewards; `key` is the
/// method's key in the recipe.
pub fn open_rows<R: PolicyObjective + 'static>(
    ground: &DataContext,
    key: &str,
    rewards: &[RewardSourceSpec],
    sampling: &SamplingSpec,
    plan: RolloutPlan,
    rule: R,
) -> Result<Box<dyn MethodRows>> {
    let pace = RolloutPace { answers: plan.answers, steps: (plan.passes * plan.mini_batches) as u64 };
    open(ground, key, rewards, sampling, pace, move |model, (train, held_out), data| {
        Ok(Box::new(SamplingMethod::new(rule, plan, train, held_out, data, model)?))
    })
}

/// Computes the sum of `a - b` over the tokens of each answer.
fn log_ratio_sums(a: &[Vec<f32>], b: &[Vec<f32>]) -> Vec<f64> {
    let one = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).sum();
    a.iter().zip(b).map(one).collect()
}

impl<R: PolicyObjective + 'static> Method for SamplingMethod<R> {
    fn next_step(&mut self, model: &Model) -> Result<TrainingStep> {
        let means = if self.samples_next() { self.begin_rollout(model)? } else { Vec::new() };
        let mini_batch = self.mini_batch(self.progress.steps_done);
        self.progress.steps_done += 1;
        self.recent.push(RolloutStep { answers: self.answers.clone(), mini_batch, epoch: self.progress.epoch });
        Ok(TrainingStep { means, ..self.repeat_step(model, 0)? })
    }

    fn next_step_waits(&self) -> bool {
        self.samples_next()
    }

    fn repeat_step(&mut self, model: &Model, back: usize) -> Result<TrainingStep> {
        Ok(self.policy_batches(self.recent.get(back)?, model.device()))
    }

    fn validate(&mut self, model: &Model) -> Result<Option<Means>> {
        let first = self.progress.stream == 0;
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
        prompts::sample_prompts(valid, self.rollout.prompts(), self.rollout.tokenizer(), most)
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
        self.progress.save(&mut state);
        self.watch.save(&mut state);
        if let Some(held_out) = &self.held_out {
            held_out.save(&mut state);
        }
        // If every step on these answers was made, the next step samples new ones, so they need not be saved.
        if self.progress.steps_done < self.steps() && !self.answers.is_empty() {
            sample_state::save_answers(&mut state, &self.answers, self.rollout.sources().count());
        }
        state
    }

    fn restore(&mut self, state: StateTensors) -> Result<()> {
        self.progress = RolloutProgress::load(&state)?;
        self.watch.load(&state)?;
        if let Some(held_out) = &mut self.held_out {
            held_out.load(&state)?;
        }
        self.answers = Rc::new(sample_state::load_answers(&state, self.reference.is_some())?);
        Ok(())
    }

    fn finish(&mut self, model: &Model, out: &Path) -> Result<()> {
        self.held_out.as_mut().map_or(Ok(()), |h| h.finish(model, out, self.seed))
    }
}
