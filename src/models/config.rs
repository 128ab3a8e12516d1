//! Reads config.json, as transformers 4 and 5 write it.
//!
//! Each size has one name here, whatever a family's files call it; `Family::keys` and `Family::defaults` describe the
//! differences.

use super::{FAMILIES, Family, limits, rope, tied_head};
use crate::error::{Error, Result};
use crate::fsutil::{self, parse_json};
use crate::nn::RopeScaling;
use crate::report;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The sizes and settings of a model, from its config.json.
#[derive(Debug, Clone)]
pub struct Config {
    pub model_type: String,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    pub vocab_size: i64,
    pub norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub hidden_act: String,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub max_position_embeddings: Option<i64>,
    /// Number of tokens that attention reaches back; `None`: all.
    pub sliding_window: Option<i64>,
    /// Standard deviation of a new model's random weights.
    pub initializer_range: f64,
    /// The file as read, for writing it back with only the changes made.
    pub raw: Value,
    /// The file's text as read.
    pub text: String,
    family: &'static Family,
    file: PathBuf,
}

impl Config {
    /// Reads `config.json` of a model directory. If it ties the output head to the embedding but the weights in the
    /// directory hold two different matrices, both are used: the returned config is untied, and a warning says so.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut config = Self::read_file(&folder.join("config.json"))?;
        if config.tie_word_embeddings && tied_head::head_differs(folder, &config)? {
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
        const KEY: &str = "tie_word_embeddings";
        self.tie_word_embeddings = false;
        self.raw[KEY] = Value::Bool(false);
        // If the key is spelled as usual, only its value is replaced and the file's formatting stays; otherwise all
        // is rewritten.
        let text = self.text.replacen(&format!("\"{KEY}\": true"), &format!("\"{KEY}\": false"), 1);
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
        let family = family(&model_type, file)?;
        (family.defaults)(&mut map);
        let r = ConfigReader { raw: &map, keys: family.key_names, file };
        let heads = r.int("num_attention_heads")?;
        let hidden = r.int("hidden_size")?;
        let layers = r.int_up_to("num_hidden_layers", 10_000)?;
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
        let (rope_theta, rope_scaling) = rope::read(&r, head_dim, context)?;
        Ok(Self {
            hidden_size: hidden,
            intermediate_size: r.int("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: r.int("vocab_size")?,
            norm_eps: r.float_or("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: r.flag("tie_word_embeddings"),
            attention_bias: r.flag("attention_bias"),
            mlp_bias: r.flag("mlp_bias"),
            hidden_act: r.get("hidden_act").and_then(Value::as_str).unwrap_or("silu").into(),
            rope_theta,
            rope_scaling,
            max_position_embeddings: context,
            sliding_window: sliding_window(&r, layers),
            initializer_range: r.float_or("initializer_range", 0.02)?,
            model_type,
            raw,
            text: text.into(),
            family,
            file: file.into(),
        })
    }

    /// Returns the file it was read from, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Lists the dropouts that config.json requests for training, as `key value`. None of them is applied: only
    /// adapters have dropout here.
    pub fn dropouts(&self) -> Vec<String> {
        let asked = |key: &str| self.raw.get(key).and_then(Value::as_f64).filter(|p| *p > 0.0);
        let keys = ["attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"];
        keys.iter().filter_map(|key| asked(key).map(|p| format!("{key} {p}"))).collect()
    }

    /// Returns the names of the weights that embedding and output head share; empty if each has its own.
    pub fn tied_weights(&self) -> Vec<&'static str> {
        if self.tie_word_embeddings { vec![self.family.embedding, "lm_head.weight"] } else { Vec::new() }
    }
}

fn family(model_type: &str, file: &Path) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.names.contains(&model_type)).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.names.iter().copied()).collect();
        Error::user(format!("{}: model_type `{model_type}` is not supported", file.display()))
            .hint(format!("supported: {}", known.join(", ")))
    })
}

/// Returns the sliding window in tokens if at least one layer has one.
fn sliding_window(r: &ConfigReader, layers: i64) -> Option<i64> {
    let window = r.get("sliding_window").and_then(Value::as_i64)?;
    let some = match (r.get("layer_types"), r.get("max_window_layers").and_then(Value::as_i64)) {
        (Some(Value::Array(kinds)), _) => kinds.iter().any(|k| k == "sliding_attention"),
        (_, Some(first)) => first < layers, // qwen: this layer and all later ones
        _ => true,
    };
    (some && r.get("use_sliding_window") != Some(&Value::Bool(false))).then_some(window)
}

/// Reads typed values of config.json by their usual names.
pub(super) struct ConfigReader<'a> {
    pub raw: &'a Map<String, Value>,
    /// (usual name, the family's name) of keys that are named differently.
    pub keys: &'a [(&'a str, &'a str)],
    pub file: &'a Path,
}

impl<'a> ConfigReader<'a> {
    fn key<'k>(&self, usual: &'k str) -> &'k str
    where
        'a: 'k,
    {
        self.keys.iter().find(|(name, _)| *name == usual).map_or(usual, |(_, own)| own)
    }

    /// Returns a value, or `None` if it is missing or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(self.key(key)).filter(|v| !v.is_null())
    }

    /// Returns the error for a key that is missing or is not `what`.
    pub fn wrong_value(&self, key: &str, what: &str) -> Error {
        let key = self.key(key);
        let found = self.raw.get(key).map_or("it is missing".to_string(), |v| format!("found {v}"));
        Error::user(format!("{}: `{key}` must be {what}; {found}", self.file.display()))
            .hint("is this the config.json of a decoder-only language model?")
    }
    pub fn int(&self, key: &str) -> Result<i64> {
        self.int_up_to(key, 1 << 24) // no real dimension is larger; a damaged file must not cause a huge allocation
    }
    fn int_up_to(&self, key: &str, most: i64) -> Result<i64> {
        let found = self.get(key).and_then(Value::as_i64).filter(|n| (1..=most).contains(n));
        found.ok_or_else(|| self.wrong_value(key, &format!("a positive integer, at most {most}")))
    }
    fn int_or(&self, key: &str, default: i64) -> Result<i64> {
        if self.get(key).is_none() { Ok(default) } else { self.int(key) }
    }
    pub fn float(&self, key: &str) -> Result<f64> {
        self.get(key).and_then(Value::as_f64).ok_or_else(|| self.wrong_value(key, "a number"))
    }
    pub fn float_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_none() { Ok(default) } else { self.float(key) }
    }
    fn text(&self, key: &str) -> Result<String> {
        self.get(key).and_then(Value::as_str).map(String::from).ok_or_else(|| self.wrong_value(key, "a string"))
    }
    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}
