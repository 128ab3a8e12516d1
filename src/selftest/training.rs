//! Checks of losses and gradients: finite differences, accumulation, packing, recomputation, chunked head, bf16.

use super::compare::{
    CheckResult, CheckTitle, LargestDifference, check_result, compare_joined, compare_numbers, compare_tensors,
};
use super::rounding::Tolerance;
use super::test_model::{PackedTestRow, StepGradients, TestModel, noise};
use crate::error::Result;
use crate::models::LayerReplay;
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Title of the check against finite differences.
pub const DIFFERENCES: CheckTitle =
    ("gradients", "the adapter's gradient against central differences of the loss, along random directions");
/// Title of the check of bf16 against float32.
pub const PRECISION: CheckTitle = ("precision", "bf16 against float32: loss and the whole gradient");
pub const ACCUMULATION: CheckTitle =
    ("accumulation", "three unequal micro-batches against one batch: loss and each gradient");
pub const PACKING: CheckTitle = ("packing", "rows packed into one against one by one: loss and each gradient");
const REPLAY: CheckTitle =
    ("replay", "layers recomputed in the backward against kept, with dropout: loss and each gradient");
pub const KEPT: CheckTitle = (
    "kept inputs",
    "results of norms and activations kept against recomputed, with our own CUDA kernels: loss and each gradient",
);
const HEAD: CheckTitle =
    ("chunked loss", "the vocabulary in chunks of rows against full logits: loss and each gradient");

/// Compares loss and gradients of two steps.
pub fn compare_steps(
    about: CheckTitle,
    found: &StepGradients,
    expected: &StepGradients,
    tolerance: Tolerance,
    began: Instant,
) -> CheckResult {
    let gap = compare_numbers("the loss", found.loss, expected.loss)
        .larger(compare_tensors(&found.gradients, &expected.gradients));
    check_result(about, gap, tolerance, began)
}

/// Checks that three unequal micro-batches give the gradients of one batch.
pub fn accumulation(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let all = trial.all_rows();
    let parts = [all[..1].to_vec(), all[1..all.len() - 1].to_vec(), all[all.len() - 1..].to_vec()];
    let (found, expected) = (trial.step(&parts, LayerReplay::None)?, trial.whole_step()?);
    let tolerance = trial.rounding().gradients("sums over tokens run in another order");
    Ok(compare_steps(ACCUMULATION, &found, &expected, tolerance, began))
}

/// Checks that rows packed into one give the gradients of rows run one by one.
pub fn packing(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let alone: Vec<Vec<usize>> = trial.all_rows().into_iter().map(|i| vec![i]).collect();
    let (found, expected) = (trial.whole_step()?, trial.step(&alone, LayerReplay::None)?);
    let tolerance = trial.rounding().gradients("sums over tokens run in another order");
    Ok(compare_steps(PACKING, &found, &expected, tolerance, began))
}

/// Checks that recomputing layers in the backward pass gives the same gradients, with dropout.
pub fn replay(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let step = |replay| -> Result<StepGradients> {
        tch::manual_seed(1);
        trial.step(&[trial.all_rows()], replay)
    };
    let (found, expected) = (step(LayerReplay::All)?, step(LayerReplay::None)?);
    let tolerance = trial.rounding().exact_on_cpu("the same operations with the same dropout");
    Ok(compare_steps(REPLAY, &found, &expected, tolerance, began))
}

/// Checks that keeping the results of norms and activations, and computing the gradients of a layer's factors at once, gives the
/// gradients of recomputing them one by one.
pub fn kept_inputs(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    trial.model.set_keeps_inputs(true);
    let found = trial.whole_step();
    trial.model.set_keeps_inputs(false);
    let (found, expected) = (found?, trial.whole_step()?);
    let tolerance = trial.rounding().gradients("sums over tokens run in another order");
    Ok(compare_steps(KEPT, &found, &expected, tolerance, began))
}

