//! Attaches LoRA to one layer.

use super::layer::{Lora, LoraEmbedding};
use super::modules::LoraModules;
use super::spec::LoraInit;
use super::tensors::{EMBEDDING_A, EMBEDDING_B, LINEAR_A, LINEAR_B};
use crate::adapters::plan::{AdaptLayer, AdaptedLayer};
use crate::error::Result;
use crate::nn::{Adapter, LayerKind};
use tch::{Device, Kind, Tensor};

/// Attaches LoRA with the ranks and scales of a spec.
pub(super) struct AttachLora {
    pub modules: LoraModules,
    pub init: LoraInit,
    pub dropout: f64,
}

impl AttachLora {
    /// Attaches to a table of tokens or positions. As in PEFT, A starts at zero here and B is random.
    fn to_table(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let (rank, scale) = (self.modules.rank(layer.name()), self.modules.scale(layer.name()));
        let [count, width] = layer.matrix()?;
        let options = (Kind::Float, Device::Cpu);
        let own = layer.own_weight()?;
        let a = layer.trained(EMBEDDING_A, Tensor::zeros([rank, count], options));
        let b = layer.trained(EMBEDDING_B, Tensor::randn([width, rank], options));
        Ok(Box::new(LoraEmbedding { a, b, scale, own }))
    }
}

impl AdaptLayer for AttachLora {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        if matches!(layer.site.layer, LayerKind::Norm | LayerKind::Score) {
            return Err(layer.refusal(
                "LoRA attaches to linear layers and embeddings only",
                "name such layers in targets, or train this module in full with modules_to_save",
            ));
        }
        if layer.is_table() {
            return self.to_table(layer);
        }
        let (rank, scale) = (self.modules.rank(layer.name()), self.modules.scale(layer.name()));
        let [outputs, inputs] = layer.matrix()?;
        let options = (Kind::Float, Device::Cpu);
        let a = match self.init {
            // Kaiming uniform with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * in))
            LoraInit::Kaiming => {
                let bound = (inputs as f64).powf(-0.5);
                Tensor::empty([rank, inputs], options).uniform_(-bound, bound)
            }
            LoraInit::Gaussian => Tensor::randn([rank, inputs], options) / rank as f64,
        };
        let own = if layer.site.layer == LayerKind::Head { layer.own_weight()? } else { None };
        let a = layer.trained(LINEAR_A, a);
        let b = layer.trained(LINEAR_B, Tensor::zeros([outputs, rank], options));
        Ok(Box::new(Lora { a, b, scale, dropout: self.dropout, own, cast: Default::default() }))
    }
}
