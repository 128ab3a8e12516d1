//! Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) on language models (Ouyang et al. 2022, arXiv
//! 2203.02155): answers are drawn, rewarded, and made more or less likely, while the policy stays near a reference.
//!
//! One base holds all: the policy is the trained adapter, the value function a head on its states or an adapter of its
//! own, the reference the base without adapters. Where the base itself is trained, the reference is a frozen copy.
//!
//! An iteration: answers to some prompts; their rewards, and what policy, reference and value function say of each of
//! their tokens, in packed rows without gradient; then `epochs` passes in `mini_batches` steps each. Every sum runs
//! over real tokens.
//!
//! spec: the recipe's section. rows: what is read before the model is there. answers: what an iteration learns from.
//! advantage, kl, loss: the formulas, pure. update: micro-batches. alarms: what goes wrong. compare, report: before and
//! after. Invariant: an iteration is a function of the weights, the seed and its number.

pub mod advantage;
pub mod alarms;
mod answers;
pub mod compare;
pub mod kl;
pub mod loss;
mod report;
mod rows;
pub mod spec;
mod update;

pub use rows::{parts, rows};
pub use spec::PpoSpec;

use super::rollout::{Rollout, Sample, packed, stats};
use super::{Aim, Alarm, Means, Method, Prompt, Step};
use crate::data::Cursor;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::rng;
use advantage::{explained_variance, gae, moments, rewards, whiten};
use alarms::Watch;
use answers::{Answers, Numbers, measure};
use kl::Coefficient;
use rand::seq::SliceRandom;
use spec::{KlPlace, ValueSpec};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;
use update::{Place, Update};

/// The name of the adapter that holds the value function.
const VALUE: &str = "value";

/// Where the recipe's keys stand.
const KEYS: &str = "method.ppo";

/// The method.
pub struct Ppo {
    spec: PpoSpec,
    train: Rollout,
    valid: Option<Rollout>,
    /// A frozen copy of a base that is trained whole; `None`: the base without its adapter is the reference.
    reference: Option<Model>,
    place: Place,
    /// Tokens in a packed row.
    budget: usize,
    shuffle: bool,
    seed: u64,
    coefficient: Coefficient,
    watch: Watch,
    /// `epoch` is the iteration, `step_in_epoch` the steps of it that were handed out.
    at: Cursor,
    /// What the iteration learns from, once it was drawn.
    answers: Option<Answers>,
}

impl Ppo {
    fn new(
        spec: PpoSpec,
        train: Rollout,
        valid: Option<Rollout>,
        reference: Option<Model>,
        (budget, shuffle, seed): (usize, bool, u64),
    ) -> Self {
        let kl = &spec.kl;
        let coefficient = match kl.target {
            Some(target) => Coefficient::adaptive(kl.coef, target, kl.horizon),
            None => Coefficient::fixed(kl.coef),
        };
        let place = match &spec.value {
            ValueSpec::Head(head) => {
                Place::Head { adapter: reference.is_none().then_some(VALUE), detach: head.detach }
            }
            ValueSpec::Adapter(_) => Place::Adapter(VALUE),
        };
        let watch = Watch::new(spec.alarms.clone(), KEYS);
        Self {
            spec,
            train,
            valid,
            reference,
            place,
            budget,
            shuffle,
            seed,
            coefficient,
            watch,
            at: Cursor::default(),
            answers: None,
        }
    }

    fn steps_per_iteration(&self) -> u64 {
        (self.spec.epochs * self.spec.mini_batches) as u64
    }

    /// The prompts of an iteration: every epoch of prompts in its own order, one after the other.
    fn prompts_of(&self, iteration: u64) -> Vec<usize> {
        let prompts = self.train.prompts();
        let (n, per) = (prompts.len() as u64, self.spec.sampling.prompts as u64);
        let mut chosen = Vec::with_capacity(per as usize);
        let mut at = iteration * per;
        while chosen.len() < per as usize {
            let order = prompts.mix.order(self.shuffle, self.seed, at / n);
            let left = per as usize - chosen.len();
            let part = &order[(at % n) as usize..];
            chosen.extend(part.iter().take(left).map(|i| *i as usize));
            at = iteration * per + chosen.len() as u64;
        }
        chosen
    }

    /// What policy, reference and value function say of samples; advantages and returns are not there yet.
    fn measure(&self, model: &Model, samples: &[Sample]) -> Result<Vec<Numbers>> {
        let (temperature, budget) = (self.spec.sampling.temperature, self.budget);
        let own = measure(model, samples, budget, |out, row| {
            let log_probs = out.scores(&row.at, &row.targets, temperature, false).log_probs;
            let values = match self.place {
                Place::Head { .. } => self.place.values(out, &row.at),
                Place::Adapter(_) => log_probs.zeros_like(),
            };
            [log_probs, values]
        })?;
        let mut numbers: Vec<Numbers> =
            own.into_iter().map(|[log_probs, values]| Numbers { log_probs, values, ..Numbers::default() }).collect();
        if let Place::Adapter(name) = self.place {
            let values = model.with(Some(name), |model| {
                measure(model, samples, budget, |out, row| [self.place.values(out, &row.at)])
            })?;
            numbers.iter_mut().zip(values).for_each(|(n, [v])| n.values = v);
        }
        for (n, reference) in numbers.iter_mut().zip(self.of_reference(model, samples)?) {
            n.reference = reference;
        }
        Ok(numbers)
    }

