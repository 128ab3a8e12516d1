//! Gives sampled answers their rewards.

use super::answer::SampledAnswer;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::PromptSet;
use crate::error::Result;
use crate::models::Model;
use crate::rewards::RewardSources;
use crate::rewards::source::RewardInput;
use std::cell::RefCell;
use std::rc::Rc;

/// The sources of rewards for answers to prompts.
pub struct AnswerJudge {
    rewards: Rc<RefCell<RewardSources>>,
    /// Names of the sources.
    sources: Vec<String>,
    /// Subtracted from the reward of a truncated answer.
    missing_eos_penalty: f64,
}

impl AnswerJudge {
    /// Creates a judge of answers to `prompts`. An error if a row lacks what a source needs. Several judges may share
    /// the sources.
    pub fn new(
        rewards: Rc<RefCell<RewardSources>>,
        (prompts, tokenizer): (&PromptSet, &ChatTokenizer),
        missing_eos_penalty: f64,
    ) -> Result<Self> {
        rewards.borrow().check(prompts)?;
        rewards.borrow().check_tokenizer(tokenizer)?;
        let sources = rewards.borrow().names().map(String::from).collect();
        Ok(Self { rewards, sources, missing_eos_penalty })
    }

    /// Returns the names of the sources, in the order of `SampledAnswer::rewards`.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(String::as_str)
    }

    /// Computes the rewards of answers to `prompts` and stores them there.
    pub fn judge(
        &self,
        model: &Model,
        (prompts, tokenizer): (&PromptSet, &ChatTokenizer),
        samples: &mut [SampledAnswer],
    ) -> Result<()> {
        let stops = tokenizer.stop_ids();
        // Reward models were trained on conversations, which continue after the stop token with what the template
        // writes there.
        let closed = |s: &SampledAnswer| {
            let mut ids = s.ids.clone();
            tokenizer.close_turn(&mut ids);
            ids
        };
        let closed: Vec<Vec<u32>> = samples.iter().map(closed).collect();
        let tokens = |s: &SampledAnswer| {
            let stop = s.ended && s.ids.last().is_some_and(|id| stops.contains(id));
            s.length() - usize::from(stop)
        };
        let inputs: Vec<RewardInput> = samples
            .iter()
            .zip(&closed)
            .map(|(s, ids)| RewardInput { prompt: &prompts.rows[s.prompt], answer: &s.text, ids, tokens: tokens(s) })
            .collect();
        let mut judges = self.rewards.borrow_mut();
        let rewards = judges.score(model, &inputs)?;
        for (sample, rewards) in samples.iter_mut().zip(rewards) {
            let penalty = if sample.ended { 0.0 } else { self.missing_eos_penalty };
            sample.reward = judges.weighted_sum(&rewards) - penalty;
            sample.rewards = rewards;
        }
        Ok(())
    }
}
