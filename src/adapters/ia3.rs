//! IA3 (Liu et al. 2022, arXiv 2205.05638): a vector of factors on the outputs of keys and values, and one on the inputs
//! of the MLP's last layer. The factors start at 1.

use super::base_product::base_product;
use super::kind::{AdapterKind, ModuleMemory};
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::targets::{Targets, regex};
use super::update::{ScaleUpdate, WeightUpdate};
use crate::error::Result;
use crate::nn::scale::scale_columns;
use crate::nn::weight::cast;
use crate::nn::{Adapter, Dense, JointForm};
use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// Name of a module's factors in PEFT's files: (out, 1), or (1, in) for those of inputs.
const FACTORS: &str = "ia3_l";
/// The modules whose inputs are multiplied if a recipe names none.
const USUAL_FEEDFORWARD: [&str; 2] = ["down_proj", "mlp.c_proj"];
/// The modules that are adapted if a recipe names none: those of PEFT for llama, mistral and gpt2.
static USUAL: LazyLock<Targets> =
    LazyLock::new(|| Targets::Pattern(r".*\.(k_proj|v_proj|down_proj|c_attn|mlp\.c_proj)".into()));

/// IA3: `y = l ∘ (W x + b)`, in feed-forward modules `y = W (l ∘ x) + b`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct Ia3Spec {
    /// Modules among the targets whose inputs are multiplied, not their outputs: a regular expression for the whole name,
    /// or a list of name endings. Left out: `down_proj`, and `mlp.c_proj` of gpt2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedforward: Option<Targets>,
    /// Which modules are adapted.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

/// The modules whose inputs are multiplied.
enum Feedforward {
    Endings(Vec<String>),
    Whole(Regex),
}

impl Feedforward {
    fn new(spec: &Ia3Spec) -> Result<Self> {
        Ok(match &spec.feedforward {
            None => Self::Endings(USUAL_FEEDFORWARD.map(String::from).into()),
            Some(Targets::Names(names)) => Self::Endings(names.clone()),
            Some(Targets::Pattern(p)) => Self::Whole(regex(&format!("^(?:{p})$"), p, "adapter.ia3.feedforward")?),
        })
    }

    /// Returns true for a feed-forward module. As in PEFT, an ending need not begin after a dot.
    fn contains(&self, module: &str) -> bool {
        match self {
            Self::Endings(endings) => endings.iter().any(|e| module.ends_with(e.as_str())),
            Self::Whole(pattern) => pattern.is_match(module).unwrap_or(false),
        }
    }
}

impl ModuleKind for Ia3Spec {
    const NAME: &'static str = "ia3";

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

impl AdapterKind for Ia3Spec {
    fn title(&self) -> &'static str {
        "IA3"
    }

    fn describe(&self) -> String {
        "ia3".into()
    }

    fn has_named_targets(&self) -> bool {
        self.modules.has_names_alone()
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachIa3 { feedforward: Feedforward::new(self)? }))
    }

    fn usual_lr(&self) -> f64 {
        1e-2
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![] // the shapes of the tensors say which modules are feed-forward
    }

    fn module_memory(&self, module: &str, [outputs, inputs]: [u64; 2]) -> ModuleMemory {
        let inward = Feedforward::new(self).is_ok_and(|f| f.contains(module));
        ModuleMemory { kept: if inward { inputs } else { outputs }, ..ModuleMemory::default() }
    }

    fn config(&self, base: &str) -> Value {
        let own = json!({
            "fan_in_fan_out": self.modules.fan_in_fan_out,
            "feedforward_modules": self.feedforward_modules(),
            "init_ia3_weights": true,
        });
        peft::config(self, "IA3", base, own)
    }

    fn tensor_prefix(&self) -> &'static str {
        "ia3_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[FACTORS]
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let (file, feedforward) = (ModuleTensors { tensors, origin }, Feedforward::new(self)?);
        let mut updates: BTreeMap<String, Box<dyn WeightUpdate>> = BTreeMap::new();
        for module in modules {
            let inward = feedforward.contains(module);
            let scale = file.get(module, FACTORS, if inward { &[1, -1] } else { &[-1, 1] })?;
            if !inward {
                updates.insert(format!("{module}.bias"), Box::new(ScaleUpdate { scale: scale.view(-1) }));
            }
            updates.insert(format!("{module}.weight"), Box::new(ScaleUpdate { scale }));
        }
        Ok(updates)
    }
}

impl Ia3Spec {
    /// Returns `feedforward_modules` of adapter_config.json. PEFT refuses a list that names no targets: the targets of a
    /// list that are feed-forward modules then, otherwise a regular expression.
    fn feedforward_modules(&self) -> Value {
        let endings = match &self.feedforward {
            Some(Targets::Pattern(p)) => return json!(p),
            Some(Targets::Names(names)) => names.clone(),
            None => USUAL_FEEDFORWARD.map(String::from).into(),
        };
        let pattern = || {
            let escaped: Vec<String> = endings.iter().map(|e| fancy_regex::escape(e).into_owned()).collect();
            json!(format!(".*(?:{})", escaped.join("|")))
        };
        let Some(Targets::Names(targets)) = &self.modules.targets else { return pattern() };
        let inward = |t: &&String| endings.iter().any(|e| t.ends_with(e.as_str()));
        // A target such as `c_proj` may stand for modules of both kinds.
        let both = |t: &String| endings.iter().any(|e| e.ends_with(t.as_str()) && e != t);
        if targets.iter().any(both) {
            return pattern();
        }
        json!(targets.iter().filter(inward).collect::<Vec<_>>())
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<Ia3Spec> {
    config.check_keys(&["feedforward_modules", "init_ia3_weights"])?;
    // PEFT's targets for llama and mistral, and for gpt2.
    let modules = config.module_settings(&["k_proj", "v_proj", "down_proj", "c_attn", "mlp.c_proj"])?;
    Ok(Ia3Spec { feedforward: config.read("feedforward_modules")?, modules })
}

/// Attaches IA3's factors.
struct AttachIa3 {
    feedforward: Feedforward,
}

impl AdaptLayer for AttachIa3 {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let [outputs, inputs] = layer.linear_matrix("IA3")?;
        let inward = self.feedforward.contains(layer.name());
        let shape = if inward { [1, inputs] } else { [outputs, 1] };
        let factors = layer.trained_scale(FACTORS, Tensor::ones(shape, (Kind::Float, Device::Cpu)));
        Ok(if inward { Box::new(InputFactors(factors)) } else { Box::new(OutputFactors(factors)) })
    }
}

/// Factors on a layer's outputs, bias included: (out, 1).
struct OutputFactors(Tensor);

impl Adapter for OutputFactors {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        let y = scale_columns(&base_product(x, &base.weight, None), &self.0.view(-1));
        match &base.bias {
            Some(bias) => &y + cast(&self.merged_bias(bias), y.kind()),
            None => y,
        }
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        (weight * &self.0).to_kind(weight.kind())
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        bias * self.0.view(-1)
    }

    fn joint_form(&self, _train: bool) -> Option<JointForm> {
        Some(JointForm { update: None, output_scale: Some(self.0.view(-1)) })
    }
}

/// Factors on a layer's inputs: (1, in).
struct InputFactors(Tensor);

impl Adapter for InputFactors {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        base_product(&scale_columns(x, &self.0.view(-1)), &base.weight, base.bias.as_ref())
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        (weight * &self.0).to_kind(weight.kind())
    }
}