    /// ln p of the reference.
    fn of_reference(&self, model: &Model, samples: &[Sample]) -> Result<Vec<Vec<f32>>> {
        let (temperature, budget) = (self.spec.sampling.temperature, self.budget);
        let learnt = match &self.reference {
            Some(copy) => packed::log_probs(copy, samples, temperature, budget, false),
            None => model.with(None, |model| packed::log_probs(model, samples, temperature, budget, false)),
        }?;
        Ok(learnt.log_probs)
    }

    /// Draws and judges the answers of the iteration that begins; what there is to tell of it.
    fn begin_iteration(&mut self, model: &Model) -> Result<Vec<(String, f64)>> {
        let which = self.prompts_of(self.at.epoch);
        let samples = self.train.draw(model, &which, 1, self.at.epoch)?;
        let mut numbers = self.measure(model, &samples)?;
        let coefficient = self.coefficient.value;
        let divergence = self.divergence(&numbers);
        let weight = if self.spec.kl.place == KlPlace::Reward { coefficient } else { 0.0 };
        let mut given: Vec<Vec<f64>> = divergence
            .iter()
            .zip(&samples)
            .map(|(d, s)| rewards(&d.iter().map(|k| weight * k).collect::<Vec<_>>(), s.reward))
            .collect();
        if self.spec.whiten_rewards {
            whiten(&mut given, false);
        }
        let values: Vec<Vec<f64>> = numbers.iter().map(|n| wide(&n.values)).collect();
        let (gamma, lambda) = (self.spec.gamma, self.spec.lambda);
        let mut advantages: Vec<Vec<f64>> =
            given.iter().zip(&values).map(|(r, v)| gae(r, v, gamma, lambda)).collect();
        let returns: Vec<Vec<f64>> = advantages.iter().zip(&values).map(|(a, v)| add(a, v)).collect();
        let explained = explained_variance(&values.concat(), &returns.concat());
        if self.spec.whiten_advantages {
            whiten(&mut advantages, true);
        }
        for ((n, a), r) in numbers.iter_mut().zip(&advantages).zip(&returns) {
            (n.advantages, n.returns) = (narrow(a), narrow(r));
        }
        let mut means = self.told(&samples, &numbers, coefficient);
        means.extend(explained.map(|e| ("value/explained_variance".to_string(), e)));
        let learnt: Vec<Vec<f32>> = numbers.iter().map(|n| n.log_probs.clone()).collect();
        means.extend(stats::drift(&samples, &learnt));
        means.push(("episode".into(), ((self.at.epoch + 1) * samples.len() as u64) as f64));
        let per_answer: Vec<f64> = divergence.iter().map(|d| d.iter().sum()).collect();
        self.coefficient.update(stats::mean(&per_answer), samples.len());
        self.answers = Some(Answers { samples, numbers, coefficient });
        Ok(means)
    }

    /// The estimate of each token's divergence.
    fn divergence(&self, numbers: &[Numbers]) -> Vec<Vec<f64>> {
        let estimator = self.spec.kl.estimator;
        numbers.iter().map(|n| n.log_ratios().into_iter().map(|d| estimator.of(d)).collect()).collect()
    }

    /// TRL's `objective/…`, over real tokens, and what else is known of answers.
    fn told(&self, samples: &[Sample], numbers: &[Numbers], coefficient: f64) -> Vec<(String, f64)> {
        let sum = |x: &[f64]| x.iter().sum::<f64>();
        let kl: Vec<f64> = self.divergence(numbers).iter().map(|d| sum(d)).collect();
        let surprise: Vec<f64> = numbers.iter().map(|n| -sum(&wide(&n.log_probs))).collect();
        let tokens: f64 = samples.iter().map(|s| s.length() as f64).sum();
        let (kl_mean, kl_variance) = moments(kl.iter().copied());
        let score = samples.iter().map(|s| s.reward).sum::<f64>() / samples.len() as f64;
        let mut means = vec![
            ("objective/kl".to_string(), kl_mean),
            ("objective/kl_error".into(), (kl_variance / kl.len() as f64).sqrt()),
            ("objective/kl_coef".into(), coefficient),
            ("objective/entropy".into(), stats::mean(&surprise)),
            ("objective/token_entropy".into(), sum(&surprise) / tokens),
            ("objective/non_score_reward".into(), -coefficient * kl_mean),
            ("objective/rlhf_reward".into(), score - coefficient * kl_mean),
            ("objective/scores".into(), score),
            ("val/num_eos_tokens".into(), samples.iter().filter(|s| s.ended).count() as f64),
        ];
        means.extend(stats::completions(samples));
        means.extend(stats::rewards(samples, self.train.rewards().names()));
        means
    }

