//! The teachers' distributions over the supervised tokens of a packed row, computed during training.
//!
//! Distributions cover the tokenizer's tokens: padding rows of a checkpoint's vocabulary are cut off on both sides.
//! Several teachers are averaged as distributions, not as logits.

use super::spec::{DistillSpec, TeacherSpec};
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::methods::sft::SupervisedBatch;
use crate::models::{self, Activations, Config, Model};
use crate::nn::Linear;
use crate::nn::chunked::RowRange;
use crate::nn::head::tempered_log_softmax;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The teacher models with their weights.
pub struct TeacherModels {
    models: Vec<(Model, f64)>,
    /// Number of tokens that a distribution covers.
    vocabulary: i64,
}

/// The output of one teacher for the N supervised tokens of a row.
pub struct TeacherOutput {
    /// (N, D)
    pub hidden: Tensor,
    head: Rc<Linear>,
    /// The logarithm of its weight in the mean.
    share: f64,
    /// States and attention of the layers that are matched.
    pub layers: Rc<Activations>,
}

/// The outputs of all teachers for the N supervised tokens of a row.
pub struct TeacherOutputs {
    /// One output per teacher.
    pub each: Vec<TeacherOutput>,
    vocabulary: i64,
}

impl TeacherModels {
    /// Loads the models for a student on `device` that computes in `kind`; `tokenizer` is the teachers'. An error if a
    /// model has fewer vocabulary rows than the tokenizer has tokens, or if the weights add up to 0.
    pub fn load(spec: &DistillSpec, tokenizer: &ChatTokenizer, device: Device, kind: Kind) -> Result<Self> {
        let mut models = Vec::new();
        for teacher in &spec.teachers {
            let adapters: Vec<_> = teacher.adapter.iter().cloned().collect();
            let model = models::open(&teacher.path, &adapters, device, teacher.dtype.map_or(kind, |d| d.kind()))?;
            models::open::require_finite_adapters(&model, &adapters)?;
            if (model.config().vocab_size as usize) < tokenizer.embedded_size() {
                return Err(Error::user(format!(
                    "{}: the model's vocabulary has {} rows, but the tokenizer has {} tokens",
                    teacher.path.display(),
                    model.config().vocab_size,
                    tokenizer.embedded_size()
                ))
                .hint("tokenizer files and weights belong to two different models"));
            }
            models.push((model, teacher.weight));
        }
        let total: f64 = models.iter().map(|(_, w)| w).sum();
        if total <= 0.0 {
            return Err(Error::user("method.distill.teachers: the weights add up to 0")
                .hint("give at least one teacher a weight above 0"));
        }
        models.retain(|(_, w)| *w > 0.0);
        models.iter_mut().for_each(|(_, w)| *w /= total);
        Ok(Self { models, vocabulary: tokenizer.embedded_size() as i64 })
    }

    /// Returns the first teacher.
    pub fn first(&self) -> &Model {
        &self.models[0].0
    }

    /// Runs all teachers on a packed row.
    pub fn outputs(&self, answers: &SupervisedBatch) -> Result<TeacherOutputs> {
        let each = self.models.iter().map(|(model, share)| {
            model.infer(&answers.tokens, |out| TeacherOutput {
                hidden: out.hidden.index_select(0, &answers.at),
                head: out.head().clone(),
                share: share.ln(),
                layers: out.activations.clone(),
            })
        });
        Ok(TeacherOutputs { each: each.collect::<Result<_>>()?, vocabulary: self.vocabulary })
    }
}

impl TeacherOutputs {
    /// Computes log-probabilities of some rows at a temperature: (n, V), of several teachers those of their mean.
    /// Without gradient.
    pub fn log_probs(&self, (start, n): RowRange, temperature: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let one = |output: &TeacherOutput| {
            let logits = output.head.forward(&output.hidden.narrow(0, start, n));
            tempered_log_softmax(&logits.narrow(-1, 0, self.vocabulary), temperature)
        };
        let [alone] = self.each.as_slice() else {
            let each: Vec<Tensor> = self.each.iter().map(|s| one(s) + s.share).collect();
            return Tensor::stack(&each, 0).logsumexp([0i64].as_slice(), false);
        };
        one(alone)
    }
}

/// Counts a teacher's parameters, from the headers of its files.
pub fn parameter_count(teacher: &TeacherSpec) -> Result<u64> {
    let weights = models::weights(&teacher.path, &Config::read(&teacher.path)?)?;
    Ok(weights.names().map(|name| weights.count(name)).sum())
}

/// Returns an error if a token id means different tokens to teacher and student.
pub fn check_vocabulary(teacher: &Path, student: &ChatTokenizer) -> Result<()> {
    let own = ChatTokenizer::load(teacher, None)?;
    let n = own.embedded_size().max(student.embedded_size()) as u32;
    match (0..n).find(|id| own.token(*id) != student.token(*id)) {
        None => Ok(()),
        Some(id) => {
            let shown = |t: &ChatTokenizer| t.token(id).map_or("nothing".into(), |t| format!("{t:?}"));
            Err(Error::user(format!(
                "{}: another tokenizer than the student's: id {id} is {} there and {} here",
                teacher.display(),
                shown(&own),
                shown(student)
            ))
            .hint("let the teacher write answers and train on those: ft teach RECIPE --generate --out FILE.jsonl")
            .hint("or compare sorted probabilities: method.distill.loss: { universal: {} }; or choose a student with its tokenizer"))
        }
    }
}
