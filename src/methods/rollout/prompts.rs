//! Prompts as the rows of a run: read, measured and shown before the model is loaded.

use super::spec::SamplingSpec;
use crate::data::batch::{BatchPlan, Loader};
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::{PromptLimits, PromptSet};
use crate::data::encode::Example;
use crate::data::inspect::{self, Duplicates, SplitOverlap};
use crate::data::rows::SourceList;
use crate::error::{Error, Result};
use crate::methods::contract::{Method, SamplePrompt};
use crate::methods::rows::{DataContext, MethodRows, SplitStatistics};
use crate::models::Model;
use crate::report;
use std::rc::Rc;

/// The data that a sampling method is built from.
pub struct PromptData {
    /// The training prompts.
    pub train: Rc<PromptSet>,
    /// The validation prompts.
    pub valid: Option<Rc<PromptSet>>,
    /// Their tokenizer.
    pub tokenizer: Rc<ChatTokenizer>,
    /// Iterates over the training prompts, one round of sampling at a time.
    pub loader: Loader,
    /// Maximum number of tokens in a packed row.
    pub budget: usize,
    /// The run's seed.
    pub seed: u64,
}

type MakeMethod = Box<dyn FnOnce(&Model, PromptData) -> Result<Box<dyn Method>>>;

/// The prompts of a run.
pub struct PromptRows {
    prompted: PromptData,
    /// Tokens of each training prompt plus the maximum answer length, and the same of validation prompts.
    lengths: (Vec<u32>, Option<Vec<u32>>),
    /// Answers per round of sampling, and optimiser steps made on them.
    drawn: usize,
    steps: u64,
    make: MakeMethod,
}

impl PromptRows {
    /// Reads the prompts. `answers` are sampled for each, and `steps` optimiser steps made per round of sampling;
    /// `make` builds the method once the model is loaded. An error if the adapter has dropout.
    pub fn open(
        ground: &DataContext,
        drawn: &SamplingSpec,
        answers: usize,
        steps: u64,
        make: impl FnOnce(&Model, PromptData) -> Result<Box<dyn Method>> + 'static,
    ) -> Result<Self> {
        if let Some(adapter) = ground.adapter
            && adapter.dropout() > 0.0
        {
            return Err(Error::user(format!(
                "adapter.{} has a dropout of {}: with it, training would compute other probabilities than those that \
                 answers are sampled from",
                adapter.name(),
                adapter.dropout()
            ))
            .hint("set it to 0"));
        }
        let room = PromptLimits {
            longest: drawn.longest_prompt(ground.max_len)?,
            on_overflow: ground.on_overflow,
            tolerance: ground.overflow_tolerance,
        };
        let load = |sources: &SourceList| -> Result<(Rc<PromptSet>, Vec<u32>)> {
            let mut prompts = PromptSet::open(sources, &ground.tokenizer, room)?;
            report::info(line(&prompts));
            prompts.summary.mix_lines().iter().for_each(report::info);
            prompts.summary.warnings().iter().for_each(report::warn);
            // The answers do not exist yet, so the statistics count the maximum length for each.
            let lengths: Vec<u32> = prompts.rows.iter().map(|r| (r.ids.len() + drawn.max_new_tokens) as u32).collect();
            prompts.summary.supervised_tokens = prompts.len() * drawn.max_new_tokens;
            prompts.summary.tokens += prompts.summary.supervised_tokens;
            Ok((Rc::new(prompts), lengths))
        };
        let (train, train_lengths) = load(ground.train)?;
        let (valid, valid_lengths) = ground.valid.map(load).transpose()?.unzip();
        let plan = BatchPlan { tokens: drawn.prompts, accumulate: None, examples: Some(drawn.prompts) };
        let loader = Loader::new(vec![1; train.len()], train.mix.clone(), plan, ground.shuffle, ground.seed)?;
        let prompted = PromptData {
            train,
            valid,
            tokenizer: ground.tokenizer.clone(),
            loader,
            budget: ground.batch.tokens,
            seed: ground.seed,
        };
        let drawn = drawn.prompts * answers;
        Ok(Self { prompted, lengths: (train_lengths, valid_lengths), drawn, steps, make: Box::new(make) })
    }
}

impl PromptRows {
    /// Returns the prompts that were read.
    pub fn prompted(&self) -> &PromptData {
        &self.prompted
    }
}

/// Describes what was read in one line.
fn line(prompts: &PromptSet) -> String {
    let s = &prompts.summary;
    let mut formats: Vec<&str> = s.files.iter().map(|f| f.format.name()).collect();
    formats.dedup();
    let dropped = if s.dropped > 0 { format!(", {} dropped", report::count(s.dropped as u64)) } else { String::new() };
    format!(
        "{}: {} {} rows, {} prompts of {} tokens (at most {}){dropped}",
        s.name(),
        report::count(s.rows as u64),
        formats.join(" and "),
        report::count(prompts.len() as u64),
        report::count(s.tokens as u64),
        s.lengths.max,
    )
}

/// Returns at most `most` prompts to show samples of: from validation rows, or from training rows if there are none.
pub fn sample_prompts(
    valid: Option<&PromptSet>,
    train: &PromptSet,
    tokenizer: &ChatTokenizer,
    most: usize,
) -> Vec<SamplePrompt> {
    let prompts = valid.filter(|v| !v.is_empty()).unwrap_or(train);
    let answer = |row: &crate::data::dataset::PromptRow| {
        let text = row.columns.get(crate::data::dataset::ANSWER_COLUMN)?.as_str()?;
        tokenizer.encode(text).ok()
    };
    let prompt = |row| -> SamplePrompt {
        let row: &crate::data::dataset::PromptRow = row;
        SamplePrompt { ids: row.ids.clone(), answer: answer(row).unwrap_or_default() }
    };
    prompts.rows.iter().take(most).map(prompt).collect()
}

impl MethodRows for PromptRows {
    fn train(&self) -> SplitStatistics<'_> {
        SplitStatistics { summary: &self.prompted.train.summary, lengths: &self.lengths.0 }
    }

    fn valid(&self) -> Option<SplitStatistics<'_>> {
        let (prompts, lengths) = (self.prompted.valid.as_ref()?, self.lengths.1.as_ref()?);
        Some(SplitStatistics { summary: &prompts.summary, lengths })
    }

    fn longest_row(&self) -> usize {
        let longest = self.lengths.0.iter().max().copied().unwrap_or(0) as usize;
        self.prompted.budget.min(longest * self.drawn)
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        self.prompted.loader.steps_for(epochs) * self.steps
    }

    fn duplicates(&self) -> Duplicates {
        inspect::find_duplicates(&*self.prompted.train)
    }

    fn overlap(&self) -> Option<SplitOverlap> {
        self.prompted.valid.as_ref().map(|valid| inspect::find_overlap(&*self.prompted.train, &**valid))
    }

    fn preview(&self, most: usize) -> Result<Vec<Example>> {
        let example = |row: &crate::data::dataset::PromptRow| Example {
            ids: row.ids.clone(),
            supervised: vec![false; row.ids.len()],
            line: row.line,
        };
        Ok(self.prompted.train.rows.iter().take(most).map(example).collect())
    }

    fn method(self: Box<Self>, model: &Model) -> Result<Box<dyn Method>> {
        (self.make)(model, self.prompted)
    }
}
