//! Layers that families of decoders share. A family describes its layers by values ([`Design`]); [`build`] makes the decoder.
//!
//! design: what families differ in. decoder: embedding, layers, final norm and head. block: norms and residual additions
//! around attention and MLP. self_attention: projections, rotation, attention; sharing_attention: with the keys and values of an earlier layer. feed_forward: the MLP, or (experts) a layer of experts. norm: the kinds of
//! norms. positions: sinusoidal vectors of positions.

mod block;
mod decoder;
mod design;
mod experts;
mod feed_forward;
mod latent_attention;
mod layer_attention;
mod norm;
mod positions;
mod self_attention;
mod sharing_attention;

pub(super) use decoder::{build, ropes, rounded};
pub use design::{
    Activation, AttentionDesign, Design, ExpertDesign, FeedForwardDesign, FeedForwardLayers, LatentSizes, Names,
    NormKind, Projections, QkNorm, SharedExpertNames, Wiring,
};
pub(super) use feed_forward::FeedForward;
pub(super) use layer_attention::LayerAttention;
pub(super) use norm::Norm;
