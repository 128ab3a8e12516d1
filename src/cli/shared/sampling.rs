//! Arguments of decoding: lengths, sampling, penalties. Values that are not given come from the model's
//! generation_config.json, else they are transformers' defaults.

use super::beams::BeamArgs;
use super::generation_config::GenerationConfig;
use super::model::ModelArgs;
use clap::Args;
use ft::data::chat::ChatTokenizer;
use ft::error::{Error, Result};
use ft::generate::beam::BeamSettings;
use ft::generate::settings::GenerationSettings;
use ft::report;
use serde_json::Value;
use std::path::Path;

/// Longest answer in tokens if neither the command line nor the model gives a length.
const DEFAULT_NEW_TOKENS: usize = 256;

/// Decoding options. Names and meanings are those of transformers.
#[derive(Args)]
pub struct SamplingArgs {
    /// Longest answer in tokens [default: the model's generation_config.json, else 256]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Longest sequence in tokens, prompt and answer together
    #[arg(long, value_name = "N", conflicts_with = "max_new_tokens")]
    max_length: Option<usize>,
    /// Let no stop token or stop text end an answer before it has N tokens
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<usize>,
    /// Take the most likely token each time [default, unless generation_config.json sets do_sample]
    #[arg(long, conflicts_with_all = ["do_sample", "temperature", "top_k", "top_p", "min_p", "seed"])]
    greedy: bool,
    /// Sample, at temperature 1 unless --temperature is given [also turned on by the options below]
    #[arg(long)]
    do_sample: bool,
    /// Sample, with logits divided by T
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample among the N most likely tokens (0: all)
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Sample among the smallest set of most likely tokens whose probabilities add up to P (1: all)
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample among tokens at least P times as likely as the most likely one (0: all)
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Seed of the random streams when sampling [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Divide (negative: multiply) the logits of tokens seen in prompt or answer by X (1: off)
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Subtract X from the logits of tokens that occur in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,
    /// Subtract X from the logits of tokens in the answer, once for each occurrence
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,
    /// Let no sequence of N tokens occur twice, prompt included (0: off)
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,
    /// Text that ends the answer and is removed from it; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Word that must not be generated, with or without a space before it; may be given several times
    #[arg(long, value_name = "TEXT")]
    bad_words: Vec<String>,
    /// Token forced as the first of an answer, if the prompt is a single token
    #[arg(long, value_name = "ID")]
    forced_bos_token_id: Option<u32>,
    /// Token forced as the last of an answer that reaches its maximum length
    #[arg(long, value_name = "ID")]
    forced_eos_token_id: Option<u32>,
}

/// The settings of a generation, and which of them came from the model's file.
pub struct GenerationChoice {
    pub settings: GenerationSettings,
    /// `None`: no beam search.
    pub beams: Option<BeamSettings>,
    /// Number of answers to each prompt.
    pub answers: usize,
    /// A line that reports the values used from the file; `None` if there are none.
    pub note: Option<String>,
    /// Keys of the file that ft does not support and ignores.
    pub unsupported: Vec<&'static str>,
}

impl SamplingArgs {
    /// Combines the command line with the model's generation_config.json. Fails on values that are out of range or that
    /// contradict each other.
    pub fn choose(
        &self,
        model: &Path,
        tokenizer: &ChatTokenizer,
        beams: Option<&BeamArgs>,
    ) -> Result<GenerationChoice> {
        let mut config = GenerationConfig::read(model)?;
        let mut settings = self.length_settings(&mut config, tokenizer)?;
        self.apply_sampling(&mut config, &mut settings)?;
        self.apply_penalties(&mut config, &mut settings, tokenizer)?;
        let (beams, answers) = match beams {
            Some(beams) => beams.choose(&mut config, &settings)?,
            None => (None, 1),
        };
        settings.check()?;
        let note =
            (!config.taken.is_empty()).then(|| format!("from {}: {}", config.file.display(), config.taken.join(", ")));
        Ok(GenerationChoice { settings, beams, answers, note, unsupported: config.unsupported() })
    }

    /// Starts the settings with the length limits and stop tokens.
    fn length_settings(&self, config: &mut GenerationConfig, tokenizer: &ChatTokenizer) -> Result<GenerationSettings> {
        let (mut new, mut whole) = (self.max_new_tokens, self.max_length);
        if new.is_none() && whole.is_none() {
            new = config.count("max_new_tokens")?;
            if new.is_none() {
                whole = config.count("max_length")?;
            }
        }
        let most = new.unwrap_or(if whole.is_some() { usize::MAX } else { DEFAULT_NEW_TOKENS });
        let mut settings = GenerationSettings::greedy(most, tokenizer.stop_ids());
        settings.max_length = whole;
        settings.min_new_tokens = match self.min_new_tokens {
            Some(n) => n,
            None => config.count("min_new_tokens")?.unwrap_or(0).min(most),
        };
        Ok(settings)
    }

