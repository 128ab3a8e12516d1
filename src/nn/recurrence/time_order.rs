//! The tokens of a packed row in the order of time: first the first token of every segment, then the second of every
//! segment that has one, and so on. Longer segments come first, so that the tokens of one time are those of the first
//! segments, and no position is padded.

use crate::native::upload;
use crate::nn::tokens::Segments;
use tch::{Device, Tensor};

/// The tokens of a packed row in the order of time.
pub struct TimeOrder {
    /// For each time, its first row and its number of rows B.
    steps: Vec<(i64, i64)>,
    /// The rows of the packed row in the order of time, and where each row of the packed row went: (T) int64 each. `None`
    /// if both orders are the same.
    rows: Option<[Tensor; 2]>,
    /// For each segment that has tokens, its number and its length, the longest first.
    segments: Vec<(usize, i64)>,
    /// Number of segments, those without tokens included.
    all: i64,
    device: Device,
}

impl TimeOrder {
    /// Returns the order of a packed row with these segments.
    pub fn new(row: &Segments, device: Device) -> Self {
        let mut starts = vec![0];
        row.lengths.iter().for_each(|n| starts.push(starts[starts.len() - 1] + n));
        let mut segments: Vec<(usize, i64)> = row.lengths.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
        segments.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let (mut steps, mut rows) = (Vec::new(), Vec::new());
        for time in 0..row.longest {
            let first = rows.len() as i64;
            rows.extend(segments.iter().take_while(|(_, n)| *n > time).map(|(s, _)| starts[*s] + time));
            steps.push((first, rows.len() as i64 - first));
        }
        let moved = rows.iter().enumerate().any(|(at, row)| at as i64 != *row);
        let rows = moved.then(|| {
            let mut places = vec![0; rows.len()];
            rows.iter().enumerate().for_each(|(at, row)| places[*row as usize] = at as i64);
            upload([Tensor::from_slice(&rows), Tensor::from_slice(&places)], device)
        });
        Self { steps, rows, segments, all: row.lengths.len() as i64, device }
    }

    /// Returns for each time its first row in the order of time, and the number of its rows.
    pub fn steps(&self) -> &[(i64, i64)] {
        &self.steps
    }

    /// Returns the number of tokens of the longest segment.
    pub fn longest(&self) -> usize {
        self.steps.len()
    }

    /// Returns the number of segments with tokens.
    pub fn count(&self) -> i64 {
        self.segments.len() as i64
    }

    /// Returns the lengths of the segments with tokens, the longest first.
    pub fn lengths(&self) -> impl Iterator<Item = i64> {
        self.segments.iter().map(|(_, n)| *n)
    }

    /// Sorts the rows of a packed row by time: (T, …) -> (T, …).
    pub fn by_time(&self, x: &Tensor) -> Tensor {
        self.rows.as_ref().map_or_else(|| x.shallow_clone(), |[rows, _]| x.index_select(0, rows))
    }

    /// Sorts rows back into those of the packed row: (T, …) -> (T, …).
    pub fn by_row(&self, x: &Tensor) -> Tensor {
        self.rows.as_ref().map_or_else(|| x.shallow_clone(), |[_, places]| x.index_select(0, places))
    }

    /// Sorts the states of all segments as the loop needs them, without those of segments without tokens: (S, …) -> (B, …).
    pub fn of_segments(&self, states: &Tensor) -> Tensor {
        if self.is_in_order() { states.shallow_clone() } else { states.index_select(0, &self.numbers()) }
    }

    /// Returns the state after each segment's last token, given those after every token of the packed row (T, …) and those
    /// before the first (S, …), which segments without tokens keep: (S, …).
    pub fn last_of_each(&self, states: &Tensor, before: Option<&Tensor>) -> Tensor {
        let mut at = vec![0; self.all as usize];
        self.segments.iter().for_each(|(s, n)| at[*s] = *n);
        let mut end = -1;
        let ends: Vec<i64> = at
            .iter()
            .map(|n| {
                end += n;
                end
            })
            .collect();
        let full: Vec<i64> = (0..self.all).filter(|s| at[*s as usize] > 0).collect();
        let last: Vec<i64> = full.iter().map(|s| ends[*s as usize]).collect();
        let [full, last] = upload([Tensor::from_slice(&full), Tensor::from_slice(&last)], self.device);
        let found = states.index_select(0, &last);
        match before.filter(|_| self.count() < self.all) {
            Some(before) => before.index_copy(0, &full, &found),
            None => found,
        }
    }

    fn is_in_order(&self) -> bool {
        self.count() == self.all && self.segments.iter().enumerate().all(|(at, (s, _))| at == *s)
    }

    fn numbers(&self) -> Tensor {
        let numbers: Vec<i64> = self.segments.iter().map(|(s, _)| *s as i64).collect();
        let [numbers] = upload([Tensor::from_slice(&numbers)], self.device);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn every_token_has_its_time() {
        let order = TimeOrder::new(&Segments::new(vec![2, 0, 4, 1], Device::Cpu), Device::Cpu);
        assert_eq!(order.steps(), [(0, 3), (3, 2), (5, 1), (6, 1)]);
        let row = Tensor::arange(7, (Kind::Int64, Device::Cpu));
        let sorted = order.by_time(&row);
        assert_eq!(Vec::<i64>::try_from(&sorted).unwrap(), [2, 0, 6, 3, 1, 4, 5]);
        assert!(order.by_row(&sorted).equal(&row));
        let before = Tensor::from_slice(&[10i64, 11, 12, 13]);
        assert_eq!(Vec::<i64>::try_from(order.of_segments(&before)).unwrap(), [12, 10, 13]);
        assert_eq!(Vec::<i64>::try_from(order.last_of_each(&row, Some(&before))).unwrap(), [1, 11, 5, 6]);
    }
}
