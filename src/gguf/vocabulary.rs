//! Rebuilds the tokenizer files of a Hugging Face directory from the vocabulary in a GGUF file.
//!
//! Every token keeps its id. Control and user-defined tokens become added tokens, so that text matches them as a whole.
//! Placeholders that only pad the vocabulary to the size of the embedding are left out. Knows nothing of tensors.

use super::architecture::TokenIds;
use super::file::Gguf;
use super::model_texts::json_text;
use super::pretokenizer::PreTokenizer;
use crate::error::{Error, Result};
use crate::tokenizer_json;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};

/// The contents of a model directory's tokenizer files, and the ids that other files need.
pub struct TokenizerFiles {
    /// Contents of tokenizer.json.
    pub tokenizer: Value,
    /// Contents of tokenizer_config.json.
    pub config: Value,
    /// Contents of chat_template.jinja, if the file has a template.
    pub template: Option<String>,
    /// Further named templates, for `additional_chat_templates/<name>.jinja`.
    pub more_templates: Vec<(String, String)>,
    /// The token that begins a text.
    pub bos: Option<u64>,
    /// The token that ends a text.
    pub eos: Option<u64>,
    /// The padding token.
    pub pad: Option<u64>,
    /// Every token that ends an answer: `eos` first, then those with which the chat template ends a turn.
    pub stops: Vec<u64>,
    /// Number of ids, placeholders included; the embedding must have at least as many rows.
    pub size: usize,
    /// Warnings for the user about doubtful choices made here.
    pub warnings: Vec<String>,
}

impl TokenizerFiles {
    /// Returns the ids that config.json contains.
    pub fn ids(&self) -> TokenIds {
        TokenIds { bos: self.bos, pad: self.pad, stops: self.stops.clone(), size: self.size }
    }

    /// Returns the files of a model directory that follow from the vocabulary, as (name, text): those of the tokenizer,
    /// the chat templates, and generation_config.json.
    pub fn texts(&self) -> Vec<(String, String)> {
        let eos = if let [one] = self.stops[..] { json!(one) } else { json!(self.stops) };
        let mut generation = json!({"_from_model_config": true, "bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad});
        if let Value::Object(map) = &mut generation {
            map.retain(|_, v| !v.is_null() && *v != json!([]));
        }
        let named = [
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.config),
            ("generation_config.json", &generation),
        ];
        let mut texts: Vec<_> = named.map(|(name, value)| (name.to_string(), json_text(value))).into();
        texts.extend(self.template.iter().map(|text| ("chat_template.jinja".to_string(), text.clone())));
        let more = self.more_templates.iter();
        texts.extend(more.map(|(name, text)| (format!("additional_chat_templates/{name}.jinja"), text.clone())));
        texts
    }
}

/// Token types of GGUF, by number.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

const LONGEST_TOKEN: usize = tokenizer_json::LONGEST_PIECE;

/// Tokens that end a turn in well-known chat templates. One counts as a stop token if the vocabulary marks it as
/// special and the template contains it.
const TURN_ENDS: [&str; 12] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// The token list of a GGUF file: text and type by id, and id by text.
struct GgufTokens<'a> {
    gguf: &'a Gguf,
    texts: Vec<&'a str>,
    types: Vec<i64>,
    ids: HashMap<&'a str, u64>,
}

/// The special tokens of a vocabulary.
struct SpecialIds {
    bos: Option<u64>,
    eos: Option<u64>,
    pad: Option<u64>,
    unk: Option<u64>,
    /// Every token that ends an answer: `eos` first, then those with which the chat template ends a turn.
    stops: Vec<u64>,
}

/// Returns the ids that config.json contains, without rebuilding the tokenizer.
pub fn token_ids(gguf: &Gguf) -> Result<TokenIds> {
    require_tokenizer(gguf)?;
    let tokens = GgufTokens::read(gguf)?;
    let SpecialIds { bos, pad, stops, .. } = tokens.special_ids()?;
    Ok(TokenIds { bos, pad, stops, size: tokens.texts.len() })
}

