//! Arguments of decoding: lengths, sampling, penalties, beams. Values that are not given come from the model's
//! generation_config.json, else they are transformers' defaults.

use clap::{Args, ValueEnum};
use ft::data::chat::ChatTokenizer;
use ft::error::{Error, Result};
use ft::fsutil;
use ft::generate::{BeamEarlyStopping, BeamSettings, GenerationSettings};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

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

/// Options of beam search and of several answers to a prompt.
#[derive(Args)]
pub struct BeamArgs {
    /// Number of answers to each prompt: sampled, or the best beams
    #[arg(long, value_name = "N")]
    pub num_return_sequences: Option<usize>,
    /// Beam search with N beams
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Beam search: values above 0 favour long answers, below 0 short ones [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// End beam search when there are as many answers as beams (true), when better ones are unlikely (false), or
    /// impossible (never)
    #[arg(long, value_enum)]
    early_stopping: Option<EarlyStoppingArg>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EarlyStoppingArg {
    True,
    False,
    Never,
}

/// Keys of generation_config.json that ft does not support, each with the values that switch it off.
const UNSUPPORTED_KEYS: &[(&str, &[f64])] = &[
    ("assistant_confidence_threshold", &[]),
    ("diversity_penalty", &[0.0]),
    ("dola_layers", &[]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
    ("begin_suppress_tokens", &[]),
    ("constraints", &[]),
    ("force_words_ids", &[]),
    ("guidance_scale", &[1.0]),
    ("max_time", &[]),
    ("num_beam_groups", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("prompt_lookup_num_tokens", &[]),
    ("sequence_bias", &[]),
    ("token_healing", &[]),
    ("top_h", &[]),
    ("typical_p", &[1.0]),
    ("watermarking_config", &[]),
];

/// The model's generation_config.json, and the keys that were used so far.
struct GenerationConfig {
    file: PathBuf,
    values: Map<String, Value>,
    taken: Vec<String>,
}

impl GenerationConfig {
    fn read(model: &Path) -> Result<Self> {
        let file = model.join("generation_config.json");
        let values = if file.is_file() { fsutil::read_json(&file)? } else { Map::new() };
        Ok(Self { file, values, taken: Vec::new() })
    }

    /// Returns the value of `key`, or `None` if it is missing or null. Fails if `read` does not accept it; `what` names
    /// the expected kind of value in the error.
    fn get<T>(&mut self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match read(v) {
                Some(x) => {
                    self.taken.push(format!("{key} {v}"));
                    Ok(Some(x))
                }
                None => Err(Error::user(format!("{}: `{key}` is {v}, expected {what}", self.file.display()))),
            },
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Value::as_f64)
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().map(|n| n as usize))
    }

    fn token(&mut self, key: &str) -> Result<Option<u32>> {
        self.get(key, "a token id", |v| v.as_u64().and_then(|id| u32::try_from(id).ok()))
    }

    fn list<T: serde::de::DeserializeOwned>(&mut self, key: &str, what: &str) -> Result<Vec<T>> {
        Ok(self.get(key, what, |v| serde_json::from_value(v.clone()).ok())?.unwrap_or_default())
    }

    /// Returns the unsupported keys that the file sets to values that would change answers.
    fn unsupported(&self) -> Vec<&'static str> {
        let says = |(key, nothing): &&(&'static str, &[f64])| match self.values.get(*key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(v) => !v.as_f64().is_some_and(|x| nothing.contains(&x)),
        };
        UNSUPPORTED_KEYS.iter().filter(says).map(|(key, _)| *key).collect()
    }
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

impl BeamArgs {
    /// Returns the beams, or `None` without beam search, and the number of answers to each prompt.
    fn choose(
        &self,
        config: &mut GenerationConfig,
        settings: &GenerationSettings,
    ) -> Result<(Option<BeamSettings>, usize)> {
        let count = match self.num_beams {
            None => config.count("num_beams")?.unwrap_or(1),
            Some(n) => n,
        };
        let answers = match self.num_return_sequences {
            None => config.count("num_return_sequences")?.unwrap_or(1),
            Some(n) => n,
        };
        if count == 0 || answers == 0 {
            return Err(Error::user("--num-beams and --num-return-sequences must be 1 or more"));
        }
        if count == 1 {
            if self.length_penalty.is_some() || self.early_stopping.is_some() {
                return Err(
                    Error::user("--length-penalty and --early-stopping need beam search").hint("add --num-beams N")
                );
            }
            if answers > 1 && settings.is_greedy() {
                return Err(Error::user(format!("{answers} answers to a prompt would all be the same one"))
                    .hint("sample with --temperature T, or search with --num-beams N"));
            }
            return Ok((None, answers));
        }
        let length_penalty = match self.length_penalty {
            None => config.number("length_penalty")?.unwrap_or(1.0),
            Some(x) => x,
        };
        let early_stopping = match self.early_stopping {
            Some(EarlyStoppingArg::True) => BeamEarlyStopping::Yes,
            Some(EarlyStoppingArg::False) => BeamEarlyStopping::No,
            Some(EarlyStoppingArg::Never) => BeamEarlyStopping::Never,
            None => config
                .get("early_stopping", "true, false or \"never\"", |v| match v {
                    Value::Bool(true) => Some(BeamEarlyStopping::Yes),
                    Value::Bool(false) => Some(BeamEarlyStopping::No),
                    Value::String(s) if s == "never" => Some(BeamEarlyStopping::Never),
                    _ => None,
                })?
                .unwrap_or_default(),
        };
        let beams = BeamSettings { count, answers, length_penalty, early_stopping };
        beams.check(settings)?;
        Ok((Some(beams), answers))
    }
}
