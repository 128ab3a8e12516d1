//! Modules that are trained in full beside an adapter and saved in its file (`modules_to_save` of PEFT), of every kind.

use crate::nn::weight::{cast, product};
use crate::nn::{Adapter, AdapterSite, Dense, ParamRole, RegisterParam};
use tch::{Kind, Tensor};

/// A module trained in full, bias included, as a copy of its frozen original (`modules_to_save`).
struct FullyTrainedModule {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Adapter for FullyTrainedModule {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        debug_assert_eq!(base.bias.is_some(), self.bias.is_some());
        let bias = self.bias.as_ref().map(|b| cast(b, x.kind()));
        product(x, &self.weight, bias.as_ref())
    }

    fn merged(&self, _weight: &Tensor) -> Tensor {
        self.weight.shallow_clone()
    }

    fn for_tied_head(&self) -> Option<Box<dyn Adapter>> {
        Some(Box::new(Self { weight: self.weight.shallow_clone(), bias: None }))
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        self.bias.as_ref().unwrap_or(bias).shallow_clone()
    }
}

/// Attaches a float32 copy of the layer's weight and bias, which is trained in place of them.
pub(super) fn attach(site: &AdapterSite, add: &mut RegisterParam) -> Box<dyn Adapter> {
    attach_as(site, "", add)
}

/// Does the same; the names of the parameters begin with `prefix`.
pub(super) fn attach_as(site: &AdapterSite, prefix: &str, add: &mut RegisterParam) -> Box<dyn Adapter> {
    let copy = |t: &Tensor| t.to_kind(Kind::Float).copy();
    let weight = add(&format!("{prefix}weight"), copy(&site.weight.dense(site.weight.kind())), ParamRole::Trained);
    let bias = site.bias.map(|b| add(&format!("{prefix}bias"), copy(b), ParamRole::Trained));
    Box::new(FullyTrainedModule { weight, bias })
}
