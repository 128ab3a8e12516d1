//! Decides what an optimiser step on sampled answers consists of: which answers are run (`mini_batch`, `choose`), which
//! of them share a packed row (`pack`), and what each row counts (`weigh`). Pure functions on numbers, without tensors
//! or models.

use super::answer::SampledAnswer;
use super::objective::{LossUnit, SkippedAnswers};

/// What the decision needs to know of a sampled answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RolloutCandidate {
    /// Number of tokens of prompt and answer.
    pub tokens: usize,
    /// Number of tokens of the answer.
    pub length: usize,
    /// How much better it is than the others to its prompt.
    pub advantage: f64,
    /// False if it was truncated at the maximum length.
    pub ended: bool,
}

impl RolloutCandidate {
    /// Describes an answer that has no advantage yet.
    pub fn of(sample: &SampledAnswer) -> Self {
        Self { tokens: sample.ids.len(), length: sample.length(), advantage: 0.0, ended: sample.ended }
    }
}

/// Which answers are left out of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filters {
    /// Leave truncated answers out of the loss.
    pub mask_truncated: bool,
    /// Leave answers with advantage 0 out of the forward pass. They add no gradient, but count in every mean.
    pub skip_zero_advantage: bool,
}

/// What becomes of the answers of a mini-batch: each is in exactly one of the three lists. Indices of candidates.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selection {
    /// Answers in the forward pass.
    pub run: Vec<usize>,
    /// Answers that only count in the means.
    pub skipped: Vec<usize>,
    /// Truncated answers that the loss leaves out.
    pub masked: Vec<usize>,
    /// True if the loss leaves out every answer. One is run nevertheless, with a loss of zero: the step still needs a
    /// forward pass.
    pub placeholder: bool,
}

/// Returns one of `parts` parts of `order`. The parts cover it, and their sizes differ by at most 1.
pub fn mini_batch(order: &[usize], part: usize, parts: usize) -> &[usize] {
    &order[part * order.len() / parts..(part + 1) * order.len() / parts]
}

/// Decides which answers of a mini-batch are run. If no answer has an advantage, the shortest one is run, so that the
/// step has a forward pass and metrics; if every answer is truncated and masked, the shortest of these is run as a
/// placeholder.
pub fn choose(candidates: &[RolloutCandidate], mini_batch: &[usize], filters: Filters) -> Selection {
    let mut found = Selection::default();
    for &i in mini_batch {
        let RolloutCandidate { advantage, ended, .. } = candidates[i];
        let list = match (filters.mask_truncated && !ended, filters.skip_zero_advantage && advantage == 0.0) {
            (true, _) => &mut found.masked,
            (false, true) => &mut found.skipped,
            (false, false) => &mut found.run,
        };
        list.push(i);
    }
    if found.run.is_empty() {
        found.placeholder = found.skipped.is_empty();
        let from = if found.placeholder { &mut found.masked } else { &mut found.skipped };
        if let Some(shortest) = (0..from.len()).min_by_key(|&place| candidates[from[place]].tokens) {
            found.run.push(from.remove(shortest));
        }
    }
    found
}

/// Decides which of the answers `run` share a packed row of at most `budget` tokens. Panics if one is longer.
pub fn pack(candidates: &[RolloutCandidate], run: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let lengths: Vec<u32> = candidates.iter().map(|c| c.tokens as u32).collect();
    let order: Vec<u32> = run.iter().map(|i| *i as u32).collect();
    crate::data::batch::pack(&lengths, &order, budget)
}

/// What the packed rows of a step count.
#[derive(Debug, Clone, PartialEq)]
pub struct StepWeights {
    /// Items of the step, at least 1: what the loss is averaged over.
    pub items: f64,
    /// Items of each row; together they are `items`.
    pub rows: Vec<f64>,
    /// Items of the step divided by its tokens: the weight of one token in a mean over tokens.
    pub per_token: f64,
    /// The answers that are not run; the last row counts them.
    pub skipped: SkippedAnswers,
}

