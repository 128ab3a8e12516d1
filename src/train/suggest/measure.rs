//! Estimates, for the weight W (out, in) of each linear layer, how much of the loss's gradient G lies along which
//! directions, without ever storing G.
//!
//! A LoRA of rank R with scale 1 is attached to all linear layers. Its gradients are products with G: with B = 0 that of
//! B is `G A^T`, and with A = 0 that of A is `B^T G`. The measurement has three parts on different rows:
//!
//! 1. With a random A, the left singular vectors of `G A^T` are the directions in which G is largest (randomised range
//!    finder, Halko et al. 2009, arXiv 0909.4061, algorithm 4.1). They become B (out, R).
//! 2. and 3. With A = 0, `P = B^T G` (R, in) is the gradient along these directions: P2 and P3.
//!
//! Row i of `P2 ∘ P3`, summed, is the gain of direction i: the decrease of the loss, to first order and per learning
//! rate, of a step along the gradient there. Because parts 2 and 3 have different rows, what the gradient owes to single
//! rows cancels in the mean, and directions that only looked large in part 1 gain nothing.

use crate::error::{Error, Result};
use crate::methods::contract::Method;
use crate::models::{LayerReplay, Model};
use crate::native;
use crate::nn::Param;
use crate::recipe::plan::Plan;
use crate::report;
use tch::{Kind, Tensor};

/// The measured gradient of one linear layer.
pub(super) struct MeasuredModule {
    /// The module's name.
    pub name: String,
    /// Width of the input.
    pub inputs: i64,
    /// Width of the output.
    pub outputs: i64,
    /// The gain of each direction, the largest first; below 0 where noise is larger than the gradient.
    pub gains: Vec<f64>,
    /// Cosine between the two estimates of the gradient along these directions.
    pub agreement: f64,
}

impl MeasuredModule {
    /// Returns the trained parameters of one rank.
    pub fn cost(&self) -> i64 {
        self.inputs + self.outputs
    }

    /// Returns the gain of all directions in which there is any.
    pub fn gain(&self) -> f64 {
        self.gain_of(self.gains.len() as i64)
    }

    /// Returns the gain of an update of this rank.
    pub fn gain_of(&self, rank: i64) -> f64 {
        self.gains.iter().take(rank.max(0) as usize).map(|gain| gain.max(0.0)).sum()
    }
}

/// The factors A (R, in) and B (out, R) of one module.
struct Probe<'m> {
    name: &'m str,
    a: &'m Tensor,
    b: &'m Tensor,
}

/// Measures the modules of a model with a LoRA of scale 1 on all linear layers; `steps` optimiser steps in each part.
pub(super) fn measure(
    plan: &Plan,
    model: &Model,
    mut method: Box<dyn Method>,
    steps: usize,
) -> Result<Vec<MeasuredModule>> {
    let probes = probes(model);
    let bar = report::bar(3 * steps as u64, "measuring gradients");
    let mut part = |of: fn(&Probe) -> Tensor| -> Result<Vec<Tensor>> {
        for _ in 0..steps {
            add_gradients(plan, model, method.as_mut())?;
            bar.inc(1);
        }
        let gradients = probes.iter().map(|p| of(p) / steps as f64).collect();
        native::drop_gradients(model.params().trainable().map(|p| &p.tensor));
        Ok(gradients)
    };
    tch::no_grad(|| probes.iter().for_each(|p| drop(p.a.shallow_clone().normal_(0.0, 1.0))));
    let sketches = part(|p| gradient(p.b))?;
    tch::no_grad(|| {
        for (p, sketch) in probes.iter().zip(&sketches) {
            let (directions, ..) = sketch.svd(true, true); // (out, min(out, R))
            let _ = p.a.shallow_clone().zero_();
            let _ = p.b.shallow_clone().zero_();
            p.b.narrow(1, 0, directions.size()[1]).copy_(&directions);
        }
    });
    let along = |p: &Probe| gradient(p.a);
    let (second, third) = (part(along)?, part(along)?);
    bar.finish_and_clear();
    probes.iter().zip(second.iter().zip(&third)).map(|(p, (x, y))| measured(p, x, y)).collect()
}

/// Returns a factor's gradient: zeros if there is none, because no token of the rows went to its expert.
fn gradient(factor: &Tensor) -> Tensor {
    let gradient = factor.grad();
    if gradient.defined() { gradient.to_kind(Kind::Float) } else { factor.zeros_like() }
}

/// Returns the adapter's factors, by module.
fn probes(model: &Model) -> Vec<Probe<'_>> {
    let factors: Vec<&Param> = model.params().trainable().filter(|p| p.adapter.is_some()).collect();
    let second = |name: &str| factors.iter().find(|p| p.name.strip_suffix(".lora_B.weight") == Some(name));
    let first = factors.iter().filter_map(|p| Some((p.name.strip_suffix(".lora_A.weight")?, p)));
    first.filter_map(|(name, a)| Some(Probe { name, a: &a.tensor, b: &second(name)?.tensor })).collect()
}

/// Runs one optimiser step's rows forward and backward, without an update.
fn add_gradients(plan: &Plan, model: &Model, method: &mut dyn Method) -> Result<()> {
    let step = method.next_step(model)?;
    for batch in step.micro_batches {
        model.learn(&*batch?, step.items, LayerReplay::from(plan.recipe.run.replay))?;
    }
    Ok(())
}

fn measured(probe: &Probe, second: &Tensor, third: &Tensor) -> Result<MeasuredModule> {
    let dot = |x: &Tensor, y: &Tensor| (x * y).sum(Kind::Double).double_value(&[]);
    let by_direction = (second * third).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let mut gains = Vec::<f64>::try_from(&by_direction)?;
    if let Some(bad) = gains.iter().find(|gain| !gain.is_finite()) {
        return Err(Error::user(format!("the gradient of `{}` is {bad}", probe.name))
            .hint("the model or the rows are damaged: ft check and ft selftest look for the cause"));
    }
    gains.sort_by(|a, b| b.total_cmp(a));
    let norms = (dot(second, second) * dot(third, third)).sqrt();
    Ok(MeasuredModule {
        name: probe.name.into(),
        inputs: probe.a.size()[1],
        outputs: probe.b.size()[0],
        gains,
        agreement: if norms > 0.0 { dot(second, third) / norms } else { 0.0 },
    })
}
