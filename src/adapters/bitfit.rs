//! BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): trains the biases alone, as differences from the base's,
//! which start at 0.
//!
//! They are saved as PEFT's BEFT (arXiv 2509.15974), which adds such a vector to the outputs of linear layers. PEFT reads
//! no differences of the biases of gpt2's linear layers and of norms.

use super::base_product::base_product;
use super::kind::AdapterKind;
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::targets::Targets;
use super::update::{SumUpdate, WeightUpdate};
use crate::error::{Error, Result};
use crate::nn::{Adapter, AdapterSite, Dense, JointForm, LayerKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// Name of a module's difference (1, out) in PEFT's files.
const DIFFERENCE: &str = "beft_bias";
/// Selects every layer; those without a bias are then passed over.
static USUAL: LazyLock<Targets> = LazyLock::new(|| Targets::Pattern(".*".into()));

/// BitFit: `y = W x + b + d`, where d is trained. The base must have biases.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct BitfitSpec {
    /// Whose biases are trained; left out, those of every linear layer and norm that has one.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

impl ModuleKind for BitfitSpec {
    const NAME: &'static str = "bitfit";

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

impl AdapterKind for BitfitSpec {
    fn title(&self) -> &'static str {
        "BitFit"
    }

    fn describe(&self) -> String {
        "bitfit".into()
    }

    fn has_named_targets(&self) -> bool {
        self.modules.has_names_alone()
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachBias { named: self.modules.targets.is_some(), any: Cell::new(false) }))
    }

    fn usual_lr(&self) -> f64 {
        2e-3
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    fn peft_refusal(&self, modules: &BTreeSet<&str>) -> Option<String> {
        let norm =
            |m: &&&str| m.rsplit('.').next().is_some_and(|last| last.contains("norm") || last.starts_with("ln_"));
        let reason = match modules.iter().find(norm) {
            Some(module) => format!("its BEFT adapts linear layers only, not `{module}`"),
            None if self.modules.fan_in_fan_out => "its BEFT does not adapt the linear layers of gpt2".into(),
            None => return None,
        };
        Some(reason)
    }

    fn config(&self, base: &str) -> Value {
        peft::config(self, "BEFT", base, json!({ "init_weights": true }))
    }

    fn tensor_prefix(&self) -> &'static str {
        "beft_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[DIFFERENCE]
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let file = ModuleTensors { tensors, origin };
        let update = |module: &&str| {
            let difference = file.get(module, DIFFERENCE, &[1, -1])?.view(-1);
            Ok((format!("{module}.bias"), Box::new(SumUpdate(difference)) as _))
        };
        modules.iter().map(update).collect()
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<BitfitSpec> {
    config.check_keys(&["init_weights"])?;
    Ok(BitfitSpec { modules: config.module_settings(&["v_proj"])? })
}

/// Attaches trained differences of biases.
struct AttachBias {
    /// True if the settings name the modules.
    named: bool,
    /// True once a layer with a bias was met.
    any: Cell<bool>,
}

impl AdaptLayer for AttachBias {
    fn adapts(&self, site: &AdapterSite) -> bool {
        self.named || site.bias.is_some()
    }

    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        self.any.set(true);
        let outputs = match (layer.site.layer, layer.site.bias) {
            (LayerKind::Linear | LayerKind::Norm, Some(bias)) => bias.size()[0],
            (LayerKind::Linear | LayerKind::Head, None) if layer.is_from_file() => layer.linear_matrix("BitFit")?[0],
            _ => {
                return Err(layer.refusal(
                    "the layer has no bias to train",
                    "leave targets out to train every bias that the model has; LoRA adapts layers without",
                ));
            }
        };
        let zeros = Tensor::zeros([1, outputs], (Kind::Float, Device::Cpu));
        Ok(Box::new(BiasDifference {
            of_base: layer.site.bias.is_some(),
            difference: layer.trained_scale(DIFFERENCE, zeros),
        }))
    }

    fn check(&self) -> Result<()> {
        match self.any.get() {
            true => Ok(()),
            false => Err(Error::user("adapter.bitfit: the model has no biases")
                .hint("adapter.ln_tuning trains its norms, adapter.ia3 factors; or use adapter.lora")),
        }
    }
}

/// A difference that is added to a layer's bias.
struct BiasDifference {
    /// (1, out)
    difference: Tensor,
    /// True if the base has a bias, too.
    of_base: bool,
}

impl Adapter for BiasDifference {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        let bias = base.bias.as_ref().map_or_else(|| self.difference.view(-1), |bias| self.merged_bias(bias));
        base_product(x, &base.weight, Some(&bias))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        weight.shallow_clone()
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        bias + self.difference.view(-1)
    }

    fn adds_bias(&self) -> bool {
        true
    }

    fn joint_form(&self, _train: bool) -> Option<JointForm> {
        self.of_base.then_some(JointForm { update: None, output_scale: None })
    }
}
