//! The arguments that say how an answer is made; what is not given comes from the model's generation_config.json.

use clap::Args;
use ft::data::ChatTokenizer;
use ft::error::{Error, Result};
use ft::fsutil;
use ft::generate::Settings;
use serde_json::Value;
use std::path::Path;

/// Length of an answer where neither the command nor the model says one.
const NEW_TOKENS: usize = 256;

/// How an answer is made.
#[derive(Args)]
pub struct SamplingArgs {
    /// Longest answer in tokens [default: the model's generation_config.json, else 256]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Always the most likely token [default, unless generation_config.json has do_sample]
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    greedy: bool,
    /// Sample, with logits divided by this
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample among the N most likely tokens (0: all)
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Sample among the fewest most likely tokens whose probabilities reach P (1: all)
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Seed of the random streams when sampling [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The settings for this model.
    pub fn settings(&self, model: &Path, tokenizer: &ChatTokenizer) -> Result<Settings> {
        let file = model.join("generation_config.json");
        let config: Value = if file.is_file() { fsutil::read_json(&file)? } else { Value::Null };
        let number = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v
                .as_f64()
                .map(Some)
                .ok_or_else(|| Error::user(format!("{}: `{key}` is {v}, expected a number", file.display()))),
        };
        let max_new_tokens = match self.max_new_tokens {
            Some(n) => n,
            None => number("max_new_tokens")?.map_or(NEW_TOKENS, |n| n as usize),
        };
        let mut settings = Settings::greedy(max_new_tokens, tokenizer.stop_ids());
        let written = config.get("do_sample").and_then(Value::as_bool).unwrap_or(false);
        let asked = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.seed.is_some();
        if !self.greedy && (written || asked) {
            // Where the file asks for sampling, what it leaves out has transformers' defaults.
            let from_file = |key: &str, default: f64, off: f64| {
                if written { Ok(number(key)?.unwrap_or(default)) } else { Ok::<_, Error>(off) }
            };
            settings.temperature = self.temperature.map_or_else(|| from_file("temperature", 1.0, 1.0), Ok)?;
            settings.top_k = self.top_k.map_or_else(|| from_file("top_k", 50.0, 0.0).map(|k| k as usize), Ok)?;
            settings.top_p = self.top_p.map_or_else(|| from_file("top_p", 1.0, 1.0), Ok)?;
            settings.seed = self.seed.unwrap_or(0);
        }
        settings.check()?;
        let others = self.top_k.is_some() || self.top_p.is_some() || self.seed.is_some();
        if self.temperature == Some(0.0) && others {
            return Err(Error::user(
                "--temperature 0 always takes the most likely token; --top-k, --top-p and --seed would do nothing",
            )
            .hint("use --greedy alone, or a temperature above 0"));
        }
        Ok(settings)
    }
}