    /// Which answers make a step of the iteration.
    fn mini_batch(&self, answers: usize, step: u64) -> Vec<usize> {
        let (parts, step) = (self.spec.mini_batches, step as usize);
        let (pass, part) = (step / parts, step % parts);
        let mut order: Vec<usize> = (0..answers).collect();
        let place = self.at.epoch * self.spec.epochs as u64 + pass as u64;
        order.shuffle(&mut rng::stream(self.seed, "mini-batches", place));
        order[part * answers / parts..(part + 1) * answers / parts].to_vec()
    }

    fn update(&self, coefficient: f64) -> Update {
        let spec = &self.spec;
        let in_loss = spec.kl.place == KlPlace::Loss;
        Update {
            weights: loss::Weights {
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
    fn next_step(&mut self, model: &Model) -> Result<Step> {
        let mut means = Vec::new();
        if self.answers.is_none() {
            if self.at.step_in_epoch > 0 {
                return Err(Error::bug("an iteration goes on without its answers"));
            }
            means = self.begin_iteration(model)?;
        }
        let answers = self.answers.as_ref().expect("drawn above");
        let update = self.update(answers.coefficient);
        let chosen = self.mini_batch(answers.samples.len(), self.at.step_in_epoch);
        let micro = packed::rows(&answers.samples, &chosen, self.budget)
            .iter()
            .flat_map(|row| update.batches(answers, row, model.device()))
            .collect();
        self.at.step_in_epoch += 1;
        let (done, all) = (self.at.step_in_epoch as f64, self.steps_per_iteration() as f64);
        let prompts = (self.at.epoch as f64 + done / all) * self.spec.sampling.prompts as f64;
        if self.at.step_in_epoch == self.steps_per_iteration() {
            self.at = Cursor { epoch: self.at.epoch + 1, step_in_epoch: 0 };
            self.answers = None;
        }
        Ok(Step { micro, epoch: prompts / self.train.prompts().len() as f64, means })
    }

    /// Answers to the validation prompts, drawn from the same streams each time. The divergence is weighed with its
    /// first coefficient, so that one validation compares with another.
    fn validate(&mut self, model: &Model) -> Result<Option<Means>> {
        let Some(valid) = &mut self.valid else { return Ok(None) };
        let all: Vec<usize> = (0..valid.prompts().len()).collect();
        let samples = valid.evaluate(model, &all)?;
        let numbers = self.measure(model, &samples)?;
        Ok(Some(self.told(&samples, &numbers, self.spec.kl.coef).into_iter().collect()))
    }

    fn aim(&self) -> Aim {
        Aim { metric: "objective/rlhf_reward", higher: true }
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.look(means)
    }

    fn prompts(&self, most: usize) -> Vec<Prompt> {
        let rows = &self.valid.as_ref().unwrap_or(&self.train).prompts().rows;
        rows.iter().take(most).map(|r| Prompt { ids: r.ids.clone(), answer: Vec::new() }).collect()
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        rows::steps(&self.spec, self.train.prompts().len(), epochs)
    }

    fn cursor(&self) -> Cursor {
        self.at
    }

    fn rewind(&mut self, at: Cursor) -> Result<()> {
        if at.step_in_epoch >= self.steps_per_iteration() {
            return Err(Error::user(format!(
                "the checkpoint stands at step {} of an iteration that has {}",
                at.step_in_epoch,
                self.steps_per_iteration()
            ))
            .hint("the recipe changed since; start a new run"));
        }
        (self.at, self.answers) = (at, None);
        Ok(())
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        state.insert("kl_coefficient".to_string(), Tensor::from_slice(&[self.coefficient.value]));
        state.insert("alarms".to_string(), Tensor::from_slice(&self.watch.numbers()));
        if let Some(answers) = &self.answers {
            answers.save(&mut state, self.train.rewards().names().count());
        }
        state
    }

    fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        let number = |name: &str| -> Result<Vec<f64>> {
            let t = state.get(name).ok_or_else(|| {
                Error::user(format!("method.safetensors has no tensor `{name}`"))
                    .hint("the checkpoint is damaged: go back to an earlier one, or start anew with --overwrite")
            })?;
            Ok(Vec::<f64>::try_from(t)?)
        };
        self.coefficient.value = number("kl_coefficient")?.first().copied().unwrap_or(self.spec.kl.coef);
        self.watch.restore(&number("alarms")?);
        self.answers = Answers::load(&state)?;
        Ok(())
    }

    fn finish(&mut self, model: &Model, out: &Path) -> Result<()> {
        report::write(self, model, out)
    }
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
