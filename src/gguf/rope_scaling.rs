//! Translates the rotary position scaling of a GGUF file to Hugging Face's `rope_scaling`.
//!
//! Invariant: a scaling that config.json cannot express exactly is an error.

use super::file::Gguf;
use super::quant::dequantise;
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// The tensor of per-frequency divisors that GGUF files of Llama 3 have.
pub const FACTORS: &str = "rope_freqs.weight";

/// Returns `rope_scaling` for config.json; null if the model has none.
pub fn read(gguf: &Gguf, arch: &str, head_dim: u64, theta: f64) -> Result<Value> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    let refuse = |what: String| {
        Error::user(format!("{}: {what}", gguf.path().display()))
            .hint("use the model's original Hugging Face directory instead")
    };
    for name in ["attn_factor", "yarn_log_multiplier"] {
        let neutral = if name == "attn_factor" { 1.0 } else { 0.0 };
        if let Some(x) = gguf.float(&key(name))?.filter(|&x| x != neutral) {
            return Err(refuse(format!("rotary scaling with {name} {x} cannot be written to config.json")));
        }
    }
    let factors = llama3_scaling(gguf, arch, head_dim, theta)?;
    // Old files have only a linear factor, under another key.
    let old = gguf.float(&format!("{arch}.rope.scale_linear"))?.filter(|&x| x != 1.0);
    let kind = gguf.text(&key("type"))?.unwrap_or(if old.is_some() { "linear" } else { "none" });
    if kind == "none" {
        return Ok(factors.unwrap_or(Value::Null));
    }
    if factors.is_some() {
        return Err(refuse(format!("both {kind} rotary scaling and {FACTORS}: config.json can express only one")));
    }
    let Some(factor) = gguf.float(&key("factor"))?.or(old) else {
        return Err(refuse(format!("{} is {kind}, but {} is missing", key("type"), key("factor"))));
    };
    let original = gguf.unsigned(&key("original_context_length"))?;
    match (kind, original) {
        ("linear", _) => Ok(json!({"factor": factor, "rope_type": "linear", "type": "linear"})),
        ("yarn", Some(original)) => Ok(
            json!({"factor": factor, "original_max_position_embeddings": original, "rope_type": "yarn", "type": "yarn"}),
        ),
        ("yarn", None) => {
            Err(refuse(format!("{} is missing, which yarn scaling needs", key("original_context_length"))))
        }
        _ => Err(refuse(format!("rotary scaling type `{kind}`: none, linear or yarn expected"))),
    }
}

/// Recovers the four numbers that Llama 3's list of divisors was computed from, and checks that they reproduce the
/// list.
///
/// A frequency with wavelength w is divided by 1 where w < L/high, by `factor` where w > L/low, and in between by
/// 1 / ((1 − s)/factor + s), s = (L/w − low) / (high − low); L is the original context length.
fn llama3_scaling(gguf: &Gguf, arch: &str, head_dim: u64, theta: f64) -> Result<Option<Value>> {
    let Some(tensor) = gguf.tensors().iter().find(|t| t.name == FACTORS) else { return Ok(None) };
    let found = dequantise(tensor.kind, gguf.data(tensor));
    if found.iter().all(|&f| f == 1.0) {
        return Ok(None);
    }
    let factor = found.iter().copied().fold(0.0, f32::max) as f64;
    let stated = gguf.unsigned(&format!("{arch}.rope.scaling.original_context_length"))?;
    for original in stated.into_iter().chain([8192, 4096, 16384, 32768, 131072]) {
        let (low, high) = (1.0, 4.0);
        let fits = found.len() as u64 == head_dim / 2
            && found.iter().enumerate().all(|(i, &f)| {
                let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
                let turns = original as f64 / wavelength;
                let s = (turns - low) / (high - low);
                let expected = if s >= 1.0 {
                    1.0
                } else if s <= 0.0 {
                    factor
                } else {
                    1.0 / ((1.0 - s) / factor + s)
                };
                (f as f64 - expected).abs() <= 1e-4 * expected
            });
        if fits {
            return Ok(Some(json!({
                "factor": factor, "high_freq_factor": high, "low_freq_factor": low,
                "original_max_position_embeddings": original, "rope_type": "llama3",
            })));
        }
    }
    Err(Error::user(format!(
        "{}: tensor {FACTORS}: its {} factors follow no llama3 scaling with low and high frequency factors 1 and 4",
        gguf.path().display(),
        found.len()
    ))
    .hint("use the model's original Hugging Face directory instead"))
}
