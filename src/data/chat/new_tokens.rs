//! Tokens that a run adds to a model's tokenizer, and the tokenizers of adapters that were trained with such tokens.

use super::TemplateOptions;
use super::tokenizer::{ChatTokenizer, tokenizer_error};
use crate::data::tokenizer_files::added_tokens::add_tokens;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Tokens that are added to the vocabulary of the model. Those that it has already are left out, with a note.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewTokens {
    /// Markers, such as `<|tool|>`: found anywhere in a rendered conversation, and left out of decoded answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub special: Vec<String>,
    /// Text, such as names and terms: found anywhere in a text, and part of decoded answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<String>,
    /// A file with more tokens of text, one per line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub file: Option<PathBuf>,
    /// How the rows of the new tokens start, in the embedding and in an output head with a weight of its own.
    pub init: RowInit,
    /// If rows have to be added, add as many that their number is a multiple of this, such as 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub multiple_of: Option<usize>,
}

/// How the row of a new token starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowInit {
    /// As the mean of the rows of the tokens that its text was until now.
    #[default]
    Pieces,
    /// As the mean of all rows.
    Mean,
}

/// A token that was added to a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// True if it is not text, but a marker.
    pub special: bool,
    /// The tokens that its text was before it was added.
    pub pieces: Vec<u32>,
}

impl NewTokens {
    /// Moves the lines of `file` to `text`. Fails for a file that cannot be read, and for tokens that are empty, begin or end
    /// with a space, or occur twice.
    pub fn read_file(&mut self) -> Result<()> {
        let mut places: Vec<String> = Vec::new();
        places.extend(
            ["special", "text"]
                .iter()
                .zip([&self.special, &self.text])
                .flat_map(|(key, list)| (0..list.len()).map(move |i| format!("model.new_tokens.{key}[{i}]"))),
        );
        if let Some(file) = self.file.take() {
            let content = fsutil::read_to_string(&file)?;
            for (i, line) in content.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
                places.push(format!("{}:{}", file.display(), i + 1));
                self.text.push(line.into());
            }
        }
        let mut seen = BTreeSet::new();
        for (token, place) in self.special.iter().chain(&self.text).zip(&places) {
            let wrong = |why: String, hint: &str| Err(Error::user(format!("{place}: {why}")).hint(hint));
            if token.trim().is_empty() {
                return wrong("an empty token".into(), "remove it: a token has at least one visible character");
            }
            if token.trim() != token {
                let hint = "write it without: a tokenizer joins spaces to words by itself";
                return wrong(format!("the token {token:?} begins or ends with a space"), hint);
            }
            if !seen.insert(token) {
                return wrong(format!("the token `{token}` is listed twice"), "list each token once");
            }
        }
        Ok(())
    }
}

impl ChatTokenizer {
    /// Adds tokens, special ones first, in the order in which they are listed, at the next free ids. Those that the vocabulary
    /// has already are left out, with a note. If the model then has fewer rows than tokens, rows are added. Returns the added
    /// tokens.
    pub fn add_tokens(&mut self, new: &NewTokens) -> Result<Vec<NewToken>> {
        let listed = new.special.iter().map(|t| (t, true)).chain(new.text.iter().map(|t| (t, false)));
        let (there, missing): (Vec<_>, Vec<_>) = listed.partition(|(text, _)| self.inner.token_to_id(text).is_some());
        if !there.is_empty() {
            let shown: Vec<String> = there.iter().map(|(text, _)| format!("`{text}`")).collect();
            let s = if there.len() == 1 { "is a token" } else { "are tokens" };
            report::info(format!("model.new_tokens: {} {s} already and not added", shown.join(", ")));
        }
        let missing: Vec<(String, bool)> = missing.into_iter().map(|(text, special)| (text.clone(), special)).collect();
        let pieces = missing.iter().map(|(text, _)| self.encode_after(text)).collect::<Result<Vec<_>>>()?;
        let mut added = self.append_tokens(&missing)?;
        added.iter_mut().zip(pieces).for_each(|(token, pieces)| token.pieces = pieces);
        if let Some(rows) = self.rows.filter(|rows| *rows < self.vocab_size && !added.is_empty()) {
            let step = new.multiple_of.unwrap_or(1);
            self.rows = Some(rows.max(self.vocab_size).div_ceil(step) * step);
        }
        Ok(added)
    }

