//! Chooses the adapters of a greedy soup by the loss on held-out rows (Wortsman et al. 2022, arXiv 2203.05482, recipe 1).

use super::merge_losses::MergeLosses;
use crate::adapters::merging::WeightedAdapter;
use crate::error::Result;
use crate::report;
use serde::Serialize;

/// A soup with one adapter more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SoupTrial {
    /// The adapter that was added, counted from 0.
    pub adapter: usize,
    /// Loss of the mean of this adapter and those that were in the soup before.
    pub loss: f64,
    /// Whether it stays in the soup: the loss is not larger than without it.
    pub kept: bool,
}

/// A greedy soup.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GreedySoup {
    /// Loss of each adapter alone.
    pub alone: Vec<f64>,
    /// The trials in their order: the best adapter alone first.
    pub trials: Vec<SoupTrial>,
    /// The adapters in the soup, counted from 0, in ascending order.
    pub members: Vec<usize>,
    /// Loss of the soup.
    pub loss: f64,
    /// Loss of the base alone.
    pub base_loss: f64,
    /// Number of rows.
    pub rows: usize,
    /// Number of supervised tokens.
    pub tokens: usize,
}

/// Chooses the adapters of a greedy soup, and leaves the weights that were tried last in `parts`.
pub fn greedy_soup(losses: &MergeLosses, parts: &mut [WeightedAdapter]) -> Result<GreedySoup> {
    let bar = report::spinner("choosing adapters");
    let count = parts.len();
    let chosen = choose(count, |members| losses.of(parts, &equal_weights(count, members)));
    bar.finish_and_clear();
    let Choice { alone, trials, members, loss } = chosen?;
    let (base_loss, rows, tokens) = (losses.base_loss, losses.rows(), losses.tokens);
    Ok(GreedySoup { alone, trials, members, loss, base_loss, rows, tokens })
}

/// Returns the weights of `count` adapters in a soup of some of them: a share of 1 for each member.
pub fn equal_weights(count: usize, members: &[usize]) -> Vec<f64> {
    (0..count).map(|i| if members.contains(&i) { 1.0 / members.len() as f64 } else { 0.0 }).collect()
}

struct Choice {
    alone: Vec<f64>,
    trials: Vec<SoupTrial>,
    members: Vec<usize>,
    loss: f64,
}

/// Adds adapters, the best alone first, and keeps those with which the loss is not larger. `loss` gets the members of a soup.
fn choose(count: usize, mut loss: impl FnMut(&[usize]) -> Result<f64>) -> Result<Choice> {
    let alone = (0..count).map(|i| loss(&[i])).collect::<Result<Vec<f64>>>()?;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| alone[*a].total_cmp(&alone[*b]));
    let (mut members, mut best, mut trials) = (Vec::new(), f64::INFINITY, Vec::new());
    for adapter in order {
        let with: Vec<usize> = members.iter().copied().chain([adapter]).collect();
        let found = if members.is_empty() { alone[adapter] } else { loss(&with)? };
        let kept = found <= best;
        trials.push(SoupTrial { adapter, loss: found, kept });
        if kept {
            (members, best) = (with, found);
        }
    }
    members.sort_unstable();
    Ok(Choice { alone, trials, members, loss: best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_that_make_the_soup_worse_are_left_out() {
        // The loss is the distance of the mean from 0.
        let at: [f64; 5] = [4.0, 1.0, -3.0, -1.0, 1.0];
        let mut asked = Vec::new();
        let choice = choose(at.len(), |members| {
            asked.push(members.to_vec());
            Ok((members.iter().map(|i| at[*i]).sum::<f64>() / members.len() as f64).abs())
        })
        .unwrap();
        assert_eq!(choice.alone, [4.0, 1.0, 3.0, 1.0, 1.0]);
        // Of equal adapters the first given is tried first; one that changes nothing stays.
        assert_eq!(asked[5..], [vec![1, 3], vec![1, 3, 4], vec![1, 3, 2], vec![1, 3, 0]]);
        let kept: Vec<(usize, bool)> = choice.trials.iter().map(|t| (t.adapter, t.kept)).collect();
        assert_eq!(kept, [(1, true), (3, true), (4, false), (2, false), (0, false)]);
        assert_eq!((choice.members, choice.loss), (vec![1, 3], 0.0));
        assert_eq!(equal_weights(4, &[1, 3]), [0.0, 0.5, 0.0, 0.5]);

        let same = choose(3, |_| Ok(2.0)).unwrap();
        assert_eq!(same.members, [0, 1, 2]);
    }
}
