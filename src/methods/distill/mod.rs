//! Distillation: on each supervised token the student's distribution is drawn to the teacher's.
//!
//! `loss = sum over supervised t of (1 - c) T^2 D(p_t, q_t) + c (- log q_t(x_t))`, with p and q at temperature T, c the
//! share of cross-entropy (at temperature 1), and D one of `divergence`. Distributions are made in chunks of rows from
//! hidden states: full logits of neither model exist.

pub mod cache;
pub mod divergence;
pub mod spec;
pub mod teach;
pub mod teacher;

pub use spec::{DistillSpec, Divergence};

use super::fixed::FixedRows;
use super::sft::Answers;
use super::{Batch, Ground, Objective, Rows, Split, Which};
use crate::data::{Dataset, Example};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::{Tokens, chunked};
use crate::report;
use cache::{Cache, Origin};
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Kind, Tensor};
use teacher::{Teachers, Teaching};

/// Where teaching comes from.
enum Teacher {
    Online(Teachers),
    /// Opened when the items are known.
    Cached {
        tokenizer: String,
        cache: Option<Cache>,
    },
}

/// Learns distributions.
pub struct Distill {
    spec: Rc<DistillSpec>,
    teacher: Teacher,
    /// Tokens that both know.
    vocabulary: i64,
}

/// A packed row with what the teacher says of it.
struct Taught {
    answers: Answers,
    teaching: Rc<Teaching>,
    spec: Rc<DistillSpec>,
    /// The share of cross-entropy.
    share: f64,
    vocabulary: i64,
}

impl Objective for Distill {
    type Item = Example;

    fn begin(&mut self, _: &Model, train: &Dataset, valid: Option<&Dataset>) -> Result<()> {
        let (Teacher::Cached { tokenizer, cache }, Some(folder)) = (&mut self.teacher, &self.spec.cache) else {
            return Ok(());
        };
        let origin = Origin::of(&self.spec, tokenizer.clone(), 0, self.vocabulary)?;
        let (train, valid) = (train.hashes(), valid.map(Dataset::hashes));
        let mut splits = vec![(Split::Train, train.as_slice())];
        splits.extend(valid.as_deref().map(|v| (Split::Valid, v)));
        *cache = Some(Cache::open(folder, &origin, &splits)?);
        Ok(())
    }

    fn batch(&mut self, model: &Model, items: &[Example], which: Which) -> Result<Box<dyn Batch>> {
        let answers = Answers::new(&items.iter().collect::<Vec<_>>(), model.device());
        let teaching = match &self.teacher {
            Teacher::Online(teachers) => teachers.teach(&answers)?,
            Teacher::Cached { cache, .. } => {
                let cache = cache.as_ref().expect("opened before the first batch");
                Teaching::Stored(cache.get(which.split, which.items, model.device())?)
            }
        };
        Ok(Box::new(Taught {
            answers,
            teaching: Rc::new(teaching),
            spec: self.spec.clone(),
            share: self.spec.cross_entropy.at(which.epoch),
            vocabulary: self.vocabulary,
        }))
    }
}

impl Batch for Taught {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.answers.supervised()
    }

    fn loss(&self, out: &Output) -> Loss {
        let h = out.hidden.index_select(0, &self.answers.at);
        let (spec, teaching, share, vocabulary) =
            (self.spec.clone(), self.teaching.clone(), self.share, self.vocabulary);
        let targets = self.answers.targets.shallow_clone();
        // Divergence, cross-entropy, hits and agreement of each row, from the first pass over its chunk.
        let seen: Rc<RefCell<Vec<(i64, [Tensor; 4])>>> = Rc::default();
        let noted = seen.clone();
        let values = chunked::map(out.head(), &h, move |logits, rows| {
            let logits = logits.narrow(-1, 0, vocabulary);
            let target = targets.narrow(0, rows.0, rows.1).unsqueeze(-1);
            let plain = logits.log_softmax(-1, Kind::Float);
            let student = match spec.temperature == 1.0 {
                true => plain.shallow_clone(),
                false => (&logits / spec.temperature).log_softmax(-1, Kind::Float),
            };
            let (teacher, student, best) = outcomes(&teaching, student, rows, spec.temperature, vocabulary);
            let apart = divergence::divergence(&spec.loss, &teacher, &student);
            let entropy = -plain.gather(-1, &target, false).squeeze_dim(-1);
            let mut noted = noted.borrow_mut();
            if noted.last().is_none_or(|(start, _)| *start < rows.0) {
                let own = logits.argmax(-1, false);
                let hits = own.eq_tensor(&target.squeeze_dim(-1)).to_kind(Kind::Float);
                let agreed = own.eq_tensor(&best).to_kind(Kind::Float);
                noted.push((rows.0, [apart.detach(), entropy.detach(), hits, agreed]));
            }
            apart * ((1.0 - share) * spec.temperature * spec.temperature) + entropy * share
        });
        let sum = values.sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        for (i, name) in ["divergence", "cross_entropy", "accuracy", "teacher_agreement"].into_iter().enumerate() {
            let parts: Vec<Tensor> = seen.borrow().iter().map(|(_, p)| p[i].sum(Kind::Float)).collect();
            metrics.add(name, &Tensor::stack(&parts, 0).sum(Kind::Float), self.items());
        }
        Loss { sum, metrics }
    }
}

/// Log-probabilities of teacher and student over the same outcomes, (n, K) each, and the teacher's most likely token. The
/// outcomes are all tokens, or those that were stored and one that stands for all others.
fn outcomes(
    teaching: &Teaching,
    student: Tensor,
    rows: chunked::Rows,
    temperature: f64,
    vocabulary: i64,
) -> (Tensor, Tensor, Tensor) {
    match teaching {
        Teaching::Online(said) => {
            let teacher = tch::no_grad(|| Teaching::online(said, rows, temperature, vocabulary));
            let best = teacher.argmax(-1, false);
            (teacher, student, best)
        }
        Teaching::Stored(stored) => {
            let part = |t: &Tensor| t.narrow(0, rows.0, rows.1);
            let (ids, teacher) = (part(&stored.ids), part(&stored.log_probs));
            let best = ids.select(-1, 0);
            let student = student.gather(-1, &ids, false);
            let Some(tail) = &stored.tail else { return (teacher, student, best) };
            let others = cache::rest(&student).unsqueeze(-1);
            let teacher = Tensor::cat(&[teacher, part(tail).unsqueeze(-1)], -1);
            (teacher, Tensor::cat(&[student, others], -1), best)
        }
    }
}

/// The rows of a run.
pub fn rows(spec: &DistillSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    let (spec, tokenizer) = (Rc::new(spec.clone()), ground.tokenizer.clone());
    let supervise = spec.supervise;
    Ok(Box::new(FixedRows::open(ground, supervise, move |model| {
        let teacher = match &spec.cache {
            Some(_) => {
                spec.teachers.iter().try_for_each(|t| teacher::check_vocabulary(&t.path, &tokenizer))?;
                Teacher::Cached { tokenizer: tokenizer.fingerprint()?, cache: None }
            }
            None => {
                let teachers = Teachers::load(&spec.teachers, &tokenizer, model)?;
                let own: u64 = model.params().base().map(|p| p.tensor.numel() as u64).sum();
                if own > teachers.parameters() {
                    report::warn(format!(
                        "the student has {} parameters, its largest teacher {}",
                        report::count(own),
                        report::count(teachers.parameters())
                    ));
                }
                Teacher::Online(teachers)
            }
        };
        Ok(Distill { spec, teacher, vocabulary: tokenizer.vocab_size() as i64 })
    })?))
}
