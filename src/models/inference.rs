//! Running a model on packed rows without gradient, as a whole or token by token, and the trunk that training runs too.

use super::activations::Activations;
use super::loss::Output;
use super::model::Model;
use crate::error::Result;
use crate::nn::{Attention, CacheLayout, DecodingGuard, KvCache, Tokens};
use std::rc::Rc;
use tch::{Kind, Tensor};

impl Model {
    /// Runs all layers. Returns the last one's output (T, W), and the requested activations.
    pub(super) fn trunk(&self, tokens: &Tokens) -> (Tensor, Activations) {
        let (look, mut inside) = (self.exposed_layers(), Activations::default());
        let row = self.whole_row(tokens);
        let mut pass = self.start_pass(&row, &look).in_order();
        let mut x = self.enter(&row, &mut pass); // (T', W)
        for i in 0..self.depth() {
            x = self.decoder.layer(i, &x, &mut pass);
            inside.record(&look, i, &x, &mut pass);
        }
        (pass.real_rows(&x), inside)
    }

    /// Returns the input of each layer and the output of the last: (T, W) each, float32. Without gradient.
    pub fn hidden_states(&self, tokens: &Tokens) -> Result<Vec<Tensor>> {
        let mut states = Vec::with_capacity(self.depth() + 1);
        let _ = self.layers(tokens, &(0..self.depth()).collect::<Vec<_>>(), |x| states.push(x.to_kind(Kind::Float)))?;
        Ok(states)
    }

    /// Returns the logits (T, V) of the model with only these layers, in this order. Without gradient.
    pub fn logits_of_layers(&self, tokens: &Tokens, layers: &[usize]) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let x = self.layers(tokens, layers, |_| ())?;
        Ok(self.decoder.head().forward(&self.decoder.finish(&x)))
    }

    fn layers(&self, tokens: &Tokens, layers: &[usize], mut see: impl FnMut(&Tensor)) -> Result<Tensor> {
        self.check(tokens, &[])?;
        let _no_grad = tch::no_grad_guard();
        let row = self.whole_row(tokens);
        let mut pass = row.pass(None);
        let mut x = self.enter(&row, &mut pass);
        for &i in layers {
            see(&pass.real_rows(&x));
            x = self.decoder.layer(i, &x, &mut pass);
        }
        let x = pass.real_rows(&x);
        see(&x);
        Ok(x)
    }

    pub(super) fn output(&self, x: Tensor, inside: Rc<Activations>) -> Output {
        let (head, score) = (self.decoder.head().clone(), self.score.clone());
        Output::new(self.decoder.finish(&x), head, score, self.adapters.clone(), inside)
    }

    /// Runs a packed row without gradient and returns what `f` makes of the output.
    pub fn infer<R>(&self, tokens: &Tokens, f: impl FnOnce(&Output) -> R) -> Result<R> {
        self.check(tokens, &[])?;
        let _no_grad = tch::no_grad_guard();
        let (x, inside) = self.trunk(tokens);
        Ok(f(&self.output(x, inside.into())))
    }

    /// Runs a packed row that continues the cache's last sequences, one segment each, and adds it to the cache.
    /// Without gradient. Returns what `f` makes of the output.
    pub fn extend<R>(&self, tokens: &Tokens, cache: &mut KvCache, f: impl FnOnce(&Output) -> R) -> Result<R> {
        self.extend_part(tokens, cache, None, f)
    }

    /// Does the same for a row that has a part of its sequences: `whole` are the numbers of tokens that these have when all
    /// parts are run, virtual ones included.
    pub fn extend_part<R>(
        &self,
        tokens: &Tokens,
        cache: &mut KvCache,
        whole: Option<&[i64]>,
        f: impl FnOnce(&Output) -> R,
    ) -> Result<R> {
        self.check(tokens, cache.last(tokens.segments.count()))?;
        let (_no_grad, _decoding) = (tch::no_grad_guard(), DecodingGuard::begin());
        let row = self.layer_row(tokens, cache.last(tokens.segments.count()));
        let mut pass = row.pass(Some(&mut *cache)).part_of(whole).in_order();
        let mut x = self.enter(&row, &mut pass);
        for i in 0..self.depth() {
            x = self.decoder.layer(i, &x, &mut pass);
        }
        let x = pass.real_rows(&x);
        cache.advance(row.lengths());
        Ok(f(&self.output(x, Rc::default())))
    }

    /// Runs one more token of every sequence of the cache: ids (S) int64 on the model's device, all of the vocabulary
    /// -> logits (S, V) float32. Without gradient; the host neither reads nor writes the device.
    pub fn next_logits(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        cache.reserve(&vec![1; cache.lengths.len()]);
        let tokens = Tokens::one_each(ids.shallow_clone(), cache.next_positions(), cache.step_bounds());
        self.extend(&tokens, cache, Output::all_logits)
    }

    /// Returns the settings of the attention of each layer whose keys and values are in a cache: those before all layers that
    /// read another layer's.
    fn cached_layers(&self) -> impl Iterator<Item = Attention> {
        let sources = &self.config.key_value_layers;
        (0..self.depth()).filter(|i| sources[*i] == *i).filter_map(|i| self.decoder.attention(i))
    }

    /// Returns an empty cache for `sequences` sequences.
    pub fn cache(&self, sequences: usize) -> KvCache {
        KvCache::new(self.cache_layout(), sequences)
    }

    /// Returns the sizes that the layout of the model's cache depends on.
    pub fn cache_layout(&self) -> CacheLayout {
        let recurrent = if self.recurrence().is_some() { self.depth() } else { 0 };
        CacheLayout {
            windows: self.cached_layers().map(|attention| attention.window).collect(),
            recurrent,
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            device: self.device(),
        }
    }
}
