//! Measures agreement between raters: Krippendorff's alpha, Fleiss' and Cohen's kappa, raw agreement.
//!
//! Pure functions over a table of ratings, independent of pairs, votes and files. Alpha and kappa are undefined
//! (`None`) if no unit has two ratings or if all ratings are equal.

use crate::stats::bootstrap::{Bootstrap, Estimate};
use std::collections::BTreeMap;

/// How the distance between two values is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistanceScale {
    /// 0 if equal, otherwise 1.
    Nominal,
    /// The square of the number of ratings between the two values, half of those with the values themselves included.
    Ordinal,
    /// The square of the difference.
    Interval,
}

/// Ratings of units by raters; any may be missing.
#[derive(Debug, Clone, Default)]
pub struct RatingTable {
    /// Values that occur, ascending.
    values: Vec<f64>,
    /// For each unit with a rating: the index in `values` by rater.
    units: Vec<BTreeMap<usize, usize>>,
    /// Units with equal counts of values are of one kind. For each kind: how often each value occurs.
    kinds: Vec<Vec<f64>>,
    /// The kind of each unit.
    kind: Vec<usize>,
}

impl RatingTable {
    /// Builds a table from (unit, rater, value). If a rater rated a unit twice, the later rating counts.
    pub fn new(ratings: impl IntoIterator<Item = (usize, usize, f64)>) -> Self {
        let mut units: BTreeMap<usize, BTreeMap<usize, f64>> = BTreeMap::new();
        for (unit, rater, value) in ratings {
            units.entry(unit).or_default().insert(rater, value);
        }
        let mut values: Vec<f64> = units.values().flat_map(|u| u.values().copied()).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let place = |v: &f64| values.partition_point(|w| w.total_cmp(v).is_lt());
        let units: Vec<BTreeMap<usize, usize>> =
            units.values().map(|u| u.iter().map(|(rater, v)| (*rater, place(v))).collect()).collect();
        let mut known: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        let kind = units
            .iter()
            .map(|unit| {
                let mut counts = vec![0; values.len()];
                unit.values().for_each(|v| counts[*v] += 1);
                let next = known.len();
                *known.entry(counts).or_insert(next)
            })
            .collect();
        let mut kinds = vec![Vec::new(); known.len()];
        for (counts, i) in known {
            kinds[i] = counts.into_iter().map(|n| n as f64).collect();
        }
        Self { values, units, kinds, kind }
    }

    /// Returns the number of units with two or more raters.
    pub fn shared_units(&self) -> usize {
        self.units.iter().filter(|u| u.len() > 1).count()
    }

    /// Computes Krippendorff's alpha; its interval resamples units.
    ///
    /// `alpha = 1 - D_o / D_e = 1 - (n - 1) Σ_ck o_ck δ²_ck / Σ_ck n_c n_k δ²_ck`, where `o_ck` counts the pairs of
    /// values (c, k) inside units, those of a unit of m ratings weighted by 1 / (m - 1); `n_c = Σ_k o_ck`; `n = Σ n_c`
    /// (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D; the ordinal distance is
    /// `(Σ_{g=c..k} n_g - (n_c + n_k) / 2)²`). The interval resamples units, not single disagreements as the author's
    /// own program does: ratings of one unit are not independent.
    pub fn alpha(&self, scale: DistanceScale, bootstrap: &Bootstrap) -> Option<Estimate> {
        let inside: Vec<Vec<f64>> = self.kinds.iter().map(|counts| coincidences(counts)).collect();
        bootstrap
            .estimate("label: alpha", &self.kind, self.kinds.len(), |weights| self.alpha_of(&inside, weights, scale))
    }

