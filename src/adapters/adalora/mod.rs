//! AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): `y = W x + s B diag(E) A x`, a low-rank update in the form of a singular value
//! decomposition. During training, parts of the updates that matter least are removed, until the mean rank is the target.
//!
//! A and B are kept near to orthogonal by a term of the loss. The parts that are left are published.

mod allocation;
mod budget;
mod layer;

use super::kind::{AdapterActivations, AdapterKind, ModuleMemory};
use super::lora::MAX_RANK;
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig, number};
use super::plan::{AdaptLayer, AdaptedLayer, ModulePlan};
use super::training::TrainingPart;
use super::update::{LowRankUpdate, WeightUpdate};
use crate::error::{Error, Result};
use crate::nn::{Adapter, AdapterPlan, Param};
use allocation::Allocation;
use budget::Budget;
use layer::Adalora;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Names of A (R, in), E (R, 1) and B (out, R) in PEFT's files.
const A: &str = "lora_A";
const E: &str = "lora_E";
const B: &str = "lora_B";

/// AdaLoRA: `y = W x + alpha / rank · B diag(E) A dropout(x)`; ranks fall during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct AdaloraSpec {
    /// Rank of every update at first.
    #[schemars(range(min = 1, max = 65536))] // MAX_RANK
    pub rank: i64,
    /// The mean rank of an update at the end.
    #[schemars(range(min = 1, max = 65536))] // MAX_RANK
    pub target_rank: i64,
    /// Numerator of the scale, `alpha / rank`; it does not change as ranks fall.
    #[schemars(range(min = 0.0))]
    pub alpha: f64,
    /// Dropout on the input of A, while training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
    /// Steps before ranks begin to fall. A tenth of the run is usual.
    pub initial_steps: u64,
    /// Steps at the end in which ranks no longer change. A third of the run is usual.
    pub final_steps: u64,
    /// Ranks are allocated anew after every so many steps.
    #[schemars(range(min = 1))]
    pub every: u64,
    /// How much of the past the importance of a number and its deviation keep from step to step.
    pub betas: [f64; 2],
    /// Coefficient of the term of the loss that keeps A and B orthogonal; 0: none.
    #[schemars(range(min = 0.0))]
    pub orthogonality: f64,
    /// Which modules are adapted; left out, `all-linear`.
    #[serde(flatten)]
    pub modules: ModuleSettings,
    /// Ranks of modules that have fewer parts than `rank`. From an adapter's file, never from a recipe.
    #[serde(skip)]
    pub ranks: BTreeMap<String, i64>,
}

/// PEFT's values.
impl Default for AdaloraSpec {
    fn default() -> Self {
        Self {
            rank: 12,
            target_rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            initial_steps: 0,
            final_steps: 0,
            every: 1,
            betas: [0.85, 0.85],
            orthogonality: 0.5,
            modules: ModuleSettings::default(),
            ranks: BTreeMap::new(),
        }
    }
}

impl AdaloraSpec {
    /// Fails for settings that contradict each other or that no run can follow.
    fn check(&self) -> Result<()> {
        if self.target_rank > self.rank {
            return Err(Error::user(format!(
                "adapter.adalora: target_rank {} is above rank {}: ranks only fall",
                self.target_rank, self.rank
            ))
            .hint("raise rank, at which every update starts, or lower target_rank"));
        }
        if self.betas.iter().any(|beta| !(0.0..1.0).contains(beta)) {
            return Err(Error::user(format!("adapter.adalora.betas: {:?} is not between 0 and 1", self.betas))
                .hint("they are shares of the past, such as 0.85"));
        }
        Ok(())
    }

    fn rank_of(&self, module: &str) -> i64 {
        self.ranks.get(module).copied().unwrap_or(self.rank)
    }

    /// Returns the scale of the updates. As in PEFT, an alpha of 0 stands for the rank.
    fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.alpha > 0.0 { self.alpha / (rank + 1e-5) } else { rank / (rank + 1e-5) }
    }

    /// Returns these settings with the ranks of an adapter's tensors.
    fn with_ranks_of(&self, tensors: &BTreeMap<String, Tensor>) -> Self {
        let rank = |(name, t): (&String, &Tensor)| {
            let module = name.strip_suffix(A)?.strip_suffix('.')?;
            Some((module.to_string(), t.size().first().copied()?.min(self.rank)))
        };
        Self { ranks: tensors.iter().filter_map(rank).collect(), ..self.clone() }
    }
}

