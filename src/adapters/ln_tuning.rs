//! LayerNorm tuning (Zhao et al. 2023, arXiv 2312.11420): trains the norms' weights and biases, and nothing else.

use super::kind::AdapterKind;
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::targets::Targets;
use super::update::{ReplacementUpdate, WeightUpdate};
use crate::error::Result;
use crate::nn::{Adapter, AdapterSite, LayerKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;
use tch::Tensor;

/// What the names of a norm's trained copy begin with in PEFT's files.
const COPY: &str = "ln_tuning_layers.";
const NAMES: [&str; 2] = ["ln_tuning_layers.weight", "ln_tuning_layers.bias"];
/// Selects every layer; those that are no norms are then passed over.
static USUAL: LazyLock<Targets> = LazyLock::new(|| Targets::Pattern(".*".into()));

/// LayerNorm tuning: the norms' weights and biases are trained; all else is frozen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct LnTuningSpec {
    /// Which norms are trained; left out, all of them.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

impl ModuleKind for LnTuningSpec {
    const NAME: &'static str = "ln_tuning";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }

    fn usual_targets() -> &'static Targets {
        &USUAL
    }
}

impl AdapterKind for LnTuningSpec {
    fn title(&self) -> &'static str {
        "LayerNorm tuning"
    }

    fn describe(&self) -> String {
        "ln_tuning".into()
    }

    fn has_named_targets(&self) -> bool {
        self.modules.has_names_alone()
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachLnTuning { named: self.modules.targets.is_some() }))
    }

    fn usual_lr(&self) -> f64 {
        2e-3
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    fn config(&self, base: &str) -> Value {
        peft::config(self, "LN_TUNING", base, json!({}))
    }

    fn tensor_prefix(&self) -> &'static str {
        COPY
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &NAMES
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let file = ModuleTensors { tensors, origin };
        let mut updates: BTreeMap<String, Box<dyn WeightUpdate>> = BTreeMap::new();
        for module in modules {
            let weight = file.get(module, NAMES[0], &[-1])?;
            updates.insert(format!("{module}.weight"), Box::new(ReplacementUpdate(weight)));
            if let Some(bias) = file.find(module, NAMES[1]) {
                updates.insert(format!("{module}.bias"), Box::new(ReplacementUpdate(bias)));
            }
        }
        Ok(updates)
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<LnTuningSpec> {
    config.check_keys(&[])?;
    // PEFT's targets for llama and mistral, and for gpt2.
    let usual = ["input_layernorm", "post_attention_layernorm", "norm", "ln_1", "ln_2", "ln_f"];
    Ok(LnTuningSpec { modules: config.module_settings(&usual)? })
}

/// Attaches trained copies of norms.
struct AttachLnTuning {
    /// True if the settings name the modules.
    named: bool,
}

impl AdaptLayer for AttachLnTuning {
    fn adapts(&self, site: &AdapterSite) -> bool {
        self.named || site.layer == LayerKind::Norm
    }

    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        match layer.site.layer {
            LayerKind::Norm => Ok(layer.trained_copy(COPY)),
            _ => Err(layer.refusal(
                "LayerNorm tuning trains norms only",
                "name norms in targets, or train this module in full with modules_to_save",
            )),
        }
    }
}
