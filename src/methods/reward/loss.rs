//! The Bradley-Terry loss of reward models.
//!
//! With the difference `d = r_chosen - r_rejected - margin` of a pair, label smoothing `e` and centring weight `c`:
//!
//! ```text
//! loss = - (1 - e) log sigmoid(d) - e log sigmoid(-d) + c (r_chosen + r_rejected)^2
//! ```
//!
//! e = 0, c = 0, margin = 0: Ouyang et al. 2022 (arXiv 2203.02155), equation 1, with one pair per comparison. margin:
//! Touvron et al. 2023 (arXiv 2307.09288), equation 2. c: Eisenstein et al. 2023 (arXiv 2312.09244), equation 2. e:
//! the probability that a pair's labels are swapped, as Mitchell 2023 ("A note on DPO with noisy preferences") has it
//! for DPO. Equal to TRL's RewardTrainer if e = 0; TRL has no smoothing.

use super::spec::{MarginChoice, RewardMethodSpec};
use crate::data::encode::PairExample;
use crate::methods::pairs::{self, PairStatistics};
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Metrics, Output};
use crate::native::upload_slice;
use crate::nn::Tokens;
use tch::{Device, Kind, Tensor};

/// Computes the loss of each pair: (N) float32. `margins` (N) is `None` if no row has one.
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, margins: Option<&Tensor>, spec: &RewardMethodSpec) -> Tensor {
    let mut difference = chosen - rejected;
    if let Some(margins) = margins {
        difference -= margins;
    }
    let mut loss = -difference.log_sigmoid();
    if spec.label_smoothing > 0.0 {
        loss = loss * (1.0 - spec.label_smoothing) - (-&difference).log_sigmoid() * spec.label_smoothing;
    }
    if spec.center > 0.0 {
        loss += (chosen + rejected).square() * spec.center;
    }
    loss
}

/// Pairs packed into one row: chosen, rejected, chosen, rejected, …
pub struct RewardBatch {
    tokens: Tokens,
    /// Rows of the trunk's output that give the scores: the last token of each sequence.
    last: PairStatistics,
    /// (N)
    margins: Option<Tensor>,
    spec: RewardMethodSpec,
}

impl RewardBatch {
    /// Packs pairs into one row.
    pub fn new(items: &[PairExample], spec: RewardMethodSpec, device: Device) -> Self {
        let sequences: Vec<Vec<u32>> = pairs::sequences(items).into_iter().map(|s| s.ids).collect();
        let tokens = Tokens::pack(&sequences, device);
        let last = tokens.segments.last_rows(); // (2N)
        let margins: Vec<f32> = items.iter().map(|p| p.margin.unwrap_or(0.0) as f32).collect();
        let some = spec.margin == MarginChoice::Rows && margins.iter().any(|m| *m != 0.0);
        Self { last: PairStatistics::of(&last), margins: some.then(|| upload_slice(&margins, device)), tokens, spec }
    }
}

impl MicroBatch for RewardBatch {
    fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn items(&self) -> f64 {
        self.last.chosen.size()[0] as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let (chosen, rejected) = (out.scalar(&self.last.chosen), out.scalar(&self.last.rejected));
        let sum = bradley_terry(&chosen, &rejected, self.margins.as_ref(), &self.spec).sum(Kind::Float);
        Loss { metrics: metrics(&sum, &chosen, &rejected), sum }
    }
}

/// Computes metrics with TRL's names and definitions: a tie is no success; `min_reward` and `max_reward` are means
/// over packed rows of the row's smallest and largest score.
fn metrics(sum: &Tensor, chosen: &Tensor, rejected: &Tensor) -> Metrics {
    let (chosen, rejected) = (chosen.detach(), rejected.detach());
    let n = chosen.size()[0] as f64;
    let all = Tensor::cat(&[&chosen, &rejected], 0);
    let mut metrics = Metrics::default();
    metrics.add("loss", sum, n);
    metrics.add("accuracy", &chosen.gt_tensor(&rejected).sum(Kind::Float), n);
    metrics.add("margin", &(&chosen - &rejected).sum(Kind::Float), n);
    metrics.add("mean_reward", &all.sum(Kind::Float), 2.0 * n);
    metrics.add("min_reward", &all.min(), 1.0);
    metrics.add("max_reward", &all.max(), 1.0);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsutil::read_json;
    use std::collections::BTreeMap;
    use std::path::Path;

    #[derive(serde::Deserialize)]
    struct RewardLosses {
        chosen: Vec<f32>,
        rejected: Vec<f32>,
        margins: Vec<f32>,
        cases: Vec<RewardLoss>,
    }

    #[derive(serde::Deserialize)]
    struct RewardLoss {
        margin: bool,
        center: f64,
        label_smoothing: f64,
        loss: f64,
        grad: Vec<f64>,
        metrics: BTreeMap<String, f64>,
    }

    #[test]
    fn loss_gradient_and_metrics_equal_trl() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reward/loss.json");
        let fixture: RewardLosses = read_json(&path).unwrap();
        assert_eq!(fixture.cases.len(), 6);
        for case in &fixture.cases {
            let leaf = |v: &[f32]| Tensor::from_slice(v).set_requires_grad(true);
            let (chosen, rejected) = (leaf(&fixture.chosen), leaf(&fixture.rejected));
            let margins = case.margin.then(|| Tensor::from_slice(&fixture.margins));
            let spec =
                RewardMethodSpec { center: case.center, label_smoothing: case.label_smoothing, ..Default::default() };
            let each = bradley_terry(&chosen, &rejected, margins.as_ref(), &spec);
            let n = fixture.chosen.len() as f64;
            let sum = each.sum(Kind::Float);
            (&sum / n).backward();
            let gap = (sum.double_value(&[]) / n - case.loss).abs();
            assert!(gap < 1e-6 * case.loss.max(1.0), "{gap:e}");
            let grads = Tensor::cat(&[chosen.grad(), rejected.grad()], 0);
            let grads = Vec::<f64>::try_from(grads.to_kind(Kind::Double)).unwrap();
            for (ours, theirs) in grads.iter().zip(&case.grad) {
                assert!((ours - theirs).abs() < 1e-6, "{ours} and {theirs}");
            }
            let means = metrics(&sum, &chosen, &rejected).means();
            for (name, theirs) in &case.metrics {
                assert!((means[name.as_str()] - theirs).abs() < 1e-5, "{name}: {} and {theirs}", means[name.as_str()]);
            }
            assert_eq!(case.metrics.len() + 1, means.len());
        }
    }

    #[test]
    fn margins_are_used_or_ignored_as_the_recipe_says() {
        let pair = |margin| PairExample { prompt: vec![5], chosen: vec![6, 7], rejected: vec![8], margin, line: 1 };
        let pairs = [pair(None), pair(Some(1.5))];
        let batch = |margin| RewardBatch::new(&pairs, RewardMethodSpec { margin, ..Default::default() }, Device::Cpu);
        let taken = batch(MarginChoice::Rows);
        assert_eq!(Vec::<f32>::try_from(taken.margins.as_ref().unwrap()).unwrap(), [0.0, 1.5]);
        assert!(batch(MarginChoice::None).margins.is_none());
        assert_eq!(Vec::<i64>::try_from(&taken.last.chosen).unwrap(), [2, 7]);
        assert_eq!(Vec::<i64>::try_from(&taken.last.rejected).unwrap(), [4, 9]);
        assert_eq!(taken.items(), 2.0);
    }
}
