//! The scaling of rotary positions in GGUF files and in Hugging Face's `rope_scaling`.
//!
//! Invariant: a scaling that config.json cannot express exactly is an error.

use super::file::Gguf;
use super::quant::dequantise;
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// The tensor of per-frequency divisors that GGUF files of Llama 3 have.
pub const FACTORS: &str = "rope_freqs.weight";

/// The tensors of per-frequency divisors that files of models with LongRoPE have: for sequences beyond the original length,
/// and up to it.
pub const LONG_FACTORS: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeKeys {
    /// How many numbers of a head are rotated.
    pub rotary: u64,
    /// The base.
    pub theta: f64,
    /// The base in layers with a window, where it is another one.
    pub local_theta: Option<f64>,
    /// How frequencies are changed for longer contexts.
    pub scaling: Scaling,
}

/// How the frequencies of rotary embedding are changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All frequencies are divided by a factor.
    Linear {
        /// What they are divided by.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071) with its own factor on attention.
    Yarn {
        /// What slow frequencies are divided by.
        factor: f64,
        /// The context of pre-training, in tokens.
        original: u64,
        /// Rotations above which a frequency is kept.
        fast: f64,
        /// Rotations below which a frequency is divided.
        slow: f64,
        /// What the factor on attention grows by with the logarithm of `factor`, where files say it (DeepSeek-V2).
        log_multiplier: Option<f64>,
    },
    /// Llama 3's.
    Llama3 {
        /// What the frequencies of long wavelengths are divided by.
        factor: f64,
        /// Wavelengths above `original / low` tokens are long.
        low: f64,
        /// Wavelengths below `original / high` tokens are short.
        high: f64,
        /// The context of pre-training, in tokens.
        original: u64,
    },
    /// LongRoPE (arXiv 2402.13753): divisors by frequency.
    Long {
        /// Divisors in short sequences.
        short: Vec<f64>,
        /// Divisors in long sequences.
        long: Vec<f64>,
        /// The context of pre-training, in tokens.
        original: u64,
        /// Factor on attention.
        attention: f64,
    },
}

/// YaRN's bounds of the frequencies that are scaled in part, if a file does not give them.
pub const YARN_BETAS: (f64, f64) = (32.0, 1.0);

/// Reads the scaling of a file. Fails for one that config.json cannot express.
pub fn read(gguf: &Gguf, arch: &str, latent: bool, rotary: u64, theta: f64) -> Result<Scaling> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    let refuse = |what: String| {
        Error::user(format!("{}: {what}", gguf.path().display()))
            .hint("use the model's original Hugging Face directory instead")
    };
    if let Some(long) = long_scaling(gguf, arch, rotary)? {
        return Ok(long);
    }
    for name in ["attn_factor", "yarn_attn_factor", "yarn_log_multiplier"] {
        let neutral = if name == "yarn_log_multiplier" { 0.0 } else { 1.0 };
        let known = latent && name == "yarn_log_multiplier";
        if let Some(x) = gguf.float(&key(name))?.filter(|&x| x != neutral && !known) {
            return Err(refuse(format!("rotary scaling with {name} {x} cannot be written to config.json")));
        }
    }
    let factors = llama3_scaling(gguf, arch, rotary, theta)?;
    // Old files have only a linear factor, under another key.
    let old = gguf.float(&format!("{arch}.rope.scale_linear"))?.filter(|&x| x != 1.0);
    let kind = gguf.text(&key("type"))?.unwrap_or(if old.is_some() { "linear" } else { "none" });
    if kind == "none" {
        return Ok(factors.unwrap_or(Scaling::None));
    }
    if factors.is_some() {
        return Err(refuse(format!("both {kind} rotary scaling and {FACTORS}: config.json can express only one")));
    }
    let Some(factor) = gguf.float(&key("factor"))?.or(old) else {
        return Err(refuse(format!("{} is {kind}, but {} is missing", key("type"), key("factor"))));
    };
    let original = gguf.unsigned(&key("original_context_length"))?;
    match (kind, original) {
        ("linear", _) => Ok(Scaling::Linear { factor }),
        ("yarn", Some(original)) => {
            let fast = gguf.float(&key("yarn_beta_fast"))?.unwrap_or(YARN_BETAS.0);
            let slow = gguf.float(&key("yarn_beta_slow"))?.unwrap_or(YARN_BETAS.1);
            let stated = if latent { gguf.float(&key("yarn_log_multiplier"))? } else { None };
            let log_multiplier = stated.map(|x| shortest(x as f32));
            if latent && log_multiplier.is_none_or(|x| x <= 0.0) {
                return Err(refuse(format!(
                    "{} is missing, which yarn scaling needs here",
                    key("yarn_log_multiplier")
                )));
            }
            Ok(Scaling::Yarn { factor, original, fast, slow, log_multiplier })
        }
        ("yarn", None) => {
            Err(refuse(format!("{} is missing, which yarn scaling needs", key("original_context_length"))))
        }
        _ => Err(refuse(format!("rotary scaling type `{kind}`: none, linear or yarn expected"))),
    }
}

