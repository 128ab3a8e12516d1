//! Direct preference optimisation: the chosen answer of a pair should have gained more probability over the reference
//! than the rejected one. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::{DpoLoss, DpoSpec};

use super::fixed::FixedRows;
use super::pairs::{self, Answers, Sides};
use super::reference::{Keep, Known, Reference, ReferenceChoice};
use super::watch::Watch;
use super::{Alarm, Batch, Ground, Means, Objective, Rows, Split, Which};
use crate::adapters::AdapterSpec;
use crate::data::{Cache, Dataset, Pair, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::Kind;

/// The objective.
pub struct Dpo {
    spec: DpoSpec,
    source: Source,
    watch: Watch,
}

/// Where log-probabilities of the reference come from.
enum Source {
    Live(Reference),
    /// Read or computed in `begin`.
    Cached {
        from: Option<PathBuf>,
        cache: Cache,
        budget: usize,
        known: BTreeMap<Split, Known>,
    },
}

/// Some pairs in one packed row.
struct Pairs {
    spec: DpoSpec,
    answers: Answers,
    reference: Sides,
}

impl Dpo {
    /// Rows of `budget` tokens; `cache` is where log-probabilities are kept, `from` the adapter that the run goes on from.
    pub fn new(spec: &DpoSpec, model: &Model, from: Option<PathBuf>, cache: Cache, budget: usize) -> Result<Self> {
        let source = match spec.reference {
            ReferenceChoice::Live => Source::Live(Reference::of(model)?),
            ReferenceChoice::Cached => Source::Cached { from, cache, budget, known: BTreeMap::new() },
        };
        Ok(Self { spec: spec.clone(), source, watch: Watch::new("dpo", spec.beta) })
    }
}

impl Objective for Dpo {
    type Item = Pair;

    fn begin(&mut self, model: &Model, train: &Dataset<Pair>, valid: Option<&Dataset<Pair>>) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_equal)?;
        if let Source::Cached { from, cache, budget, known } = &mut self.source {
            let keep = Keep::new(model, from.as_deref(), cache, *budget)?;
            for (split, rows) in [(Split::Train, Some(train)), (Split::Valid, valid)] {
                if let Some(rows) = rows {
                    known.insert(split, keep.known(rows, model)?);
                }
            }
        }
        Ok(())
    }

    fn batch(&mut self, model: &Model, items: &[Pair], which: Which) -> Result<Box<dyn Batch>> {
        let answers = Answers::of_pairs(items, model.device());
        let reference = match &self.source {
            Source::Live(reference) => reference.log_probs(model, &answers)?,
            Source::Cached { known, .. } => known[&which.split].of(which.items).to_device(model.device()),
        };
        Ok(Box::new(Pairs { spec: self.spec.clone(), answers, reference: Sides::of(&reference) }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.see(means)
    }
}

impl Batch for Pairs {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.reference.chosen.size()[0] as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = self.answers.spans.scores(out);
        let (policy, lengths) = (Sides::of(&scores.log_probs), self.answers.lengths());
        let losses = loss::losses(&self.spec, &policy, &self.reference, &lengths);
        let sum = losses.sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        let rewards = policy.with(&self.reference, |p, r| (p - r).detach() * self.spec.beta);
        pairs::add_metrics(&mut metrics, &rewards, &policy);
        let likelier = policy.gap().gt(0.0).sum(Kind::Double);
        metrics.add("logps/accuracies", &likelier, self.items());
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// The rows of a run.
pub fn rows(spec: &DpoSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    let (spec, cache, budget) = (spec.clone(), ground.cache.clone(), ground.batch.tokens);
    let from = ground.adapter.and_then(|AdapterSpec::Lora(lora)| lora.from.clone());
    let make = move |model: &Model| Dpo::new(&spec, model, from, cache, budget);
    Ok(Box::new(FixedRows::open(ground, Supervise::default(), make)?))
}
