//! The tokenizer of a model as GGUF metadata.

use crate::data::chat::ChatTokenizer;
use crate::error::Result;
use crate::gguf::tokenizer_keys::{self, TokenizerKeys, TokenizerParts};
use crate::model_files::{ModelFiles, TEMPLATES_FOLDER};
use serde_json::{Map, Value};
use std::path::Path;

/// Returns the tokenizer of the model in `folder`, whose embedding has `rows` rows. Fails for a tokenizer that the format does
/// not have.
pub fn keys(folder: &Path, tokenizer: &ChatTokenizer, rows: u64) -> Result<TokenizerKeys> {
    let files = ModelFiles::open(folder)?;
    let json = tokenizer.to_json()?;
    let mut templates = Vec::new();
    for name in files.more_templates()? {
        let short = name.trim_start_matches(TEMPLATES_FOLDER).trim_matches('/').trim_end_matches(".jinja");
        templates.extend(files.text(&name)?.map(|text| (short.to_string(), text)));
    }
    let (adds_bos, adds_eos) = added_around(tokenizer)?;
    let unk: Map<String, Value> = files.json_or_default("tokenizer_config.json")?;
    let unk = unk.get("unk_token").and_then(|token| token.as_str().or(token["content"].as_str()));
    let parts = TokenizerParts {
        json: &json,
        rows,
        bos: tokenizer.bos(),
        eos: tokenizer.eos(),
        pad: tokenizer.pad(),
        unk: unk.and_then(|text| tokenizer.token_id(text)),
        stops: tokenizer.stop_ids(),
        adds_bos,
        adds_eos,
        template: tokenizer.template().map(|template| template.source()),
        more_templates: &templates,
    };
    tokenizer_keys::of(&parts).map_err(|e| e.context(folder.display()))
}

/// Returns true if the tokenizer puts the beginning token before a text.
pub fn adds_bos(tokenizer: &ChatTokenizer) -> Result<bool> {
    Ok(added_around(tokenizer)?.0)
}

/// Returns whether the tokenizer puts the beginning token before a text and the ending token behind it. Fails if it adds
/// other tokens.
fn added_around(tokenizer: &ChatTokenizer) -> Result<(bool, bool)> {
    let (bare, whole) = (tokenizer.encode("a")?, tokenizer.encode_plain("a")?);
    let (bos, eos) = (tokenizer.bos(), tokenizer.eos());
    for (before, after) in [(false, false), (true, false), (false, true), (true, true)] {
        let first = bos.filter(|_| before);
        let last = eos.filter(|_| after);
        let expected = first.into_iter().chain(bare.iter().copied()).chain(last);
        if before == first.is_some() && after == last.is_some() && expected.eq(whole.iter().copied()) {
            return Ok((before, after));
        }
    }
    Err(tokenizer_keys::refuse(format!(
        "it adds other tokens than the beginning and ending ones to a text: {bare:?} becomes {whole:?}"
    )))
}

/// Texts whose token ids are compared between a model and the file written from it: words, numbers, spaces, line ends, signs,
/// several scripts, emoji of several characters, code.
pub const PROBES: [&str; 24] = [
    "Hello, world!",
    "The patient's temperature was 38.5 °C on 2024-03-17.",
    "a  b   c    d",
    " leading and trailing ",
    "\n\n\ttabs\tand\r\nline ends\n",
    "3 33 333 3333 33333 3.3 3..3 ½ ²",
    "I've, we'LL, don't, 'twas; it's YOU'RE",
    "fn main() { println!(\"{}\", x_1 + 0x7F); } // done",
    "https://example.org/a?b=c&d=%20#e",
    "naïve café, Ünïcödé, ﬁne, e\u{301}",
    "нещо на Български",
    "我想在apple工作1314151天～",
    "日本語のテキスト、カタカナ",
    "한국어 문장입니다.",
    "مرحبا بالعالم",
    "שלום עולם",
    "हिन्दी में पाठ",
    "កាន់តែពិសេសអាច",
    "🚀 (normal) 😶\u{200d}🌫️ ✅ 🦙🦙",
    "------======= ______ ****** ``````` \"\"\"\" ......!!!!!!?????",
    "ICD-10: J45.901; mg/dL ≥ 7,5 ± 0.3 %",
    "CamelCaseWord snake_case_word kebab-case-word ALLCAPS",
    "\u{a0}non-breaking\u{a0}and\u{3000}wide spaces",
    "x\u{0}y\u{7f}z",
];
