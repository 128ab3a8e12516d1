//! What teachers say of the supervised tokens of a packed row, computed beside the student.
//!
//! Distributions are those of the tokens that the tokenizer has: rows that a checkpoint pads its vocabulary with are
//! cut off on both sides. Several teachers are averaged as distributions, not as logits.

use super::spec::{DistillSpec, TeacherSpec};
use crate::data::ChatTokenizer;
use crate::error::{Error, Result};
use crate::methods::sft::Answers;
use crate::models::{self, Config, Inside, Model};
use crate::nn::Linear;
use crate::nn::chunked::Rows;
use crate::nn::head::spread;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Models that teach.
pub struct Teachers {
    models: Vec<(Model, f64)>,
    /// Tokens that a distribution is over.
    vocabulary: i64,
}

/// What one teacher says of the N supervised tokens of a row.
pub struct Said {
    /// (N, D)
    pub hidden: Tensor,
    head: Rc<Linear>,
    /// The logarithm of its share.
    share: f64,
    /// What it was asked to show of its layers.
    pub inside: Rc<Inside>,
}

/// What they all say of the N supervised tokens of a row.
pub struct Teaching {
    pub each: Vec<Said>,
    vocabulary: i64,
}

impl Teachers {
    /// Loads the models for a student on `device` that computes in `kind`; `tokenizer` is the one that they have.
    pub fn load(spec: &DistillSpec, tokenizer: &ChatTokenizer, device: Device, kind: Kind) -> Result<Self> {
        let mut models = Vec::new();
        for teacher in &spec.teachers {
            let adapters: Vec<_> = teacher.adapter.iter().cloned().collect();
            let model = models::open(&teacher.path, &adapters, device, teacher.dtype.map_or(kind, |d| d.kind()))?;
            models::open::need_finite_adapters(&model, &adapters)?;
            if (model.config().vocab_size as usize) < tokenizer.embedded_size() {
                return Err(Error::user(format!(
                    "{}: {} rows in its vocabulary, the tokenizer has {} tokens",
                    teacher.path.display(),
                    model.config().vocab_size,
                    tokenizer.embedded_size()
                ))
                .hint("tokenizer files and weights are of two different models"));
            }
            models.push((model, teacher.weight));
        }
        let total: f64 = models.iter().map(|(_, w)| w).sum();
        if total <= 0.0 {
            return Err(Error::user("method.distill.teachers: the weights add up to nothing")
                .hint("give at least one teacher a weight above 0"));
        }
        models.retain(|(_, w)| *w > 0.0);
        models.iter_mut().for_each(|(_, w)| *w /= total);
        Ok(Self { models, vocabulary: tokenizer.embedded_size() as i64 })
    }

    /// The first of them.
    pub fn first(&self) -> &Model {
        &self.models[0].0
    }

    /// What they say of a row's supervised tokens.
    pub fn teach(&self, answers: &Answers) -> Result<Teaching> {
        let say = |(model, share): &(Model, f64)| {
            model.infer(&answers.tokens, |out| Said {
                hidden: out.hidden.index_select(0, &answers.at),
                head: out.head().clone(),
                share: share.ln(),
                inside: out.inside.clone(),
            })
        };
        Ok(Teaching { each: self.models.iter().map(say).collect::<Result<_>>()?, vocabulary: self.vocabulary })
    }
}

impl Teaching {
    /// Log-probabilities (n, V) of the rows, at a temperature; of several teachers, of their mean. Without gradient.
    pub fn log_probs(&self, (start, n): Rows, temperature: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let one = |said: &Said| {
            let logits = said.head.forward(&said.hidden.narrow(0, start, n));
            spread(&logits.narrow(-1, 0, self.vocabulary), temperature)
        };
        let [alone] = self.each.as_slice() else {
            let each: Vec<Tensor> = self.each.iter().map(|s| one(s) + s.share).collect();
            return Tensor::stack(&each, 0).logsumexp([0i64].as_slice(), false);
        };
        one(alone)
    }
}

/// The numbers in a teacher's weights, from the headers of its files.
pub fn parameters(teacher: &TeacherSpec) -> Result<u64> {
    let weights = models::weights(&teacher.path, &Config::read(&teacher.path)?)?;
    let numbers = |name: &str| weights.shape(name).unwrap_or_default().iter().product::<i64>() as u64;
    Ok(weights.names().map(numbers).sum())
}

/// Ids must mean the same to teacher and student.
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
            .hint("let the teacher write answers and learn those: ft teach RECIPE --generate --out FILE.jsonl")
            .hint("or compare sorted probabilities: method.distill.loss: { universal: {} }; or choose a student with its tokenizer"))
        }
    }
}
