//! The objective of distillation: for each packed row, gets the teachers' distributions and builds the batch.

use super::batch::{DistillBatch, TeacherDistributions, TokenWeights};
use super::cache::{TeacherCache, TeacherCacheOrigin};
use super::matching::{LayerMatching, TeacherLayers};
use super::on_policy::{OnPolicyWriter, WrittenAnswers};
use super::spec::DistillSpec;
use super::teacher::{self, TeacherModels};
use super::teacher_rows::TeacherRows;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::Dataset;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::methods::fixed::{BatchIndices, FixedDataRows, Objective, Split};
use crate::methods::parts::ModelParts;
use crate::methods::rows::{DataContext, MethodRows};
use crate::methods::sft::SupervisedBatch;
use crate::methods::state::{self, StateTensors, damaged};
use crate::models::Model;
use crate::models::learning::MicroBatch;
use crate::nn::Param;
use crate::report;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

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

/// What the teachers give for a packed row.
struct TaughtRow {
    distributions: TeacherDistributions,
    /// (N) float32, 1 where a teacher with another tokenizer has a token, else 0; `None`: it has one everywhere.
    mask: Option<Tensor>,
    /// States and attention of the first teacher's layers, to be matched.
    layers: Option<TeacherLayers>,
}

impl Distill {
    /// Loads what the objective needs next to the student; `teacher_rows` are the rows in the tokens of a teacher with
    /// another tokenizer.
    fn new(
        spec: Rc<DistillSpec>,
        tokenizer: Rc<ChatTokenizer>,
        teacher_rows: Option<TeacherRows>,
        seed: u64,
        student: &Model,
    ) -> Result<Self> {
        warn_of_size(&spec, student)?;
        let load = |tokenizer| TeacherModels::load(&spec, tokenizer, student.device(), student.kind());
        let teacher = match (&spec.cache, teacher_rows) {
            (Some(_), _) => TeacherSource::Cached { tokenizer: tokenizer.fingerprint()?, cache: None },
            (None, Some(rows)) => TeacherSource::OtherTokenizer(load(&rows.tokenizer)?, Box::new(rows)),
            (None, None) => TeacherSource::Online(load(&tokenizer)?),
        };
        let matching = match (&spec.r#match, &teacher) {
            (Some(matching), TeacherSource::Online(teachers)) => {
                Some(Rc::new(LayerMatching::new(matching, student, teachers.first(), seed)?))
            }
            _ => None,
        };
        let on_policy = spec.on_policy.as_ref().map(|o| OnPolicyWriter::new(o, tokenizer.clone(), seed));
        Ok(Self { teacher, matching, on_policy, vocabulary: tokenizer.embedded_size() as i64, spec })
    }

    /// Returns the teachers' distributions for the supervised tokens of a packed row; `items` are its items as they are
    /// in the data set.
    fn taught(
        &self,
        answers: &SupervisedBatch,
        items: &[Example],
        which: BatchIndices,
        device: Device,
    ) -> Result<TaughtRow> {
        Ok(match &self.teacher {
            TeacherSource::Online(teachers) => {
                let outputs = teachers.outputs(answers)?;
                let layers = Some(outputs.each[0].layers.clone());
                TaughtRow { distributions: TeacherDistributions::Online(outputs), mask: None, layers }
            }
            TeacherSource::OtherTokenizer(teachers, rows) => {
                let (outputs, mask) = rows.teach(teachers, items, which, device)?;
                TaughtRow { distributions: TeacherDistributions::Online(outputs), mask: Some(mask), layers: None }
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
                TaughtRow { distributions: TeacherDistributions::Stored(stored), mask: None, layers: None }
            }
        })
    }

    /// Returns the share of cross-entropy and the number of supervised tokens of each example. What the student wrote
    /// is not to be imitated: for these examples only the divergence from the teacher counts.
    fn cross_entropy_shares(
        &self,
        examples: &[&Example],
        written: &[Option<Example>],
        epoch: f64,
    ) -> Vec<(f64, usize)> {
        let share = self.spec.cross_entropy.at(epoch);
        let of = |new: &Option<Example>| if new.is_some() { 0.0 } else { share };
        examples.iter().zip(written).map(|(e, new)| (of(new), e.target_count())).collect()
    }
}

