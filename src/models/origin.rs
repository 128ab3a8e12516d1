//! Where numbers stop being finite: a row run again layer by layer, looked at after each.
//!
//! Slow, for a step that has failed already. Dropout is off, so a failure that hung on one mask may not come back.

use super::{Inside, Loss, Model, Output, seed};
use crate::error::Result;
use crate::native;
use crate::nn::{Pass, Tokens};
use std::fmt;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The part of a step in which the first such number was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    FrozenWeights,
    TrainedWeights,
    Forward,
    Loss,
    Backward,
}

/// The first tensor that holds NaN or infinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub stage: Stage,
    /// The tensor by its name, or the layer and what of it.
    pub place: String,
    /// Numbers that are NaN, that are infinite, and all.
    pub nan: i64,
    pub infinite: i64,
    pub all: i64,
    /// The largest magnitude of what went in, where that was finite.
    pub input: Option<String>,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::FrozenWeights => "frozen weights",
            Stage::TrainedWeights => "trained weights",
            Stage::Forward => "forward",
            Stage::Loss => "loss",
            Stage::Backward => "backward",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {} NaN and {} infinite of {} numbers", self.place, self.nan, self.infinite, self.all)?;
        match &self.input {
            Some(largest) => write!(f, "; what goes in is finite, at most {largest}"),
            None => Ok(()),
        }
    }
}

/// `Some` where the tensor holds a number that is not finite.
fn look_at(t: &Tensor, stage: Stage, place: impl Into<String>, input: Option<&Tensor>) -> Option<Origin> {
    let count = |t: Tensor| t.sum(Kind::Int64).int64_value(&[]);
    if count(t.isfinite().logical_not()) == 0 {
        return None;
    }
    let largest = |t: &Tensor| format!("{:.3e}", t.abs().max().to_kind(Kind::Double).double_value(&[]));
    let (nan, infinite) = (count(t.isnan()), count(t.isinf()));
    Some(Origin { stage, place: place.into(), nan, infinite, all: t.numel() as i64, input: input.map(largest) })
}

impl Model {
    /// The first tensor that is not finite in the weights, then in the forward of `tokens`, its loss, and its backward;
    /// `None` where all are finite. Adds to the gradients: forget them afterwards.
    pub fn origin(&self, tokens: &Tokens, items: f64, loss: impl FnOnce(&Output) -> Loss) -> Result<Option<Origin>> {
        self.check(tokens, &[])?;
        for p in self.store.iter() {
            let (stage, what) = match p.trainable() {
                true => (Stage::TrainedWeights, "trained weight"),
                false => (Stage::FrozenWeights, "weight"),
            };
            if let Some(found) = look_at(&p.tensor.detach(), stage, format!("{what} `{}`", p.name), None) {
                return Ok(Some(found));
            }
        }
        let (look, mut inside) = (self.look(), Inside::default());
        let mut pass = Pass::new(tokens, None).listen(&look.attention);
        let mut inputs = Vec::with_capacity(self.depth());
        let top = {
            let _no_grad = tch::no_grad_guard();
            let mut x = self.decoder.embed(tokens);
            if let Some(found) = look_at(&x, Stage::Forward, "output of the embedding", None) {
                return Ok(Some(found));
            }
            for i in 0..self.depth() {
                let y = self.decoder.layer(i, &x, &mut pass);
                if let Some(found) = look_at(&y, Stage::Forward, format!("output of layer {i}"), Some(&x)) {
                    return Ok(Some(found));
                }
                inside.see_leaf(&look, i, &y, &mut pass);
                inputs.push(std::mem::replace(&mut x, y));
            }
            let last = self.decoder.finish(&x);
            if let Some(found) = look_at(&last, Stage::Forward, "output of the final norm", Some(&x)) {
                return Ok(Some(found));
            }
            x.detach().set_requires_grad(true)
        };
        let inside = Rc::new(inside);
        let out = self.output(top.shallow_clone(), inside.clone());
        let hidden = out.hidden.detach();
        let Loss { sum, .. } = loss(&out);
        if let Some(found) = look_at(&sum.detach(), Stage::Loss, "the loss over the output head", Some(&hidden)) {
            return Ok(Some(found));
        }
        native::backward(&[&sum], &[&seed(&sum, items)])?;
        drop((sum, out));
        let mut g = top.grad();
        if let Some(found) = look_at(&g, Stage::Backward, "gradient that leaves the output head", None) {
            return Ok(Some(found));
        }
        while let Some(x) = inputs.pop() {
            let i = inputs.len();
            let x = x.detach().set_requires_grad(true);
            let y = self.decoder.layer(i, &x, &mut pass);
            let pulled = inside.pull(i, y, g, &mut pass);
            let (outputs, gradients): (Vec<&Tensor>, Vec<&Tensor>) = pulled.iter().map(|(y, g)| (y, g)).unzip();
            native::backward(&outputs, &gradients)?;
            let (below, above) = (x.grad(), &pulled[0].1);
            if let Some(found) =
                look_at(&below, Stage::Backward, format!("gradient that leaves layer {i}"), Some(above))
            {
                return Ok(Some(found));
            }
            g = below;
        }
        let bad = self.store.trainable().find_map(|p| {
            let gradient = p.tensor.grad();
            gradient
                .defined()
                .then(|| look_at(&gradient, Stage::Backward, format!("gradient of `{}`", p.name), None))?
        });
        Ok(bad)
    }
}
