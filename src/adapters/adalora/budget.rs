//! How many parts of all updates together may remain after each step (Zhang et al. 2023, arXiv 2303.10512, equation 12).

use crate::error::{Error, Result};

/// The schedule of the budget: all ranks at first, then a cubic fall, then the target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Steps of the run.
    total: u64,
    /// Steps before the fall begins.
    initial: u64,
    /// Steps after it ends.
    last: u64,
    /// Steps between two allocations.
    every: u64,
    /// The sum of ranks at first and at the end.
    ranks: [i64; 2],
}

impl Budget {
    /// Plans a run of `total` steps. Fails if no step is left for the fall.
    pub fn new(total: u64, initial: u64, last: u64, every: u64, ranks: [i64; 2]) -> Result<Self> {
        if initial + last >= total {
            return Err(Error::user(format!(
                "adapter.adalora: initial_steps {initial} and final_steps {last} leave no step of {total} in which ranks fall"
            ))
            .hint("lower initial_steps or final_steps, or train longer"));
        }
        Ok(Self { total, initial, last, every: every.max(1), ranks })
    }

    /// Returns the step of the last allocation.
    fn end(&self) -> u64 {
        self.total - self.last
    }

    /// Returns true before the last allocation: importance is still measured.
    pub fn allocates_later(&self, step: u64) -> bool {
        step < self.end()
    }

    /// Returns true once the last allocation decides.
    pub fn is_final(&self, step: u64) -> bool {
        step >= self.end()
    }

    /// Returns the budget if ranks are allocated after `step`, counted from 1.
    pub fn at(&self, step: u64) -> Option<i64> {
        let due = step == self.end() || (step > self.initial && step < self.end() && step.is_multiple_of(self.every));
        let [first, target] = self.ranks;
        let left = 1.0 - (step.saturating_sub(self.initial)) as f64 / (self.end() - self.initial) as f64;
        due.then(|| ((first - target) as f64 * left.powi(3) + target as f64) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    /// The numbers of PEFT's `budget_schedule`, whose last allocation is forced.
    #[test]
    fn the_budget_falls_as_in_peft() {
        let budget = Budget::new(10, 2, 3, 2, [24, 8]).unwrap();
        let found: Vec<Option<i64>> = (1..=10).map(|step| budget.at(step)).collect();
        let expected = [None, None, None, Some(11), None, Some(8), Some(8), None, None, None];
        assert_eq!(found, expected);
        assert!(budget.is_final(8) && budget.allocates_later(6) && !budget.allocates_later(7));
        assert!(Budget::new(10, 7, 3, 1, [24, 8]).is_err());
    }
}
