//! Lists the known pre-tokenizers: how text is split before byte-level BPE merges it.
//!
//! A GGUF file gives only the pre-tokenizer's name (`tokenizer.ggml.pre`), not its rule. The rules here were copied
//! from the models' original `tokenizer.json`. An unknown name is an error, never a guess: a wrong split gives wrong
//! ids and no other sign of it.

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// A pre-tokenizer and the settings that its models' tokenizers share.
pub struct PreTokenizer {
    names: &'static [&'static str],
    split: SplitPattern,
    /// Whether text is normalised to Unicode form NFC first.
    nfc: bool,
    /// Whether a piece that is a token as a whole becomes that token without merging.
    pub ignore_merges: bool,
    /// Whether a beginning-of-text token is added if the file does not say so.
    pub adds_bos: bool,
}

/// The rule that splits text.
enum SplitPattern {
    /// GPT-2's regular expression, which is built into the byte-level pre-tokenizer.
    Gpt2,
    /// Isolates each digit, then splits by GPT-2's expression.
    DigitsThenGpt2,
    Expression(&'static str),
}

const PRE_TOKENIZERS: [PreTokenizer; 11] = [
    PreTokenizer { names: &["gpt-2"], split: SplitPattern::Gpt2, nfc: false, ignore_merges: false, adds_bos: false },
    PreTokenizer { names: &["default"], split: SplitPattern::Gpt2, nfc: false, ignore_merges: false, adds_bos: false },
    // transformers' own GGUF reader uses GPT-2's split for `smollm`, and gives other ids if white space or a non-ASCII
    // number precedes a number. The models' tokenizer.json and llama.cpp isolate digits first.
    PreTokenizer {
        names: &["smollm", "starcoder", "refact"],
        split: SplitPattern::DigitsThenGpt2,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: SplitPattern::Expression(LLAMA3),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    // OLMo 2, Phi-4: Llama 3's splitting, and merges for every piece.
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        split: SplitPattern::Expression(LLAMA3),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    // GPT-NeoX, Pythia, OLMo.
    PreTokenizer {
        names: &["olmo", "mpt"],
        split: SplitPattern::Gpt2,
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["command-r"],
        split: SplitPattern::DigitsThenGpt2,
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    // Phi-4-mini.
    PreTokenizer {
        names: &["gpt-4o"],
        split: SplitPattern::Expression(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2"],
        split: SplitPattern::Expression(QWEN2),
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-r1-qwen"],
        split: SplitPattern::Expression(QWEN2),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        split: SplitPattern::Expression(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// Returns the pre-tokenizer called `name`; the error lists all known names.
    pub fn find(name: &str) -> Result<&'static Self> {
        PRE_TOKENIZERS.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|p| p.names).copied().collect();
            Error::user(format!("pre-tokenizer `{name}` is not known; known are: {}", known.join(", "))).hint(
                "if the model's original tokenizer splits text like one of these, name it with --pre-tokenizer; a wrong choice gives wrong token ids",
            )
        })
    }

    /// Returns the name that llama.cpp has for how a byte-level tokenizer.json splits text. Fails if it is none of the known
    /// ways; the error says what was found. A space before the text and an own way to choose merges are not in the format.
    pub fn name_of(tokenizer: &Map<String, Value>) -> Result<&'static str> {
        let part = |key: &str| tokenizer.get(key).cloned().unwrap_or(Value::Null);
        let found = (steps(&part("normalizer")), steps(&part("pre_tokenizer")));
        let ignores = tokenizer.get("model").and_then(|model| model.get("ignore_merges")) == Some(&Value::Bool(true));
        let is = |p: &&PreTokenizer| {
            p.ignore_merges == ignores && (steps(&p.normalizer()), steps(&p.pre_tokenizer(false))) == found
        };
        PRE_TOKENIZERS.iter().find(is).map(|p| p.names[0]).ok_or_else(|| {
            let show = |list: &[Value]| match list {
                [] => "none".to_string(),
                list => list.iter().map(Value::to_string).collect::<Vec<_>>().join(", "),
            };
            let ignored = if ignores { ", and whole pieces that are tokens are not merged" } else { "" };
            Error::user(format!(
                "tokenizer.ggml.pre: llama.cpp's name for this pre-tokenizer is not known to ft. Normalizer: {}. Pre-tokenizer: {}{ignored}",
                show(&found.0),
                show(&found.1)
            ))
            .hint("a wrong name would give wrong token ids without a message, so none is written; known splits are those of ft import (docs/import.md)")
        })
    }

    /// Returns the `normalizer` of tokenizer.json.
    pub fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// Returns the `pre_tokenizer` of tokenizer.json.
    pub fn pre_tokenizer(&self, add_prefix_space: bool) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
        match self.split {
            SplitPattern::Gpt2 => bytes(true),
            SplitPattern::DigitsThenGpt2 => sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            SplitPattern::Expression(regex) => sequence(
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
                bytes(false),
            ),
        }
    }
}

/// Returns the steps of a normalizer or pre-tokenizer in tokenizer.json, sequences taken apart, without what changes no ids.
fn steps(part: &Value) -> Vec<Value> {
    let list = |key: &str| part.get(key).and_then(Value::as_array);
    if let Some(list) = list("normalizers").or(list("pretokenizers")) {
        return list.iter().flat_map(steps).collect();
    }
    let mut step = part.clone();
    let Some(map) = step.as_object_mut() else { return Vec::new() };
    if map.get("type") == Some(&json!("ByteLevel")) {
        map.remove("trim_offsets");
        map.entry("use_regex").or_insert(json!(true));
    }
    vec![step]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_is_recognised_by_its_own_description() {
        for pre in &PRE_TOKENIZERS {
            let tokenizer = json!({
                "normalizer": pre.normalizer(), "pre_tokenizer": pre.pre_tokenizer(false),
                "model": {"ignore_merges": pre.ignore_merges},
            });
            let name = PreTokenizer::name_of(tokenizer.as_object().unwrap()).unwrap();
            // `default` is GPT-2's under a name that says that nobody knows.
            assert!(pre.names.contains(&name) || pre.names == ["default"], "{:?} is called {name}", pre.names);
        }
    }

    #[test]
    fn an_unknown_split_is_refused_with_what_was_seen() {
        let tokenizer = json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}});
        let error = PreTokenizer::name_of(tokenizer.as_object().unwrap()).unwrap_err();
        assert!(error.message().contains("Lowercase") && error.message().contains("ByteLevel"), "{error}");
    }
}