    fn alpha_of(&self, inside: &[Vec<f64>], weights: &[f64], scale: DistanceScale) -> Option<f64> {
        let size = self.values.len();
        let mut observed = vec![0.0; size * size];
        for (matrix, weight) in inside.iter().zip(weights).filter(|(_, w)| **w > 0.0) {
            observed.iter_mut().zip(matrix).for_each(|(sum, o)| *sum += weight * o);
        }
        let each: Vec<f64> = observed.chunks(size.max(1)).map(|row| row.iter().sum()).collect();
        let total: f64 = each.iter().sum();
        let distance = |c: usize, k: usize| match scale {
            DistanceScale::Nominal => f64::from(u8::from(c != k)),
            DistanceScale::Interval => (self.values[c] - self.values[k]).powi(2),
            DistanceScale::Ordinal => {
                (each[c.min(k)..=c.max(k)].iter().sum::<f64>() - (each[c] + each[k]) / 2.0).powi(2)
            }
        };
        let (mut found, mut expected) = (0.0, 0.0);
        for c in 0..size {
            for k in 0..size {
                let d = distance(c, k);
                found += observed[c * size + k] * d;
                expected += each[c] * each[k] * d;
            }
        }
        (expected > 0.0).then(|| 1.0 - (total - 1.0) * found / expected)
    }

    /// Computes the share of equal ratings among all pairs of ratings of the same unit; its interval resamples units.
    pub fn raw_agreement(&self, bootstrap: &Bootstrap) -> Option<Estimate> {
        let equal = |counts: &Vec<f64>| counts.iter().map(|n| n * (n - 1.0)).sum::<f64>();
        let all = |counts: &Vec<f64>| {
            let m: f64 = counts.iter().sum();
            m * (m - 1.0)
        };
        let parts: Vec<[f64; 2]> = self.kinds.iter().map(|counts| [equal(counts), all(counts)]).collect();
        bootstrap.estimate("label: raw agreement", &self.kind, self.kinds.len(), |weights| {
            let sum = |i: usize| parts.iter().zip(weights).map(|(p, w)| w * p[i]).sum::<f64>();
            (sum(1) > 0.0).then(|| sum(0) / sum(1))
        })
    }

    /// Computes Fleiss' kappa (Fleiss 1971, equations 4 to 7). Returns (kappa, number of units, ratings per unit).
    ///
    /// It is defined only for units with equally many ratings: the units with the most frequent number of ratings are
    /// used; if two numbers are equally frequent, those with the larger one.
    pub fn fleiss(&self, bootstrap: &Bootstrap) -> Option<(Estimate, usize, usize)> {
        let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
        self.units.iter().filter(|u| u.len() > 1).for_each(|u| *sizes.entry(u.len()).or_default() += 1);
        let (ratings, units) = sizes.into_iter().max_by_key(|(size, n)| (*n, *size))?;
        let groups: Vec<usize> =
            self.units.iter().zip(&self.kind).filter(|(u, _)| u.len() == ratings).map(|(_, kind)| *kind).collect();
        let m = ratings as f64;
        let statistic = |weights: &[f64]| {
            let n: f64 = weights.iter().sum();
            let agreed: Vec<f64> =
                self.kinds.iter().map(|c| c.iter().map(|x| x * (x - 1.0)).sum::<f64>() / (m * (m - 1.0))).collect();
            let observed = agreed.iter().zip(weights).map(|(p, w)| w * p).sum::<f64>() / n;
            let share = |v: usize| self.kinds.iter().zip(weights).map(|(c, w)| w * c[v]).sum::<f64>() / (n * m);
            kappa(observed, (0..self.values.len()).map(|v| share(v).powi(2)).sum())
        };
        let found = bootstrap.estimate("label: Fleiss", &groups, self.kinds.len(), statistic)?;
        Some((found, units, ratings))
    }

    /// Computes Cohen's kappa (Cohen 1960, equation 1) of two raters over the units that both rated. Returns (kappa,
    /// number of these units).
    pub fn cohen(&self, a: usize, b: usize, bootstrap: &Bootstrap) -> Option<(Estimate, usize)> {
        let size = self.values.len();
        let both = |u: &BTreeMap<usize, usize>| Some(u.get(&a)? * size + u.get(&b)?);
        let cells: Vec<usize> = self.units.iter().filter_map(both).collect();
        let statistic = |weights: &[f64]| {
            let n: f64 = weights.iter().sum();
            let row = |v: usize| weights[v * size..(v + 1) * size].iter().sum::<f64>() / n;
            let column = |v: usize| weights.iter().skip(v).step_by(size).sum::<f64>() / n;
            let observed = (0..size).map(|v| weights[v * size + v]).sum::<f64>() / n;
            kappa(observed, (0..size).map(|v| row(v) * column(v)).sum())
        };
        let found =
            (!cells.is_empty()).then(|| bootstrap.estimate("label: Cohen", &cells, size * size, statistic))??;
        Some((found, cells.len()))
    }
}

