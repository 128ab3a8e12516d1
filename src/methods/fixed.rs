//! Everything that methods on a fixed data set have in common: reading, packing, epochs, validation, samples. A method
//! adds an [`Objective`], which turns items into a batch with a loss.

use super::contract::{Alarm, Means, Method, RecentSteps, SamplePrompt, TrainingStep};
use super::rows::{DataContext, MethodRows, SplitStatistics};
use super::state::StateTensors;
use crate::data::batch::{Loader, LoaderCursor};
use crate::data::dataset::{Dataset, DatasetItem};
use crate::data::encode::{Example, Supervise};
use crate::data::inspect;
use crate::data::inspect::{Duplicates, SplitOverlap};
use crate::error::Result;
use crate::models::learning::MicroBatch;
use crate::models::{Metrics, Model};
use crate::nn::Param;
use crate::report;
use std::path::Path;

/// Rows that are trained on, or rows that are only measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// Rows that are trained on.
    Train,
    /// Rows that are only measured.
    Valid,
}

/// The items of a batch, as indices into the data set of a split.
#[derive(Debug, Clone, Copy)]
pub struct BatchIndices<'a> {
    /// The split they belong to.
    pub split: Split,
    /// Which packed row of the step, or of the validation, the batch is.
    pub row: usize,
    /// The items.
    pub items: &'a [usize],
    /// Epochs done before this step.
    pub epoch: f64,
}

/// Turns the items of a fixed data set into batches with a loss.
pub trait Objective {
    /// What a data set holds for this method: examples, pairs, labelled answers.
    type Item: DatasetItem;
    /// What all batches of an optimiser step, or of a validation, share.
    type Shared;

    /// Packs items into one row and returns it with its loss. `which` says where the items are in the data set, `shared`
    /// is what `prepare_batches` returned for their step.
    fn batch(
        &mut self,
        model: &Model,
        items: &[Self::Item],
        which: BatchIndices,
        shared: &Self::Shared,
    ) -> Result<Box<dyn MicroBatch>>;
    /// Computes what is needed about the whole data set, such as reference log-probabilities. Called before the first
    /// batch and again after a resume.
    fn prepare_data(
        &mut self,
        _model: &Model,
        _train: &Dataset<Self::Item>,
        _valid: Option<&Dataset<Self::Item>>,
    ) -> Result<()> {
        Ok(())
    }
    /// Finds what all packed rows of an optimiser step or a validation share. Called before their batches are made;
    /// `packed` holds the item indices of each row.
    fn prepare_batches(
        &mut self,
        model: &Model,
        split: Split,
        rows: &Dataset<Self::Item>,
        packed: &[Vec<usize>],
    ) -> Result<Self::Shared>;
    /// Returns true if the trained model generates text, so that samples can be shown (a reward model does not).
    fn generates_text(&self) -> bool {
        true
    }
    /// Looks for problems in the means of a step.
    fn alarms(&mut self, _means: &Means) -> Vec<Alarm> {
        Vec::new()
    }
    /// Returns what is trained in addition to the model. It is no part of the result, so `state` must contain it.
    fn parameters(&self) -> Vec<Param> {
        Vec::new()
    }
    /// Returns what a checkpoint must store of the objective.
    fn state(&self) -> StateTensors {
        StateTensors::new()
    }
    /// Restores what `state` returned.
    fn restore(&mut self, _state: StateTensors) -> Result<()> {
        Ok(())
    }
    /// Reports on the result. Called when it is written to `out`; `model` has the result's weights.
    fn finish(&mut self, _model: &Model, _valid: Option<&Dataset<Self::Item>>, _out: &Path) -> Result<()> {
        Ok(())
    }
}

/// The data sets of a run before the model is loaded; `make` builds the objective once it is.
pub struct FixedDataRows<O: Objective> {
    train: Dataset<O::Item>,
    valid: Option<Dataset<O::Item>>,
    loader: Loader,
    /// Tokens in one packed row.
    budget: usize,
    make: MakeObjective<O>,
}

type MakeObjective<O> = Box<dyn FnOnce(&Model) -> Result<O>>;

impl<O: Objective> FixedDataRows<O> {
    /// Reads and tokenises the rows; `supervise` says which tokens are trained on.
    pub fn open(
        ground: &DataContext,
        supervise: Supervise,
        make: impl FnOnce(&Model) -> Result<O> + 'static,
    ) -> Result<Self> {
        let (train, valid) = ground.open::<O::Item>(supervise)?;
        let lengths = train.lengths().to_vec();
        let loader = Loader::new(lengths, train.mix(), ground.batch, ground.shuffle, ground.seed)?;
        Ok(Self { train, valid, loader, budget: ground.batch.tokens, make: Box::new(make) })
    }
}

