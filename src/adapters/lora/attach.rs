//! Attaches LoRA, or one of its relatives, to one layer.

use super::dora::{Dora, DoraEmbedding, column_norms, row_norms};
use super::embedding::LoraEmbedding;
use super::initial;
use super::layer::Lora;
use super::modules::LoraModules;
use super::spec::LoraInit;
use super::tensors::{B_BIAS, EMBEDDING_A, EMBEDDING_B, LINEAR_A, LINEAR_B, MAGNITUDE, START_A, START_B};
use crate::adapters::plan::{AdaptLayer, AdaptedLayer};
use crate::adapters::token_rows::AttachTokenRows;
use crate::error::Result;
use crate::nn::{Adapter, LayerKind, Weight};
use tch::{Device, Kind, Tensor};

/// Attaches LoRA with the settings of a spec.
pub(super) struct AttachLora {
    pub modules: LoraModules,
    pub init: LoraInit,
    pub dropout: f64,
    pub dora: bool,
    pub bias: bool,
    pub freeze_a: bool,
    pub token_rows: AttachTokenRows,
}

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

impl AttachLora {
    /// Attaches to a table of tokens or positions. As in PEFT, A starts at zero here and B is random.
    fn to_table(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let settings = [("bias", self.bias), ("freeze_a", self.freeze_a), ("init", self.init.needs_weight())];
        if let Some((setting, _)) = settings.iter().find(|(_, set)| *set) {
            return Err(layer.refusal(
                &format!("`{setting}`, as it is set, is for linear layers, and this is an embedding"),
                "leave the embedding out of targets, or remove the setting",
            ));
        }
        if self.dora && layer.site.weight.is_quantised() {
            return Err(layer.refusal(
                "`dora` needs the norms of this embedding's columns, and the embedding is stored quantised",
                "leave the embedding out of targets, or remove `dora`",
            ));
        }
        let (rank, scale) = (self.modules.rank(layer.name()), self.modules.scale(layer.name()));
        let [count, width] = layer.matrix()?;
        let own = layer.own_weight()?;
        let a = layer.trained(EMBEDDING_A, Tensor::zeros([rank, count], OPTIONS));
        let b = layer.trained(EMBEDDING_B, Tensor::randn([width, rank], OPTIONS));
        let lora = LoraEmbedding { a, b, scale, dropout: self.dropout, own };
        if !self.dora {
            return Ok(Box::new(lora));
        }
        let weight = || layer.site.weight.dense(layer.site.weight.kind());
        let first = match layer.uses_initial_values() {
            true => column_norms(&weight(), &lora),
            false => Tensor::zeros([width], OPTIONS),
        };
        let magnitude = layer.trained(MAGNITUDE, first);
        Ok(Box::new(DoraEmbedding { lora, magnitude, norms: Default::default() }))
    }

    /// Attaches plain LoRA to a linear layer.
    fn to_linear(&self, layer: &mut AdaptedLayer) -> Result<Lora> {
        let (rank, scale) = (self.modules.rank(layer.name()), self.modules.scale(layer.name()));
        let [outputs, _] = layer.matrix()?;
        let [a, b] = initial::factors(self.init, layer, rank, scale)?;
        let own = if layer.site.layer == LayerKind::Head { layer.own_weight()? } else { None };
        let start = (self.init.takes_from_base() && !layer.is_from_file())
            .then(|| [layer.frozen(START_A, a.copy()), layer.frozen(START_B, b.copy())]);
        let a = if self.freeze_a { layer.frozen(LINEAR_A, a) } else { layer.trained(LINEAR_A, a) };
        let b = layer.trained(LINEAR_B, b);
        let bias = self.bias.then(|| layer.trained(B_BIAS, Tensor::zeros([outputs], OPTIONS)));
        Ok(Lora { a, b, bias, start, scale, dropout: self.dropout, own, cast: Default::default() })
    }

    /// Attaches DoRA to a linear layer.
    fn dora_to_linear(&self, layer: &mut AdaptedLayer) -> Result<Dora> {
        let lora = self.to_linear(layer)?;
        let weight = match &lora.own {
            Some(own) => Weight::from(own.shallow_clone()),
            None => layer.site.weight.shallow_clone(),
        };
        let first = match layer.uses_initial_values() {
            true => row_norms(&weight, &lora),
            false => Tensor::zeros([weight.outputs()], OPTIONS),
        };
        let magnitude = layer.trained(MAGNITUDE, first);
        Ok(Dora { lora, magnitude, weight, norms: Default::default(), scale: Default::default() })
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
        self.token_rows.refuse_adapted(layer)?;
        match (layer.is_table(), self.dora) {
            (true, _) => self.to_table(layer),
            (false, false) => Ok(Box::new(self.to_linear(layer)?)),
            (false, true) => Ok(Box::new(self.dora_to_linear(layer)?)),
        }
    }

    fn adapt_unselected(&self, layer: &mut AdaptedLayer) -> Result<Option<Box<dyn Adapter>>> {
        self.token_rows.attach(layer)
    }

    fn check(&self) -> Result<()> {
        self.token_rows.check()
    }
}
