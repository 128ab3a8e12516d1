//! Samples answers to prompts and has them rewarded.

use super::answer::SampledAnswer;
use super::judging::AnswerJudge;
use super::sampling::generate_answers;
use super::spec::SamplingSpec;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::PromptSet;
use crate::error::Result;
use crate::generate::settings::GenerationSettings;
use crate::models::Model;
use crate::rewards::RewardSources;
use crate::{report, rng};
use std::cell::RefCell;
use std::rc::Rc;

/// Samples answers to prompts and has them rewarded.
pub struct RolloutSampler {
    prompts: Rc<PromptSet>,
    tokenizer: Rc<ChatTokenizer>,
    judge: AnswerJudge,
    spec: SamplingSpec,
    seed: u64,
}

impl RolloutSampler {
    /// Creates a sampler for `prompts`. An error if a row lacks what a source of rewards needs. Several samplers may
    /// share the rewards.
    pub fn new(
        prompts: Rc<PromptSet>,
        tokenizer: Rc<ChatTokenizer>,
        rewards: Rc<RefCell<RewardSources>>,
        spec: SamplingSpec,
        seed: u64,
    ) -> Result<Self> {
        let judge = AnswerJudge::new(rewards, (&prompts, &tokenizer), spec.missing_eos_penalty)?;
        Ok(Self { prompts, tokenizer, judge, spec, seed })
    }

    /// Returns the prompts.
    pub fn prompts(&self) -> &PromptSet {
        &self.prompts
    }

    /// Returns the tokenizer of prompts and answers.
    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.tokenizer
    }

    /// Returns the names of the sources of rewards, in the order of `SampledAnswer::rewards`.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.judge.sources()
    }

    /// Returns how answers are sampled.
    pub fn spec(&self) -> &SamplingSpec {
        &self.spec
    }

    /// Samples `answers` answers to each of `prompts` (indices of rows) with the active adapter. The answers to one
    /// prompt are consecutive, in the prompts' order. `stream` numbers the round of sampling: the same number gives
    /// the same answers again.
    pub fn sample(
        &mut self,
        model: &Model,
        prompts: &[usize],
        answers: usize,
        stream: u64,
    ) -> Result<Vec<SampledAnswer>> {
        let settings = self.settings(self.spec.temperature, rng::derived_seed(self.seed, "rollout", stream));
        self.answer(model, prompts, answers, settings, |_, place| place)
    }

    /// Samples like `sample`, but the answers to a prompt depend only on the prompt and its row index, not on the other
    /// prompts.
    pub fn sample_by_prompt(&mut self, model: &Model, prompts: &[usize], answers: usize) -> Result<Vec<SampledAnswer>> {
        let settings = self.settings(self.spec.temperature, rng::derived_seed(self.seed, "rollout", 0));
        self.answer(model, prompts, answers, settings, |prompt, _| prompt)
    }

    /// Generates one answer to each of `prompts` for validation: greedy, or at the temperature for validation.
    pub fn evaluate(&mut self, model: &Model, prompts: &[usize]) -> Result<Vec<SampledAnswer>> {
        let settings = self.settings(self.spec.eval_temperature, rng::derived_seed(self.seed, "validation", 0));
        self.answer(model, prompts, 1, settings, |_, place| place)
    }

    fn settings(&self, temperature: f64, seed: u64) -> GenerationSettings {
        GenerationSettings {
            temperature,
            seed,
            stop_texts: self.spec.stop.clone(),
            log_probs: true,
            ..GenerationSettings::greedy(self.spec.max_new_tokens, self.tokenizer.stop_ids())
        }
    }

    fn answer(
        &mut self,
        model: &Model,
        prompts: &[usize],
        answers: usize,
        settings: GenerationSettings,
        stream: impl Fn(usize, usize) -> usize,
    ) -> Result<Vec<SampledAnswer>> {
        let data = (&*self.prompts, &*self.tokenizer);
        let mut sampled = generate_answers(model, data, prompts, answers, settings, stream)?;
        let _judging = report::spinner("rewards");
        self.judge.judge(model, data, &mut sampled)?;
        Ok(sampled)
    }
}
