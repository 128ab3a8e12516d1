//! Builds tokenizers from SentencePiece vocabularies (Kudo and Richardson 2018, arXiv 1808.06226) in the form of
//! tokenizer.json: BPE with byte fallback, and unigram. Reads `tokenizer.model`.
//!
//! A SentencePiece file does not contain the merges of a BPE model; they are recovered from the pieces' scores. Spaces
//! are written as ▁. For the class LlamaTokenizer, text is normalised as in transformers, otherwise by the file's own
//! rules.

use super::added_tokens::TokenizerSettings;
use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::protobuf::{WireValue, fields};
use crate::tokenizer_json::{LONGEST_PIECE, SPACE, bpe_model, recover_merges, tokenizer_json};
use base64::Engine;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

const FILE: &str = "tokenizer.model";

/// Returns true if the directory has a vocabulary, which [`from_directory`] reads.
pub(in crate::data) fn in_directory(folder: &Path) -> bool {
    folder.join(FILE).is_file()
}

/// The content of `tokenizer.model` (sentencepiece_model.proto), as far as token ids depend on it.
struct SentencePieceModel {
    pieces: Vec<VocabularyPiece>,
    unigram: bool,
    byte_fallback: bool,
    /// Ids of the unknown piece, BOS, EOS and padding; negative if there is none.
    unk: i64,
    bos: i64,
    eos: i64,
    pad: i64,
    /// Compiled table of character replacements.
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

struct VocabularyPiece {
    text: String,
    score: f32,
    kind: i64,
}

/// Kinds of pieces.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

impl SentencePieceModel {
    /// Parses the file. Missing settings have the defaults of sentencepiece_model.proto.
    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut proto = Self {
            pieces: Vec::new(),
            unigram: true,
            byte_fallback: false,
            unk: 0,
            bos: 1,
            eos: 2,
            pad: -1,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        for field in fields(bytes) {
            match field.ok_or("it is not a complete protocol buffer")? {
                (1, piece) => proto.pieces.push(VocabularyPiece::parse(piece)?),
                (2, trainer) => proto.trainer(trainer)?,
                (3, normalizer) => proto.normalizer(normalizer)?,
                _ => {}
            }
        }
        if proto.pieces.is_empty() {
            return Err("it contains no pieces".into());
        }
        Ok(proto)
    }

