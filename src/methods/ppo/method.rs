//! The PPO method: samples and rewards answers, computes advantages, and makes optimiser steps on them.

use super::advantages::{TokenEstimates, estimate};
use super::alarms::{self, PpoHistory};
use super::answers::{AnswerTokenStats, IterationAnswers};
use super::kl::KlCoefficient;
use super::loss::PpoLossWeights;
use super::metrics::{divergence, objective_metrics};
use super::parts::{KEYS, check};
use super::progress::PpoProgress;
use super::spec::{KlPlace, PpoSpec, ValueSpec};
use super::update::PpoUpdate;
use super::value::{VALUE, ValueFunction};
use crate::data::batch::{Loader, LoaderCursor};
use crate::error::{Error, Result};
use crate::methods::contract::{Alarm, Means, Method, RecentSteps, SamplePrompt, SelectionMetric, TrainingStep};
use crate::methods::reference::ReferenceModel;
use crate::methods::rollout::answer::SampledAnswer;
use crate::methods::rollout::held_out::HeldOutPrompts;
use crate::methods::rollout::open::{RolloutPace, open};
use crate::methods::rollout::prompts::{self, PromptData};
use crate::methods::rollout::sampler::RolloutSampler;
use crate::methods::rollout::scoring::{reference_log_probs, score_samples};
use crate::methods::rollout::{stats, update};
use crate::methods::rows::{DataContext, MethodRows};
use crate::methods::state::StateTensors;
use crate::methods::watch::Watch;
use crate::models::Model;
use crate::rng;
use rand::seq::SliceRandom;
use std::path::Path;
use std::rc::Rc;
use tch::Device;

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
    watch: Watch<PpoHistory>,
    progress: PpoProgress,
    /// What the iteration trains on. Shared with the micro-batches that were not made yet.
    answers: Option<Rc<IterationAnswers>>,
    recent: RecentSteps<PpoStep>,
}

