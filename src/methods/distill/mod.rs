//! Distillation: on each supervised token, the student's distribution is trained to match the teacher's.
//!
//! `loss = sum over supervised t of (1 - c) T^2 D(p_t, q_t) + c (- log q_t(x_t))`, with p (teacher) and q (student) at
//! temperature T, c the share of cross-entropy (at temperature 1), and D one of `divergence`; `matching` may add terms
//! for layers. Distributions are computed from hidden states in chunks of rows, so full logits never exist, of neither
//! model.
//!
//! `teacher`, `cache`: the teacher's distributions, computed during training or read from disk. `teach`: fills a
//! cache. `answers`: teachers that write answers. `lesson`: a packed row and its loss. `on_policy`: answers that the
//! student writes. `universal`: teachers with another tokenizer.

pub mod answers;
pub mod batch;
pub mod cache;
pub mod divergence;
pub mod matching;
mod on_policy;
pub mod spec;
pub mod teach;
pub mod teacher;
mod universal;

pub use spec::{DistillSpec, Divergence, TeacherSpec};

use super::fixed::FixedDataRows;
use super::sft::SupervisedBatch;
use super::{BatchIndices, DataContext, MethodRows, MicroBatch, ModelParts, Objective, Split};
use crate::data::dataset::Dataset;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::Param;
use crate::report;
use batch::{DistillBatch, TeacherDistributions, TokenWeights};
use cache::{TeacherCache, TeacherCacheOrigin};
use matching::LayerMatching;
use on_policy::OnPolicyWriter;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};
use teacher::TeacherModels;
use universal::TeacherRows;

/// Where the teacher's distributions come from.
enum TeacherSource {
    Online(TeacherModels),
    /// Teachers with another tokenizer.
    OtherTokenizer(TeacherModels, Box<TeacherRows>),
    /// Distributions on disk; opened once the items are known.
    Cached {
        tokenizer: String,
        cache: Option<TeacherCache>,
    },
}

/// The objective of distillation.
pub struct Distill {
    spec: Rc<DistillSpec>,
    teacher: TeacherSource,
    matching: Option<Rc<LayerMatching>>,
    on_policy: Option<OnPolicyWriter>,
    /// Number of tokens that teacher and student share.
    vocabulary: i64,
}

/// The name in a checkpoint of the number of steps that the student has written answers for.
const WRITTEN: &str = "on_policy.steps";

impl Objective for Distill {
    type Item = Example;

    fn prepare_data(&mut self, _: &Model, train: &Dataset, valid: Option<&Dataset>) -> Result<()> {
        if let Some(on_policy) = &self.on_policy {
            on_policy.check(train)?;
        }
        match &mut self.teacher {
            TeacherSource::Online(_) => {}
            TeacherSource::OtherTokenizer(_, translated) => translated.check(train, valid)?,
            TeacherSource::Cached { tokenizer, cache } => {
                let folder = self.spec.cache.as_ref().ok_or_else(|| Error::bug("a cache without a folder"))?;
                let origin = TeacherCacheOrigin::of(&self.spec, tokenizer.clone(), 0, self.vocabulary)?;
                let (train, valid) = (train.hashes(), valid.map(Dataset::hashes));
                let mut splits = vec![(Split::Train, train.as_slice())];
                splits.extend(valid.as_deref().map(|v| (Split::Valid, v)));
                *cache = Some(TeacherCache::open(folder, &origin, &splits)?);
            }
        }
        Ok(())
    }

    fn prepare_batches(&mut self, model: &Model, split: Split, rows: &Dataset, packed: &[Vec<usize>]) -> Result<()> {
        match &mut self.on_policy {
            Some(on_policy) if split == Split::Train => on_policy.write(model, rows, packed),
            _ => Ok(()),
        }
    }

    fn batch(&mut self, model: &Model, items: &[Example], which: BatchIndices) -> Result<Box<dyn MicroBatch>> {
        let device = model.device();
        let writes = self.on_policy.as_mut().filter(|_| which.split == Split::Train);
        let told = writes.is_some();
        let written = writes.map_or_else(|| Ok(vec![None; items.len()]), OnPolicyWriter::take)?;
        let examples: Vec<&Example> = items.iter().zip(&written).map(|(e, anew)| anew.as_ref().unwrap_or(e)).collect();
        let answers = SupervisedBatch::new(&examples, device);
        let (source, there, shown) = match &self.teacher {
            TeacherSource::Online(teachers) => {
                let said = teachers.outputs(&answers)?;
                let shown = said.each[0].inside.clone();
                (TeacherDistributions::Online(said), None, Some(shown))
            }
            TeacherSource::OtherTokenizer(teachers, translated) => {
                let (said, there) = translated.teach(teachers, items, which, device)?;
                (TeacherDistributions::Online(said), Some(there), None)
            }
            TeacherSource::Cached { cache, .. } => {
                let cache = cache.as_ref().expect("opened before the first batch");
                let stored = cache.get(which.split, which.items, device)?;
                if stored.ids.size()[0] as f64 != answers.target_count() {
                    return Err(Error::user(
                        "the number of distributions in the cache differs from the number of supervised tokens in the \
                         rows",
                    )
                    .hint("the cache is damaged: remove it and make it again with: ft teach RECIPE"));
                }
                (TeacherDistributions::Stored(stored), None, None)
            }
        };
        // What the student wrote is not to be imitated: for these rows only the divergence from the teacher counts.
        let share = self.spec.cross_entropy.at(which.epoch);
        let shares =
            examples.iter().zip(&written).map(|(e, anew)| (if anew.is_some() { 0.0 } else { share }, e.target_count()));
        let tokens: usize = written.iter().flatten().map(Example::target_count).sum();
        Ok(Box::new(DistillBatch {
            weights: Rc::new(TokenWeights::new(shares, there, device)),
            answers,
            source: Rc::new(source),
            written: told.then_some(tokens as f64),
            spec: self.spec.clone(),
            vocabulary: self.vocabulary,
            matching: self.matching.clone().zip(shown),
        }))
    }