impl ModuleKind for AdaloraSpec {
    const NAME: &'static str = "adalora";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }
}

impl AdapterKind for AdaloraSpec {
    fn title(&self) -> &'static str {
        "AdaLoRA"
    }

    fn describe(&self) -> String {
        format!("adalora r{} to r{}", self.rank, self.target_rank)
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachAdalora(self.clone())))
    }

    fn plan_from(&self, start: Option<&BTreeMap<String, Tensor>>) -> Result<Box<dyn AdapterPlan>> {
        self.check()?;
        Ok(match start {
            Some(tensors) => Box::new(ModulePlan::new(&self.with_ranks_of(tensors))?.with_base_weights(tensors)),
            None => Box::new(ModulePlan::new(self)?),
        })
    }

    fn plan_of_file(&self, config: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Box<dyn AdapterPlan>> {
        Ok(Box::new(ModulePlan::of_file(&self.with_ranks_of(tensors), config)?.with_base_weights(tensors)))
    }

    fn usual_lr(&self) -> f64 {
        2e-3
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![("rank", json!(self.rank)), ("alpha", json!(self.alpha))]
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn set_dropout(&mut self, probability: f64) {
        self.dropout = probability;
    }

    fn activations(&self) -> AdapterActivations {
        AdapterActivations { rank: self.rank as u64, dropout: self.dropout > 0.0, ..AdapterActivations::default() }
    }

    fn module_memory(&self, _module: &str, _shape: [u64; 2]) -> ModuleMemory {
        ModuleMemory { kept: 0, input: self.dropout == 0.0, temporary: 0 }
    }

    fn training(&self, params: &mut dyn Iterator<Item = &Param>, steps: u64) -> Result<Option<Box<dyn TrainingPart>>> {
        let budget = |ranks: i64, modules: i64| {
            let target = (self.target_rank * modules).min(ranks);
            Budget::new(steps, self.initial_steps, self.final_steps, self.every, [ranks, target])
        };
        Ok(Some(Box::new(Allocation::new(params, self.betas, self.orthogonality, budget)?)))
    }

    fn publish(&mut self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let _no_grad = tch::no_grad_guard();
        let entries = |name: &str| name.ends_with(&format!(".{E}"));
        let is_zero = |t: &Tensor| t.count_nonzero(None::<i64>).int64_value(&[]) == 0;
        if tensors.iter().filter(|(name, _)| entries(name)).all(|(_, t)| is_zero(t)) {
            return tensors; // not trained: no part has been removed
        }
        let mut published = tensors;
        let modules: Vec<String> =
            published.keys().filter_map(|n| Some(n.strip_suffix(E)?.strip_suffix('.')?.to_string())).collect();
        for module in modules {
            let left = published[&format!("{module}.{E}")].view(-1).nonzero().view(-1);
            for (name, dim) in [(A, 0), (E, 0), (B, 1)] {
                if let Some(t) = published.get_mut(&format!("{module}.{name}")) {
                    *t = t.index_select(dim, &left);
                }
            }
            self.ranks.insert(module, left.size()[0]);
        }
        published
    }

    fn config(&self, base: &str) -> Value {
        // For PEFT the list of a module has as many entries as its first rank; which of them are true has no effect.
        let pattern = |(module, rank): (&String, &i64)| {
            let left: Vec<bool> = (0..self.rank).map(|i| i < *rank).collect();
            (format!("{module}.{E}"), json!(left))
        };
        let patterns: serde_json::Map<String, Value> = self.ranks.iter().map(pattern).collect();
        let own = json!({
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "bias": "none",
            "deltaT": self.every,
            "fan_in_fan_out": self.modules.fan_in_fan_out,
            "init_lora_weights": true,
            "init_r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "orth_reg_weight": self.orthogonality,
            "r": 8,
            "rank_pattern": if patterns.is_empty() { Value::Null } else { patterns.into() },
            "target_r": self.target_rank,
            "tfinal": self.final_steps,
            "tinit": self.initial_steps,
            // PEFT reads no adapter without the length of its run, which a trained adapter does not depend on: the
            // shortest that the other settings allow.
            "total_step": self.initial_steps + self.final_steps + 1,
        });
        peft::config(self, "ADALORA", base, own)
    }

    fn tensor_prefix(&self) -> &'static str {
        "lora_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[A, E, B]
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let file = ModuleTensors { tensors, origin };
        let update = |module: &&str| {
            let rank = self.rank_of(module);
            let (a, e) = (file.get(module, A, &[rank, -1])?, file.get(module, E, &[rank, 1])?);
            let a = a.to_kind(Kind::Float) * e.to_kind(Kind::Float);
            let update = LowRankUpdate { a, b: file.get(module, B, &[-1, rank])?, scale: self.scale(), table: false };
            Ok((format!("{module}.weight"), Box::new(update) as _))
        };
        modules.iter().map(update).collect()
    }
}

