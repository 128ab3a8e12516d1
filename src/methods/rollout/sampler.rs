//! Samples answers to prompts with the KV cache (continuous batching) and has them rewarded.

use super::{SampledAnswer, SamplingSpec};
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::PromptSet;
use crate::error::{Error, Result};
use crate::generate::answer::StopReason;
use crate::generate::engine::{BatchLimits, Engine, FinishedAnswer, GenerationRequest};
use crate::generate::settings::GenerationSettings;
use crate::models::Model;
use crate::rewards::RewardSources;
use crate::rewards::source::RewardInput;
use crate::{report, rng};
use std::cell::RefCell;
use std::rc::Rc;

/// Samples answers to prompts and has them rewarded.
pub struct RolloutSampler {
    prompts: Rc<PromptSet>,
    tokenizer: Rc<ChatTokenizer>,
    rewards: Rc<RefCell<RewardSources>>,
    sources: Vec<String>,
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
        rewards.borrow().check(&prompts)?;
        rewards.borrow().check_tokenizer(&tokenizer)?;
        let sources = rewards.borrow().names().map(String::from).collect();
        Ok(Self { prompts, tokenizer, rewards, sources, spec, seed })
    }

    pub fn prompts(&self) -> &PromptSet {
        &self.prompts
    }

    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.tokenizer
    }

    /// Returns the names of the sources of rewards, in the order of `SampledAnswer::rewards`.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(String::as_str)
    }

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

    /// Samples like `draw`, but the answers to a prompt depend only on the prompt and its row index, not on the other
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

    /// Generates the answers and fills in their rewards. `stream(row, place)` numbers the random stream of a prompt,
    /// given its row index and its place among `prompts`.
    fn answer(
        &mut self,
        model: &Model,
        prompts: &[usize],
        answers: usize,
        settings: GenerationSettings,
        stream: impl Fn(usize, usize) -> usize,
    ) -> Result<Vec<SampledAnswer>> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, true);
        let mut engine = Engine::new(model, settings, BatchLimits::of(model)?)?.with_decoder(&decode);
        // Long prompts first: prompts of similar length then share the cache.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.prompts.rows[prompts[i]].ids.len()));
        for &i in &order {
            let prompt = self.prompts.rows[prompts[i]].ids.clone();
            let stream = stream(prompts[i], i) as u64;
            engine.add(GenerationRequest { prompt, prefix: Vec::new(), answers, stream })?;
        }
        let mut drawn: Vec<Option<SampledAnswer>> = prompts.iter().flat_map(|_| vec![None; answers]).collect();
        let bar = report::bar(drawn.len() as u64, "answers");
        while !engine.is_idle() {
            let step = engine.step()?;
            bar.count(step.tokens.len() as u64, "tokens");
            bar.inc(step.finished.len() as u64);
            for FinishedAnswer { request, sample, completion } in step.finished {
                let at = order[request];
                let ids = &self.prompts.rows[prompts[at]].ids;
                let text = match &completion.text {
                    Some(text) => text.clone(),
                    None => decode(completion.answer_tokens())?,
                };
                drawn[at * answers + sample] = Some(SampledAnswer {
                    prompt: prompts[at],
                    ids: [ids, &completion.tokens[..]].concat(),
                    answer_start: ids.len(),
                    ended: matches!(completion.stop_reason, StopReason::EndToken | StopReason::Text),
                    log_probs: completion.log_probs,
                    text,
                    rewards: Vec::new(),
                    reward: 0.0,
                });
            }
        }
        let mut drawn = drawn
            .into_iter()
            .collect::<Option<Vec<SampledAnswer>>>()
            .ok_or_else(|| Error::bug("a prompt of a rollout was not answered"))?;
        drop(engine);
        bar.finish_and_clear();
        let _judging = report::spinner("rewards");
        self.judge(model, &mut drawn)?;
        Ok(drawn)
    }

    /// Computes the rewards of samples and stores them there.
    fn judge(&self, model: &Model, samples: &mut [SampledAnswer]) -> Result<()> {
        let stops = self.tokenizer.stop_ids();
        // Reward models were trained on conversations, which continue after the stop token with what the template
        // writes there.
        let closed = |s: &SampledAnswer| {
            let mut ids = s.ids.clone();
            self.tokenizer.close_turn(&mut ids);
            ids
        };
        let closed: Vec<Vec<u32>> = samples.iter().map(closed).collect();
        let scored: Vec<RewardInput> = samples
            .iter()
            .zip(&closed)
            .map(|(s, ids)| {
                let stop = s.ended && s.ids.last().is_some_and(|id| stops.contains(id));
                RewardInput {
                    prompt: &self.prompts.rows[s.prompt],
                    answer: &s.text,
                    ids,
                    tokens: s.length() - usize::from(stop),
                }
            })
            .collect();
        let mut judges = self.rewards.borrow_mut();
        let rewards = judges.score(model, &scored)?;
        for (sample, rewards) in samples.iter_mut().zip(rewards) {
            let penalty = if sample.ended { 0.0 } else { self.spec.missing_eos_penalty };
            sample.reward = judges.weighted_sum(&rewards) - penalty;
            sample.rewards = rewards;
        }
        Ok(())
    }
}