/// Checks that the loss computed over chunks of rows gives the gradients of one over full logits.
pub fn chunked_loss(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let row = long_row(trial);
    let step = |loss| trial.step_of(std::slice::from_ref(&row), row.items, LayerReplay::None, loss);
    let (found, expected) = (step(PackedTestRow::loss)?, step(PackedTestRow::plain_loss)?);
    let tolerance =
        trial.rounding().gradients("softmax in float32 against float64, where 1 - p cancels at sure predictions");
    Ok(compare_steps(HEAD, &found, &expected, tolerance, began))
}

/// Returns a packed row with more trained tokens than a chunk of the head has rows, so that the head needs several
/// chunks.
fn long_row(trial: &TestModel) -> PackedTestRow {
    const ENOUGH: f64 = 300.0;
    let mut which = trial.all_rows();
    while trial.pack(&which).items <= ENOUGH {
        which.extend(trial.all_rows());
    }
    trial.pack(&which)
}

/// Checks loss and gradient in bf16 against float32: they must be equal up to the noise of rounding to 8 bits.
pub fn precision(trial: &TestModel, reference: &StepGradients) -> Result<CheckResult> {
    let began = Instant::now();
    let found = trial.whole_step()?;
    let gap = compare_numbers("the loss", found.loss, reference.loss)
        .larger(compare_joined(&found.gradients, &reference.gradients));
    Ok(check_result(PRECISION, gap, trial.rounding().precision(), began))
}

/// Checks the gradient against central differences of the loss, along one direction over all tensors and then along one
/// in each of a few tensors. A direction is half the gradient and half random, so that a component missing in the
/// gradient shows.
pub fn differences(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let few = &trial.all_rows()[1..3.min(trial.rows.len())];
    let gradients = trial.step(&[few.to_vec()], LayerReplay::None)?.gradients;
    let reason = "the loss has 7 digits, and a step along the direction moves the last 4 or 5";
    let tolerance = trial.rounding().fixed(5e-3, reason);
    Ok(match slopes(trial, &trial.pack(few), &gradients)? {
        Some(gap) => check_result(DIFFERENCES, gap, tolerance, began),
        None => CheckResult::skipped(DIFFERENCES, JUMPS),
    })
}

/// The reason why no difference of the loss says anything about gradients.
const JUMPS: &str = "tokens stand so near between two experts, or gates so near to 0, that the loss turns along every direction that was tried";

/// Returns the largest relative difference over a direction in all tensors and one in each of a few tensors; `None` if the
/// loss jumps along all of them.
fn slopes(
    trial: &TestModel,
    row: &PackedTestRow,
    gradients: &BTreeMap<String, Tensor>,
) -> Result<Option<LargestDifference>> {
    let names: Vec<&String> = gradients.keys().collect();
    let few = (0..SINGLE_TENSORS).map(|i| vec![names[i * (names.len() - 1) / (SINGLE_TENSORS - 1)]]);
    let mut worst: Option<LargestDifference> = None;
    for chosen in std::iter::once(names.clone()).chain(few) {
        let parts: Vec<TensorDirection> =
            chosen.iter().map(|n| TensorDirection::new(trial, n, &gradients[*n])).collect();
        let expected: f64 = parts.iter().map(|p| p.slope).sum();
        let Some(found) = slope(trial, row, &parts, expected)? else { continue };
        let what = if chosen.len() == 1 { chosen[0].as_str() } else { "all tensors at once" };
        worst = Some(worst.unwrap_or_default().larger(compare_numbers(what, found, expected)));
    }
    Ok(worst)
}

/// Number of tensors that get a direction of their own.
const SINGLE_TENSORS: usize = 3;

/// The part of a direction that belongs to one tensor.
struct TensorDirection {
    tensor: Tensor,
    direction: Tensor,
    /// Scalar product of gradient and direction.
    slope: f64,
}

impl TensorDirection {
    fn new(trial: &TestModel, name: &str, gradient: &Tensor) -> Self {
        let tensor = trial
            .model
            .params()
            .adapter(0)
            .find(|p| p.name == name)
            .map(|p| p.tensor.shallow_clone())
            .expect("a gradient has a parameter");
        let chance = noise(&gradient.size(), name).to_device(gradient.device());
        // Gradient and noise get equal length; the sum is scaled to the size of the tensor.
        let length = tensor.detach().norm();
        let unit = |t: &Tensor| t / (t.norm() + 1e-30);
        let direction = (unit(gradient) + unit(&chance)) * length;
        let slope = (gradient * &direction).sum(Kind::Double).double_value(&[]);
        Self { tensor, direction, slope }
    }