/// Rebuilds the tokenizer; `pre_tokenizer` overrides the name that the file gives.
pub fn rebuild(gguf: &Gguf, context_length: u64, pre_tokenizer: Option<&str>) -> Result<TokenizerFiles> {
    let at = |e: Error| e.context(gguf.path().display());
    let model = require_tokenizer(gguf)?;
    let tokens = GgufTokens::read(gguf)?;
    let mut warnings = Vec::new();
    let (mut tokenizer, adds_bos) = match model {
        "gpt2" => {
            let name = named_pre_tokenizer(gguf, pre_tokenizer, &mut warnings)?;
            let pre = PreTokenizer::find(&name).map_err(at)?;
            (byte_level_tokenizer(&tokens, pre)?, pre.adds_bos)
        }
        "llama" => {
            if pre_tokenizer.is_some() {
                return Err(at(Error::user(
                    "--pre-tokenizer does not apply: this SentencePiece vocabulary has no pre-tokenizer",
                ))
                .hint("leave --pre-tokenizer out"));
            }
            (sentencepiece_tokenizer(&tokens)?, true)
        }
        other => {
            return Err(at(Error::user(format!("tokenizer model `{other}` is not supported; `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE) expected")))
                .hint("use the model's original Hugging Face directory instead"));
        }
    };

    let SpecialIds { bos, eos, pad, unk, stops } = tokens.special_ids()?;
    let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos) && bos.is_some();
    let add_eos = gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false) && eos.is_some();
    tokenizer["added_tokens"] = tokens.added_tokens(&[bos, eos, pad, unk]);
    tokenizer["post_processor"] = tokens.post_processor(bos.filter(|_| add_bos), eos.filter(|_| add_eos));

    let name = |id: Option<u64>| id.map_or(Value::Null, |i| json!(tokens.texts[i as usize]));
    let config = json!({
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "bos_token": name(bos),
        "clean_up_tokenization_spaces": false,
        "eos_token": name(eos),
        "model_max_length": context_length,
        "pad_token": name(pad),
        // The only class with which both transformers 4 and 5 load tokenizer.json unchanged.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": name(unk),
    });
    Ok(TokenizerFiles {
        tokenizer,
        config,
        template: main_template(gguf)?.map(str::to_string),
        more_templates: more_templates(gguf)?,
        bos,
        eos,
        pad,
        stops,
        size: tokens.texts.len(),
        warnings,
    })
}

/// Returns the kind of tokenizer, as llama.cpp names it. Fails if the file has no tokenizer.
fn require_tokenizer(gguf: &Gguf) -> Result<&str> {
    gguf.text("tokenizer.ggml.model")?.ok_or_else(|| {
        Error::user(format!("{}: the file holds no tokenizer (tokenizer.ggml.model is missing)", gguf.path().display()))
            .hint("choose a GGUF of the whole model; a projector or adapter file cannot be used alone")
    })
}

/// Returns the default chat template.
fn main_template(gguf: &Gguf) -> Result<Option<&str>> {
    gguf.text("tokenizer.chat_template")
}

fn named_pre_tokenizer(gguf: &Gguf, chosen: Option<&str>, warnings: &mut Vec<String>) -> Result<String> {
    let stated = gguf.text("tokenizer.ggml.pre")?;
    match (chosen, stated) {
        (Some(name), stated) => {
            if let Some(stated) = stated.filter(|s| *s != name) {
                warnings.push(format!("the file names pre-tokenizer `{stated}`; `{name}` is used, as --pre-tokenizer asks"));
            }
            Ok(name.to_string())
        }
        (None, Some("default")) => {
            warnings.push(
                "the file names pre-tokenizer `default`: whoever made it did not know the original; GPT-2's is used. \
                 Compare token ids with the original tokenizer, or name another with --pre-tokenizer"
                    .into(),
            );
            Ok("default".into())
        }
        (None, Some(stated)) => Ok(stated.to_string()),
        (None, None) => Err(Error::user(format!(
            "{}: the file does not name its pre-tokenizer (tokenizer.ggml.pre is missing), so its token ids cannot be known",
            gguf.path().display()
        ))
        .hint("name the one of the original tokenizer with --pre-tokenizer, for example gpt-2, llama-bpe or qwen2")),
    }
}

