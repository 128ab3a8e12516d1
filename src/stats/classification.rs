//! Scores of a classification: accuracy, F1 by class, Matthews' correlation; probabilities of classes.

/// Returns the probabilities of classes: the softmax of their log-likelihoods.
pub fn softmax(log_likelihoods: &[f64]) -> Vec<f64> {
    let most = log_likelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_likelihoods.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// How often each class was predicted for rows of each class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `counts[expected * classes + predicted]`
    counts: Vec<usize>,
}

impl Confusion {
    /// Counts pairs of (expected, predicted) class, each below `classes`.
    pub fn of(pairs: impl IntoIterator<Item = (usize, usize)>, classes: usize) -> Self {
        let mut counts = vec![0; classes * classes];
        pairs.into_iter().for_each(|(expected, predicted)| counts[expected * classes + predicted] += 1);
        Self { classes, counts }
    }

    /// Returns how many rows of class `expected` were predicted to be of class `predicted`.
    pub fn count(&self, expected: usize, predicted: usize) -> usize {
        self.counts[expected * self.classes + predicted]
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.counts.iter().sum()
    }

    fn expected(&self, class: usize) -> usize {
        (0..self.classes).map(|predicted| self.count(class, predicted)).sum()
    }

    fn predicted(&self, class: usize) -> usize {
        (0..self.classes).map(|expected| self.count(expected, class)).sum()
    }

    fn correct(&self) -> usize {
        (0..self.classes).map(|class| self.count(class, class)).sum()
    }

    /// Computes the share of rows whose class was predicted; `None` without rows.
    pub fn accuracy(&self) -> Option<f64> {
        (self.rows() > 0).then(|| self.correct() as f64 / self.rows() as f64)
    }

    /// Computes the harmonic mean of precision and recall of a class. A class that neither occurs nor is predicted has
    /// 0, as in scikit-learn.
    pub fn f1(&self, class: usize) -> f64 {
        let both = self.expected(class) + self.predicted(class);
        if both == 0 { 0.0 } else { 2.0 * self.count(class, class) as f64 / both as f64 }
    }

    /// Computes the mean of F1 over the classes that occur or are predicted; `None` without rows.
    pub fn macro_f1(&self) -> Option<f64> {
        let present: Vec<usize> =
            (0..self.classes).filter(|class| self.expected(*class) + self.predicted(*class) > 0).collect();
        let sum: f64 = present.iter().map(|class| self.f1(*class)).sum();
        (!present.is_empty()).then(|| sum / present.len() as f64)
    }

    /// Computes the mean of F1 over the rows' classes, weighted by how often each occurs; `None` without rows.
    pub fn weighted_f1(&self) -> Option<f64> {
        let sum: f64 = (0..self.classes).map(|class| self.expected(class) as f64 * self.f1(class)).sum();
        (self.rows() > 0).then(|| sum / self.rows() as f64)
    }

    /// Computes the mean over the rows' classes of the share that is right; `None` without rows.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        let present: Vec<usize> = (0..self.classes).filter(|class| self.expected(*class) > 0).collect();
        let share = |class: &usize| self.count(*class, *class) as f64 / self.expected(*class) as f64;
        (!present.is_empty()).then(|| present.iter().map(share).sum::<f64>() / present.len() as f64)
    }

    /// Computes Matthews' correlation (Gorodkin 2004 for more than two classes): 1 if all is right, 0 for chance.
    /// 0 if all rows are of one class or are predicted to be, as in scikit-learn.
    pub fn matthews(&self) -> f64 {
        let n = self.rows() as f64;
        let (mut product, mut expected, mut predicted) = (0.0, 0.0, 0.0);
        for class in 0..self.classes {
            let (e, p) = (self.expected(class) as f64, self.predicted(class) as f64);
            product += e * p;
            expected += e * e;
            predicted += p * p;
        }
        let spread = (n * n - predicted) * (n * n - expected);
        if spread == 0.0 { 0.0 } else { (self.correct() as f64 * n - product) / spread.sqrt() }
    }
}
