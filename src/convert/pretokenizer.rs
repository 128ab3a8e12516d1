//! How text is cut before byte-level BPE merges it, by the name that a GGUF file gives in `tokenizer.ggml.pre`.
//!
//! A row here means: the split of the model's original `tokenizer.json` is known. A name that is not here is an error,
//! never a guess, because a wrong split gives wrong ids without any other sign.

use crate::error::{Error, Result};
use serde_json::{Value, json};

/// A pre-tokenizer and the settings that its models' tokenizers share.
pub struct PreTokenizer {
    names: &'static [&'static str],
    split: Split,
    /// Text is brought into Unicode form NFC first.
    nfc: bool,
    /// A piece that is a token as a whole is taken without merging.
    pub ignore_merges: bool,
    /// Whether a beginning-of-text token is added where the file does not say.
    pub adds_bos: bool,
}

enum Split {
    /// GPT-2's own expression, built into the byte-level pre-tokenizer.
    Gpt2,
    /// Each digit stands alone, then GPT-2's expression.
    DigitsThenGpt2,
    Expression(&'static str),
}

const PRE_TOKENIZERS: [PreTokenizer; 7] = [
    PreTokenizer { names: &["gpt-2"], split: Split::Gpt2, nfc: false, ignore_merges: false, adds_bos: false },
    PreTokenizer { names: &["default"], split: Split::Gpt2, nfc: false, ignore_merges: false, adds_bos: false },
    // transformers' own reader of GGUF takes `smollm` for GPT-2's split and so gives other ids where white space or a
    // non-ASCII number stands before a number; the models' tokenizer.json and llama.cpp isolate digits first.
    PreTokenizer {
        names: &["smollm", "starcoder", "refact"],
        split: Split::DigitsThenGpt2,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Split::Expression(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["qwen2"],
        split: Split::Expression(QWEN2),
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-r1-qwen"],
        split: Split::Expression(QWEN2),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        split: Split::Expression(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
];

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// The row for `name`; the error lists what is known.
    pub fn find(name: &str) -> Result<&'static Self> {
        PRE_TOKENIZERS.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|p| p.names).copied().collect();
            Error::user(format!("pre-tokenizer `{name}` is not known; known are: {}", known.join(", "))).hint(
                "if the model's original tokenizer splits text like one of these, name it with --pre-tokenizer; a wrong choice gives wrong token ids",
            )
        })
    }

    /// The `normalizer` of tokenizer.json.
    pub fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub fn pre_tokenizer(&self, add_prefix_space: bool) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
        match self.split {
            Split::Gpt2 => bytes(true),
            Split::DigitsThenGpt2 => sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            Split::Expression(regex) => sequence(
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
                bytes(false),
            ),
        }
    }
}
