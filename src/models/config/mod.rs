//! Reads config.json, as transformers 4 and 5 write it.
//!
//! Each size has one name here, whatever a family's files call it; `Family::keys` and `Family::defaults` describe the
//! differences.

mod experts;
mod layers;
mod limits;
mod reader;
mod rope;
pub(super) mod tied_head;
mod unsupported;
mod windows;

use super::family::Config;
use super::stored;
use crate::error::{Error, Result};
use crate::fsutil::{self, parse_json};
use crate::model_files::{self, ModelFiles};
use crate::report;
use reader::ConfigReader;
use serde_json::Value;
use std::path::Path;

impl Config {
    /// Reads `config.json` of a model: that of a directory, or what a GGUF file says. If it ties the output head to the
    /// embedding but the weights in the directory hold two different matrices, both are used: the returned config is
    /// untied, and a warning says so.
    pub fn read(model: &Path) -> Result<Self> {
        let files = ModelFiles::open(model)?;
        let file = files.place(model_files::CONFIG);
        let Some(text) = files.text(model_files::CONFIG)? else { return Err(no_config(model)) };
        let mut config = Self::parse(&file, &text)?;
        // A GGUF file's tensors have decided what its config says.
        if config.tie_word_embeddings && files.folder().is_some() && tied_head::head_differs(model, &config)? {
            report::warn_once(format!(
                "{}: tie_word_embeddings is true, but the weights contain an lm_head.weight that differs from the embedding; \
                 both are used, and saved results have tie_word_embeddings: false",
                config.file.display()
            ));
            config.untie()?;
        }
        Ok(config)
    }

    /// Makes embedding and output head two separate weights, in `raw` and `text` too.
    pub(super) fn untie(&mut self) -> Result<()> {
        self.tie_word_embeddings = false;
        self.change("tie_word_embeddings", Value::Bool(false))
    }

    /// Sets the number of rows of the embedding, in `raw` and `text` too.
    pub(super) fn resize_vocabulary(&mut self, rows: i64) -> Result<()> {
        self.vocab_size = rows;
        self.change("vocab_size", Value::from(rows))
    }

    /// Changes a key in `raw` and `text`.
    fn change(&mut self, key: &str, value: Value) -> Result<()> {
        let old = std::mem::replace(&mut self.raw[key], value);
        // If the key is spelled as usual, only its value is replaced and the file's formatting stays; otherwise all
        // is rewritten.
        let text = self.text.replacen(&format!("\"{key}\": {old}"), &format!("\"{key}\": {}", self.raw[key]), 1);
        self.text = match serde_json::from_str::<Value>(&text).is_ok_and(|found| found == self.raw) {
            true => text,
            false => {
                let text = serde_json::to_string_pretty(&self.raw);
                text.map_err(|e| Error::bug(format!("config.json: {e}")))? + "\n"
            }
        };
        Ok(())
    }

    /// Reads a config.json without looking at the weights next to it.
    pub fn read_file(file: &Path) -> Result<Self> {
        Self::parse(file, &fsutil::read_to_string(file)?)
    }

    /// Parses the `text` of a config.json; `file` is used in error messages. Fails for unsupported families, missing
    /// keys and impossible values.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let raw: Value = parse_json(file, text)?;
        limits::check(&raw, file)?;
        let Some(mut map) = raw.as_object().cloned() else {
            return Err(Error::user(format!("{}: a JSON object expected", file.display()))
                .hint("is the file the one that came with the model?"));
        };
        let model_type = ConfigReader { raw: &map, keys: &[], file }.text("model_type")?;
        let family = unsupported::family(&raw, &model_type, file)?;
        for key in family.foreign_keys {
            map.remove(*key);
        }
        (family.defaults)(&mut map);
        let r = ConfigReader { raw: &map, keys: family.key_names, file };
        let heads = r.int("num_attention_heads")?;
        let hidden = r.int("hidden_size")?;
        let depth = r.int_up_to("num_hidden_layers", 10_000)?;
        let kv_heads = r.int_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            return Err(Error::user(format!(
                "{}: `num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}",
                file.display()
            ))
            .hint("each key/value head serves equally many heads; is this the config.json that came with the model?"));
        }
        let head_dim = r.int_or("head_dim", hidden / heads)?;
        let context = r.get("max_position_embeddings").and_then(Value::as_i64);
        const ROTATED: &str = "qk_rope_head_dim";
        let rotated = family.extra_keys.contains(&ROTATED).then(|| r.int(ROTATED)).transpose()?;
        let ropes = rope::read(&r, head_dim, rotated, context)?;
        let stored = stored::read(&raw, file)?;
        let has_experts = family.extra_keys.contains(&"num_experts");
        let grouped = family.extra_keys.contains(&"topk_method");
        let experts = if has_experts { experts::read(&r, depth, grouped)? } else { None };
        let windows = windows::read(&r, depth)?;
        const SHARED: &str = "num_kv_shared_layers";
        let shares = family.extra_keys.contains(&SHARED);
        let (intermediate_size, intermediate_sizes) = layers::widths(&r, depth, shares)?;
        let own = (0..depth as usize).collect();
        let key_value_layers = if shares { layers::key_value_layers(&r, &windows)? } else { own };
        Ok(Self {
            hidden_size: hidden,
            intermediate_size,
            intermediate_sizes,
            num_hidden_layers: depth,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: r.int("vocab_size")?,
            norm_eps: r.float_or("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: r.flag("tie_word_embeddings"),
            attention_bias: r.flag("attention_bias"),
            mlp_bias: r.flag("mlp_bias"),
            hidden_act: r.get("hidden_act").and_then(Value::as_str).unwrap_or("silu").into(),
            rope_theta: ropes.global.theta,
            rope_scaling: ropes.global.scaling,
            rotary_size: ropes.size,
            local_rope: ropes.local.map(|rope| (rope.theta, rope.scaling)),
            max_position_embeddings: context,
            windows,
            key_value_layers,
            experts,
            stored,
            initializer_range: r.float_or("initializer_range", 0.02)?,
            model_type,
            settings: map.clone(),
            raw,
            text: text.into(),
            family,
            file: file.into(),
        })
    }
}

/// Returns the error that there is no model at this path. It names the GGUF files that lie there.
fn no_config(model: &Path) -> Error {
    let file = model.join(model_files::CONFIG);
    let missing = fsutil::read(&file).err().unwrap_or_else(|| Error::user(format!("{}: not a file", file.display())));
    match model_files::gguf_within(model) {
        Some(gguf) => missing.hint(format!("name the GGUF file itself: {}", gguf.display())),
        None => missing,
    }
}