/// Computes what each row counts: its own tokens or answers. The last row also counts what no row contains: skipped
/// answers, and where answers are counted, masked ones.
pub fn weigh(
    candidates: &[RolloutCandidate],
    selection: &Selection,
    rows: &[Vec<usize>],
    unit: LossUnit,
) -> StepWeights {
    let Selection { run, skipped, masked, placeholder } = selection;
    let tokens_of = |answers: &[usize]| answers.iter().map(|i| candidates[*i].length as f64).sum::<f64>();
    let trained = if *placeholder { &[][..] } else { run };
    let tokens = tokens_of(trained) + tokens_of(skipped);
    let items = match unit {
        LossUnit::Tokens => tokens,
        LossUnit::Sequences => (run.len() + skipped.len() + masked.len()) as f64,
    }
    .max(1.0);
    let mut left = items;
    let mut weights = Vec::with_capacity(rows.len());
    for (n, row) in rows.iter().enumerate() {
        let own = match unit {
            _ if n + 1 == rows.len() => left,
            LossUnit::Tokens => tokens_of(row),
            LossUnit::Sequences => row.len() as f64,
        };
        left -= own;
        weights.push(own);
    }
    let skipped = SkippedAnswers { sequences: skipped.len() as f64, tokens: tokens_of(skipped) };
    StepWeights { items, rows: weights, per_token: items / tokens.max(1.0), skipped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate() -> impl Strategy<Value = RolloutCandidate> {
        (1usize..40, 1usize..24, prop_oneof![Just(0.0), -1.0f64..1.0], any::<bool>()).prop_map(
            |(prompt, length, advantage, ended)| RolloutCandidate { tokens: prompt + length, length, advantage, ended },
        )
    }

    fn filters() -> impl Strategy<Value = Filters> {
        (any::<bool>(), any::<bool>())
            .prop_map(|(mask_truncated, skip_zero_advantage)| Filters { mask_truncated, skip_zero_advantage })
    }

    fn unit() -> impl Strategy<Value = LossUnit> {
        prop_oneof![Just(LossUnit::Tokens), Just(LossUnit::Sequences)]
    }

    fn sorted(mut indices: Vec<usize>) -> Vec<usize> {
        indices.sort_unstable();
        indices
    }

    proptest! {
        #[test]
        fn mini_batches_cover_every_answer_once(n in 0usize..50, parts in 1usize..9) {
            let order: Vec<usize> = (0..n).rev().collect();
            let all: Vec<usize> = (0..parts).flat_map(|part| mini_batch(&order, part, parts).to_vec()).collect();
            prop_assert_eq!(all, order);
        }

        #[test]
        fn every_answer_is_counted_once(all in prop::collection::vec(candidate(), 1..30), filters in filters()) {
            let chosen: Vec<usize> = (0..all.len()).step_by(2).collect();
            let Selection { run, skipped, masked, placeholder } = choose(&all, &chosen, filters);
            prop_assert!(!run.is_empty());
            prop_assert_eq!(placeholder, filters.mask_truncated && chosen.iter().all(|i| !all[*i].ended));
            prop_assert!(skipped.iter().all(|i| all[*i].advantage == 0.0 && filters.skip_zero_advantage));
            prop_assert!(masked.iter().all(|i| !all[*i].ended && filters.mask_truncated));
            prop_assert_eq!(sorted([run, skipped, masked].concat()), chosen);
        }

        #[test]
        fn no_packed_row_is_over_its_budget(all in prop::collection::vec(candidate(), 1..30), budget in 64usize..200) {
            let run: Vec<usize> = (0..all.len()).rev().collect();
            let rows = pack(&all, &run, budget);
            for row in &rows {
                prop_assert!(row.iter().map(|i| all[*i].tokens).sum::<usize>() <= budget);
            }
            prop_assert_eq!(sorted(rows.concat()), sorted(run));
        }

        #[test]
        fn the_weights_add_up_to_the_items_of_the_step(
            all in prop::collection::vec(candidate(), 1..30),
            filters in filters(),
            unit in unit(),
        ) {
            let chosen: Vec<usize> = (0..all.len()).collect();
            let selection = choose(&all, &chosen, filters);
            let rows = pack(&all, &selection.run, 64);
            let weights = weigh(&all, &selection, &rows, unit);
            let counted = |i: &&usize| !filters.mask_truncated || all[**i].ended;
            let tokens: usize = chosen.iter().filter(counted).map(|i| all[*i].length).sum();
            let items = if unit == LossUnit::Tokens { tokens.max(1) } else { all.len() };
            prop_assert_eq!(weights.items, items as f64);
            prop_assert_eq!(weights.rows.iter().sum::<f64>(), weights.items);
            prop_assert_eq!(weights.per_token, items as f64 / tokens.max(1) as f64);
            // The metrics are means over the tokens of rows and of skipped answers.
            if !selection.placeholder {
                let run: usize = rows.concat().iter().map(|i| all[*i].length).sum();
                prop_assert_eq!(run as f64 + weights.skipped.tokens, tokens as f64);
            }
        }
    }

    #[test]
    fn a_step_without_a_usable_answer_runs_the_shortest() {
        let answer = |tokens, advantage, ended| RolloutCandidate { tokens, length: 2, advantage, ended };
        let all = [answer(9, 0.0, true), answer(5, 0.0, true), answer(3, 1.0, false), answer(4, 0.0, false)];
        let filters = Filters { mask_truncated: true, skip_zero_advantage: true };
        let found = choose(&all, &[0, 1, 2, 3], filters);
        assert_eq!(found, Selection { run: vec![1], skipped: vec![0], masked: vec![2, 3], placeholder: false });
        let found = choose(&all, &[2, 3], filters);
        assert_eq!(found, Selection { run: vec![2], skipped: vec![], masked: vec![3], placeholder: true });
        assert_eq!(choose(&all, &[], filters), Selection { placeholder: true, ..Selection::default() });
    }
}
