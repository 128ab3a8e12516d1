//! A model, or a base with an adapter, as it is asked: with its tokenizer and the answers that it gave already.

use super::cache::{AnswerCache, key};
use super::likelihood::{Likelihood, PairGroup, TokenPair, likelihoods};
use super::prompts::prefix_token;
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::eval::results::Subject;
use crate::generate::answering_adapter::AnsweringAdapter;
use crate::generate::engine::BatchLimits;
use crate::generate::prompt_check::max_sequence_tokens;
use crate::models::Model;
use crate::report;

/// Tokens that a model without a limit sees of a text, as in lm-evaluation-harness.
const WINDOW: usize = 2048;

/// What is evaluated.
pub struct SuiteSubject<'a> {
    /// What results call it.
    pub info: Subject,
    /// Which adapter answers.
    pub adapter: AnsweringAdapter,
    /// The tokenizer with its chat template.
    pub tokenizer: &'a ChatTokenizer,
    /// A hash of everything that its answers depend on besides their requests.
    pub identity: String,
}

impl SuiteSubject<'_> {
    /// Returns the most tokens that the model sees.
    pub fn window(&self, model: &Model) -> usize {
        let most = model.with_adapter_id(self.adapter.number(model), max_sequence_tokens);
        if most == usize::MAX { WINDOW } else { most }
    }

    /// Returns the token that stands before a text without a context.
    pub fn prefix_token(&self) -> Result<u32> {
        prefix_token(self.tokenizer).ok_or_else(|| {
            Error::user("the tokenizer has no token that begins or ends a text, and a text without a context needs one")
                .hint("tokenizer_config.json names such tokens: `bos_token`, `eos_token`")
        })
    }

    /// Computes the likelihoods of the pairs of each group, with those that are known from the cache. `window`: the most tokens
    /// that the model sees.
    pub fn likelihoods(
        &self,
        model: &Model,
        groups: &[PairGroup],
        window: usize,
        cache: &mut AnswerCache,
        what: &str,
    ) -> Result<Vec<Vec<Likelihood>>> {
        let settings = format!("likelihood, window {window}");
        let key = |pair: &TokenPair| key(&self.identity, &settings, &[&pair.context, &pair.continuation]);
        let keys: Vec<Vec<String>> = groups.iter().map(|pairs| pairs.iter().map(key).collect()).collect();
        let known = |keys: &Vec<String>| {
            let each = keys.iter().map(|key| cache.get::<(f64, bool)>(key));
            each.map(|found| found.map(|(log_prob, greedy)| Likelihood { log_prob, greedy }))
                .collect::<Option<Vec<_>>>()
        };
        let mut found: Vec<Option<Vec<Likelihood>>> = keys.iter().map(known).collect();
        let missing: Vec<usize> = (0..groups.len()).filter(|i| found[*i].is_none()).collect();
        let asked: Vec<PairGroup> = missing.iter().map(|i| groups[*i].clone()).collect();
        let bar = report::bar(groups.len() as u64, what).starting_at((groups.len() - missing.len()) as u64);
        model.with_adapter_id(self.adapter.number(model), |model| {
            likelihoods(model, &asked, window, BatchLimits::of(model)?, &mut |i, of_group| {
                let keys = &keys[missing[i]];
                let answers = keys.iter().cloned().zip(of_group.iter().map(|l| (l.log_prob, l.greedy)));
                cache.add(answers.collect())?;
                found[missing[i]] = Some(of_group);
                bar.inc(1);
                Ok(())
            })
        })?;
        bar.finish_and_clear();
        Ok(found.into_iter().map(|of_group| of_group.expect("every group is computed")).collect())
    }
}
