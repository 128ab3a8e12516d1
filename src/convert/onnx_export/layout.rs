//! What the graph of a model consists of: the design of its family's layers, and GPT-2's, which has layers of its own.

use crate::error::Result;
use crate::models::blocks::{
    Activation, AttentionDesign, Design, FeedForwardDesign, FeedForwardLayers, Names, NormKind, Projections, Wiring,
};
use crate::models::families::gpt2;
use crate::models::{Config, FamilyLayers};
use crate::nn::GatedMlpForm;

/// The parts of a decoder.
pub struct DecoderLayout {
    /// Its layers.
    pub design: Design,
    /// Factor on the products of queries and keys, for each layer.
    pub scales: Vec<f64>,
    /// Name and number of the trained vectors of positions, if there are any.
    pub learned_positions: Option<(&'static str, i64)>,
    /// Linear layers of the trunk are stored as (in, out).
    pub transposed: bool,
}

impl DecoderLayout {
    /// Returns the parts of a model. Fails with what is missing if they cannot be expressed.
    pub fn of(c: &Config) -> Result<Self> {
        if let Some(reason) = refusal(c) {
            return Err(c.refuse(reason).hint("ft export --to gguf, ft generate and transformers compute such layers"));
        }
        let FamilyLayers::Shared(design) = c.family().layers else { return Ok(of_gpt2(c, Design::llama(c)?)) };
        let design = design(c)?;
        let scales = vec![design.attention.scale; c.num_hidden_layers as usize];
        Ok(Self { design, scales, learned_positions: None, transposed: false })
    }

    /// Returns true if the graph reads the positions of tokens.
    pub fn reads_positions(&self) -> bool {
        self.learned_positions.is_some()
            || self.design.sinusoidal_positions
            || self.design.attention.rotates.contains(&true)
    }
}

/// Says why a model has no ONNX export; `None` if it has one.
pub fn refusal(c: &Config) -> Option<String> {
    let what = match c.family().layers {
        _ if !c.has_attention() => "recurrent layers have",
        _ if c.has_latent_attention() => "attention that makes keys and values of one vector, and experts, have",
        // Of which only gpt-oss has either.
        FamilyLayers::Shared(design) if design(c).is_ok_and(|design| has_bounded_experts(&design)) => {
            "experts with bounded gates, and attention with sinks, have"
        }
        FamilyLayers::Own(_) if c.model_type != gpt2::NAME => "its layers have",
        FamilyLayers::Shared(design) if design(c).is_ok_and(|design| design.attention.relative.is_some()) => {
            "trained biases of scores have"
        }
        _ => return None,
    };
    Some(format!("{}: {what} no converter to ONNX", c.model_type))
}

fn has_bounded_experts(design: &Design) -> bool {
    design.attention.sinks || !matches!(design.experts.mlp, GatedMlpForm::Separate(_))
}

/// Returns GPT-2's layers in the terms of the others.
fn of_gpt2(c: &Config, llama: Design) -> DecoderLayout {
    let depth = c.num_hidden_layers;
    let names = Names { trunk: "transformer", embedding: "wte", embedding_norm: None, layers: "h", final_norm: "ln_f" };
    let wiring = Wiring { before_attention: Some("ln_1"), before_mlp: Some("ln_2"), ..llama.wiring };
    let attention = AttentionDesign {
        module: "attn",
        projections: Projections::ByKind("c_attn"),
        qkv_bias: true,
        output: "c_proj",
        output_bias: true,
        rotates: vec![false; depth as usize],
        ..llama.attention
    };
    let layers = FeedForwardLayers::Plain(["c_fc", "c_proj"]);
    let feed_forward = FeedForwardDesign { module: "mlp", layers, bias: true, activation: Activation::GeluTanh };
    let norm = NormKind::Layer { bias: true };
    DecoderLayout {
        design: Design { names, norm, wiring, attention, feed_forward, ..llama },
        scales: (0..depth).map(|i| gpt2::attention_scale(c, i)).collect(),
        learned_positions: Some(("wpe", c.max_position_embeddings.unwrap_or_default())),
        transposed: true,
    }
}
