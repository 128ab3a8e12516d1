//! Writes what the folder of a reward model needs besides weights: a padding token, the class and label from which
//! transformers builds a scalar head, and probes (reward.json) that every load is checked with.
//!
//! transformers reads a score at the last token that is not padding. If the padding token were also the token that ends
//! answers, the score would be read one token early, and at another place in a batch than alone. So the padding token
//! must be one that ends no answer.

use crate::adapters::SCORE;
use crate::convert::verify::logit_distance;
use crate::convert::verify::report::REPORT;
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::fsutil::{read_json, write_json};
use crate::models::{Config, Model, RewardScorer};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Files that name the padding token.
const PAD_TOKEN_FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// Completes a folder that contains a reward model's weights and the tokenizer's files: writes reward.json, and sets a
/// padding token that ends no answer in the tokenizer's files. Returns the id of that token; `None` if no token
/// qualifies.
pub(super) fn complete_folder(model: &Model, folder: &Path) -> Result<Option<u32>> {
    let tokenizer = ChatTokenizer::in_directory(folder).then(|| ChatTokenizer::load(folder, None)).transpose()?;
    let pad = match &tokenizer {
        Some(tokenizer) => find_padding(tokenizer, model.config()),
        None => {
            id_in_config(model.config(), "pad_token_id").filter(|id| !eos_ids_in_config(model.config()).contains(id))
        }
    };
    if let Some(token) = tokenizer.and_then(|t| t.token(pad?)) {
        for file in PAD_TOKEN_FILES.map(|name| folder.join(name)).iter().filter(|f| f.exists()) {
            set_pad_token(file, &token)?;
        }
    }
    RewardScorer::measure(model, pad, logit_distance::prompts_with_texts(model, folder)?)?.write(folder)?;
    Ok(pad)
}

/// Finds a padding token that neither ends an answer nor is written by the chat template. Prefers the tokenizer's own,
/// then a special token whose name contains "pad", then any special token.
fn find_padding(tokenizer: &ChatTokenizer, config: &Config) -> Option<u32> {
    let template = tokenizer.template().map_or("", |t| t.source());
    let free = |id: &u32| {
        let text = tokenizer.token(*id).unwrap_or_default();
        !tokenizer.stop_ids().contains(id)
            && tokenizer.bos() != Some(*id)
            && i64::from(*id) < config.vocab_size
            && !text.is_empty()
            && !template.contains(&text)
    };
    let specials: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id)).collect();
    let called = |id: &u32| tokenizer.token(*id).is_some_and(|t| t.to_lowercase().contains("pad"));
    let by_name = specials.iter().copied().filter(called);
    tokenizer.pad().into_iter().chain(by_name).chain(specials.iter().copied()).find(free)
}

/// Returns the token id under `key` of config.json.
fn id_in_config(config: &Config, key: &str) -> Option<u32> {
    config.raw.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
}

/// Returns the end tokens that config.json names.
fn eos_ids_in_config(config: &Config) -> Vec<u32> {
    let ids = match config.raw.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(id) => id.as_u64().into_iter().collect(),
        None => Vec::new(),
    };
    ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
}

/// Sets `pad_token` in a JSON file of the tokenizer, unless it is set already.
fn set_pad_token(file: &Path, token: &str) -> Result<()> {
    let mut config: Map<String, Value> = read_json(file)?;
    if config.get("pad_token").is_some_and(|old| old == token || old["content"] == token) {
        return Ok(());
    }
    config.insert("pad_token".into(), json!(token));
    write_json(file, &config)
}

/// Returns config.json of a whole reward model. `dtype` is the key of the dtype and its value.
pub(super) fn reward_config(config: &Config, dtype: (&str, &str), pad: Option<u32>) -> Result<Value> {
    let mut raw = config.raw.clone();
    let map = raw.as_object_mut().ok_or_else(|| Error::bug("config.json was read and is no object"))?;
    map.insert("architectures".into(), json!([classifier_class(config)?]));
    map.insert("id2label".into(), json!({ "0": "LABEL_0" }));
    map.insert("label2id".into(), json!({ "LABEL_0": 0 }));
    map.insert("pad_token_id".into(), json!(pad));
    map.insert(dtype.0.into(), json!(dtype.1));
    // transformers derives num_labels from id2label; a number left from another model would contradict it.
    map.remove("num_labels");
    Ok(raw)
}

/// Returns the name of transformers' class that puts a scalar head on this model.
fn classifier_class(config: &Config) -> Result<String> {
    let own = config.raw["architectures"][0].as_str().filter(|c| !c.is_empty());
    let family = config.family().architectures.first().copied();
    let class = own.or(family).ok_or_else(|| Error::bug(format!("{}: no class", config.model_type)))?;
    let stem = ["ForSequenceClassification", "ForCausalLM", "LMHeadModel", "Model"]
        .iter()
        .find_map(|ending| class.strip_suffix(ending));
    Ok(format!("{}ForSequenceClassification", stem.unwrap_or(class)))
}

/// Returns the README.md (model card) of a reward adapter's folder.
pub(super) fn adapter_card(base: &str, pad: Option<u32>) -> String {
    let pad = pad.map_or(String::new(), |id| format!(", pad_token_id={id}"));
    let quoted = serde_json::to_string(base).unwrap_or_default();
    format!(
        "---\nlibrary_name: peft\nbase_model: {quoted}\npipeline_tag: text-classification\ntags:\n- lora\n- reward-model\n---\n\n\
         A reward model's adapter with its head (`{SCORE}`), trained with ft {}. Read it with `ft score --model BASE --adapter DIR`, or with PEFT:\n\n\
         ```python\nmodel = AutoModelForSequenceClassification.from_pretrained({quoted}, num_labels=1{pad})\n\
         model = PeftModel.from_pretrained(model, DIR)\n```\n\n\
         The tokenizer here pads with that token; the base's own may pad with the one that ends answers, and a score would be read \
         one token early.\n`{}` reports how the saved files were checked; `{}` has the scores that every load is compared with.\n",
        env!("CARGO_PKG_VERSION"),
        REPORT,
        crate::models::reward::FILE,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    #[test]
    fn each_family_has_its_class() {
        for (name, expected) in [
            ("tiny-llama", "LlamaForSequenceClassification"),
            ("mistral", "MistralForSequenceClassification"),
            ("tiny-gpt2", "GPT2ForSequenceClassification"),
            ("tiny-qwen3", "Qwen3ForSequenceClassification"),
            ("reward/qwen3", "Qwen3ForSequenceClassification"),
        ] {
            let mut config = Config::read(&fixture(name)).unwrap();
            assert_eq!(classifier_class(&config).unwrap(), expected);
            config.raw.as_object_mut().unwrap().remove("architectures");
            assert!(classifier_class(&config).unwrap().ends_with("ForSequenceClassification"));
        }
    }

    #[test]
    fn padding_is_no_token_that_conversations_hold() {
        let config = Config::read(&fixture("tiny-llama")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"] {
            std::fs::copy(fixture("tiny-tokenizer").join(file), folder.path().join(file)).unwrap();
        }
        let found = || find_padding(&ChatTokenizer::load(folder.path(), None).unwrap(), &config);
        let own = found();
        assert_eq!(own, Some(3), "its own padding");
        // One that ends turns, and one that begins them.
        for token in ["<|im_end|>", "<|im_start|>"] {
            let file = folder.path().join("tokenizer_config.json");
            set_pad_token(&file, token).unwrap();
            assert_eq!(read_json::<Value>(&file).unwrap()["pad_token"], token);
            assert_eq!(found(), own, "{token}: the one that is called so");
        }
    }
}