/// Returns the named templates, stored as `tokenizer.chat_template.<name>`, as (name, text).
fn more_templates(gguf: &Gguf) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    for key in gguf.keys() {
        let Some(name) = key.strip_prefix("tokenizer.chat_template.") else { continue };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            return Err(Error::user(format!(
                "{}: metadata {key}: letters, digits, _ and - expected in a template's name",
                gguf.path().display()
            )));
        }
        templates.extend(gguf.text(key)?.map(|t| (name.to_string(), t.to_string())));
    }
    templates.sort();
    Ok(templates)
}

/// Builds `tokenizer.json` of a byte-level BPE; the caller fills in added tokens and post-processor.
fn byte_level_tokenizer(tokens: &GgufTokens, pre: &PreTokenizer) -> Result<Value> {
    let prefix = tokens.gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let merges = tokens
        .listed_merges()?
        .ok_or_else(|| tokens.unusable("tokenizer.ggml.merges is missing: a BPE vocabulary without merges"))?;
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.pre_tokenizer(prefix),
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": tokens.vocab(),
            "merges": merges,
        },
    }))
}

/// Builds `tokenizer.json` of a SentencePiece BPE with byte fallback. If the file lists no merges, they are recovered
/// from the scores.
fn sentencepiece_tokenizer(tokens: &GgufTokens) -> Result<Value> {
    let prefix = tokens.gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let merges = match tokens.listed_merges()? {
        Some(listed) => json!(listed),
        None => json!(tokens.merges_from_scores()?),
    };
    let unk = tokens.types.iter().position(|&t| t == UNKNOWN).map(|i| tokens.texts[i]);
    Ok(tokenizer_json::tokenizer_json(
        tokenizer_json::bpe_model(tokens.vocab(), merges, unk, true),
        Value::Null,
        prefix,
    ))
}