    /// Sets temperature, top-k, top-p, min-p and seed, if the command line or the file asks for sampling.
    fn apply_sampling(&self, config: &mut GenerationConfig, settings: &mut GenerationSettings) -> Result<()> {
        let written = !self.greedy && config.get("do_sample", "true or false", Value::as_bool)?.unwrap_or(false);
        let others = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some() || self.seed.is_some();
        if !(written || self.do_sample || self.temperature.is_some() || others) {
            return Ok(());
        }
        // If the file asks for sampling, the values that it leaves out have transformers' defaults.
        let mut choose = |given: Option<f64>, key: &str, default: f64, off: f64| match given {
            Some(x) => Ok(x),
            None if written => Ok(config.number(key)?.unwrap_or(default)),
            None => Ok::<f64, Error>(off),
        };
        settings.temperature = choose(self.temperature, "temperature", 1.0, 1.0)?;
        settings.top_k = choose(self.top_k.map(|k| k as f64), "top_k", 50.0, 0.0)? as usize;
        settings.top_p = choose(self.top_p, "top_p", 1.0, 1.0)?;
        settings.min_p = choose(self.min_p, "min_p", 0.0, 0.0)?;
        settings.seed = self.seed.unwrap_or(0);
        if self.temperature == Some(0.0) && (others || self.do_sample) {
            return Err(Error::user(
                "--temperature 0 always takes the most likely token; --do-sample, --top-k, --top-p, --min-p and --seed would do nothing",
            )
            .hint("use --greedy alone, or a temperature above 0"));
        }
        Ok(())
    }

    /// Sets penalties, stop texts, forbidden words and forced tokens.
    fn apply_penalties(
        &self,
        config: &mut GenerationConfig,
        settings: &mut GenerationSettings,
        tokenizer: &ChatTokenizer,
    ) -> Result<()> {
        let s = settings;
        s.repetition_penalty = match self.repetition_penalty {
            Some(x) => x,
            None => config.number("repetition_penalty")?.unwrap_or(1.0),
        };
        s.presence_penalty = self.presence_penalty.unwrap_or(0.0);
        s.frequency_penalty = self.frequency_penalty.unwrap_or(0.0);
        s.no_repeat_ngram = match self.no_repeat_ngram_size {
            Some(n) => n,
            None => config.count("no_repeat_ngram_size")?.unwrap_or(0),
        };
        s.stop_texts = config
            .get("stop_strings", "text or a list of texts", |v| match v {
                Value::String(text) => Some(vec![text.clone()]),
                v => serde_json::from_value(v.clone()).ok(),
            })?
            .unwrap_or_default();
        s.stop_texts.extend(self.stop.iter().cloned());
        s.bad_words = config.list("bad_words_ids", "lists of token ids")?;
        s.bad_words.extend(config.list("suppress_tokens", "a list of token ids")?.into_iter().map(|id: u32| vec![id]));
        for word in &self.bad_words {
            // The same word has other tokens at the beginning of a text than after a space.
            for text in [word.clone(), format!(" {word}")] {
                let ids = tokenizer.encode(&text)?;
                if ids.is_empty() {
                    return Err(Error::user("--bad-words is empty"));
                }
                if !s.bad_words.contains(&ids) {
                    s.bad_words.push(ids);
                }
            }
        }
        s.forced_bos = match self.forced_bos_token_id {
            None => config.token("forced_bos_token_id")?,
            given => given,
        };
        s.forced_eos = match self.forced_eos_token_id {
            None => config.token("forced_eos_token_id")?,
            given => given,
        };
        Ok(())
    }
}

/// Reports which settings came from generation_config.json, and which of its keys are ignored.
pub fn report_choices(chosen: &GenerationChoice) {
    if let Some(note) = &chosen.note {
        report::info(note);
    }
    if !chosen.unsupported.is_empty() {
        report::warn(format!("generation_config.json: ignored, not supported: {}", chosen.unsupported.join(", ")));
    }
}

/// Returns the settings of a command without beam search, and reports where they come from.
pub fn generation_settings(
    args: &SamplingArgs,
    model: &ModelArgs,
    tokenizer: &ChatTokenizer,
) -> Result<GenerationSettings> {
    let chosen = args.choose(&model.model, tokenizer, None)?;
    report_choices(&chosen);
    Ok(chosen.settings)
}