    /// Adds tokens, given with whether they are special, at the next free ids. Their pieces are not looked up.
    pub fn append_tokens(&mut self, tokens: &[(String, bool)]) -> Result<Vec<NewToken>> {
        add_tokens(&mut self.inner, tokens.iter().map(|(text, special)| (text.as_str(), *special)));
        let mut added = Vec::with_capacity(tokens.len());
        for (text, special) in tokens {
            let id = self.inner.token_to_id(text);
            let id = id.ok_or_else(|| Error::bug(format!("the tokenizer did not take the token `{text}`")))?;
            added.push(NewToken { id, text: text.clone(), special: *special, pieces: Vec::new() });
        }
        self.settle()?;
        Ok(added)
    }

    /// Returns all tokens with their ids, added ones included.
    pub fn vocabulary(&self) -> BTreeMap<String, u32> {
        self.inner.get_vocab(true).into_iter().collect()
    }

    /// Returns the number of rows of the embedding; `None` if the directory has no config.json that says it.
    pub fn embedding_rows(&self) -> Option<usize> {
        self.rows
    }

    /// Returns the id of a token, given its text; `None` if there is no such token.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Returns the content of a tokenizer.json for this tokenizer.
    pub fn to_json(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let mut whole = self.inner.clone();
        whole.with_post_processor(self.post.clone());
        let text = whole.to_string(false).map_err(|e| tokenizer_error(&e))?;
        serde_json::from_str(&text).map_err(|e| Error::bug(format!("tokenizer.json: {e}")))
    }

    /// Loads the tokenizer for a base, or for an adapter on it: the adapter's own if it has new tokens.
    pub fn load_for(base: &Path, adapter: Option<&Path>, rendering: &TemplateOptions) -> Result<Self> {
        Self::load_from(base, &tokenizer_folder(base, adapter)?, rendering)
    }
}

/// Returns the folder whose tokenizer an adapter on `base` was trained with: that of the adapter if its tokenizer has tokens
/// that the base's lacks, otherwise `base`. Fails if the two give one id to different tokens.
pub fn tokenizer_folder(base: &Path, adapter: Option<&Path>) -> Result<PathBuf> {
    const FILE: &str = "tokenizer.json";
    let Some(adapter) = adapter.filter(|folder| folder.join(FILE).is_file()) else { return Ok(base.into()) };
    let same = || -> Result<bool> {
        let files = [FILE, "tokenizer_config.json"].map(|name| [base.join(name), adapter.join(name)]);
        let equal = |[a, b]: &[PathBuf; 2]| {
            Ok(a.is_file() == b.is_file() && (!a.is_file() || fsutil::read(a)? == fsutil::read(b)?))
        };
        files.iter().map(equal).try_fold(true, |all, one: Result<bool>| Ok(all && one?))
    };
    if same()? || !ChatTokenizer::in_directory(base) {
        return Ok(base.into());
    }
    let ids = |folder: &Path| -> Result<BTreeMap<u32, String>> {
        let vocabulary = ChatTokenizer::load(folder, None)?.inner.get_vocab(true);
        Ok(vocabulary.into_iter().map(|(token, id)| (id, token)).collect())
    };
    let (of_base, of_adapter) = (ids(base)?, ids(adapter)?);
    if let Some((id, token)) =
        of_adapter.iter().find(|(id, token)| of_base.get(id).is_some_and(|other| other != *token))
    {
        return Err(Error::user(format!(
            "{}: its tokenizer does not belong to the base: id {id} is `{token}` there and `{}` in {}",
            adapter.display(),
            of_base[id],
            base.display()
        ))
        .hint("use the base that adapter_config.json names under base_model_name_or_path"));
    }
    let grown = of_adapter.keys().any(|id| !of_base.contains_key(id));
    Ok(if grown { adapter.into() } else { base.into() })
}