    fn add(&self, by: f64) {
        let _no_grad = tch::no_grad_guard();
        let _ = self.tensor.shallow_clone().g_add_(&(&self.direction * by));
    }
}

/// Returns the slope of the loss along the parts: central differences at two widths, extrapolated (Richardson), which
/// leaves an error of the fourth order; `None` if the loss jumps along them. Restores the parameters bit for bit.
fn slope(trial: &TestModel, row: &PackedTestRow, parts: &[TensorDirection], expected: f64) -> Result<Option<f64>> {
    let kept: Vec<Tensor> = parts.iter().map(|p| p.tensor.detach().copy()).collect();
    let at = |by: f64| -> Result<f64> {
        parts.iter().for_each(|p| p.add(by));
        let loss = trial.loss(row);
        let _no_grad = tch::no_grad_guard();
        parts.iter().zip(&kept).for_each(|(p, k)| p.tensor.shallow_clone().copy_(k));
        loss
    };
    let centre = trial.loss(row)?;
    // Wide enough to change the loss by about 1 %, but at most 10 % of the parameters' size.
    let mut by = (1e-2 * centre / expected.abs()).min(0.1);
    let differences = |by: f64| -> Result<Differences> {
        let (above, below) = (at(by)?, at(-by)?);
        Ok(Differences { central: (above - below) / (2.0 * by), bend: (above - 2.0 * centre + below) / by })
    };
    let config = trial.model.config();
    let smooth = config.experts.is_none() && !config.has_sparse_gates();
    // Where a token goes to another expert, the loss jumps, and where a sparse gate becomes 0, it bends: differences over that place
    // do not agree, and are made narrower, as far as the loss has digits.
    for _ in 0..NARROWER {
        let (wide, narrow) = (differences(by)?, differences(by / 2.0)?);
        if smooth || wide.agree(&narrow) {
            return Ok(Some((4.0 * narrow.central - wide.central) / 3.0));
        }
        by /= 4.0;
    }
    Ok(None)
}

/// Differences of the loss over a distance to both sides.
struct Differences {
    /// The central difference: the slope, up to the second order.
    central: f64,
    /// The slope above less the slope below.
    bend: f64,
}

impl Differences {
    /// Says whether these and those of half the distance can be of a smooth function. Of such a one, half the distance has nearly the
    /// same slope and half the bend; at a corner near the middle all slopes are nearly equal, and so are both bends.
    fn agree(&self, half: &Self) -> bool {
        let far = (self.central - half.central).abs() > AGREEMENT * half.central.abs();
        let corner = (self.bend - 2.0 * half.bend).abs() > 2.0 * AGREEMENT * half.central.abs();
        !far && !corner
    }
}

/// How often differences are made narrower, by 4 each time.
const NARROWER: usize = 4;

/// Relative difference up to which two differences agree that there is no jump between them. A corner changes the slope by up to
/// twice as much, since a central difference is then wrong by half of the change.
const AGREEMENT: f64 = 1.5e-3;

#[cfg(test)]
mod tests {
    use super::super::input::SelftestInput;
    use super::super::test_model::tests::tiny;
    use super::*;
    use crate::selftest::compare::CheckVerdict;

    fn failed(line: CheckResult) -> bool {
        println!("{line:?}");
        line.verdict == CheckVerdict::Failed
    }

    #[test]
    fn a_gradient_off_by_a_hundredth_is_seen() {
        let trial = tiny(Kind::Float, 0.0);
        let row = trial.pack(&[1, 2]);
        let right = trial.step(&[vec![1, 2]], LayerReplay::None).unwrap().gradients;
        let off = |name: &str| -> BTreeMap<String, Tensor> {
            right.iter().map(|(n, t)| (n.clone(), if n.contains(name) { t * 1.01 } else { t.copy() })).collect()
        };
        let gap = |gradients| slopes(&trial, &row, &gradients).unwrap().unwrap().relative;
        assert!(gap(off("no such")) < 2e-3);
        let all = gap(off(""));
        assert!((all - 0.0099).abs() < 2e-3, "{all}");
        let first = right.keys().next().unwrap().clone();
        assert!(gap(off(&first)) > 5e-3, "one tensor of many");
    }

