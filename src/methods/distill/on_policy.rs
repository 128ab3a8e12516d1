//! Answers that the student writes itself (GKD, Agarwal et al. 2023, arXiv 2306.13649, algorithm 1); the teacher
//! judges them token by token.
//!
//! Deviation: the paper decides once per batch whether all of it is written anew; here it is decided for each row, so
//! that the mixture varies less from step to step. Invariant: the answers are a function of the weights, the rows and
//! (seed, step).

use super::spec::OnPolicySpec;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::Dataset;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::generate::engine::complete;
use crate::generate::settings::GenerationSettings;
use crate::models::Model;
use crate::rng;
use rand::RngExt;
use std::rc::Rc;

/// The student as a writer of answers.
pub struct OnPolicyWriter {
    spec: OnPolicySpec,
    tokenizer: Rc<ChatTokenizer>,
    seed: u64,
    /// Number of optimiser steps that answers were written for.
    pub steps: u64,
}

/// For each packed row of a step: the items written anew, `None` for the others.
pub type WrittenAnswers = Vec<Vec<Option<Example>>>;

impl OnPolicyWriter {
    /// Starts at the first step of a run.
    pub fn new(spec: &OnPolicySpec, tokenizer: Rc<ChatTokenizer>, seed: u64) -> Self {
        Self { spec: spec.clone(), tokenizer, seed, steps: 0 }
    }

    /// Returns an error if no row has a prompt.
    pub fn check(&self, rows: &Dataset) -> Result<()> {
        for row in rows.iter() {
            if prompt_length(&row?) > 0 {
                return Ok(());
            }
        }
        Err(Error::user("method.distill.on_policy: no row has a prompt before its last answer")
            .hint("give conversations or prompts with answers; plain text has no prompt"))
    }

    /// Chooses rows of the next optimiser step at random, lets the student answer them anew and returns the answers.
    pub fn write(&mut self, model: &Model, rows: &Dataset, packed: &[Vec<usize>]) -> Result<WrittenAnswers> {
        let mut random = rng::stream(self.seed, "on-policy rows", self.steps);
        let (mut prompts, mut places) = (Vec::new(), Vec::new());
        for (row, items) in packed.iter().enumerate() {
            for (place, item) in items.iter().enumerate() {
                if random.random::<f64>() >= self.spec.share {
                    continue;
                }
                let example = rows.get(*item)?;
                let start = prompt_length(&example);
                if start > 0 {
                    prompts.push(example.ids[..start].to_vec());
                    places.push((row, place, example.line));
                }
            }
        }
        let settings = GenerationSettings {
            temperature: self.spec.temperature,
            seed: rng::derived_seed(self.seed, "on-policy answers", self.steps),
            // Padding rows of the vocabulary are not tokens and must not be sampled.
            bad_words: (self.tokenizer.embedded_size() as u32..model.config().vocab_size as u32)
                .map(|id| vec![id])
                .collect(),
            ..GenerationSettings::greedy(self.spec.max_new_tokens, self.tokenizer.stop_ids())
        };
        let answers = complete(model, &prompts, &settings, &mut |_, _| ())?;
        let mut written: WrittenAnswers = packed.iter().map(|items| vec![None; items.len()]).collect();
        for (((row, place, line), mut ids), answer) in places.into_iter().zip(prompts).zip(answers) {
            let mut supervised = vec![false; ids.len()];
            supervised.extend(answer.tokens.iter().map(|_| true));
            ids.extend(answer.tokens);
            written[row][place] = Some(Example { ids, supervised, line });
        }
        self.steps += 1;
        Ok(written)
    }
}

/// Returns the index where the last answer of an example begins; 0 if nothing precedes it. The first token of plain
/// text is never trained on, and it does not count as a prompt.
fn prompt_length(example: &Example) -> usize {
    let end = example.supervised.iter().rposition(|s| *s).unwrap_or(0);
    example.supervised[..end].iter().rposition(|s| !s).filter(|i| *i > 0).map_or(0, |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_all_before_the_last_answer() {
        let of = |marks: &str| {
            let supervised: Vec<bool> = marks.bytes().map(|b| b == b'1').collect();
            prompt_length(&Example { ids: vec![0; supervised.len()], supervised, line: 1 })
        };
        assert_eq!((of("00110010"), of("0011"), of("0111"), of("111"), of("000"), of("0")), (6, 2, 0, 0, 0, 0));
    }
}
