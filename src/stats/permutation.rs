//! Tests whether groups of rows differ, by permutations of the labels.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A row: its value, the number of its group, and the number of the block that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledValue {
    /// The value.
    pub value: f64,
    /// The group, from 0.
    pub group: usize,
    /// The block: rows that depend on each other.
    pub block: usize,
}

/// Computes the largest difference between means of groups; `None` if a group has no rows, or if there is only one group.
pub fn largest_gap(rows: &[LabelledValue], groups: usize) -> Option<f64> {
    let mut sums = vec![(0.0, 0.0); groups];
    for row in rows {
        sums[row.group].0 += row.value;
        sums[row.group].1 += 1.0;
    }
    gap_of(sums.iter().map(|(sum, count)| (*count > 0.0).then(|| sum / count)))
}

/// Returns the largest difference between values; `None` if one is missing, or if there are fewer than two.
pub fn gap_of(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values = values.collect::<Option<Vec<f64>>>().filter(|values| values.len() > 1)?;
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
    Some(high - low)
}

/// Computes the probability of a largest gap that is at least as large as the observed one if the labels are exchangeable (Fisher 1935):
/// `draws` random exchanges, and the observed labels as one more. Labels are exchanged within blocks if any block has rows of several
/// groups, else among whole blocks, whose rows depend on each other. `None` as for [`largest_gap`].
pub fn gap_test(rows: &[LabelledValue], groups: usize, draws: usize, rng: &mut ChaCha8Rng) -> Option<f64> {
    let observed = largest_gap(rows, groups)?;
    // Sums of the same numbers in another order differ in their last bits.
    let reached = |gap: f64| usize::from(gap >= observed - 1e-12 * observed.abs().max(1.0));
    let mut blocks: std::collections::BTreeMap<usize, Vec<usize>> = std::collections::BTreeMap::new();
    rows.iter().enumerate().for_each(|(i, row)| blocks.entry(row.block).or_default().push(i));
    let blocks: Vec<Vec<usize>> = blocks.into_values().collect();
    let group_of = |block: &Vec<usize>| rows[block[0]].group;
    let within = blocks.iter().any(|block| block.iter().any(|i| rows[*i].group != group_of(block)));
    let mut drawn = rows.to_vec();
    let mut count = 0;
    for _ in 0..draws {
        if within {
            for block in &blocks {
                let mut labels: Vec<usize> = block.iter().map(|i| rows[*i].group).collect();
                labels.shuffle(rng);
                block.iter().zip(labels).for_each(|(i, label)| drawn[*i].group = label);
            }
        } else {
            let mut labels: Vec<usize> = blocks.iter().map(group_of).collect();
            labels.shuffle(rng);
            blocks.iter().zip(labels).for_each(|(block, label)| block.iter().for_each(|i| drawn[*i].group = label));
        }
        count += largest_gap(&drawn, groups).map_or(0, reached);
    }
    Some((count + 1) as f64 / (draws + 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(rows: &[(f64, usize, usize)]) -> Option<f64> {
        let rows: Vec<LabelledValue> = rows
            .iter()
            .map(|(value, group, block)| LabelledValue { value: *value, group: *group, block: *block })
            .collect();
        gap_test(&rows, 2, 20_000, &mut crate::rng::stream(5, "test", 0))
    }

    #[test]
    fn labels_are_exchanged_among_all_rows_without_blocks() {
        // Of 20 ways to choose three of six rows, 2 have the largest gap.
        let apart: Vec<_> = (0..6).map(|i| (f64::from(i), usize::from(i > 2), i as usize)).collect();
        let p = test(&apart).unwrap();
        assert!((p - 0.1).abs() < 0.01, "{p}");
        assert_eq!(test(&[(1.0, 0, 0), (1.0, 1, 1)]), Some(1.0));
        assert_eq!(test(&[(1.0, 0, 0), (2.0, 0, 1)]), None, "the second group has no rows");
    }

    #[test]
    fn blocks_of_one_group_are_exchanged_as_wholes() {
        // Six blocks of four equal rows, three of each group: 2 of 20 exchanges, as if each block were one row.
        let blocks: Vec<_> = (0..24).map(|i| (f64::from(i / 4), usize::from(i / 4 > 2), (i / 4) as usize)).collect();
        let p = test(&blocks).unwrap();
        assert!((p - 0.1).abs() < 0.01, "{p}");
    }

    #[test]
    fn pairs_exchange_labels_within_themselves() {
        // Six pairs, each with the same sign: 2 of 64 exchanges reach it, although the pairs lie far apart.
        let pairs: Vec<_> =
            (0..12).map(|i| (f64::from(i / 2 * 10 + i % 2), (i % 2) as usize, (i / 2) as usize)).collect();
        let p = test(&pairs).unwrap();
        assert!((p - 2.0 / 64.0).abs() < 0.006, "{p}");
    }
}
