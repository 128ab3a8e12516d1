//! Samples answers to prompts with the KV cache (continuous batching) and has them rewarded.

use super::{Sample, SamplingSpec};
use crate::data::{ChatTokenizer, Prompts};
use crate::error::{Error, Result};
use crate::generate::{Engine, Finished, Limits, Request, Settings, Stop};
use crate::models::Model;
use crate::rewards::{Rewards, Scored};
use crate::{report, rng};
use std::cell::RefCell;
use std::rc::Rc;

/// Samples answers to prompts and has them rewarded.
pub struct Rollout {
    prompts: Rc<Prompts>,
    tokenizer: Rc<ChatTokenizer>,
    rewards: Rc<RefCell<Rewards>>,
    sources: Vec<String>,
    spec: SamplingSpec,
    seed: u64,
}

impl Rollout {
    /// Creates a sampler for `prompts`. An error if a row lacks what a source of rewards needs. Several samplers may
    /// share the rewards.
    pub fn new(
        prompts: Rc<Prompts>,
        tokenizer: Rc<ChatTokenizer>,
        rewards: Rc<RefCell<Rewards>>,
        spec: SamplingSpec,
        seed: u64,
    ) -> Result<Self> {
        rewards.borrow().check(&prompts)?;
        rewards.borrow().check_tokenizer(&tokenizer)?;
        let sources = rewards.borrow().names().map(String::from).collect();
        Ok(Self { prompts, tokenizer, rewards, sources, spec, seed })
    }

    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }

    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.tokenizer
    }

    /// Returns the names of the sources of rewards, in the order of `Sample::rewards`.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(String::as_str)
    }

    pub fn spec(&self) -> &SamplingSpec {
        &self.spec
    }

    /// Samples `answers` answers to each of `prompts` (indices of rows) with the active adapter. The answers to one
    /// prompt are consecutive, in the prompts' order. `stream` numbers the round of sampling: the same number gives
    /// the same answers again.
    pub fn draw(&mut self, model: &Model, prompts: &[usize], answers: usize, stream: u64) -> Result<Vec<Sample>> {
        let settings = self.settings(self.spec.temperature, rng::number(self.seed, "rollout", stream));
        self.answer(model, prompts, answers, settings, |_, place| place)
    }

    /// Samples like `draw`, but the answers to a prompt depend only on the prompt and its row index, not on the other
    /// prompts.
    pub fn draw_each(&mut self, model: &Model, prompts: &[usize], answers: usize) -> Result<Vec<Sample>> {
        let settings = self.settings(self.spec.temperature, rng::number(self.seed, "rollout", 0));
        self.answer(model, prompts, answers, settings, |prompt, _| prompt)
    }

    /// Generates one answer to each of `prompts` for validation: greedy, or at the temperature for validation.
    pub fn evaluate(&mut self, model: &Model, prompts: &[usize]) -> Result<Vec<Sample>> {
        let settings = self.settings(self.spec.eval_temperature, rng::number(self.seed, "validation", 0));
        self.answer(model, prompts, 1, settings, |_, place| place)
    }

    fn settings(&self, temperature: f64, seed: u64) -> Settings {
        Settings {
            temperature,
            seed,
            stop_texts: self.spec.stop.clone(),
            log_probs: true,
            ..Settings::greedy(self.spec.max_new_tokens, self.tokenizer.stop_ids())
        }
    }

    /// Generates the answers and fills in their rewards. `stream(row, place)` numbers the random stream of a prompt,
    /// given its row index and its place among `prompts`.
    fn answer(
        &mut self,
        model: &Model,
        prompts: &[usize],
        answers: usize,
        settings: Settings,
        stream: impl Fn(usize, usize) -> usize,
    ) -> Result<Vec<Sample>> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, true);
        let mut engine = Engine::new(model, settings, Limits::of(model)?)?.with_text(&decode);
        // Long prompts first: prompts of similar length then share the cache.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.prompts.rows[prompts[i]].ids.len()));
        for &i in &order {
            let prompt = self.prompts.rows[prompts[i]].ids.clone();
            let stream = stream(prompts[i], i) as u64;
            engine.add(Request { prompt, prefix: Vec::new(), answers, stream })?;
        }
        let mut drawn: Vec<Option<Sample>> = prompts.iter().flat_map(|_| vec![None; answers]).collect();
        let bar = report::bar(drawn.len() as u64, "answers");
        while !engine.is_idle() {
            let step = engine.step()?;
            bar.count(step.tokens.len() as u64, "tokens");
            bar.inc(step.finished.len() as u64);
            for Finished { request, sample, completion } in step.finished {
                let at = order[request];
                let ids = &self.prompts.rows[prompts[at]].ids;
                let text = match &completion.text {
                    Some(text) => text.clone(),
                    None => decode(completion.answer())?,
                };
                drawn[at * answers + sample] = Some(Sample {
                    prompt: prompts[at],
                    ids: [ids, &completion.tokens[..]].concat(),
                    start: ids.len(),
                    ended: matches!(completion.stopped, Stop::EndToken | Stop::Text),
                    log_probs: completion.log_probs,
                    text,
                    rewards: Vec::new(),
                    reward: 0.0,
                });
            }
        }
        let mut drawn = drawn
            .into_iter()
            .collect::<Option<Vec<Sample>>>()
            .ok_or_else(|| Error::bug("a prompt of a rollout was not answered"))?;
        drop(engine);
        bar.finish_and_clear();
        let _judging = report::spinner("rewards");
        self.judge(model, &mut drawn)?;
        Ok(drawn)
    }

    /// Computes the rewards of samples and stores them there.
    fn judge(&self, model: &Model, samples: &mut [Sample]) -> Result<()> {
        let stops = self.tokenizer.stop_ids();
        // Reward models were trained on conversations, which continue after the stop token with what the template
        // writes there.
        let closed = |s: &Sample| {
            let mut ids = s.ids.clone();
            self.tokenizer.close(&mut ids);
            ids
        };
        let closed: Vec<Vec<u32>> = samples.iter().map(closed).collect();
        let scored: Vec<Scored> = samples
            .iter()
            .zip(&closed)
            .map(|(s, ids)| {
                let stop = s.ended && s.ids.last().is_some_and(|id| stops.contains(id));
                Scored {
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
            sample.reward = judges.total(&rewards) - penalty;
            sample.rewards = rewards;
        }
        Ok(())
    }
}
