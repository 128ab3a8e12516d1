//! Writes a tokenizer as metadata, the reverse of [`super::vocabulary`]: byte-level BPE, and SentencePiece BPE with byte
//! fallback.

use super::pretokenizer::PreTokenizer;
use super::writer::MetaValue;
use crate::error::{Error, Result};
use crate::tokenizer_json::SPACE;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Token types of GGUF, by number.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What GGUF files contain of a tokenizer.
pub struct TokenizerParts<'a> {
    /// Contents of tokenizer.json.
    pub json: &'a Map<String, Value>,
    /// Number of rows of the embedding.
    pub rows: u64,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// The padding token.
    pub pad: Option<u32>,
    /// The token for what has no other.
    pub unk: Option<u32>,
    /// Every token that ends an answer.
    pub stops: &'a [u32],
    /// The beginning token is added to each text.
    pub adds_bos: bool,
    /// The ending token is added to each text.
    pub adds_eos: bool,
    /// The default chat template.
    pub template: Option<&'a str>,
    /// Further chat templates, as (name, text).
    pub more_templates: &'a [(String, String)],
}

/// A tokenizer as metadata.
pub struct TokenizerKeys {
    /// The metadata.
    pub metadata: Vec<(String, MetaValue)>,
    /// The kind of tokenizer, as llama.cpp names it.
    pub model: &'static str,
    /// Its pre-tokenizer, as llama.cpp names it.
    pub pre: &'static str,
    /// Where llama.cpp's ids may differ.
    pub warnings: Vec<String>,
}

/// Returns a tokenizer as metadata. Fails for what the format does not have; the error says what was found.
pub fn of(parts: &TokenizerParts) -> Result<TokenizerKeys> {
    let vocabulary = Vocabulary::read(parts)?;
    let model = &parts.json["model"];
    let (name, pre, own) = match byte_level(parts.json) {
        true => ("gpt2", PreTokenizer::name_of(parts.json)?, byte_level_keys(model)?),
        false => ("llama", "default", sentencepiece_keys(parts.json, &vocabulary)?),
    };
    let mut keys = vec![
        ("model".to_string(), MetaValue::Text(name.into())),
        ("pre".into(), MetaValue::Text(pre.into())),
        ("tokens".into(), MetaValue::Texts(vocabulary.texts)),
        ("token_type".into(), MetaValue::Integers(vocabulary.types)),
    ];
    keys.extend(own);
    let roles = [("bos", parts.bos), ("eos", parts.eos), ("unknown", parts.unk), ("padding", parts.pad)];
    let mut ids: Vec<(&str, u32)> = roles.into_iter().filter_map(|(role, id)| Some((role, id?))).collect();
    // A second and a third token that end an answer have roles of their own.
    let others: Vec<u32> = parts.stops.iter().copied().filter(|id| Some(*id) != parts.eos).collect();
    ids.extend(["eot", "eom"].into_iter().zip(others.iter().copied()));
    keys.extend(ids.into_iter().map(|(role, id)| (format!("{role}_token_id"), MetaValue::Unsigned(id))));
    keys.push(("add_bos_token".into(), MetaValue::Flag(parts.adds_bos)));
    keys.push(("add_eos_token".into(), MetaValue::Flag(parts.adds_eos)));
    let mut metadata: Vec<(String, MetaValue)> =
        keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    if let Some(template) = parts.template {
        metadata.push(("tokenizer.chat_template".into(), template.into()));
    }
    if !parts.more_templates.is_empty() {
        let names = parts.more_templates.iter().map(|(name, _)| name.clone()).collect();
        metadata.push(("tokenizer.chat_templates".into(), MetaValue::Texts(names)));
    }
    for (name, text) in parts.more_templates {
        metadata.push((format!("tokenizer.chat_template.{name}"), text.as_str().into()));
    }
    let mut warnings = vocabulary.warnings;
    if others.len() > 2 {
        warnings.push(format!(
            "{} tokens end an answer; GGUF has places for three, so llama.cpp knows the others only if it knows their texts",
            parts.stops.len()
        ));
    }
    Ok(TokenizerKeys { metadata, model: name, pre, warnings })
}

/// Returns the error that a tokenizer is not in the format.
pub fn refuse(what: impl std::fmt::Display) -> Error {
    Error::user(format!("the tokenizer cannot be written to GGUF: {what}")).hint(
        "llama.cpp has byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece BPE with byte fallback (Llama 2, Gemma)",
    )
}

