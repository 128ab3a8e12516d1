//! Lists the known pre-tokenizers: how text is split before byte-level BPE merges it.
//!
//! A GGUF file gives only the pre-tokenizer's name (`tokenizer.ggml.pre`), not its rule. The rules here were copied
//! from the models' original `tokenizer.json`. An unknown name is an error, never a guess: a wrong split gives wrong
//! ids and no other sign of it.

use crate::error::{Error, Result};
use serde_json::{Value, json};

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

const PRE_TOKENIZERS: [PreTokenizer; 7] = [
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
        split: SplitPattern::Expression(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
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
