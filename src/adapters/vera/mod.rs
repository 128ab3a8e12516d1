//! VeRA (Kopiczko et al. 2023, arXiv 2310.11454): `y = W x + diag(b) B diag(d) A x`. A and B are random, frozen and shared by
//! all layers, each of which takes the part that it needs; the vectors b (starting at 0) and d are trained.

mod layer;
mod projections;

use super::kind::{AdapterKind, ModuleMemory};
use super::lora::MAX_RANK;
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::update::{LowRankUpdate, WeightUpdate};
use crate::error::{Error, Result};
use crate::nn::{Adapter, ParamRole, RegisterParam, Weights};
use layer::{Projections, Vera};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Names of a module's vectors b (out) and d (R) in PEFT's files.
const OUTER: &str = "vera_lambda_b";
const INNER: &str = "vera_lambda_d";
/// Names of the projections that all modules share.
const A: &str = "vera_A";
const B: &str = "vera_B";

/// VeRA: `y = W x + diag(b) B diag(d) A dropout(x)`, with A and B random and shared by all layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct VeraSpec {
    /// Rank of the projections; larger than for LoRA, because only a vector of this length is trained.
    #[schemars(range(min = 1, max = 65536))] // MAX_RANK
    pub rank: i64,
    /// Dropout on the input of A, while training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
    /// The value at which d starts.
    pub d_initial: f64,
    /// Seed of the projections A and B. They do not depend on `run.seed`.
    #[schemars(range(max = 4294967295u64))]
    pub projection_seed: u64,
    /// Save A and B with the adapter. Without them the file is much smaller, and a reader makes them again from the seed.
    pub save_projection: bool,
    /// Which modules are adapted; left out, `all-linear`.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

impl Default for VeraSpec {
    fn default() -> Self {
        let modules = ModuleSettings::default();
        Self { rank: 256, dropout: 0.0, d_initial: 0.1, projection_seed: 0, save_projection: true, modules }
    }
}

impl ModuleKind for VeraSpec {
    const NAME: &'static str = "vera";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }
}

impl AdapterKind for VeraSpec {
    fn title(&self) -> &'static str {
        "VeRA"
    }

    fn describe(&self) -> String {
        format!("vera r{}", self.rank)
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        let (spec, projections) = (self.clone(), RefCell::default());
        Ok(Box::new(AttachVera { spec, largest: Cell::new([0, 0]), projections }))
    }

    fn usual_lr(&self) -> f64 {
        1e-2
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("rank", json!(self.rank)),
            ("projection_seed", json!(self.projection_seed)),
            ("save_projection", json!(self.save_projection)),
        ]
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn set_dropout(&mut self, probability: f64) {
        self.dropout = probability;
    }

    fn module_memory(&self, _module: &str, [_, inputs]: [u64; 2]) -> ModuleMemory {
        // With dropout the mask and the masked input are kept, and not the input.
        let kept = if self.dropout > 0.0 { 2 * inputs } else { 0 };
        ModuleMemory { kept, input: self.dropout == 0.0, temporary: 0 }
    }

    fn config(&self, base: &str) -> Value {
        let own = json!({
            "bias": "none",
            "d_initial": self.d_initial,
            "fan_in_fan_out": self.modules.fan_in_fan_out,
            "init_weights": true,
            "projection_prng_key": self.projection_seed,
            "r": self.rank,
            "save_projection": self.save_projection,
            "vera_dropout": self.dropout,
        });
        peft::config(self, "VERA", base, own)
    }

    fn tensor_prefix(&self) -> &'static str {
        "vera_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[OUTER, INNER]
    }

    fn shared_tensor_names(&self) -> &'static [&'static str] {
        &[A, B]
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let file = ModuleTensors { tensors, origin };
        let (a, b) = (file.shared(A, &[self.rank, -1])?, file.shared(B, &[-1, self.rank])?);
        let update = |module: &&str| {
            let (outer, inner) = (file.get(module, OUTER, &[-1])?, file.get(module, INNER, &[self.rank])?);
            let (outputs, most) = (outer.size()[0], b.size()[0]);
            if outputs > most {
                let name = format!("{}: `{module}.{OUTER}` has {outputs} numbers", origin.display());
                return Err(Error::user(format!("{name}, but `{B}` only {most} rows"))
                    .hint("config and tensors belong to different adapters"));
            }
            let update = VeraUpdate { a: &a * inner.unsqueeze(-1), b: b.narrow(0, 0, outputs) * outer.unsqueeze(-1) };
            Ok((format!("{module}.weight"), Box::new(update) as _))
        };
        modules.iter().map(update).collect()
    }

    fn updates_on(
        &self,
        base: &Weights,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        if self.save_projection {
            return self.updates(modules, tensors, origin);
        }
        // The projections have the size of the largest layer.
        let shape = |module: &&str| {
            let name = format!("{module}.weight");
            let shape = <[i64; 2]>::try_from(base.shape(&name)?).ok()?;
            Some(if base.transposed(&name) { [shape[1], shape[0]] } else { shape })
        };
        if let Some(module) = modules.iter().find(|module| shape(module).is_none()) {
            return Err(Error::user(format!(
                "{}: `{module}` is adapted, and the base has no weight of this name: without it the size of the random projections is not known",
                origin.display()
            ))
            .hint("a head that shares the embedding's weight has none: ft merge BASE ADAPTER --out DIR separates the two first"));
        }
        let larger = |a: [i64; 2], b: [i64; 2]| [a[0].max(b[0]), a[1].max(b[1])];
        let [outputs, inputs] = modules.iter().filter_map(shape).fold([0, 0], larger);
        let [a, b] = projections::from_seed(self.projection_seed, self.rank, inputs, outputs);
        let mut all: BTreeMap<String, Tensor> = tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        all.extend([(A.to_string(), a), (B.to_string(), b)]);
        self.updates(modules, &all, origin)
    }
}