    fn parameters(&self) -> Vec<Param> {
        self.matching.as_ref().map(|m| m.parameters()).unwrap_or_default()
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = self.matching.as_ref().map(|m| m.state()).unwrap_or_default();
        let steps = self.on_policy.as_ref().map(|o| Tensor::from_slice(&[o.steps as i64]));
        state.extend(steps.map(|steps| (WRITTEN.to_string(), steps)));
        state
    }

    fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        if let Some(on_policy) = &mut self.on_policy {
            let steps = state.get(WRITTEN).filter(|t| t.numel() == 1 && t.kind() == Kind::Int64).ok_or_else(|| {
                Error::user(format!("method.safetensors: no tensor `{WRITTEN}`"))
                    .hint("the checkpoint is damaged: go back to an earlier one, or start anew with --overwrite")
            })?;
            on_policy.steps = steps.int64_value(&[0]) as u64;
        }
        self.matching.as_ref().map_or(Ok(()), |m| m.restore(&state))
    }
}

/// Returns what the model consists of besides the student: the teachers, unless their distributions are cached.
pub fn parts(spec: &DistillSpec) -> Result<ModelParts> {
    let others = match spec.cache {
        Some(_) => Vec::new(),
        None => spec.teachers.iter().map(|t| Ok((teacher::parameter_count(t)?, t.dtype))).collect::<Result<_>>()?,
    };
    Ok(ModelParts { other_models: others, tables: 10, ..ModelParts::default() })
}

/// Reads and tokenises the rows of a run. An error if a teacher has another tokenizer and the loss is not universal.
pub fn rows(spec: &DistillSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let (spec, tokenizer, seed) = (Rc::new(spec.clone()), ground.tokenizer.clone(), ground.seed);
    let translated = match spec.universal() {
        true => Some(TeacherRows::open(&spec.teachers[0].path, ground, spec.supervise)?),
        false => {
            spec.teachers.iter().try_for_each(|t| teacher::check_vocabulary(&t.path, &tokenizer))?;
            None
        }
    };
    Ok(Box::new(FixedDataRows::open(ground, spec.supervise, move |model| {
        warn_of_size(&spec, model)?;
        let load = |tokenizer| TeacherModels::load(&spec, tokenizer, model.device(), model.kind());
        let teacher = match (&spec.cache, translated) {
            (Some(_), _) => TeacherSource::Cached { tokenizer: tokenizer.fingerprint()?, cache: None },
            (None, Some(translated)) => {
                TeacherSource::OtherTokenizer(load(&translated.tokenizer)?, Box::new(translated))
            }
            (None, None) => TeacherSource::Online(load(&tokenizer)?),
        };
        let matching = match (&spec.r#match, &teacher) {
            (Some(matching), TeacherSource::Online(teachers)) => {
                Some(Rc::new(LayerMatching::new(matching, model, teachers.first(), seed)?))
            }
            _ => None,
        };
        let on_policy = spec.on_policy.as_ref().map(|o| OnPolicyWriter::new(o, tokenizer.clone(), seed));
        Ok(Distill { teacher, matching, on_policy, vocabulary: tokenizer.embedded_size() as i64, spec })
    })?))
}

/// Warns if the student is larger than its largest teacher.
fn warn_of_size(spec: &DistillSpec, student: &Model) -> Result<()> {
    let own: u64 = student.params().base().map(|p| p.tensor.numel() as u64).sum();
    let sizes = spec.teachers.iter().map(teacher::parameter_count).collect::<Result<Vec<_>>>()?;
    if let Some(largest) = sizes.into_iter().max().filter(|largest| own > *largest) {
        report::warn(format!(
            "the student is larger than its teachers: it has {} parameters, the largest teacher {}",
            report::count(own),
            report::count(largest)
        ));
    }
    Ok(())
}