/// An optimiser step of an iteration.
struct PpoStep {
    /// What the iteration trains on.
    answers: Rc<IterationAnswers>,
    /// The answers of this step, as indices.
    chosen: Vec<usize>,
    /// Epochs done after the step.
    epoch: f64,
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
        let watch = alarms::watch(spec.alarms.clone(), KEYS);
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
            progress: PpoProgress::default(),
            answers: None,
            recent: RecentSteps::default(),
        }
    }

    /// Returns true if the next step begins a new iteration.
    fn samples_next(&self) -> bool {
        self.answers.is_none() || self.progress.steps_done >= self.spec.steps()
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
        (self.progress.epoch_before, self.progress.epoch_after) = (self.progress.epoch_after, step.epoch);
        let samples = self.train.sample(model, &prompts, self.spec.answers, self.progress.iterations)?;
        self.progress.iterations += 1;
        let mut numbers = self.measure(model, &samples)?;
        let coefficient = self.coefficient.value;
        let divergence = divergence(&numbers, self.spec.kl.estimator);
        let weight = if self.spec.kl.place == KlPlace::Reward { coefficient } else { 0.0 };
        let scores: Vec<f64> = samples.iter().map(|s| s.reward).collect();
        let values: Vec<Vec<f64>> = numbers.iter().map(|n| n.values.iter().map(|v| f64::from(*v)).collect()).collect();
        let TokenEstimates { advantages, returns, explained_variance } =
            estimate(&self.spec, &scores, &divergence, weight, &values);
        for ((n, a), r) in numbers.iter_mut().zip(&advantages).zip(&returns) {
            (n.advantages, n.returns) = (narrow(a), narrow(r));
        }
        let mut means = objective_metrics(&samples, &numbers, self.spec.kl.estimator, coefficient);
        means.extend(stats::completions(&samples));
        means.extend(stats::reward_metrics(&samples, self.train.sources()));
        means.extend(explained_variance.map(|e| ("value/explained_variance".to_string(), e)));
        let scored: Vec<Vec<f32>> = numbers.iter().map(|n| n.log_probs.clone()).collect();
        means.extend(stats::drift_metrics(&samples, &scored));
        self.progress.episodes += samples.len() as u64;
        means.push(("episode".into(), self.progress.episodes as f64));
        let per_answer: Vec<f64> = divergence.iter().map(|d| d.iter().sum()).collect();
        self.coefficient.update(crate::stats::moments::mean(&per_answer), samples.len());
        self.answers = Some(Rc::new(IterationAnswers { samples, numbers, coefficient }));
        self.progress.steps_done = 0;
        Ok(means)
    }

    /// Returns the indices of the answers of one optimiser step of the iteration.
    fn mini_batch(&self, answers: usize, step: u64) -> Vec<usize> {
        let (parts, step) = (self.spec.mini_batches, step as usize);
        let (pass, part) = (step / parts, step % parts);
        let mut order: Vec<usize> = (0..answers).collect();
        let place = self.progress.iterations * self.spec.epochs as u64 + pass as u64;
        order.shuffle(&mut rng::stream(self.seed, "mini-batches", place));
        update::mini_batch(&order, part, parts).to_vec()
    }

    /// Returns the optimiser step with this number of the current iteration.
    fn plan(&self, answers: &Rc<IterationAnswers>, step: u64) -> PpoStep {
        let share = (step + 1) as f64 / self.spec.steps() as f64;
        let PpoProgress { epoch_before, epoch_after, .. } = self.progress;
        PpoStep {
            answers: answers.clone(),
            chosen: self.mini_batch(answers.samples.len(), step),
            epoch: epoch_before + share * (epoch_after - epoch_before),
        }
    }

    /// Returns the micro-batches of an optimiser step; each row is uploaded to `device` when it is asked for.
    fn batches(&self, step: &PpoStep, device: Device) -> TrainingStep {
        let PpoStep { answers, chosen, epoch } = step;
        let candidates: Vec<update::RolloutCandidate> =
            answers.samples.iter().map(update::RolloutCandidate::of).collect();
        let rows = update::pack(&candidates, chosen, self.budget);
        let (answers, update) = (answers.clone(), self.update(answers.coefficient));
        let micro_batches = rows.into_iter().flat_map(move |row| update.batches(&answers, &row, device)).map(Ok);
        TrainingStep {
            items: chosen.iter().map(|i| candidates[*i].length as f64).sum(),
            micro_batches: Box::new(micro_batches),
            epoch: *epoch,
            means: Vec::new(),
        }
    }

    fn update(&self, coefficient: f64) -> PpoUpdate {
        let spec = &self.spec;
        let in_loss = spec.kl.place == KlPlace::Loss;
        PpoUpdate {
            weights: PpoLossWeights {
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
        let means = if self.samples_next() { self.begin_iteration(model)? } else { Vec::new() };
        let Some(answers) = &self.answers else { return Err(Error::bug("an iteration without answers")) };
        let step = self.plan(answers, self.progress.steps_done);
        self.progress.steps_done += 1;
        self.recent.push(step);
        Ok(TrainingStep { means, ..self.repeat_step(model, 0)? })
    }

    fn next_step_waits(&self) -> bool {
        self.samples_next()
    }

    fn repeat_step(&mut self, model: &Model, back: usize) -> Result<TrainingStep> {
        Ok(self.batches(self.recent.get(back)?, model.device()))
    }

    /// Answers the validation prompts, with the same random streams each time. The divergence is weighted with its
    /// first coefficient, so that validations can be compared.
    fn validate(&mut self, model: &Model) -> Result<Option<Means>> {
        let Some(held_out) = &mut self.held_out else { return Ok(None) };
        let (samples, mut means) = held_out.validate(model, self.progress.iterations == 0)?;
        let numbers = self.measure(model, &samples)?;
        means.extend(objective_metrics(&samples, &numbers, self.spec.kl.estimator, self.spec.kl.coef));
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
        prompts::sample_prompts(valid, self.train.prompts(), self.train.tokenizer(), most)
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
        PpoProgress { coefficient: self.coefficient.value, ..self.progress }.save(&mut state);
        self.watch.save(&mut state);
        if let Some(held_out) = &self.held_out {
            held_out.save(&mut state);
        }
        // If every step on these answers was made, the next step samples new ones, so they need not be saved.
        if let Some(answers) = self.answers.as_ref().filter(|_| self.progress.steps_done < self.spec.steps()) {
            answers.save(&mut state, self.train.sources().count());
        }
        state
    }

    fn restore(&mut self, state: StateTensors) -> Result<()> {
        self.progress = PpoProgress::load(&state)?;
        self.coefficient.value = self.progress.coefficient;
        self.watch.load(&state)?;
        if let Some(held_out) = &mut self.held_out {
            held_out.load(&state)?;
        }
        self.answers = IterationAnswers::load(&state)?.map(Rc::new);
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

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// Reads the prompts and opens the sources of rewards.
pub fn rows(spec: &PpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    check(spec)?;
    let (own, pace) = (spec.clone(), RolloutPace { answers: spec.answers, steps: spec.steps() });
    open(ground, KEYS, &spec.rewards, &spec.sampling, pace, move |model, (train, held_out), data| {
        Ok(Box::new(Ppo::new(own, train, held_out, ReferenceModel::of(model)?, data)))
    })
}