/// Adds the product of a layer's rows of B and of the first columns of A, as many as the weight has.
struct VeraUpdate {
    /// (R, most inputs)
    a: Tensor,
    /// (out, R)
    b: Tensor,
}

impl VeraUpdate {
    fn low_rank(&self, inputs: i64) -> LowRankUpdate {
        LowRankUpdate { a: self.a.narrow(1, 0, inputs), b: self.b.shallow_clone(), scale: 1.0, table: false }
    }
}

impl WeightUpdate for VeraUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, transposed: bool) {
        let inputs = sum.size()[usize::from(!transposed)];
        self.low_rank(inputs).add(sum, base, factor, transposed);
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        let [first, second] = shape else { return false };
        let (outputs, inputs) = if transposed { (second, first) } else { (first, second) };
        *outputs == self.b.size()[0] && *inputs <= self.a.size()[1]
    }

    fn shape(&self) -> String {
        format!("{:?} · part of {:?}", self.b.size(), self.a.size())
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<VeraSpec> {
    config.check_keys(&["d_initial", "init_weights", "projection_prng_key", "r", "save_projection", "vera_dropout"])?;
    let usual = VeraSpec::default();
    Ok(VeraSpec {
        rank: config.read_rank("r", usual.rank, MAX_RANK)?,
        dropout: config.read_dropout("vera_dropout")?,
        d_initial: config.read("d_initial")?.unwrap_or(usual.d_initial),
        projection_seed: config.read("projection_prng_key")?.unwrap_or(0),
        save_projection: config.read("save_projection")?.unwrap_or(true),
        modules: config.module_settings(&["q_proj", "v_proj", "c_attn"])?,
    })
}

/// Attaches VeRA's vectors, and makes the projections once all layers are known.
struct AttachVera {
    spec: VeraSpec,
    /// The most outputs and inputs of a layer so far.
    largest: Cell<[i64; 2]>,
    /// What the layers of the model that is being built share.
    projections: RefCell<Rc<Projections>>,
}

impl AdaptLayer for AttachVera {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let [outputs, inputs] = layer.linear_matrix("VeRA")?;
        let [most_outputs, most_inputs] = self.largest.get();
        self.largest.set([most_outputs.max(outputs), most_inputs.max(inputs)]);
        let options = (Kind::Float, Device::Cpu);
        let outer = layer.trained_scale(OUTER, Tensor::zeros([outputs], options));
        let inner = layer.trained_scale(INNER, Tensor::full([self.spec.rank], self.spec.d_initial, options));
        let projections = self.projections.borrow().clone();
        Ok(Box::new(Vera { projections, outer, inner, inputs, dropout: self.spec.dropout, cast: Default::default() }))
    }

    fn register_shared(&self, add: &mut RegisterParam) -> Result<()> {
        let [outputs, inputs] = self.largest.replace([0, 0]);
        let [a, b] = projections::from_seed(self.spec.projection_seed, self.spec.rank, inputs, outputs);
        let role = if self.spec.save_projection { ParamRole::Frozen } else { ParamRole::Constant };
        let shared = [add(A, a, role), add(B, b, role)];
        // A second model from the same plan gets projections of its own.
        let _ = self.projections.take().0.set(shared);
        Ok(())
    }
}
