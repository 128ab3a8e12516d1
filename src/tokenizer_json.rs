//! Builds the sections of tokenizer.json that several kinds of vocabulary files lead to: SentencePiece's own files, GGUF
//! files, and directories that only name their special tokens.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The character that represents a space in SentencePiece vocabularies.
pub const SPACE: &str = "▁";

/// Maximum length of a piece in bytes. No real vocabulary has longer ones, and recovering merges takes time quadratic
/// in it.
pub const LONGEST_PIECE: usize = 1024;

/// Builds the `post_processor` of tokenizer.json that adds BOS and EOS (text and id) to each sequence; null for
/// neither.
pub fn around(bos: Option<(&str, u64)>, eos: Option<(&str, u64)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(text, _): (&str, u64), kind: u8| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let sides = |sequence: &str, kind: u8| -> Vec<Value> {
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        bos.map(|t| special(t, kind)).into_iter().chain([text]).chain(eos.map(|t| special(t, kind))).collect()
    };
    let mut known = Map::new();
    for (text, id) in bos.into_iter().chain(eos) {
        known.insert(text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let pair = [sides("A", 0), sides("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": sides("A", 0), "pair": pair, "special_tokens": known})
}

/// Builds `tokenizer.json` around a SentencePiece model, without added tokens and post-processor, which the caller
/// fills in. `prefix`: whether a space is added before the text.
pub fn tokenizer_json(model: Value, normalizer: Value, prefix: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": if prefix { "first" } else { "never" }, "split": false,
        },
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    })
}

/// Builds the `model` section of tokenizer.json for a BPE vocabulary.
pub fn bpe_model(vocab: Map<String, Value>, merges: Value, unk: Option<&str>, byte_fallback: bool) -> Value {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unk,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": byte_fallback,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    })
}

/// Recovers the merges of a BPE vocabulary, ordered by the score of the joined piece, as transformers does. The error
/// is a piece that contains a space.
pub fn recover_merges<'a>(
    ids: &HashMap<&'a str, u64>,
    score: impl Fn(u64) -> f32,
) -> std::result::Result<Vec<String>, &'a str> {
    let mut pieces: Vec<(&str, u64)> = ids.iter().map(|(text, id)| (*text, *id)).collect();
    pieces.sort_by_key(|(_, id)| *id);
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (text, id) in pieces {
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut pairs: Vec<_> = cuts.filter_map(|(l, r)| Some((*ids.get(l)?, *ids.get(r)?, l, r))).collect();
        pairs.sort();
        if text.contains(' ') && !pairs.is_empty() {
            return Err(text);
        }
        merges.extend(pairs.iter().map(|&(_, _, l, r)| (score(id) + 0.0, l.chars().count(), r.chars().count(), l, r)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (b.1, b.2).cmp(&(a.1, a.2))));
    Ok(merges.iter().map(|m| format!("{} {}", m.3, m.4)).collect())
}
