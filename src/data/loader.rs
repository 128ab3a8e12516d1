//! Which examples make each optimiser step: a function of (lengths, plan, seed, epoch) and nothing else.
//!
//! Invariant: every example once an epoch, and the same steps after `rewind` as without it. The last step of an epoch
//! may be smaller; it is kept. Knows lengths only: no tokens, no tensors.

use super::pack;
use crate::error::{Error, Result};
use crate::rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// How examples become steps. Give `accumulate` or `examples`; neither means one packed row a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Tokens in one packed row.
    pub tokens: usize,
    /// Packed rows per step.
    pub accumulate: Option<usize>,
    /// Examples per step, in as many rows as they need.
    pub examples: Option<usize>,
}

/// Where a loader stands: all that a checkpoint must keep of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    pub epoch: u64,
    /// Steps of this epoch already handed out.
    pub step_in_epoch: u64,
}

/// One optimiser step: rows of example indexes.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub rows: Vec<Vec<usize>>,
    /// Epochs done after this step: 1.5 is halfway through the second.
    pub epoch: f64,
}

/// Hands out steps without end, epoch after epoch.
#[derive(Debug, Clone)]
pub struct Loader {
    lengths: Vec<usize>,
    plan: BatchPlan,
    shuffle: bool,
    seed: u64,
    cursor: Cursor,
    steps: Vec<Vec<Vec<usize>>>,
}

impl Loader {
    /// A loader at the beginning of the first epoch.
    pub fn new(lengths: Vec<usize>, plan: BatchPlan, shuffle: bool, seed: u64) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::user("there are no examples to make steps of"));
        }
        if plan.accumulate.is_some() && plan.examples.is_some() {
            return Err(Error::user("batch.accumulate and batch.examples both say how large a step is")
                .hint("keep one of them"));
        }
        if plan.accumulate == Some(0) || plan.examples == Some(0) {
            return Err(Error::user("batch.accumulate and batch.examples must be at least 1"));
        }
        let longest = lengths.iter().copied().max().unwrap_or_default();
        if longest > plan.tokens {
            return Err(Error::user(format!(
                "the longest example has {longest} tokens, a packed row holds {}",
                plan.tokens
            ))
            .hint(format!("set batch.tokens to {longest} or more, or lower batch.max_len")));
        }
        let steps = steps_of(&lengths, plan, shuffle, seed, 0);
        Ok(Self { lengths, plan, shuffle, seed, cursor: Cursor::default(), steps })
    }

    /// The next step; after the last of an epoch comes the first of the next.
    #[allow(clippy::should_implement_trait)] // an iterator would promise an end
    pub fn next(&mut self) -> Step {
        if self.cursor.step_in_epoch >= self.steps.len() as u64 {
            self.enter(Cursor { epoch: self.cursor.epoch + 1, step_in_epoch: 0 });
        }
        let rows = self.steps[self.cursor.step_in_epoch as usize].clone();
        self.cursor.step_in_epoch += 1;
        Step { rows, epoch: self.cursor.epoch as f64 + self.cursor.step_in_epoch as f64 / self.steps.len() as f64 }
    }

    /// Steps of the current epoch. With `accumulate`, a new order may pack into a row more or less.
    pub fn steps_per_epoch(&self) -> usize {
        self.steps.len()
    }

    /// Steps of the first `epochs` epochs, exactly; a part of an epoch is rounded up.
    pub fn steps_for(&self, epochs: f64) -> u64 {
        let whole = epochs.floor();
        let steps_in = |epoch| steps_of(&self.lengths, self.plan, self.shuffle, self.seed, epoch).len() as u64;
        let total: u64 = if self.shuffle && self.plan.examples.is_none() {
            (0..whole as u64).map(steps_in).sum()
        } else {
            whole as u64 * self.steps.len() as u64
        };
        let rest = epochs - whole;
        total + if rest > 0.0 { (rest * steps_in(whole as u64) as f64 - 1e-9).ceil() as u64 } else { 0 }
    }

    /// Where the loader stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to where a loader with the same lengths, plan and seed stood.
    pub fn rewind(&mut self, at: Cursor) -> Result<()> {
        self.enter(at);
        if at.step_in_epoch > self.steps.len() as u64 {
            let found = self.steps.len();
            self.enter(Cursor::default());
            return Err(Error::user(format!(
                "the checkpoint stands at step {} of an epoch that has {found}",
                at.step_in_epoch
            ))
            .hint("data or batch sizes changed since; start a new run"));
        }
        Ok(())
    }

    fn enter(&mut self, at: Cursor) {
        if at.epoch != self.cursor.epoch {
            self.steps = steps_of(&self.lengths, self.plan, self.shuffle, self.seed, at.epoch);
        }
        self.cursor = at;
    }
}

fn steps_of(lengths: &[usize], plan: BatchPlan, shuffle: bool, seed: u64, epoch: u64) -> Vec<Vec<Vec<usize>>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    if shuffle {
        order.shuffle(&mut rng::stream(seed, "shuffle", epoch));
    }
    match plan.examples {
        Some(n) => order.chunks(n).map(|part| pack(lengths, part, plan.tokens)).collect(),
        None => pack(lengths, &order, plan.tokens).chunks(plan.accumulate.unwrap_or(1)).map(<[_]>::to_vec).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths() -> Vec<usize> {
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
            let mut loader = Loader::new(lengths(), plan, true, 7).unwrap();
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
            let mut straight = Loader::new(lengths(), plan, true, 7).unwrap();
            for _ in 0..31 {
                straight.next();
            }
            let text = serde_json::to_string(&straight.cursor()).unwrap();
            let mut resumed = Loader::new(lengths(), plan, true, 7).unwrap();
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
                let mut loader = Loader::new(lengths(), plan, true, 3).unwrap();
                let n = loader.steps_for(epochs);
                let last = (0..n).map(|_| loader.next().epoch).last().unwrap();
                assert!(last >= epochs - 1e-9 && last < epochs + 0.2, "{n} steps reach {last}, not {epochs}");
            }
        }
    }

    #[test]
    fn examples_per_step_are_as_asked() {
        let plan = BatchPlan { tokens: 128, accumulate: None, examples: Some(8) };
        let mut loader = Loader::new(lengths(), plan, false, 7).unwrap();
        let sizes: Vec<usize> = (0..13).map(|_| loader.next().rows.iter().map(Vec::len).sum()).collect();
        assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 1]);
    }

    #[test]
    fn impossible_plans_say_what_to_do() {
        let plan = BatchPlan { tokens: 32, accumulate: None, examples: None };
        let e = Loader::new(lengths(), plan, true, 7).unwrap_err();
        assert!(e.to_string().contains("63 tokens") && e.to_string().contains("batch.tokens"), "{e}");
        assert!(Loader::new(vec![], plan, true, 7).is_err());
        let mut loader = Loader::new(vec![4; 10], plan, true, 7).unwrap();
        assert!(loader.rewind(Cursor { epoch: 1, step_in_epoch: 999 }).is_err());
    }
}
