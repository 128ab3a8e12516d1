//! Base weights in an adapter's file. PEFT saves those of adapted embeddings and output heads, and replaces the model's
//! weights by them when it loads the adapter.

use crate::error::{Error, Result};
use crate::nn::weight::cast;
use crate::nn::{Adapter, AdapterSite, Dense, ParamRole, RegisterParam, Weight};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Ending of the name of the base weight below an update.
pub(super) const BASE_LAYER: &str = ".base_layer.weight";

/// Modules whose base weight PEFT saves together with their update.
const SAVED_BASE_MODULES: [&str; 2] = ["embed_tokens", "lm_head"];

/// The base weights in an adapter's file, by module.
#[derive(Default)]
pub(super) struct BaseWeights {
    weights: BTreeMap<String, Tensor>,
}

impl BaseWeights {
    /// Collects the base weights among an adapter's tensors.
    pub fn of(tensors: &BTreeMap<String, Tensor>) -> Self {
        let base =
            |(name, t): (&String, &Tensor)| Some((name.strip_suffix(BASE_LAYER)?.to_string(), t.shallow_clone()));
        Self { weights: tensors.iter().filter_map(base).collect() }
    }

    /// Returns the adapter file's base weight if it differs from the layer's and is used in its place. It is
    /// registered, so that it is saved again; if it is equal, it takes no extra memory. For a new adapter the layer's
    /// own weight is registered for the modules for which PEFT saves it.
    pub fn own_weight(
        &self,
        site: &AdapterSite,
        origin: Option<&Path>,
        add: &mut RegisterParam,
    ) -> Result<Option<Tensor>> {
        let Some(base) = self.weights.get(site.name) else {
            // A weight that is stored quantised is not saved: that would be a copy of full size.
            let saved = origin.is_none() && !site.weight.is_quantised();
            if saved && SAVED_BASE_MODULES.contains(&site.name.rsplit('.').next().unwrap_or_default()) {
                let _ = add(&BASE_LAYER[1..], site.weight.dense(site.weight.kind()), ParamRole::Frozen);
            }
            return Ok(None);
        };
        if base.size() != site.weight.shape() {
            return Err(named(
                origin,
                Error::user(format!(
                    "adapter on `{}`: its file contains a base layer of shape {:?}, but the model's has {:?}",
                    site.name,
                    base.size(),
                    site.weight.shape()
                ))
                .hint("it was trained on a base with another vocabulary: use that one"),
            ));
        }
        let base = cast(&base.to_device(site.weight.device()), site.weight.kind());
        // One that is stored quantised counts as another one.
        let own = (!site.weight.is_quantised()).then(|| site.weight.dense(site.weight.kind()));
        let own = own.filter(|own| base.equal(own));
        let equal = own.is_some();
        if site.tied && !equal {
            return Err(named(
                origin,
                Error::user(format!(
                    "adapter on `{}`: its file contains a base layer that differs from the model's, which embedding and output head share",
                    site.name
                ))
                .hint("was it trained on another base? Use that one"),
            ));
        }
        let base = own.unwrap_or(base);
        let base = add(&BASE_LAYER[1..], base, ParamRole::Frozen);
        Ok((!equal).then_some(base))
    }
}

/// An adapter over a weight that takes the place of the layer's.
pub(super) struct OverOwnWeight {
    pub adapter: Box<dyn Adapter>,
    /// The weight of the adapter's file: (out, in), or (V, D) of a table.
    pub weight: Weight,
}

impl Adapter for OverOwnWeight {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let bias = base.bias.as_ref().map(Tensor::shallow_clone);
        self.adapter.forward(x, &Dense { weight: self.weight.shallow_clone(), bias }, train)
    }

    fn embed(&self, ids: &Tensor, _weight: &Weight) -> Tensor {
        self.adapter.embed(ids, &self.weight)
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        self.adapter.merged(&self.weight.dense(weight.kind()))
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        self.adapter.merged_bias(bias)
    }
}

/// Names the file that an error comes from, if there is one.
pub(super) fn named(origin: Option<&Path>, e: Error) -> Error {
    match origin {
        Some(file) => e.context(file.display()),
        None => e,
    }
}