/// Returns true if bytes are written as characters, as GPT-2's tokenizer does.
fn byte_level(json: &Map<String, Value>) -> bool {
    let of_kind = |part: &Value| part.get("type").and_then(Value::as_str) == Some("ByteLevel");
    let pre = json.get("pre_tokenizer").unwrap_or(&Value::Null);
    of_kind(pre) || pre.get("pretokenizers").and_then(Value::as_array).is_some_and(|list| list.iter().any(of_kind))
}

/// The tokens by id.
struct Vocabulary {
    texts: Vec<String>,
    types: Vec<i32>,
    warnings: Vec<String>,
}

impl Vocabulary {
    fn read(parts: &TokenizerParts) -> Result<Self> {
        let model = parts.json.get("model").unwrap_or(&Value::Null);
        let kind = model.get("type").and_then(Value::as_str).unwrap_or("unknown");
        if kind != "BPE" {
            return Err(refuse(format!("its model is `{kind}`, BPE expected")));
        }
        for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            if let Some(value) = model.get(key).filter(|v| !v.is_null() && **v != "") {
                return Err(refuse(format!("`{key}` is {value}")));
            }
        }
        let rows = parts.rows as usize;
        let mut texts: Vec<String> = (0..rows).map(|i| format!("[PAD{i}]")).collect();
        let mut types = vec![UNUSED; rows];
        let fallback = model.get("byte_fallback") == Some(&Value::Bool(true));
        let unk = model.get("unk_token").and_then(Value::as_str);
        let vocab = model.get("vocab").and_then(Value::as_object).ok_or_else(|| refuse("it has no vocabulary"))?;
        for (text, id) in vocab {
            let at = place(text, id, rows)?;
            let byte = fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            types[at] = match text.as_str() {
                text if Some(text) == unk => UNKNOWN,
                _ if byte => BYTE,
                _ => NORMAL,
            };
            texts[at] = text.clone();
        }
        let mut warnings = Vec::new();
        let spaces = !byte_level(parts.json);
        for token in parts.json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            let at = place(text, &token["id"], rows)?;
            let special = token["special"] == true;
            if types[at] != UNKNOWN {
                types[at] = if special { CONTROL } else { USER_DEFINED };
            }
            // llama.cpp looks for tokens in the text as it is, before spaces are replaced.
            texts[at] = if spaces && !special { text.replace(SPACE, " ") } else { text.to_string() };
            if ["lstrip", "rstrip", "single_word"].iter().any(|flag| token[*flag] == true) {
                warnings.push(format!(
                    "the token {text:?} takes spaces beside it away (lstrip, rstrip or single_word), which GGUF does not say: ids of \
                     texts with such spaces differ"
                ));
            }
        }
        Ok(Self { texts, types, warnings })
    }
}

fn place(text: &str, id: &Value, rows: usize) -> Result<usize> {
    let at = id.as_u64().filter(|id| *id < rows as u64);
    at.map(|id| id as usize)
        .ok_or_else(|| refuse(format!("the token {text:?} has id {id}, but the model has only {rows} rows for tokens")))
}

/// Returns the merges of a model, each as two pieces.
fn merges(model: &Value) -> Result<Vec<(&str, &str)>> {
    let list = model.get("merges").and_then(Value::as_array).ok_or_else(|| refuse("it has no merges"))?;
    list.iter()
        .map(|merge| match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(two) => Some((two.first()?.as_str()?, two.get(1)?.as_str()?)),
            _ => None,
        })
        .collect::<Option<_>>()
        .ok_or_else(|| refuse("a merge is no pair of pieces"))
}

fn byte_level_keys(model: &Value) -> Result<Vec<(String, MetaValue)>> {
    let pairs = merges(model)?;
    if let Some((a, b)) = pairs.iter().find(|(a, b)| a.contains(' ') || b.contains(' ')) {
        return Err(refuse(format!("the merge of {a:?} and {b:?} has a space, which separates the two in the file")));
    }
    let list = pairs.into_iter().map(|(a, b)| format!("{a} {b}")).collect();
    Ok(vec![("merges".into(), MetaValue::Texts(list))])
}

