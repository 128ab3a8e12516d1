//! Checks of losses and gradients.

use super::compare::{Gap, Line, Tolerance, judge, numbers, tensors};
use super::trial::{DROPPED, Row, Step, Trial, noise};
use crate::error::Result;
use crate::models::Replay;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Name and what is compared.
pub type About = (&'static str, &'static str);

pub const DIFFERENCES: About =
    ("gradients", "in float32, the adapter's gradient against central differences of the loss, along random directions");
pub const PRECISION: About = ("precision", "bf16 against float32: loss and each gradient");
const ACCUMULATION: About = ("accumulation", "three unequal micro-batches against one batch: loss and each gradient");
const PACKING: About = ("packing", "rows packed into one against one by one: loss and each gradient");
const REPLAY: About = ("replay", "layers recomputed in the backward against kept, with dropout: loss and each gradient");
const HEAD: About = ("chunked loss", "the vocabulary in chunks of rows against full logits: loss and each gradient");

pub fn compare(about: About, found: &Step, expected: &Step, tolerance: Tolerance, began: Instant) -> Line {
    let gap = numbers("the loss", found.loss, expected.loss).or(tensors(&found.gradients, &expected.gradients));
    judge(about, gap, tolerance, began)
}

pub fn accumulation(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let all = trial.every();
    let parts = [all[..1].to_vec(), all[1..all.len() - 1].to_vec(), all[all.len() - 1..].to_vec()];
    let (found, expected) = (trial.step(&parts, Replay::None)?, trial.whole_step()?);
    let tolerance = trial.rounding().sums("sums over tokens run in another order", 1.0);
    Ok(compare(ACCUMULATION, &found, &expected, tolerance, began))
}

pub fn packing(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let alone: Vec<Vec<usize>> = trial.every().into_iter().map(|i| vec![i]).collect();
    let (found, expected) = (trial.whole_step()?, trial.step(&alone, Replay::None)?);
    let tolerance = trial.rounding().sums("sums over tokens run in another order", 1.0);
    Ok(compare(PACKING, &found, &expected, tolerance, began))
}

pub fn replay(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let step = |replay| -> Result<Step> {
        tch::manual_seed(1);
        trial.model.with(Some(DROPPED), |_| trial.step(&[trial.every()], replay))
    };
    let (found, expected) = (step(Replay::All)?, step(Replay::None)?);
    let tolerance = trial.rounding().none_on_cpu("the same operations with the same dropout");
    Ok(compare(REPLAY, &found, &expected, tolerance, began))
}

pub fn head(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let row = long_row(trial);
    let step = |loss| trial.step_of(std::slice::from_ref(&row), row.items, Replay::None, loss);
    let (found, expected) = (step(Row::loss)?, step(Row::plain_loss)?);
    let tolerance = trial.rounding().sums("softmax and its gradient are formed in another order", 1.0);
    Ok(compare(HEAD, &found, &expected, tolerance, began))
}

/// More learnt tokens than a chunk of the head has rows.
fn long_row(trial: &Trial) -> Row {
    const ENOUGH: f64 = 300.0;
    let mut which = trial.every();
    while trial.pack(&which).items <= ENOUGH {
        which.extend(trial.every());
    }
    trial.pack(&which)
}

/// In bf16 every number has 8 bits; its gradients are those of float32 but for noise.
pub fn precision(trial: &Trial, reference: &Step) -> Result<Line> {
    let began = Instant::now();
    let found = trial.whole_step()?;
    // Cast to the reference's side: both are float32 leaves of equal name.
    let tolerance = trial.rounding().sums("the whole arithmetic is rounded", 4.0);
    Ok(compare(PRECISION, &found, reference, tolerance, began))
}

/// Central differences along directions that are half the gradient and half chance, so that a component which the
/// gradient lacks would show: one direction over all tensors, then one in each of a few tensors.
pub fn differences(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let Step { gradients, .. } = trial.whole_step()?;
    let row = trial.pack(&trial.every());
    let names: Vec<&String> = gradients.keys().collect();
    let few: Vec<Vec<&String>> =
        (0..TENSORS).map(|i| vec![names[i * (names.len() - 1) / (TENSORS - 1)]]).collect();
    let mut worst = Gap::default();
    for chosen in std::iter::once(names.clone()).chain(few) {
        let parts: Vec<Part> = chosen.iter().map(|n| Part::new(trial, n, &gradients[*n])).collect();
        let expected: f64 = parts.iter().map(|p| p.slope).sum();
        let found = slope(trial, &row, &parts, expected)?;
        let what = if chosen.len() == 1 { chosen[0].as_str() } else { "all tensors at once" };
        worst = worst.or(numbers(what, found, expected));
    }
    let tolerance = Tolerance {
        limit: 5e-3,
        reason: "the loss has 7 digits, of which the step along the direction moves the last 4".into(),
    };
    Ok(judge(DIFFERENCES, worst, tolerance, began))
}

/// Tensors that get a direction of their own.
const TENSORS: usize = 6;

/// One tensor's part of a direction.
struct Part {
    tensor: Tensor,
    direction: Tensor,
    /// The gradient's part along it.
    slope: f64,
}

impl Part {
    fn new(trial: &Trial, name: &str, gradient: &Tensor) -> Self {
        let tensor = trial
            .model
            .params()
            .adapter(0)
            .find(|p| p.name == name)
            .map(|p| p.tensor.shallow_clone())
            .expect("a gradient has a parameter");
        let chance = noise(&gradient.size(), name).to_device(gradient.device());
        // Of equal length, as long as the tensor's own share of a step.
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

/// The loss's slope along the parts: central differences at two widths, extrapolated (Richardson), which leaves an error
/// of the fourth order. The parameters are put back to the bit.
fn slope(trial: &Trial, row: &Row, parts: &[Part], expected: f64) -> Result<f64> {
    let kept: Vec<Tensor> = parts.iter().map(|p| p.tensor.detach().copy()).collect();
    let at = |by: f64| -> Result<f64> {
        parts.iter().for_each(|p| p.add(by));
        let loss = trial.loss(row);
        let _no_grad = tch::no_grad_guard();
        parts.iter().zip(&kept).for_each(|(p, k)| p.tensor.shallow_clone().copy_(k));
        loss
    };
    let centre = trial.loss(row)?;
    // Wide enough to move the loss by a hundredth, but within a tenth of the parameters' own size.
    let by = (1e-2 * centre / expected.abs()).min(0.1);
    let central = |by: f64| -> Result<f64> { Ok((at(by)? - at(-by)?) / (2.0 * by)) };
    let (wide, narrow) = (central(by)?, central(by / 2.0)?);
    Ok((4.0 * narrow - wide) / 3.0)
}

