//! Decides which examples make each optimiser step: a function of (lengths, mix, plan, seed, epoch) only.
//!
//! Invariant: every example occurs once per epoch (or as often as the mix says), and the steps after `rewind` are the
//! same as in an uninterrupted run. The last step of an epoch may be smaller; it is not dropped. Uses lengths only: no
//! tokens, no tensors.

use super::mix::SourceMix;
use super::pack::pack_into;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How examples are grouped into steps. Set `accumulate` or `examples`; with neither, each packed row is a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Maximum number of tokens in one packed row.
    pub tokens: usize,
    /// Packed rows per step.
    pub accumulate: Option<usize>,
    /// Examples per step, packed into as few rows as possible.
    pub examples: Option<usize>,
}

/// The position of a loader: everything a checkpoint must store to resume it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderCursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Number of steps of this epoch that were returned already.
    pub step_in_epoch: u64,
}

/// The packed rows of one optimiser step, each a list of example indices.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRows {
    /// The packed rows, each a list of example indices.
    pub rows: Vec<Vec<usize>>,
    /// Epochs completed after this step; 1.5 is halfway through the second.
    pub epoch: f64,
}

/// Returns steps without end, epoch after epoch.
#[derive(Debug, Clone)]
pub struct Loader {
    lengths: Vec<u32>,
    mix: SourceMix,
    plan: BatchPlan,
    shuffle: bool,
    seed: u64,
    cursor: LoaderCursor,
    steps: EpochSteps,
}

impl Loader {
    /// Creates a loader at the beginning of the first epoch.
    ///
    /// Errors: there are no examples, the plan contradicts itself, or an example is longer than a packed row.
    pub fn new(lengths: Vec<u32>, mix: SourceMix, plan: BatchPlan, shuffle: bool, seed: u64) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::user("there are no examples to train on"));
        }
        if plan.accumulate.is_some() && plan.examples.is_some() {
            return Err(
                Error::user("batch.accumulate and batch.examples both set the size of a step").hint("keep one of them")
            );
        }
        if plan.accumulate == Some(0) || plan.examples == Some(0) {
            return Err(Error::user("batch.accumulate and batch.examples must be at least 1"));
        }
        let longest = lengths.iter().copied().max().unwrap_or_default() as usize;
        if longest > plan.tokens {
            return Err(Error::user(format!(
                "the longest example has {longest} tokens; batch.tokens allows {} per packed row",
                plan.tokens
            ))
            .hint(format!("set batch.tokens to {longest} or more, or lower batch.max_len")));
        }
        let mut loader =
            Self { lengths, mix, plan, shuffle, seed, cursor: LoaderCursor::default(), steps: EpochSteps::default() };
        loader.steps = loader.epoch_steps(0);
        Ok(loader)
    }

    /// Returns the next step; the last step of an epoch is followed by the first of the next epoch.
    #[allow(clippy::should_implement_trait)] // an iterator would promise an end
    pub fn next(&mut self) -> StepRows {
        if self.cursor.step_in_epoch >= self.steps.len() as u64 {
            self.move_to(LoaderCursor { epoch: self.cursor.epoch + 1, step_in_epoch: 0 });
        }
        let rows = self.steps.get(self.cursor.step_in_epoch as usize);
        self.cursor.step_in_epoch += 1;
        StepRows { rows, epoch: self.cursor.epoch as f64 + self.cursor.step_in_epoch as f64 / self.steps.len() as f64 }
    }

    /// Returns the number of steps of the current epoch. With `accumulate`, another order of examples may need a row
    /// more or less.
    pub fn steps_per_epoch(&self) -> usize {
        self.steps.len()
    }

    /// Returns the exact number of steps of the first `epochs` epochs; a fraction of an epoch is rounded up.
    pub fn steps_for(&self, epochs: f64) -> u64 {
        let whole = epochs.floor();
        let steps_in = |epoch| match epoch == self.cursor.epoch {
            true => self.steps.len() as u64,
            false => self.epoch_steps(epoch).len() as u64,
        };
        let total: u64 =
            if self.varies() { (0..whole as u64).map(steps_in).sum() } else { whole as u64 * self.steps.len() as u64 };
        let rest = epochs - whole;
        total + if rest > 0.0 { (rest * steps_in(whole as u64) as f64 - 1e-9).ceil() as u64 } else { 0 }
    }

    /// Returns true if epochs may differ in their number of steps.
    fn varies(&self) -> bool {
        self.plan.examples.is_none() && (self.shuffle || self.mix.varies())
    }

    /// Returns the epochs completed so far; 1.5 is halfway through the second.
    pub fn epoch(&self) -> f64 {
        self.cursor.epoch as f64 + self.cursor.step_in_epoch as f64 / self.steps.len() as f64
    }

    /// Returns the position, from which [`Loader::rewind`] continues.
    pub fn cursor(&self) -> LoaderCursor {
        self.cursor
    }

    /// Moves to the position of a loader with the same lengths, plan and seed. Fails if the epoch has fewer steps than
    /// that.
    pub fn rewind(&mut self, at: LoaderCursor) -> Result<()> {
        self.move_to(at);
        if at.step_in_epoch > self.steps.len() as u64 {
            let found = self.steps.len();
            self.move_to(LoaderCursor::default());
            return Err(Error::user(format!(
                "the checkpoint is at step {} of an epoch that has {found} steps",
                at.step_in_epoch
            ))
            .hint("the data or the batch size have changed since; start a new run"));
        }
        Ok(())
    }

    fn move_to(&mut self, at: LoaderCursor) {
        if at.epoch != self.cursor.epoch {
            self.steps = self.epoch_steps(at.epoch);
        }
        self.cursor = at;
    }

    fn epoch_steps(&self, epoch: u64) -> EpochSteps {
        let order = self.mix.order(self.shuffle, self.seed, epoch);
        let mut steps = EpochSteps { items: Vec::with_capacity(order.len()), ..EpochSteps::default() };
        match self.plan.examples {
            Some(n) => {
                for part in order.chunks(n) {
                    pack_into(&self.lengths, part, self.plan.tokens, |row| steps.add_row(row));
                    steps.ends.push(steps.rows.len());
                }
            }
            None => {
                pack_into(&self.lengths, &order, self.plan.tokens, |row| steps.add_row(row));
                let (rows, n) = (steps.rows.len(), self.plan.accumulate.unwrap_or(1));
                steps.ends = (0..rows).step_by(n).map(|from| rows.min(from + n)).collect();
            }
        }
        steps
    }
}

