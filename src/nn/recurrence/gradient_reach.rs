//! How much a loss at one token depends on the states of earlier tokens: the norm of d loss / d state, by distance.
//!
//! In a plain recurrent network this norm shrinks or grows by a factor with every token (Bengio et al. 1994; Pascanu et al.
//! 2013, arXiv 1211.5063), which is why it hardly learns from distant tokens.

use super::time_order::TimeOrder;
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Records, in the backward of a loss that has one term for each segment, at its last token but one, the norms of the
/// gradients of the states before that token.
#[derive(Default)]
pub struct GradientReach {
    /// By layer: the squares of the norms, (T) in the order of time, and the lengths of the segments, the longest first.
    layers: RefCell<BTreeMap<usize, (Tensor, Vec<i64>)>>,
}

impl GradientReach {
    /// Keeps the squares of the norms (T) of a layer, in the order of time.
    pub(super) fn record(&self, layer: usize, order: &TimeOrder, squares: Tensor) {
        self.layers.borrow_mut().insert(layer, (squares, order.lengths().collect()));
    }

    /// Returns the mean over the segments of the norm of the gradient of all layers' states d tokens before the loss's, for d =
    /// 1, 2, 4, …, as long as a segment reaches back so far. Waits for the device.
    pub fn by_distance(&self) -> Vec<(i64, f64)> {
        let layers = self.layers.borrow();
        let Some((_, lengths)) = layers.values().next() else { return Vec::new() };
        let sum = layers.values().map(|(squares, _)| squares.shallow_clone()).reduce(|a, b| a + b);
        let norms = sum.expect("at least one layer").sqrt().to_kind(Kind::Double);
        let norms = Vec::<f64>::try_from(norms).expect("a vector of numbers");
        // The first row of each time: as many rows as segments are longer.
        let at_time = |time: i64| lengths.iter().map(|n| (*n).min(time)).sum::<i64>();
        let distances = std::iter::successors(Some(1i64), |d| Some(d * 2));
        let of_distance = |d: i64| {
            let reach = |(s, n): (usize, &i64)| {
                let time = n - 2 - d;
                (time >= 0).then(|| norms[(at_time(time) + s as i64) as usize])
            };
            let found: Vec<f64> = lengths.iter().enumerate().filter_map(reach).collect();
            (!found.is_empty()).then(|| (d, found.iter().sum::<f64>() / found.len() as f64))
        };
        distances.map_while(of_distance).collect()
    }
}