/// Keys of adapter_config.json that are read, or that do not change a trained adapter.
const KEYS: &[&str] = &[
    "alpha_pattern", // AdaLoRA of PEFT has one alpha for all modules
    "beta1",
    "beta2",
    "deltaT",
    "init_lora_weights",
    "init_r",
    "lora_alpha",
    "lora_dropout",
    "orth_reg_weight",
    "r",
    "rank_pattern",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
];

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<AdaloraSpec> {
    config.check_keys(KEYS)?;
    let usual = AdaloraSpec::default();
    let patterns: BTreeMap<String, Vec<bool>> = config.read("rank_pattern")?.unwrap_or_default();
    let rank = config.read_rank("init_r", usual.rank, MAX_RANK)?;
    let mut ranks = BTreeMap::new();
    for (name, left) in &patterns {
        let module = name.replace(".default", "");
        let module = module.strip_suffix(E).and_then(|m| m.strip_suffix('.'));
        let Some(module) = module.filter(|_| left.len() as i64 == rank) else {
            let hint = "each pattern is named after a module's lora_E and has init_r entries";
            return Err(config.unsupported_value("rank_pattern", &json!({ name: left }), hint));
        };
        ranks.insert(module.to_string(), left.iter().filter(|left| **left).count() as i64);
    }
    Ok(AdaloraSpec {
        rank,
        target_rank: config.read_rank("target_r", usual.target_rank, MAX_RANK)?,
        alpha: config.read("lora_alpha")?.unwrap_or(usual.alpha),
        dropout: config.read_dropout("lora_dropout")?,
        initial_steps: config.read("tinit")?.unwrap_or(0),
        final_steps: config.read("tfinal")?.unwrap_or(0),
        every: config.read("deltaT")?.unwrap_or(1),
        betas: [config.read("beta1")?.unwrap_or(usual.betas[0]), config.read("beta2")?.unwrap_or(usual.betas[1])],
        orthogonality: config.read("orth_reg_weight")?.unwrap_or(usual.orthogonality),
        modules: config.module_settings(&["q_proj", "v_proj", "c_attn", "query_key_value", "Wqkv"])?,
        ranks,
    })
}

/// Attaches AdaLoRA's factors.
struct AttachAdalora(AdaloraSpec);

impl AdaptLayer for AttachAdalora {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let [outputs, inputs] = layer.linear_matrix("AdaLoRA")?;
        let rank = self.0.rank_of(layer.name());
        let options = (Kind::Float, Device::Cpu);
        // As in PEFT, A and B are normal with deviation 0.02, and E is 0.
        let a = layer.trained(A, Tensor::randn([rank, inputs], options) * 0.02);
        let e = layer.trained_scale(E, Tensor::zeros([rank, 1], options));
        let b = layer.trained(B, Tensor::randn([outputs, rank], options) * 0.02);
        Ok(Box::new(Adalora { a, e, b, scale: self.0.scale(), dropout: self.0.dropout, cast: Default::default() }))
    }
}
