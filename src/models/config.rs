//! config.json, as transformers 4 and 5 write it.

use super::limits;
use crate::error::{Error, Result};
use crate::fsutil::{parse_json, read_json};
use crate::nn::Scaling;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The shape of a model.
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
    pub rope_scaling: Scaling,
    pub max_position_embeddings: Option<i64>,
    /// Attention reaches back only so far.
    pub sliding_window: Option<i64>,
    /// The file as read, for writing it back with only the changes made.
    pub raw: Value,
    file: PathBuf,
}

impl Config {
    /// Reads `config.json` of a model directory.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("config.json");
        let raw: Value = read_json(&file)?;
        Self::from_json(raw, file)
    }

    /// Reads config.json text; `file` stands in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        Self::from_json(parse_json(file, text)?, file.into())
    }

    fn from_json(raw: Value, file: PathBuf) -> Result<Self> {
        limits::check(&raw, &file)?;
        let r = Reader { raw: &raw, file: &file };
        let heads = r.int("num_attention_heads")?;
        let hidden = r.int("hidden_size")?;
        // transformers 5 gathers what 4 spread over rope_theta and rope_scaling.
        let rope = Reader { raw: raw.get("rope_parameters").unwrap_or(&Value::Null), file: &file };
        let theta = rope.float_or("rope_theta", r.float_or("rope_theta", 10000.0)?)?;
        let scaling = match (raw.get("rope_parameters"), raw.get("rope_scaling")) {
            (Some(Value::Object(_)), _) => scaling(&rope)?,
            (_, Some(s @ Value::Object(_))) => scaling(&Reader { raw: s, file: &file })?,
            _ => Scaling::None,
        };
        let model_type = r.text("model_type")?;
        let window = match raw.get("sliding_window") {
            None if model_type == "mistral" => Some(4096), // what transformers takes where the key is left out
            w => w.and_then(Value::as_i64),
        };
        let window = if raw.get("use_sliding_window") == Some(&Value::Bool(false)) { None } else { window };
        let kv_heads = r.int_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            return Err(Error::user(format!(
                "{}: `num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}",
                file.display()
            ))
            .hint("each key/value head serves equally many heads; is this the config.json that came with the model?"));
        }
        let head_dim = r.int_or("head_dim", hidden / heads)?;
        if head_dim < 2 || head_dim % 2 != 0 {
            return Err(Error::user(format!(
                "{}: a head size of {head_dim}; rotary embedding turns pairs",
                file.display()
            ))
            .hint("`head_dim`, or `hidden_size` / `num_attention_heads` where it is left out, must be even"));
        }
        for (holder, place) in [(&raw, ""), (rope.raw, "rope_parameters.")] {
            if let Some(f) = holder.get("partial_rotary_factor").and_then(Value::as_f64).filter(|f| *f != 1.0) {
                return Err(Error::user(format!(
                    "{}: `{place}partial_rotary_factor` is {f}, supported is 1",
                    file.display()
                )));
            }
        }
        Ok(Self {
            hidden_size: hidden,
            intermediate_size: r.int("intermediate_size")?,
            num_hidden_layers: r.int_up_to("num_hidden_layers", 10_000)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: r.int("vocab_size")?,
            norm_eps: r.float_or("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: r.flag("tie_word_embeddings"),
            attention_bias: r.flag("attention_bias"),
            mlp_bias: r.flag("mlp_bias"),
            hidden_act: raw.get("hidden_act").and_then(Value::as_str).unwrap_or("silu").into(),
            rope_theta: theta,
            rope_scaling: scaling,
            max_position_embeddings: raw.get("max_position_embeddings").and_then(Value::as_i64),
            sliding_window: window,
            model_type,
            raw: raw.clone(),
            file: file.clone(),
        })
    }

    /// Where it was read from, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

fn scaling(r: &Reader) -> Result<Scaling> {
    let kind = r.raw.get("rope_type").or(r.raw.get("type")).and_then(Value::as_str).unwrap_or("default");
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: r.float("factor")? },
        "llama3" => Scaling::Llama3 {
            factor: r.float("factor")?,
            low: r.float("low_freq_factor")?,
            high: r.float("high_freq_factor")?,
            original: r.float("original_max_position_embeddings")?,
        },
        other => {
            return Err(Error::user(format!("{}: rope scaling `{other}` is not supported", r.file.display()))
                .hint("supported: default, linear, llama3"));
        }
    })
}

struct Reader<'a> {
    raw: &'a Value,
    file: &'a Path,
}

impl Reader<'_> {
    fn missing(&self, key: &str, what: &str) -> Error {
        let found = self.raw.get(key).map_or("it is missing".to_string(), |v| format!("found {v}"));
        Error::user(format!("{}: `{key}` must be {what}; {found}", self.file.display()))
            .hint("is this the config.json of a decoder-only language model?")
    }
    fn int(&self, key: &str) -> Result<i64> {
        self.int_up_to(key, 1 << 24) // no dimension is larger, and nothing is allocated for a damaged one
    }
    fn int_up_to(&self, key: &str, most: i64) -> Result<i64> {
        let found = self.raw.get(key).and_then(Value::as_i64).filter(|n| (1..=most).contains(n));
        found.ok_or_else(|| self.missing(key, &format!("a positive integer, at most {most}")))
    }
    fn int_or(&self, key: &str, default: i64) -> Result<i64> {
        if self.raw.get(key).is_none_or(Value::is_null) { Ok(default) } else { self.int(key) }
    }
    fn float(&self, key: &str) -> Result<f64> {
        self.raw.get(key).and_then(Value::as_f64).ok_or_else(|| self.missing(key, "a number"))
    }
    fn float_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.raw.get(key).is_none_or(Value::is_null) { Ok(default) } else { self.float(key) }
    }
    fn text(&self, key: &str) -> Result<String> {
        self.raw.get(key).and_then(Value::as_str).map(String::from).ok_or_else(|| self.missing(key, "a string"))
    }
    fn flag(&self, key: &str) -> bool {
        self.raw.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}
