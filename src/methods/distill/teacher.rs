//! What the teacher says of the supervised tokens of a packed row: computed beside the student, or read from a cache.
//!
//! Distributions are those of the tokens that the tokenizer has: rows that a checkpoint pads its vocabulary with are
//! cut off on both sides. Several teachers are averaged as distributions, not as logits.

use super::cache::Stored;
use super::spec::TeacherSpec;
use crate::data::ChatTokenizer;
use crate::error::{Error, Result};
use crate::methods::sft::Answers;
use crate::models::{self, Model};
use crate::nn::Linear;
use crate::nn::chunked::Rows;
use std::path::Path;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Models that teach.
pub struct Teachers {
    models: Vec<(Model, f64)>,
}

/// What the teacher says of the N supervised tokens of a row.
pub enum Teaching {
    /// Each teacher's hidden states (N, D) with its head and the logarithm of its share.
    Online(Vec<(Tensor, Rc<Linear>, f64)>),
    /// The most likely tokens and the mass of the others.
    Stored(Stored),
}

impl Teachers {
    /// Loads the models for a student: with its tokenizer, on its device, in its dtype.
    pub fn load(specs: &[TeacherSpec], tokenizer: &ChatTokenizer, student: &Model) -> Result<Self> {
        let mut models = Vec::new();
        for spec in specs {
            check_vocabulary(&spec.path, tokenizer)?;
            let adapters: Vec<_> = spec.adapter.iter().cloned().collect();
            let model = models::open(&spec.path, &adapters, student.device(), student.kind())?;
            models::open::need_finite_adapters(&model, &adapters)?;
            if (model.config().vocab_size as usize) < tokenizer.vocab_size() {
                return Err(Error::user(format!(
                    "{}: {} rows in its vocabulary, the tokenizer has {} tokens",
                    spec.path.display(),
                    model.config().vocab_size,
                    tokenizer.vocab_size()
                ))
                .hint("tokenizer files and weights are of two different models"));
            }
            models.push((model, spec.weight));
        }
        let total: f64 = models.iter().map(|(_, w)| w).sum();
        if !(total > 0.0) {
            return Err(Error::user("method.distill.teachers: the weights add up to nothing")
                .hint("give at least one teacher a weight above 0"));
        }
        models.retain(|(_, w)| *w > 0.0);
        models.iter_mut().for_each(|(_, w)| *w /= total);
        Ok(Self { models })
    }

    /// The largest number of parameters among them.
    pub fn parameters(&self) -> u64 {
        let count = |m: &Model| m.params().base().map(|p| p.tensor.numel() as u64).sum();
        self.models.iter().map(|(m, _)| count(m)).max().unwrap_or(0)
    }

    /// What they say of a row's supervised tokens.
    pub fn teach(&self, answers: &Answers) -> Result<Teaching> {
        let say = |(model, share): &(Model, f64)| {
            model
                .infer(&answers.tokens, |out| (out.hidden.index_select(0, &answers.at), out.head().clone(), share.ln()))
        };
        Ok(Teaching::Online(self.models.iter().map(say).collect::<Result<_>>()?))
    }
}

impl Teaching {
    /// Log-probabilities (n, `vocabulary`) of the rows, at a temperature; of several teachers, of their mean.
    pub fn online(said: &[(Tensor, Rc<Linear>, f64)], (start, n): Rows, temperature: f64, vocabulary: i64) -> Tensor {
        let one = |(h, head, _): &(Tensor, Rc<Linear>, f64)| {
            let logits = head.forward(&h.narrow(0, start, n)).narrow(-1, 0, vocabulary).to_kind(Kind::Float);
            (logits / temperature).log_softmax(-1, Kind::Float)
        };
        let [one_alone] = said else {
            let each: Vec<Tensor> = said.iter().map(|s| one(s) + s.2).collect();
            return Tensor::stack(&each, 0).logsumexp([0i64].as_slice(), false);
        };
        one(one_alone)
    }
}

/// Ids must mean the same to teacher and student.
pub fn check_vocabulary(teacher: &Path, student: &ChatTokenizer) -> Result<()> {
    let own = ChatTokenizer::load(teacher, None)?;
    let n = own.vocab_size().max(student.vocab_size()) as u32;
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
            .hint("let the teacher write answers and learn those: ft teach RECIPE --generate; or choose a student with its tokenizer"))
        }
    }
}