    /// The loss of a model with experts jumps where a token goes to another expert.
    #[test]
    fn gradients_of_a_model_with_experts_are_seen_to_be_right_and_wrong() {
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-mixtral");
        let row = |n: &u32| (0..*n).map(|t| (t * 7 + n) % 60).collect();
        let rows = [23, 5, 17, 2].iter().map(row).collect();
        let subject = SelftestInput { model, rows, adapter: None, device: tch::Device::Cpu, kind: Kind::Float };
        let trial = TestModel::load(&subject, Kind::Float, 0.0).unwrap();
        assert!(!failed(differences(&trial).unwrap()));
        let right = trial.step(&[vec![1, 2]], LayerReplay::None).unwrap().gradients;
        let off: BTreeMap<String, Tensor> = right.iter().map(|(n, t)| (n.clone(), t * 1.02)).collect();
        assert!(slopes(&trial, &trial.pack(&[1, 2]), &off).unwrap().unwrap().relative > 5e-3);
    }

    #[test]
    fn a_mean_of_means_is_seen() {
        let trial = tiny(Kind::Float, 0.0);
        let rows: Vec<PackedTestRow> = trial.all_rows().iter().map(|&i| trial.pack(&[i])).collect();
        let right = trial.whole_step().unwrap();
        let mut wrong: BTreeMap<String, Tensor> = BTreeMap::new();
        for row in &rows {
            let items = row.items * rows.len() as f64;
            let part = trial.step_of(std::slice::from_ref(row), items, LayerReplay::None, PackedTestRow::loss).unwrap();
            for (name, g) in part.gradients {
                let sum = wrong.remove(&name).map_or_else(|| g.copy(), |w| w + &g);
                wrong.insert(name, sum);
            }
        }
        let wrong = StepGradients { loss: right.loss, gradients: wrong };
        let tolerance = || trial.rounding().gradients("");
        assert!(failed(compare_steps(ACCUMULATION, &wrong, &right, tolerance(), Instant::now())));
        assert!(!failed(compare_steps(ACCUMULATION, &right, &right, tolerance(), Instant::now())));
    }

    #[test]
    fn rows_without_boundaries_and_a_dropped_token_are_seen() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let trial = tiny(kind, 0.0);
            let right = trial.whole_step().unwrap();
            let mut row = trial.pack(&trial.all_rows());
            let joined: Vec<u32> = trial.rows.concat();
            row.tokens = crate::nn::Tokens::pack(&[&joined], trial.model.device());
            let wrong = trial
                .step_of(&[row], trial.pack(&trial.all_rows()).items, LayerReplay::None, PackedTestRow::loss)
                .unwrap();
            let tolerance = trial.rounding().gradients("");
            assert!(failed(compare_steps(PACKING, &wrong, &right, tolerance, Instant::now())), "{kind:?}");
        }
        let trial = tiny(Kind::Float, 0.0);
        let row = long_row(&trial);
        let step =
            |items| trial.step_of(std::slice::from_ref(&row), items, LayerReplay::None, PackedTestRow::loss).unwrap();
        let line = compare_steps(
            HEAD,
            &step(row.items - 1.0),
            &step(row.items),
            trial.rounding().gradients(""),
            Instant::now(),
        );
        assert!(failed(line), "one item of {} not counted", row.items);
    }

    #[test]
    fn other_dropout_is_seen() {
        let trial = tiny(Kind::Float, 0.1);
        let step = |seed| {
            tch::manual_seed(seed);
            trial.step(&[trial.all_rows()], LayerReplay::None).unwrap()
        };
        let tolerance = trial.rounding().exact("");
        assert!(failed(compare_steps(REPLAY, &step(1), &step(2), tolerance, Instant::now())));
    }
}