    fn trainer(&mut self, message: WireValue) -> std::result::Result<(), String> {
        let wrong = || "its training settings are damaged".to_string();
        for field in fields(message.bytes().ok_or_else(wrong)?) {
            let (number, value) = field.ok_or_else(wrong)?;
            match number {
                3 => match value.signed() {
                    Some(1) => self.unigram = true,
                    Some(2) => self.unigram = false,
                    _ => return Err("its model type is word or char, expected unigram or BPE".into()),
                },
                24 if value.flag() == Some(true) => {
                    return Err("it adds spaces after words instead of before them".into());
                }
                35 => self.byte_fallback = value.flag().ok_or_else(wrong)?,
                40 => self.unk = int32(value).ok_or_else(wrong)?,
                41 => self.bos = int32(value).ok_or_else(wrong)?,
                42 => self.eos = int32(value).ok_or_else(wrong)?,
                43 => self.pad = int32(value).ok_or_else(wrong)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, message: WireValue) -> std::result::Result<(), String> {
        let wrong = || "its normalisation rules are damaged".to_string();
        for field in fields(message.bytes().ok_or_else(wrong)?) {
            let (number, value) = field.ok_or_else(wrong)?;
            match number {
                2 => self.charsmap = value.bytes().ok_or_else(wrong)?.to_vec(),
                3 => self.add_dummy_prefix = value.flag().ok_or_else(wrong)?,
                4 => self.remove_extra_whitespaces = value.flag().ok_or_else(wrong)?,
                5 if value.flag() == Some(false) => return Err("it does not write spaces as ▁".into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the text of the piece with this id.
    fn piece(&self, id: i64) -> Option<&str> {
        usize::try_from(id).ok().and_then(|id| self.pieces.get(id)).map(|p| p.text.as_str())
    }
}

fn int32(value: WireValue) -> Option<i64> {
    value.signed().map(|n| i64::from(n as i32))
}

impl VocabularyPiece {
    fn parse(message: WireValue) -> std::result::Result<Self, String> {
        let wrong = || "a piece is damaged".to_string();
        let mut piece = Self { text: String::new(), score: 0.0, kind: 1 };
        for field in fields(message.bytes().ok_or_else(wrong)?) {
            match field.ok_or_else(wrong)? {
                (1, text) => piece.text = text.text().ok_or_else(wrong)?.to_string(),
                (2, score) => piece.score = score.float().ok_or_else(wrong)?,
                (3, kind) => piece.kind = kind.signed().ok_or_else(wrong)?,
                _ => {}
            }
        }
        match piece.text.len() {
            1..=LONGEST_PIECE => Ok(piece),
            n => Err(format!("a piece has {n} bytes, 1 to {LONGEST_PIECE} expected")),
        }
    }
}

/// Builds the tokenizer of `tokenizer.model`. Special tokens that the directory does not name are added to `named`.
pub(in crate::data) fn from_directory(
    folder: &Path,
    settings: &TokenizerSettings,
    named: &mut RowColumns,
) -> Result<Tokenizer> {
    let path = folder.join(FILE);
    let refuse = |why: String| Error::user(format!("{}: {why}", path.display()));
    let proto = SentencePieceModel::parse(&fsutil::read(&path)?).map_err(|why| {
        refuse(format!("not a SentencePiece vocabulary that ft reads: {why}")).hint(
            "a tiktoken vocabulary has this name too; save it as tokenizer.json with transformers: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    })?;
    for (name, id) in [("bos_token", proto.bos), ("eos_token", proto.eos), ("unk_token", proto.unk)] {
        if let Some(piece) = proto.piece(id) {
            named.entry(name).or_insert(json!(piece));
        }
    }
    if let Some(piece) = proto.piece(proto.pad) {
        named.entry("pad_token").or_insert(json!(piece));
    }
    let class = settings.config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let llama = class.trim_end_matches("Fast") == "LlamaTokenizer" && !proto.unigram;
    let prefix = match settings.config.get("add_prefix_space").and_then(Value::as_bool) {
        Some(prefix) if llama => prefix,
        _ => llama || proto.add_dummy_prefix,
    };
    let unk = proto.piece(proto.unk);
    let model = match proto.unigram {
        true => json!({
            "type": "Unigram",
            "unk_id": unk.map(|_| proto.unk),
            "vocab": proto.pieces.iter().map(|p| json!([p.text, f64::from(p.score)])).collect::<Vec<_>>(),
            "byte_fallback": proto.byte_fallback,
        }),
        false => {
            let mut ids = HashMap::new();
            for (id, piece) in proto.pieces.iter().enumerate() {
                if let Some(first) = ids.insert(piece.text.as_str(), id as u64) {
                    return Err(refuse(format!("piece {:?} appears twice, as {first} and as {id}", piece.text)));
                }
            }
            let merges = recover_merges(&ids, |id| proto.pieces[id as usize].score).map_err(|piece| {
                refuse(format!("piece {piece:?} contains a space, which should be written as {SPACE}"))
            })?;
            let vocab = proto.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), json!(id))).collect();
            bpe_model(vocab, json!(merges), unk, llama || proto.byte_fallback)
        }
    };
    let normalizer = if llama { Value::Null } else { normalizer(&proto, prefix) };
    let tokenizer = tokenizer_json(model, normalizer, prefix);
    let text = serde_json::to_string(&tokenizer).map_err(|e| Error::bug(format!("tokenizer.json: {e}")))?;
    let mut tokenizer = text.parse::<Tokenizer>().map_err(|e| {
        refuse(format!("{e}")).hint("the file is damaged or of another kind: fetch it again with the model")
    })?;
    let added = proto.pieces.iter().filter(|p| matches!(p.kind, CONTROL | USER_DEFINED));
    let added = added.map(|p| AddedToken::from(p.text.as_str(), p.kind == CONTROL).normalized(false));
    tokenizer.add_tokens(&added.collect::<Vec<_>>());
    Ok(tokenizer)
}

/// Returns the vocabulary's own normalisation rules, without adding a space before the text and replacing spaces by ▁.
fn normalizer(proto: &SentencePieceModel, prefix: bool) -> Value {
    let mut rules = Vec::new();
    if !proto.charsmap.is_empty() {
        let table = base64::engine::general_purpose::STANDARD.encode(&proto.charsmap);
        rules.push(json!({"type": "Precompiled", "precompiled_charsmap": table}));
    }
    if proto.remove_extra_whitespaces {
        // With `prefix`, one space at the beginning is kept: it becomes the space that is added there anyway.
        let replace = |regex: &str, by: &str| json!({"type": "Replace", "pattern": {"Regex": regex}, "content": by});
        rules.extend([replace(" {2,}", " "), replace(r" +\z", "")]);
        if !prefix {
            rules.push(replace(r"\A +", ""));
        }
    }
    if rules.is_empty() { Value::Null } else { json!({"type": "Sequence", "normalizers": rules}) }
}
