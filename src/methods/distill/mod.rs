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
pub mod cache;
pub mod divergence;
pub mod lesson;
pub mod matching;
mod on_policy;
pub mod spec;
pub mod teach;
pub mod teacher;
mod universal;

pub use spec::{DistillSpec, Divergence, TeacherSpec};

use super::fixed::FixedRows;
use super::sft::Answers;
use super::{Batch, Ground, Objective, Parts, Rows, Split, Which};
use crate::data::{Dataset, Example};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::Param;
use crate::report;
use cache::{Cache, Origin};
use lesson::{Lesson, Source, Weights};
use matching::Matching;
use on_policy::OnPolicy;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};
use teacher::Teachers;
use universal::Translated;

/// Where the teacher's distributions come from.
enum Teacher {
    Online(Teachers),
    /// Teachers with another tokenizer.
    Foreign(Teachers, Box<Translated>),
    /// Distributions on disk; opened once the items are known.
    Cached {
        tokenizer: String,
        cache: Option<Cache>,
    },
}

/// The objective of distillation.
pub struct Distill {
    spec: Rc<DistillSpec>,
    teacher: Teacher,
    matching: Option<Rc<Matching>>,
    on_policy: Option<OnPolicy>,
    /// Number of tokens that teacher and student share.
    vocabulary: i64,
}

/// The name in a checkpoint of the number of steps that the student has written answers for.
const WRITTEN: &str = "on_policy.steps";

impl Objective for Distill {
    type Item = Example;

    fn begin(&mut self, _: &Model, train: &Dataset, valid: Option<&Dataset>) -> Result<()> {
        if let Some(on_policy) = &self.on_policy {
            on_policy.check(train)?;
        }
        match &mut self.teacher {
            Teacher::Online(_) => {}
            Teacher::Foreign(_, translated) => translated.check(train, valid)?,
            Teacher::Cached { tokenizer, cache } => {
                let folder = self.spec.cache.as_ref().ok_or_else(|| Error::bug("a cache without a folder"))?;
                let origin = Origin::of(&self.spec, tokenizer.clone(), 0, self.vocabulary)?;
                let (train, valid) = (train.hashes(), valid.map(Dataset::hashes));
                let mut splits = vec![(Split::Train, train.as_slice())];
                splits.extend(valid.as_deref().map(|v| (Split::Valid, v)));
                *cache = Some(Cache::open(folder, &origin, &splits)?);
            }
        }
        Ok(())
    }

    fn survey(&mut self, model: &Model, split: Split, rows: &Dataset, packed: &[Vec<usize>]) -> Result<()> {
        match &mut self.on_policy {
            Some(on_policy) if split == Split::Train => on_policy.write(model, rows, packed),
            _ => Ok(()),
        }
    }

    fn batch(&mut self, model: &Model, items: &[Example], which: Which) -> Result<Box<dyn Batch>> {
        let device = model.device();
        let writes = self.on_policy.as_mut().filter(|_| which.split == Split::Train);
        let told = writes.is_some();
        let written = writes.map_or_else(|| Ok(vec![None; items.len()]), OnPolicy::take)?;
        let examples: Vec<&Example> = items.iter().zip(&written).map(|(e, anew)| anew.as_ref().unwrap_or(e)).collect();
        let answers = Answers::new(&examples, device);
        let (source, there, shown) = match &self.teacher {
            Teacher::Online(teachers) => {
                let said = teachers.teach(&answers)?;
                let shown = said.each[0].inside.clone();
                (Source::Online(said), None, Some(shown))
            }
            Teacher::Foreign(teachers, translated) => {
                let (said, there) = translated.teach(teachers, items, which, device)?;
                (Source::Online(said), Some(there), None)
            }
            Teacher::Cached { cache, .. } => {
                let cache = cache.as_ref().expect("opened before the first batch");
                let stored = cache.get(which.split, which.items, device)?;
                if stored.ids.size()[0] as f64 != answers.supervised() {
                    return Err(Error::user(
                        "the number of distributions in the cache differs from the number of supervised tokens in the \
                         rows",
                    )
                    .hint("the cache is damaged: remove it and make it again with: ft teach RECIPE"));
                }
                (Source::Stored(stored), None, None)
            }
        };
        // What the student wrote is not to be imitated: for these rows only the divergence from the teacher counts.
        let share = self.spec.cross_entropy.at(which.epoch);
        let shares =
            examples.iter().zip(&written).map(|(e, anew)| (if anew.is_some() { 0.0 } else { share }, e.targets()));
        let tokens: usize = written.iter().flatten().map(Example::targets).sum();
        Ok(Box::new(Lesson {
            weights: Rc::new(Weights::new(shares, there, device)),
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
pub fn parts(spec: &DistillSpec) -> Result<Parts> {
    let others = match spec.cache {
        Some(_) => Vec::new(),
        None => spec.teachers.iter().map(|t| Ok((teacher::parameters(t)?, t.dtype))).collect::<Result<_>>()?,
    };
    Ok(Parts { others, tables: 10, ..Parts::default() })
}

/// Reads and tokenises the rows of a run. An error if a teacher has another tokenizer and the loss is not universal.
pub fn rows(spec: &DistillSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    let (spec, tokenizer, seed) = (Rc::new(spec.clone()), ground.tokenizer.clone(), ground.seed);
    let translated = match spec.universal() {
        true => Some(Translated::open(&spec.teachers[0].path, ground, spec.supervise)?),
        false => {
            spec.teachers.iter().try_for_each(|t| teacher::check_vocabulary(&t.path, &tokenizer))?;
            None
        }
    };
    Ok(Box::new(FixedRows::open(ground, spec.supervise, move |model| {
        warn_of_size(&spec, model)?;
        let load = |tokenizer| Teachers::load(&spec, tokenizer, model.device(), model.kind());
        let teacher = match (&spec.cache, translated) {
            (Some(_), _) => Teacher::Cached { tokenizer: tokenizer.fingerprint()?, cache: None },
            (None, Some(translated)) => Teacher::Foreign(load(&translated.tokenizer)?, Box::new(translated)),
            (None, None) => Teacher::Online(load(&tokenizer)?),
        };
        let matching = match (&spec.r#match, &teacher) {
            (Some(matching), Teacher::Online(teachers)) => {
                Some(Rc::new(Matching::new(matching, model, teachers.first(), seed)?))
            }
            _ => None,
        };
        let on_policy = spec.on_policy.as_ref().map(|o| OnPolicy::new(o, tokenizer.clone(), seed));
        Ok(Distill { teacher, matching, on_policy, vocabulary: tokenizer.embedded_size() as i64, spec })
    })?))
}

/// Warns if the student is larger than its largest teacher.
fn warn_of_size(spec: &DistillSpec, student: &Model) -> Result<()> {
    let own: u64 = student.params().base().map(|p| p.tensor.numel() as u64).sum();
    let sizes = spec.teachers.iter().map(teacher::parameters).collect::<Result<Vec<_>>>()?;
    if let Some(largest) = sizes.into_iter().max().filter(|largest| own > *largest) {
        report::warn(format!(
            "the student is larger than its teachers: it has {} parameters, the largest teacher {}",
            report::count(own),
            report::count(largest)
        ));
    }
    Ok(())
}
