//! Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947): a teacher answers the recipe's prompts, and its
//! answers form a data set for students with any tokenizer.
//!
//! Of several answers the one with the highest reward is kept (best of n). An answer that did not end, is empty, or
//! has too low a reward is discarded.
//!
//! Invariant: an answer depends on the teacher, its prompt and (seed, row), not on the others.

use super::cache::teacher_hash;
use super::spec::{DistillSpec, GenerateSpec, TeacherSpec};
use crate::data::dataset::{PromptLimits, PromptSet};
use crate::error::{Error, Result};
use crate::methods::rollout::answer::SampledAnswer;
use crate::methods::rollout::reward_models::check_reward_models;
use crate::methods::rollout::sampler::RolloutSampler;
use crate::methods::rollout::spec::SamplingSpec;
use crate::methods::rows::DataContext;
use crate::models::{self, Model};
use crate::report;
use crate::rewards::RewardSources;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind};

/// The key of the rewards in a recipe.
const REWARDS: &str = "method.distill.generate.rewards";

/// A teacher that writes answers.
pub struct AnswerWriter {
    spec: GenerateSpec,
    teacher: TeacherSpec,
    model: Model,
    rollout: RolloutSampler,
    seed: u64,
}

impl AnswerWriter {
    /// Reads the training prompts of `ground`, whose tokenizer is the teacher's, and loads the teacher on `device`, in
    /// `kind` unless it sets a dtype of its own.
    pub fn open(spec: &DistillSpec, ground: &DataContext, device: Device, kind: Kind) -> Result<Self> {
        let [teacher] = spec.teachers.as_slice() else {
            return Err(Error::user(format!(
                "--generate needs exactly one teacher, the recipe names {}",
                spec.teachers.len()
            ))
            .hint("name one: --set method.distill.teachers=[{path: DIR}]"));
        };
        let (own, teacher) = (spec.generate.clone().unwrap_or_default(), teacher.clone());
        let rewards = match own.rewards.as_slice() {
            [] => RewardSources::from_sources(Vec::new()),
            list => {
                check_reward_models(list, REWARDS)?;
                RewardSources::open(list, REWARDS)?
            }
        };
        let sampling = SamplingSpec {
            max_new_tokens: own.max_new_tokens,
            temperature: own.temperature,
            stop: own.stop.clone(),
            ..SamplingSpec::default()
        };
        let limits = PromptLimits {
            longest: ground.max_len,
            on_overflow: ground.on_overflow,
            tolerance: ground.overflow_tolerance,
        };
        let prompts = Rc::new(PromptSet::open(ground.train, &ground.tokenizer, limits)?);
        prompts.summary.warnings().iter().for_each(report::warn);
        let tokenizer = ground.tokenizer.clone();
        let rollout = RolloutSampler::new(prompts, tokenizer, Rc::new(RefCell::new(rewards)), sampling, ground.seed)?;
        let adapters: Vec<_> = teacher.adapter.iter().cloned().collect();
        let model = models::open(&teacher.path, &adapters, device, teacher.dtype.map_or(kind, |d| d.kind()))?;
        models::open::require_finite_adapters(&model, &adapters)?;
        Ok(Self { spec: own, teacher, model, rollout, seed: ground.seed })
    }

    /// Returns the number of prompts.
    pub fn prompts(&self) -> usize {
        self.rollout.prompts().len()
    }

    /// Returns everything that the answers depend on, as JSON.
    pub fn origin(&self) -> Result<Value> {
        Ok(json!({
            "teacher": self.teacher.path,
            "adapter": self.teacher.adapter,
            "teacher_sha256": teacher_hash(&self.teacher)?,
            "dtype": format!("{:?}", self.model.kind()),
            "data": self.rollout.prompts().summary.files.iter().map(|f| &f.path).collect::<Vec<_>>(),
            "data_sha256": self.rollout.prompts().summary.sha256,
            "prompts": self.prompts(),
            "seed": self.seed,
            "generate": serde_json::to_value(&self.spec).map_err(|e| Error::bug(e.to_string()))?,
        }))
    }

    /// Writes the best answer to each of these prompts, as rows of `prompt` and `completion`; `None` if no answer is
    /// good enough.
    pub fn write(&mut self, prompts: Range<usize>) -> Result<Vec<Option<Value>>> {
        let n = self.spec.answers;
        let mut rows = Vec::with_capacity(prompts.len());
        // Each prompt has random streams of its own, so an interrupted run continues with the same answers.
        let sampled = self.rollout.sample_by_prompt(&self.model, &prompts.collect::<Vec<_>>(), n)?;
        for answers in sampled.chunks(n) {
            let worth = |s: &SampledAnswer| self.spec.least.is_none_or(|least| s.reward >= least);
            let good = |s: &&SampledAnswer| s.ended && !s.text.trim().is_empty() && worth(s);
            // If several have the same reward, the first one.
            let best = answers.iter().filter(good).rev().max_by(|a, b| a.reward.total_cmp(&b.reward));
            rows.push(best.map(|s| self.row(s)).transpose()?);
        }
        Ok(rows)
    }

    fn row(&self, sample: &SampledAnswer) -> Result<Value> {
        let prompt = &self.rollout.prompts().rows[sample.prompt];
        let mut row = prompt.prompt_row()?;
        row["completion"] = match row["prompt"].is_array() {
            true => json!([{ "role": "assistant", "content": sample.text }]),
            false => json!(sample.text),
        };
        row["source"] = json!(prompt.place().to_string());
        if !self.spec.rewards.is_empty() {
            row["reward"] = json!(sample.reward);
        }
        Ok(row)
    }
}