/// Reads LongRoPE's divisors; `None` if the file has none.
fn long_scaling(gguf: &Gguf, arch: &str, rotary: u64) -> Result<Option<Scaling>> {
    let find = |name: &str| gguf.tensors().iter().find(|t| t.name == name);
    let (Some(long), Some(short)) = (find(LONG_FACTORS[0]), find(LONG_FACTORS[1])) else { return Ok(None) };
    let numbers = |tensor: &super::header::TensorInfo| -> Result<Vec<f64>> {
        let found = dequantise(tensor.kind, gguf.data(tensor));
        match found.len() as u64 == rotary / 2 && found.iter().all(|x| *x > 0.0 && x.is_finite()) {
            true => Ok(found.into_iter().map(shortest).collect()),
            false => Err(Error::user(format!(
                "{}: tensor {}: {} positive numbers expected, found {}",
                gguf.path().display(),
                tensor.name,
                rotary / 2,
                found.len()
            ))
            .hint("the file is damaged: try another GGUF of the model")),
        }
    };
    let key = format!("{arch}.rope.scaling.original_context_length");
    let Some(original) = gguf.unsigned(&key)? else {
        return Err(Error::user(format!("{}: metadata {key} is missing", gguf.path().display()))
            .hint("use the model's original Hugging Face directory instead"));
    };
    let attention = gguf.float(&format!("{arch}.rope.scaling.attn_factor"))?.unwrap_or(1.0);
    Ok(Some(Scaling::Long { short: numbers(short)?, long: numbers(long)?, original, attention }))
}

/// Returns the float64 with the shortest decimal form that is this float32, so that 1.1 stays 1.1.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// Returns the factor on attention that LongRoPE has by itself, for a context of `context` tokens.
pub fn long_attention(context: u64, original: u64) -> f64 {
    let scale = context as f64 / original as f64;
    if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / (original as f64).ln()).sqrt() }
}

impl Scaling {
    /// Returns `rope_scaling` for the config.json of a model made for `context` tokens; null if there is none.
    pub fn config(&self, context: u64) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({"factor": factor, "rope_type": "linear", "type": "linear"}),
            Self::Yarn { factor, original, fast, slow, log_multiplier } => {
                let mut value = json!({
                    "factor": factor, "original_max_position_embeddings": original, "rope_type": "yarn", "type": "yarn",
                });
                if (*fast, *slow) != YARN_BETAS {
                    value["beta_fast"] = json!(fast);
                    value["beta_slow"] = json!(slow);
                }
                for key in ["mscale", "mscale_all_dim"] {
                    if let Some(x) = log_multiplier {
                        value[key] = json!(shortest((10.0 * x) as f32));
                    }
                }
                value
            }
            Self::Llama3 { factor, low, high, original } => json!({
                "factor": factor, "high_freq_factor": high, "low_freq_factor": low,
                "original_max_position_embeddings": original, "rope_type": "llama3",
            }),
            Self::Long { short, long, original, attention } => {
                let mut value = json!({
                    "long_factor": long, "rope_type": "longrope", "short_factor": short, "type": "longrope",
                });
                if (attention - long_attention(context, *original)).abs() > 1e-6 * attention {
                    value["attention_factor"] = json!(attention);
                }
                value
            }
        }
    }

    /// Returns the tensors of divisors, by name.
    pub fn tensors(&self, rope: &RopeKeys) -> Vec<(&'static str, Vec<f32>)> {
        let narrow = |list: &[f64]| list.iter().map(|x| *x as f32).collect();
        match self {
            Self::Llama3 { .. } => {
                let divisors = (0..rope.rotary / 2).map(|i| self.llama3_divisor(i, rope.rotary, rope.theta) as f32);
                vec![(FACTORS, divisors.collect())]
            }
            Self::Long { short, long, .. } => vec![(LONG_FACTORS[0], narrow(long)), (LONG_FACTORS[1], narrow(short))],
            _ => Vec::new(),
        }
    }

    /// Returns by what Llama 3's scaling divides frequency `i`; 1 for others.
    ///
    /// A frequency with wavelength w is divided by 1 where w < L/high, by `factor` where w > L/low, and in between by
    /// 1 / ((1 − s)/factor + s), s = (L/w − low) / (high − low); L is the original context length.
    fn llama3_divisor(&self, i: u64, rotary: u64, theta: f64) -> f64 {
        let Self::Llama3 { factor, low, high, original } = self else { return 1.0 };
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / rotary as f64);
        let s = (*original as f64 / wavelength - low) / (high - low);
        if s >= 1.0 {
            1.0
        } else if s <= 0.0 {
            *factor
        } else {
            1.0 / ((1.0 - s) / factor + s)
        }
    }
}

/// Recovers the four numbers that Llama 3's list of divisors was computed from, and checks that they reproduce the
/// list.
fn llama3_scaling(gguf: &Gguf, arch: &str, rotary: u64, theta: f64) -> Result<Option<Scaling>> {
    let Some(tensor) = gguf.tensors().iter().find(|t| t.name == FACTORS) else { return Ok(None) };
    let found = dequantise(tensor.kind, gguf.data(tensor));
    if found.iter().all(|&f| f == 1.0) {
        return Ok(None);
    }
    let factor = found.iter().copied().fold(0.0, f32::max) as f64;
    let stated = gguf.unsigned(&format!("{arch}.rope.scaling.original_context_length"))?;
    for original in stated.into_iter().chain([8192, 4096, 16384, 32768, 131072]) {
        let scaling = Scaling::Llama3 { factor, low: 1.0, high: 4.0, original };
        let fits = found.len() as u64 == rotary / 2
            && found.iter().enumerate().all(|(i, &f)| {
                let expected = scaling.llama3_divisor(i as u64, rotary, theta);
                (f as f64 - expected).abs() <= 1e-4 * expected
            });
        if fits {
            return Ok(Some(scaling));
        }
    }
    Err(Error::user(format!(
        "{}: tensor {FACTORS}: its {} factors follow no llama3 scaling with low and high frequency factors 1 and 4",
        gguf.path().display(),
        found.len()
    ))
    .hint("use the model's original Hugging Face directory instead"))
}