impl<'a> GgufTokens<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let mut tokens = Self { gguf, texts: Vec::new(), types: Vec::new(), ids: HashMap::new() };
        tokens.texts =
            gguf.texts("tokenizer.ggml.tokens")?.ok_or_else(|| tokens.unusable("tokenizer.ggml.tokens is missing"))?;
        tokens.types = gguf.integers("tokenizer.ggml.token_type")?.ok_or_else(|| {
            tokens.unusable("tokenizer.ggml.token_type is missing, so special tokens cannot be distinguished from text")
        })?;
        if tokens.types.len() != tokens.texts.len() {
            let why = format!("{} tokens, but {} token types", tokens.texts.len(), tokens.types.len());
            return Err(tokens.unusable(&why));
        }
        for (id, &text) in tokens.texts.iter().enumerate() {
            if text.is_empty() || text.len() > LONGEST_TOKEN {
                return Err(
                    tokens.unusable(&format!("token {id}: 1 to {LONGEST_TOKEN} bytes expected, found {}", text.len()))
                );
            }
            if tokens.is_placeholder(id) {
                continue;
            }
            if let Some(first) = tokens.ids.insert(text, id as u64) {
                return Err(tokens.unusable(&format!("token {text:?} appears twice, as {first} and as {id}")));
            }
        }
        Ok(tokens)
    }

    fn unusable(&self, why: &str) -> Error {
        Error::user(format!("{}: tokenizer: {why}", self.gguf.path().display()))
            .hint("the file's vocabulary is not usable; try another GGUF of the same model")
    }

    /// Returns true for `[PAD<id>]`: llama.cpp pads a vocabulary that is smaller than the embedding with such tokens.
    fn is_placeholder(&self, id: usize) -> bool {
        self.types[id] == UNUSED
            && self.texts[id].strip_prefix("[PAD").is_some_and(|rest| rest.strip_suffix(']') == Some(&id.to_string()))
    }

    fn vocab(&self) -> Map<String, Value> {
        (0..self.texts.len())
            .filter(|&i| !self.is_placeholder(i))
            .map(|i| (self.texts[i].to_string(), json!(i)))
            .collect()
    }

    /// Returns the token id that the metadata gives for a role such as `bos_token_id`. Fails if there is no such token.
    fn role_id(&self, key: &str) -> Result<Option<u64>> {
        let Some(id) = self.gguf.unsigned(&format!("tokenizer.ggml.{key}"))? else { return Ok(None) };
        if id >= self.texts.len() as u64 || self.is_placeholder(id as usize) {
            return Err(self
                .unusable(&format!("{key} is {id}, which is no token of the {} in the vocabulary", self.texts.len())));
        }
        Ok(Some(id))
    }

    /// Returns the tokens that have a role.
    fn special_ids(&self) -> Result<SpecialIds> {
        let (bos, eos) = (self.role_id("bos_token_id")?, self.role_id("eos_token_id")?);
        let (pad, unk) = (self.role_id("padding_token_id")?, self.role_id("unknown_token_id")?);
        let mut stops: BTreeSet<u64> = eos.into_iter().collect();
        for key in ["eot_token_id", "eom_token_id"] {
            stops.extend(self.role_id(key)?);
        }
        stops.extend(self.turn_ends(main_template(self.gguf)?));
        // The main end-of-text token comes first: libraries that read only one token take the first.
        let stops = eos.into_iter().chain(stops.into_iter().filter(|&s| Some(s) != eos)).collect();
        Ok(SpecialIds { bos, eos, pad, unk, stops })
    }

    /// Returns the added tokens, which text matches as a whole. Control tokens and those with a role are special,
    /// user-defined ones are not.
    fn added_tokens(&self, roles: &[Option<u64>]) -> Value {
        let entry = |id: usize| {
            let special = matches!(self.types[id], CONTROL | UNKNOWN) || roles.contains(&Some(id as u64));
            (special || self.types[id] == USER_DEFINED).then(|| {
                json!({
                    "id": id, "content": self.texts[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                })
            })
        };
        (0..self.texts.len()).filter_map(entry).collect()
    }

    /// Returns a post-processor that adds the beginning and end of text to each sequence.
    fn post_processor(&self, bos: Option<u64>, eos: Option<u64>) -> Value {
        let token = |id: u64| (self.texts[id as usize], id);
        tokenizer_json::around(bos.map(token), eos.map(token))
    }

    /// Returns the merges that the file lists; `None` if it lists none. Fails if a merge does not join two tokens into
    /// a third.
    fn listed_merges(&self) -> Result<Option<Vec<&'a str>>> {
        let Some(merges) = self.gguf.texts("tokenizer.ggml.merges")? else { return Ok(None) };
        for (i, merge) in merges.iter().enumerate() {
            let whole = merge.split_once(' ').filter(|(l, r)| self.ids.contains_key(l) && self.ids.contains_key(r));
            if !whole.is_some_and(|(l, r)| self.ids.contains_key(format!("{l}{r}").as_str())) {
                return Err(self.unusable(&format!("merge {i}, {merge:?}: two tokens that join into a third expected")));
            }
        }
        Ok(Some(merges))
    }

    /// Recovers SentencePiece's BPE merges from the scores, in the order of the joined token's score, as transformers
    /// does.
    fn merges_from_scores(&self) -> Result<Vec<String>> {
        let scores = self.gguf.floats("tokenizer.ggml.scores")?.unwrap_or_default();
        if scores.len() != self.texts.len() {
            return Err(self.unusable(&format!("{} tokens, but {} scores", self.texts.len(), scores.len())));
        }
        tokenizer_json::recover_merges(&self.ids, |id| scores[id as usize]).map_err(|bad| {
            self.unusable(&format!("token {bad:?} contains a space, which a SentencePiece vocabulary writes as ▁"))
        })
    }

    fn turn_ends(&self, template: Option<&str>) -> Vec<u64> {
        let Some(template) = template else { return Vec::new() };
        let special = |id: &u64| matches!(self.types[*id as usize], CONTROL | USER_DEFINED);
        TURN_ENDS
            .iter()
            .filter(|t| template.contains(**t))
            .filter_map(|t| self.ids.get(t).copied())
            .filter(special)
            .collect()
    }
}
