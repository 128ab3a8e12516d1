//! Attaches LoRA to layers by the rules of a recipe or of an adapter_config.json.

use super::layer::{Lora, LoraEmbedding};
use super::modules::LoraModules;
use super::spec::{LoraInit, LoraSpec};
use super::tensors::{EMBEDDING_A, EMBEDDING_B, LINEAR_A, LINEAR_B};
use crate::adapters::base_layer::{BaseWeights, named};
use crate::adapters::saved_module;
use crate::adapters::targets::ModuleAdaptation;
use crate::error::{Error, Result};
use crate::nn::{Adapter, AdapterPlan, AdapterSite, LayerKind, ParamRole, RegisterParam};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Attaches LoRA to layers by the rules of a recipe or of an adapter_config.json.
pub struct LoraPlan {
    spec: LoraSpec,
    modules: LoraModules,
    /// The adapter_config.json that the rules were read from; `None`: a recipe.
    origin: Option<PathBuf>,
    base_weights: BaseWeights,
}

impl LoraPlan {
    /// Plans an adapter by a recipe's rules: every module that they name must exist.
    pub fn new(spec: &LoraSpec) -> Result<Self> {
        let modules = LoraModules::new(spec)?;
        Ok(Self { spec: spec.clone(), modules, origin: None, base_weights: BaseWeights::default() })
    }

    /// Plans an adapter by the adapter_config.json at `origin`. It may name modules that the model lacks, because its
    /// tensors say which modules are adapted.
    pub fn of_file(spec: &LoraSpec, origin: &Path) -> Result<Self> {
        let modules = LoraModules::new(spec).map_err(|e| e.context(origin.display()))?;
        Ok(Self { spec: spec.clone(), modules, origin: Some(origin.into()), base_weights: BaseWeights::default() })
    }

    /// Adds the base weights that an adapter's tensors contain.
    pub fn with_base_weights(mut self, tensors: &BTreeMap<String, Tensor>) -> Self {
        self.base_weights = BaseWeights::of(tensors);
        self
    }
}

/// Returns the error for a layer that should have a matrix and has none.
fn not_a_matrix(site: &AdapterSite) -> Error {
    Error::bug(format!("adapter on `{}`: a weight of shape {:?} is not a matrix", site.name, site.weight.shape()))
}

impl AdapterPlan for LoraPlan {
    fn check(&self) -> Result<()> {
        self.modules.selection.check(self.origin.is_none()).map_err(|e| named(self.origin.as_deref(), e))
    }

    fn trains_in_full(&self, name: &str, layer: LayerKind) -> bool {
        matches!(self.modules.selection.adaptation(name, layer), Some(ModuleAdaptation::Save))
    }

    fn attach(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        let refuse = |why: &str, hint: &str| {
            Err(named(self.origin.as_deref(), Error::user(format!("adapter on `{}`: {why}", site.name)).hint(hint)))
        };
        Ok(match self.modules.selection.adaptation(site.name, site.layer) {
            None => None,
            Some(ModuleAdaptation::Save) if site.tied => {
                return refuse(
                    "embedding and output head share one weight in this model; training one of them in full would separate them",
                    "name it in targets, for a low-rank update of it alone, and leave it out of modules_to_save",
                );
            }
            Some(ModuleAdaptation::Save) => Some(saved_module::attach(site, add)),
            Some(ModuleAdaptation::Adapted) if matches!(site.layer, LayerKind::Norm | LayerKind::Score) => {
                return refuse(
                    "LoRA attaches to linear layers and embeddings only",
                    "name such layers in targets, or train this module in full with modules_to_save",
                );
            }
            Some(ModuleAdaptation::Adapted) if matches!(site.layer, LayerKind::Embedding | LayerKind::Positions) => {
                let rank = self.modules.rank(site.name);
                let [count, width] = site.weight.shape()[..] else { return Err(not_a_matrix(site)) };
                let options = (Kind::Float, Device::Cpu);
                let own = self.base_weights.own_weight(site, self.origin.as_deref(), add)?;
                // As in PEFT, A starts at zero here and B is random.
                let a = add(EMBEDDING_A, Tensor::zeros([rank, count], options), ParamRole::Trained);
                let b = add(EMBEDDING_B, Tensor::randn([width, rank], options), ParamRole::Trained);
                Some(Box::new(LoraEmbedding { a, b, scale: self.modules.scale(site.name), own }))
            }
            Some(ModuleAdaptation::Adapted) => {
                let rank = self.modules.rank(site.name);
                let [outputs, inputs] = site.weight.shape()[..] else { return Err(not_a_matrix(site)) };
                let options = (Kind::Float, Device::Cpu);
                let a = match self.spec.init {
                    // Kaiming uniform with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * in))
                    LoraInit::Kaiming => {
                        let bound = (inputs as f64).powf(-0.5);
                        Tensor::empty([rank, inputs], options).uniform_(-bound, bound)
                    }
                    LoraInit::Gaussian => Tensor::randn([rank, inputs], options) / rank as f64,
                };
                let own = if site.layer == LayerKind::Head {
                    self.base_weights.own_weight(site, self.origin.as_deref(), add)?
                } else {
                    None
                };
                let a = add(LINEAR_A, a, ParamRole::Trained);
                let b = add(LINEAR_B, Tensor::zeros([outputs, rank], options), ParamRole::Trained);
                Some(Box::new(Lora {
                    a,
                    b,
                    scale: self.modules.scale(site.name),
                    dropout: self.spec.dropout,
                    own,
                    cast: RefCell::default(),
                }))
            }
        })
    }
}
