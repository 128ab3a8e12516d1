//! Layers that families of decoders share. A family describes its layers by values ([`Design`]); [`build`] makes the decoder.
//!
//! design: what families differ in. decoder: embedding, layers, final norm and head. block: norms and residual additions
//! around attention and MLP. self_attention: projections, rotation, attention. feed_forward: the MLP, or (experts) a layer of experts. norm: the kinds of
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

pub(super) use decoder::build;
pub use design::{
    Activation, AttentionDesign, Design, ExpertDesign, FeedForwardDesign, FeedForwardLayers, LatentSizes, Names,
    NormKind, Projections, QkNorm, SharedExpertNames, Wiring,
};