impl<O: Objective + 'static> MethodRows for FixedDataRows<O> {
    fn train(&self) -> SplitStatistics<'_> {
        (&self.train).into()
    }

    fn valid(&self) -> Option<SplitStatistics<'_>> {
        self.valid.as_ref().map(Into::into)
    }

    fn longest_row(&self) -> usize {
        let mut loader = self.loader.clone();
        let total = |row: &Vec<usize>| row.iter().map(|&i| self.train.lengths()[i] as usize).sum::<usize>();
        (0..loader.steps_per_epoch()).filter_map(|_| loader.next().rows.iter().map(total).max()).max().unwrap_or(0)
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        self.loader.steps_for(epochs)
    }

    fn duplicates(&self) -> Duplicates {
        inspect::find_duplicates(&self.train)
    }

    fn overlap(&self) -> Option<SplitOverlap> {
        self.valid.as_ref().map(|valid| inspect::find_overlap(&self.train, valid))
    }

    fn preview(&self, most: usize) -> Result<Vec<Example>> {
        let rows = self.train.iter().take(most).map(|item| item.map(|item| item.to_examples()));
        Ok(rows.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn method(self: Box<Self>, model: &Model) -> Result<Box<dyn Method>> {
        let Self { train, valid, loader, budget, make } = *self;
        let mut objective = make(model)?;
        objective.prepare_data(model, &train, valid.as_ref())?;
        Ok(Box::new(FixedDataMethod { objective, train, valid, loader, budget, recent: RecentSteps::default() }))
    }
}

/// A method on a fixed data set.
pub struct FixedDataMethod<O: Objective> {
    objective: O,
    train: Dataset<O::Item>,
    valid: Option<Dataset<O::Item>>,
    loader: Loader,
    budget: usize,
    recent: RecentSteps<FixedDataStep<O::Shared>>,
}

/// An optimiser step.
struct FixedDataStep<S> {
    /// The items of each packed row, as indices into the data set.
    rows: Vec<Vec<usize>>,
    /// Epochs done before and after the step.
    epoch: (f64, f64),
    /// What the batches share.
    shared: S,
}

/// Reads items of a data set and packs them into one row.
fn batch<O: Objective>(
    objective: &mut O,
    model: &Model,
    rows: &Dataset<O::Item>,
    which: BatchIndices,
    shared: &O::Shared,
) -> Result<Box<dyn MicroBatch>> {
    let items = which.items.iter().map(|&i| rows.get(i)).collect::<Result<Vec<_>>>()?;
    objective.batch(model, &items, which, shared)
}

impl<O: Objective> Method for FixedDataMethod<O> {
    fn next_step(&mut self, model: &Model) -> Result<TrainingStep> {
        let before = self.loader.epoch();
        let crate::data::batch::StepRows { rows, epoch } = self.loader.next();
        let shared = self.objective.prepare_batches(model, Split::Train, &self.train, &rows)?;
        self.recent.push(FixedDataStep { rows, epoch: (before, epoch), shared });
        self.repeat_step(model, 0)
    }

    /// Makes all micro-batches at once: only then is the number of their items known.
    fn repeat_step(&mut self, model: &Model, back: usize) -> Result<TrainingStep> {
        let FixedDataStep { rows, epoch: (before, after), shared } = self.recent.get(back)?;
        let mut batches = Vec::with_capacity(rows.len());
        for (row, items) in rows.iter().enumerate() {
            let which = BatchIndices { split: Split::Train, row, items, epoch: *before };
            batches.push(batch(&mut self.objective, model, &self.train, which, shared)?);
        }
        Ok(TrainingStep::of(batches, *after))
    }

    fn validate(&mut self, model: &Model) -> Result<Option<Means>> {
        let Some(valid) = &self.valid else { return Ok(None) };
        let order: Vec<u32> = (0..valid.len() as u32).collect();
        let packed = crate::data::batch::pack(valid.lengths(), &order, self.budget);
        let shared = self.objective.prepare_batches(model, Split::Valid, valid, &packed)?;
        let mut metrics = Metrics::default();
        let bar = report::bar(order.len() as u64, "validation rows");
        for (row, items) in packed.iter().enumerate() {
            let which = BatchIndices { split: Split::Valid, row, items, epoch: self.loader.epoch() };
            let batch = batch(&mut self.objective, model, valid, which, &shared)?;
            metrics.merge(model.infer(batch.tokens(), |out| batch.loss(out))?.metrics);
            bar.inc(items.len() as u64);
        }
        bar.finish_and_clear();
        Ok(Some(metrics.means().into_iter().map(|(k, v)| (k.to_string(), v)).collect()))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.objective.alarms(means)
    }

    fn prompts(&self, most: usize) -> Vec<SamplePrompt> {
        if !self.objective.generates_text() {
            return Vec::new();
        }
        let prompt = |item: O::Item| {
            let e = item.to_examples().into_iter().next()?;
            let from = e.supervised.iter().position(|s| *s).unwrap_or(e.ids.len());
            let to = e.supervised[from..].iter().position(|s| !s).map_or(e.ids.len(), |n| from + n);
            Some(SamplePrompt { ids: e.ids[..from].to_vec(), answer: e.ids[from..to].to_vec() })
        };
        let rows = self.valid.as_ref().filter(|v| !v.is_empty()).unwrap_or(&self.train);
        rows.iter().flatten().filter_map(prompt).filter(|p| !p.ids.is_empty()).take(most).collect()
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        self.loader.steps_for(epochs)
    }

    fn cursor(&self) -> LoaderCursor {
        self.loader.cursor()
    }

    fn rewind(&mut self, at: LoaderCursor) -> Result<()> {
        self.loader.rewind(at)
    }

    fn parameters(&self) -> Vec<Param> {
        self.objective.parameters()
    }

    fn state(&self) -> StateTensors {
        self.objective.state()
    }

    fn restore(&mut self, state: StateTensors) -> Result<()> {
        self.objective.restore(state)
    }

    fn finish(&mut self, model: &Model, out: &Path) -> Result<()> {
        self.objective.finish(model, self.valid.as_ref(), out)
    }
}