/// The steps of an epoch in flat arrays, so that millions of examples take a few bytes each.
#[derive(Debug, Clone, Default)]
struct EpochSteps {
    /// Example indices of all rows, one row after the other.
    items: Vec<u32>,
    /// Where each row ends in `items`.
    rows: Vec<usize>,
    /// Where each step ends in `rows`.
    ends: Vec<usize>,
}

impl EpochSteps {
    fn add_row(&mut self, row: &[u32]) {
        self.items.extend(row);
        self.rows.push(self.items.len());
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, step: usize) -> Vec<Vec<usize>> {
        let before = |ends: &[usize], i: usize| i.checked_sub(1).map_or(0, |i| ends[i]);
        let row = |row: usize| {
            let items = &self.items[before(&self.rows, row)..self.rows[row]];
            items.iter().map(|i| *i as usize).collect()
        };
        (before(&self.ends, step)..self.ends[step]).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths() -> Vec<u32> {
        (0..97).map(|i| 3 + (i * 37) % 61).collect()
    }

    fn plans() -> [BatchPlan; 3] {
        [(None, None), (Some(3), None), (None, Some(8))].map(|(accumulate, examples)| BatchPlan {
            tokens: 128,
            accumulate,
            examples,
        })
    }

    #[test]
    fn an_epoch_sees_every_example_once() {
        for plan in plans() {
            let mut loader = Loader::new(lengths(), SourceMix::unweighted(97), plan, true, 7).unwrap();
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let mut seen = Vec::new();
                let mut step = loader.next();
                for k in 1.. {
                    seen.extend(step.rows.iter().flatten().copied());
                    let done = loader.cursor().step_in_epoch as usize == loader.steps_per_epoch();
                    assert_eq!(k, loader.cursor().step_in_epoch);
                    assert_eq!(done, step.epoch == epoch as f64 + 1.0);
                    if done {
                        break;
                    }
                    step = loader.next();
                }
                orders.push(seen.clone());
                seen.sort_unstable();
                assert_eq!(seen, (0..97).collect::<Vec<_>>());
            }
            assert_ne!(orders[0], orders[1]);
        }
    }

    #[test]
    fn rewinding_continues_where_it_stood() {
        for plan in plans() {
            let mut straight = Loader::new(lengths(), SourceMix::unweighted(97), plan, true, 7).unwrap();
            for _ in 0..31 {
                straight.next();
            }
            let text = serde_json::to_string(&straight.cursor()).unwrap();
            let mut resumed = Loader::new(lengths(), SourceMix::unweighted(97), plan, true, 7).unwrap();
            resumed.rewind(serde_json::from_str(&text).unwrap()).unwrap();
            for _ in 0..60 {
                assert_eq!(resumed.next(), straight.next());
            }
        }
    }

    #[test]
    fn steps_are_counted_exactly() {
        for plan in plans() {
            for epochs in [0.5, 1.0, 3.0, 2.25] {
                let mut loader = Loader::new(lengths(), SourceMix::unweighted(97), plan, true, 3).unwrap();
                let n = loader.steps_for(epochs);
                let last = (0..n).map(|_| loader.next().epoch).last().unwrap();
                assert!(last >= epochs - 1e-9 && last < epochs + 0.2, "{n} steps reach {last}, not {epochs}");
            }
        }
    }

    #[test]
    fn examples_per_step_are_as_asked() {
        let plan = BatchPlan { tokens: 128, accumulate: None, examples: Some(8) };
        let mut loader = Loader::new(lengths(), SourceMix::unweighted(97), plan, false, 7).unwrap();
        let sizes: Vec<usize> = (0..13).map(|_| loader.next().rows.iter().map(Vec::len).sum()).collect();
        assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 1]);
    }

    #[test]
    fn impossible_plans_say_what_to_do() {
        let plan = BatchPlan { tokens: 32, accumulate: None, examples: None };
        let e = Loader::new(lengths(), SourceMix::unweighted(97), plan, true, 7).unwrap_err();
        assert!(e.to_string().contains("63 tokens") && e.to_string().contains("batch.tokens"), "{e}");
        assert!(Loader::new(vec![], SourceMix::unweighted(0), plan, true, 7).is_err());
        let mut loader = Loader::new(vec![4; 10], SourceMix::unweighted(10), plan, true, 7).unwrap();
        assert!(loader.rewind(LoaderCursor { epoch: 1, step_in_epoch: 999 }).is_err());
    }
}
