//! Spends a number of parameters on the ranks that are worth most.

use super::measure::MeasuredModule;

/// Returns the rank of each module: directions are taken in the order of their gain per parameter, as long as they gain
/// anything and `budget` parameters are not exceeded.
pub(super) fn ranks(modules: &[MeasuredModule], budget: i64) -> Vec<i64> {
    let mut directions: Vec<(f64, usize)> = Vec::new();
    for (i, m) in modules.iter().enumerate() {
        let worth = m.gains.iter().filter(|gain| **gain > 0.0).map(|gain| (gain / m.cost() as f64, i));
        directions.extend(worth);
    }
    directions.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (mut ranks, mut left) = (vec![0; modules.len()], budget);
    for (_, i) in directions {
        let cost = modules[i].cost();
        if cost <= left {
            ranks[i] += 1;
            left -= cost;
        }
    }
    ranks
}
