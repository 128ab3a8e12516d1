//! Packs several examples into one row, so that no token of a step is padding.
//!
//! First fit over a few open rows, in the given order: examples are not sorted by length. When too many rows are open,
//! the oldest is closed, so that the rows of an epoch stay in about the order of their examples.

/// Maximum number of open rows. With more, rows are fuller but combine examples from further apart; with 64, rows are
/// about 99 % full.
const OPEN_ROWS: usize = 64;

/// Packs the examples of `order` into rows of example indices: every index once, with at most `budget` tokens per row.
///
/// Panics if an example is longer than `budget`; the loader refuses such examples before.
pub fn pack(lengths: &[u32], order: &[u32], budget: usize) -> Vec<Vec<usize>> {
    let mut rows = Vec::new();
    pack_into(lengths, order, budget, |row| rows.push(row.iter().map(|i| *i as usize).collect()));
    rows
}

/// As [`pack`], but passes each row to `done` as soon as it is closed.
pub(super) fn pack_into(lengths: &[u32], order: &[u32], budget: usize, mut done: impl FnMut(&[u32])) {
    let mut open: std::collections::VecDeque<(usize, Vec<u32>)> = std::collections::VecDeque::new();
    for &i in order {
        let length = lengths[i as usize] as usize;
        assert!(length <= budget, "example {i} of {length} tokens does not fit into a row of {budget}");
        match open.iter_mut().find(|(room, _)| *room >= length) {
            Some((room, row)) => {
                *room -= length;
                row.push(i);
            }
            None => {
                if open.len() == OPEN_ROWS
                    && let Some((_, row)) = open.pop_front()
                {
                    done(&row);
                }
                open.push_back((budget - length, vec![i]));
            }
        }
    }
    open.iter().for_each(|(_, row)| done(row));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn every_example_once_and_no_row_above_budget() {
        let mut rng = crate::rng::stream(1, "pack test", 0);
        for round in 0..200 {
            let budget = rng.random_range(8..300);
            let lengths: Vec<u32> =
                (0..rng.random_range(1..400)).map(|_| rng.random_range(1..=budget) as u32).collect();
            let order: Vec<u32> = (0..lengths.len() as u32).rev().collect();
            let rows = pack(&lengths, &order, budget);
            let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>(), "round {round}");
            for row in &rows {
                assert!(
                    !row.is_empty() && row.iter().map(|i| lengths[*i] as usize).sum::<usize>() <= budget,
                    "round {round}"
                );
            }
            // First fit never leaves two neighbouring rows that would fit into one.
            for pair in rows.windows(2) {
                let total: usize = pair.iter().flatten().map(|i| lengths[*i] as usize).sum();
                assert!(total > budget, "round {round}: rows {pair:?} fit into one of {budget}");
            }
        }
    }

    #[test]
    fn the_order_decides() {
        assert_eq!(pack(&[5, 5, 3, 2], &[0, 1, 2, 3], 10), [vec![0, 1], vec![2, 3]]);
        assert_eq!(pack(&[5, 5, 3, 2], &[3, 2, 1, 0], 10), [vec![3, 2, 1], vec![0]]);
        assert_eq!(pack(&[10, 1], &[0, 1], 10), [vec![0], vec![1]]);
        assert!(pack(&[], &[], 10).is_empty());
    }

    #[test]
    fn rows_are_well_filled() {
        let mut rng = crate::rng::stream(2, "pack test", 0);
        let lengths: Vec<u32> = (0..20_000).map(|_| rng.random_range(20..500)).collect();
        let order: Vec<u32> = (0..lengths.len() as u32).collect();
        let rows = pack(&lengths, &order, 2048);
        let share = lengths.iter().sum::<u32>() as f64 / (rows.len() * 2048) as f64;
        assert!(share > 0.98, "rows are {share:.3} full");
    }
}