/// The name in a checkpoint of the number of steps that the student has written answers for.
const WRITTEN: &str = "on_policy.steps";

impl Objective for Distill {
    type Item = Example;
    /// The answers that the student wrote for the step.
    type Shared = WrittenAnswers;

    fn prepare_data(&mut self, _: &Model, train: &Dataset, valid: Option<&Dataset>) -> Result<()> {
        if let Some(on_policy) = &self.on_policy {
            on_policy.check(train)?;
        }
        match &mut self.teacher {
            TeacherSource::Online(_) => {}
            TeacherSource::OtherTokenizer(_, rows) => rows.check(train, valid)?,
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

    fn prepare_batches(
        &mut self,
        model: &Model,
        split: Split,
        rows: &Dataset,
        packed: &[Vec<usize>],
    ) -> Result<WrittenAnswers> {
        match &mut self.on_policy {
            Some(on_policy) if split == Split::Train => on_policy.write(model, rows, packed),
            _ => Ok(packed.iter().map(|items| vec![None; items.len()]).collect()),
        }
    }

    fn batch(
        &mut self,
        model: &Model,
        items: &[Example],
        which: BatchIndices,
        written: &WrittenAnswers,
    ) -> Result<Box<dyn MicroBatch>> {
        let device = model.device();
        let written = &written[which.row];
        let examples: Vec<&Example> = items.iter().zip(written).map(|(e, new)| new.as_ref().unwrap_or(e)).collect();
        let answers = SupervisedBatch::new(&examples, device);
        let TaughtRow { distributions, mask, layers } = self.taught(&answers, items, which, device)?;
        let shares = self.cross_entropy_shares(&examples, written, which.epoch);
        let tokens: usize = written.iter().flatten().map(Example::target_count).sum();
        let writes = self.on_policy.is_some() && which.split == Split::Train;
        let written = writes.then_some(tokens as f64);
        Ok(Box::new(DistillBatch {
            weights: Rc::new(TokenWeights::new(shares.into_iter(), mask, device)),
            answers,
            source: Rc::new(distributions),
            written,
            spec: self.spec.clone(),
            vocabulary: self.vocabulary,
            matching: self.matching.clone().zip(layers),
        }))
    }

    fn parameters(&self) -> Vec<Param> {
        self.matching.as_ref().map(|m| m.parameters()).unwrap_or_default()
    }

    fn state(&self) -> StateTensors {
        let mut state = self.matching.as_ref().map(|m| m.state()).unwrap_or_default();
        let steps = self.on_policy.as_ref().map(|o| Tensor::from_slice(&[o.steps as i64]));
        state.extend(steps.map(|steps| (WRITTEN.to_string(), steps)));
        state
    }

    fn restore(&mut self, state: StateTensors) -> Result<()> {
        if let Some(on_policy) = &mut self.on_policy {
            let [steps] = state::values::<i64>(&state, WRITTEN, Kind::Int64)?[..] else {
                return Err(damaged(format_args!("`{WRITTEN}` is not one number")));
            };
            on_policy.steps = steps as u64;
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
    let teacher_rows = match spec.universal() {
        true => Some(TeacherRows::open(&spec.teachers[0].path, ground, spec.supervise)?),
        false => {
            spec.teachers.iter().try_for_each(|t| teacher::check_vocabulary(&t.path, &tokenizer))?;
            None
        }
    };
    let supervise = spec.supervise;
    let make = move |model: &Model| Distill::new(spec, tokenizer, teacher_rows, seed, model);
    Ok(Box::new(FixedDataRows::open(ground, supervise, make)?))
}

/// Warns if the student is larger than its largest teacher.
fn warn_of_size(spec: &DistillSpec, student: &Model) -> Result<()> {
    let own: u64 = student.params().base().map(Param::count).sum();
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