/// Returns the scores of the tokens, and whether a space is put before a text.
fn sentencepiece_keys(json: &Map<String, Value>, vocabulary: &Vocabulary) -> Result<Vec<(String, MetaValue)>> {
    let model = &json["model"];
    if model.get("byte_fallback") != Some(&Value::Bool(true)) {
        return Err(refuse("it has no bytes for characters without a token (byte_fallback)"));
    }
    let whole_words = vocabulary
        .texts
        .iter()
        .zip(&vocabulary.types)
        .any(|(text, kind)| *kind == NORMAL && text.char_indices().any(|(at, c)| at > 0 && SPACE.starts_with(c)));
    let prefix = space_prefix(json, whole_words)?;
    let scores = scores(&merges(model)?, &vocabulary.texts)?;
    Ok(vec![("scores".into(), MetaValue::Floats(scores)), ("add_space_prefix".into(), MetaValue::Flag(prefix))])
}

/// Returns true if a space is put before a text. Fails if the text is changed or split in other ways. `words`: tokens may
/// contain several words.
fn space_prefix(json: &Map<String, Value>, words: bool) -> Result<bool> {
    let mut prefix = false;
    for part in parts_of(json.get("normalizer"), "normalizers") {
        match part["type"].as_str().unwrap_or_default() {
            "Prepend" if part["prepend"] == SPACE => prefix = true,
            "Replace" if part["pattern"]["String"] == " " && part["content"] == SPACE => {}
            _ => return Err(refuse(format!("its normalizer {part} has no place in the file"))),
        }
    }
    for part in parts_of(json.get("pre_tokenizer"), "pretokenizers") {
        let split = part.get("split") != Some(&Value::Bool(false));
        match part["type"].as_str().unwrap_or_default() {
            "Metaspace" if part["replacement"] == SPACE && !(split && words) => {
                let scheme = part["prepend_scheme"].as_str().unwrap_or("always");
                prefix |= scheme != "never" && part.get("add_prefix_space") != Some(&Value::Bool(false));
            }
            // Of Gemma: spaces are replaced before, so it splits nothing.
            "Split" if part["pattern"]["String"] == " " => {}
            _ => return Err(refuse(format!("its pre-tokenizer {part} has no place in the file"))),
        }
    }
    Ok(prefix)
}

fn parts_of<'a>(part: Option<&'a Value>, list: &str) -> Vec<&'a Value> {
    match part {
        None | Some(Value::Null) => Vec::new(),
        Some(part) => match part.get(list).and_then(Value::as_array) {
            Some(parts) => parts.iter().collect(),
            None => vec![part],
        },
    }
}

/// Returns the scores with which SentencePiece chooses the merges in their order: of two possible merges, the one whose joined
/// piece has the higher score. Pieces whose merges are listed among each other get one score. Fails if that would put
/// many pieces together, because the order of merges is then another one than SentencePiece's.
fn scores(merges: &[(&str, &str)], texts: &[String]) -> Result<Vec<f32>> {
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    for (i, (a, b)) in merges.iter().enumerate() {
        places.entry(format!("{a}{b}")).or_insert((i, i)).1 = i;
    }
    // For each merge the last place of a merge of the same piece or of one listed among them.
    let mut spans: Vec<(usize, usize)> = places.values().copied().collect();
    spans.sort_unstable();
    let (mut ranks, mut rank, mut end, mut size, mut largest) = (HashMap::new(), 0u32, 0, 0, 0);
    for (first, last) in spans {
        if first > end || size == 0 {
            rank += 1;
            size = 0;
        }
        size += 1;
        largest = largest.max(size);
        end = end.max(last);
        ranks.insert(first, rank);
    }
    if largest > 16 + places.len() / 20 {
        return Err(refuse(format!(
            "its merges are not in an order of pieces, as SentencePiece's are: those of {largest} pieces are listed among each other"
        )));
    }
    let score = |text: &String| places.get(text).map_or(0.0, |(first, _)| -(ranks[first] as f32));
    Ok(texts.iter().map(score).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_fall_in_the_order_of_merges() {
        let merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("c", "c")];
        let texts: Vec<String> = ["a", "ab", "bc", "abc", "cc"].map(String::from).into();
        assert_eq!(scores(&merges, &texts).unwrap(), [0.0, -1.0, -2.0, -3.0, -4.0]);
    }

    #[test]
    fn pieces_whose_merges_are_mixed_get_one_score() {
        let merges = [("a", "bc"), ("x", "y"), ("ab", "c"), ("z", "z")];
        let texts: Vec<String> = ["abc", "xy", "zz"].map(String::from).into();
        assert_eq!(scores(&merges, &texts).unwrap(), [-1.0, -1.0, -2.0]);
    }
}
