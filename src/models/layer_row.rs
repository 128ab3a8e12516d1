//! A packed row as the layers compute it: its tokens, and the virtual tokens that the active adapter puts before them.
//!
//! Whoever runs layers embeds a [`LayerRow`], starts its pass and drops the rows of virtual tokens from the result.

use super::activations::ExposedLayers;
use super::model::Model;
use crate::error::Result;
use crate::native;
use crate::nn::{ForwardPass, KvCache, Tokens, VirtualPlace, VirtualRow, VirtualTokens};
use tch::{Kind, Tensor};

/// A packed row as the layers compute it.
pub(super) struct LayerRow<'t> {
    tokens: &'t Tokens,
    virtual_part: Option<EncodedRow>,
}

/// A row with virtual tokens, and these tokens.
struct EncodedRow {
    row: VirtualRow,
    place: VirtualPlace,
    /// (n, …) float32
    encoded: Tensor,
}

impl LayerRow<'_> {
    /// Starts a pass through the layers. With a `cache`, the row continues its last sequences.
    pub fn pass<'p>(&'p self, cache: Option<&'p mut KvCache>) -> ForwardPass<'p> {
        match &self.virtual_part {
            Some(EncodedRow { row, place, encoded }) => ForwardPass::with_virtual_tokens(row, encoded, *place, cache),
            None => ForwardPass::new(self.tokens, cache),
        }
    }

    /// Returns the number of rows that each segment adds to a cache, virtual tokens included.
    pub fn lengths(&self) -> &[i64] {
        let segments = self.virtual_part.as_ref().map_or(&self.tokens.segments, |part| &part.row.segments);
        &segments.lengths
    }

    /// Cuts the virtual tokens off from the graph, so that their gradient is collected while layers are run again one by
    /// one. Returns them with their graph, for [`LayerRow::backward`].
    pub fn detach_virtual_tokens(&mut self) -> Option<Tensor> {
        let part = self.virtual_part.as_mut()?;
        let leaf = part.encoded.detach().set_requires_grad(part.encoded.requires_grad());
        Some(std::mem::replace(&mut part.encoded, leaf))
    }

    /// Runs the backward of virtual tokens that were cut off: `attached` is what
    /// [`LayerRow::detach_virtual_tokens`] returned.
    pub fn backward(&self, attached: Option<Tensor>) -> Result<()> {
        let (Some(part), Some(attached)) = (&self.virtual_part, attached) else { return Ok(()) };
        let gradient = part.encoded.grad();
        if gradient.defined() && attached.requires_grad() {
            native::backward(&[&attached], &[&gradient])?;
        }
        Ok(())
    }
}

impl Model {
    /// Returns the virtual tokens of the active adapter. A decoding step of several adapters has none: those of each sequence
    /// are in the cache since its prompt was run.
    fn active_virtual_tokens(&self) -> Option<&VirtualTokens> {
        if self.switches.groups.borrow().is_some() {
            return None;
        }
        self.virtual_tokens[self.switches.active.get()?].as_ref()
    }

    /// Returns the number of virtual tokens that the active adapter puts before every sequence. They take positions and
    /// memory, and are no text.
    pub fn virtual_tokens(&self) -> i64 {
        self.active_virtual_tokens().map_or(0, |tokens| tokens.count)
    }

    /// Returns a packed row as the layers compute it under the active adapter. Segment s continues `past[s]` tokens,
    /// virtual ones included; it gets virtual tokens if there are none.
    pub(super) fn layer_row<'t>(&self, tokens: &'t Tokens, past: &[i64]) -> LayerRow<'t> {
        let with_virtual = |tokens: &Tokens, own: &VirtualTokens| {
            let row = VirtualRow::new(tokens, past, own.count, self.device())?;
            Some(EncodedRow { row, place: own.place, encoded: own.encode() })
        };
        LayerRow { tokens, virtual_part: self.active_virtual_tokens().and_then(|own| with_virtual(tokens, own)) }
    }

    /// Returns the same for a row whose segments are whole sequences.
    pub(super) fn whole_row<'t>(&self, tokens: &'t Tokens) -> LayerRow<'t> {
        self.layer_row(tokens, &vec![0; tokens.segments.count()])
    }

    /// Starts a pass over whole sequences that keeps the activations in `look`, and what the terms of the loss need.
    pub(super) fn start_pass<'p>(&self, row: &'p LayerRow, look: &ExposedLayers) -> ForwardPass<'p> {
        let recurrence = self.recurrence.borrow().clone();
        row.pass(None)
            .capture_attention(&look.attention)
            .watch_routing(self.watches_routing())
            .with_recurrence(recurrence)
            .tile_mlp(self.mlp_tile())
    }

    /// Returns the embedded tokens (T', D), in training with noise on those of real tokens if it is set.
    fn embed(&self, row: &LayerRow) -> Tensor {
        let lengths = &row.tokens.segments.lengths;
        let noise = self.noise.get().filter(|_| self.switches.train.get());
        self.embed_with(row, |x| match noise {
            Some(noise) => noise.add_to(&x, lengths),
            None => x,
        })
    }

    /// Returns the first layer's input (T', W), made of the embedded tokens.
    pub(super) fn enter(&self, row: &LayerRow, pass: &mut ForwardPass) -> Tensor {
        self.decoder.enter(self.embed(row), row.tokens, pass)
    }

    /// Returns the embedded tokens without noise.
    pub(super) fn embed_plain(&self, row: &LayerRow) -> Tensor {
        self.embed_with(row, |x| x)
    }

    fn embed_with(&self, row: &LayerRow, change: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        let Some(part) = &row.virtual_part else { return change(self.decoder.embed(row.tokens)) };
        let x = change(self.decoder.embed(&part.row.tokens));
        if part.place == VirtualPlace::KeysAndValues {
            return x;
        }
        let vectors = match self.decoder.embed_positions(&part.row.virtual_positions()) {
            Some(positions) => &part.encoded + positions.to_kind(Kind::Float),
            None => part.encoded.shallow_clone(),
        };
        part.row.insert(&x, &vectors)
    }
}