/// Returns the coincidences `o_ck` of one unit, row by row.
fn coincidences(counts: &[f64]) -> Vec<f64> {
    let m: f64 = counts.iter().sum();
    let cell = |c: usize, k: usize| match m > 1.0 {
        true => counts[c] * (counts[k] - f64::from(u8::from(c == k))) / (m - 1.0),
        false => 0.0,
    };
    (0..counts.len()).flat_map(|c| (0..counts.len()).map(move |k| (c, k))).map(|(c, k)| cell(c, k)).collect()
}

/// Returns the agreement beyond chance; `None` if all ratings are equal, as kappa is undefined then.
fn kappa(observed: f64, expected: f64) -> Option<f64> {
    (expected < 1.0 && observed.is_finite()).then(|| (observed - expected) / (1.0 - expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: Bootstrap = Bootstrap { replicates: 1, seed: 0 };

    fn value(e: Option<Estimate>) -> f64 {
        e.unwrap().value
    }

    #[test]
    fn one_value_everywhere_and_no_pair_have_no_agreement() {
        let same = RatingTable::new([(0, 0, 1.0), (0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.0)]);
        assert_eq!(same.alpha(DistanceScale::Nominal, &ONCE), None);
        assert_eq!(same.fleiss(&ONCE), None);
        assert_eq!(same.cohen(0, 1, &ONCE), None);
        assert_eq!(value(same.raw_agreement(&ONCE)), 1.0);
        let alone = RatingTable::new([(0, 0, 1.0), (1, 1, 2.0)]);
        assert!(
            alone.alpha(DistanceScale::Interval, &ONCE).is_none()
                && alone.raw_agreement(&ONCE).is_none()
                && alone.fleiss(&ONCE).is_none()
        );
        assert_eq!((alone.shared_units(), alone.cohen(0, 1, &ONCE)), (0, None));
        assert!(RatingTable::new([]).alpha(DistanceScale::Ordinal, &ONCE).is_none());
    }

    #[test]
    fn full_agreement_is_one_and_a_later_rating_replaces() {
        let table = RatingTable::new([(0, 0, 9.0), (0, 0, 1.0), (0, 1, 1.0), (1, 0, 2.0), (1, 1, 2.0), (2, 0, 5.0)]);
        for scale in [DistanceScale::Nominal, DistanceScale::Ordinal, DistanceScale::Interval] {
            assert_eq!(value(table.alpha(scale, &ONCE)), 1.0);
        }
        assert_eq!(table.fleiss(&ONCE).map(|(e, n, m)| (e.value, n, m)), Some((1.0, 2, 2)));
        assert_eq!(table.cohen(0, 1, &ONCE).map(|(e, n)| (e.value, n)), Some((1.0, 2)));
    }

    #[test]
    fn an_interval_holds_its_value_and_narrows_with_units() {
        let ratings = |units: usize| {
            (0..units).flat_map(|u| [(u, 0, (u % 3) as f64), (u, 1, if u % 5 == 0 { 0.0 } else { (u % 3) as f64 })])
        };
        let width = |units: usize| {
            let found = RatingTable::new(ratings(units)).alpha(DistanceScale::Nominal, &Bootstrap::default()).unwrap();
            let [low, high] = found.interval.unwrap();
            assert!(low <= found.value && found.value <= high, "{found:?}");
            high - low
        };
        let (few, many) = (width(60), width(960));
        assert!(many < few / 3.0 && many > few / 5.5, "a sixteenth of the variance: {few} and {many}");
    }
}
