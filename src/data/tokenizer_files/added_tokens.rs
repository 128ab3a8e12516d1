//! Completes a tokenizer with its added tokens and with the special tokens around a text, as transformers 5 does for
//! the same directory.
//!
//! tokenizer.json lists added tokens, and tokenizer_config.json (`added_tokens_decoder`, the named special tokens,
//! further ones in a list) may list more. A token that only tokenizer_config.json lists is added in the order of that
//! file, at the next free id. A token that the vocabulary has already keeps its id and is matched as a whole in text
//! from then on.

use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::model_files::ModelFiles;
use crate::tokenizer_json::around;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

/// The named special tokens, in the order in which they are added.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of further special tokens, the newer name first.
const LISTS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// tokenizer_config.json and the older files next to it.
pub(in crate::data) struct TokenizerSettings<'f> {
    files: &'f ModelFiles,
    /// Contents of tokenizer_config.json.
    pub config: RowColumns,
    /// Contents of special_tokens_map.json.
    map: RowColumns,
}

impl<'f> TokenizerSettings<'f> {
    /// Reads the files of a model; files that are missing count as empty.
    pub fn read(files: &'f ModelFiles) -> Result<Self> {
        Ok(Self {
            files,
            config: files.json_or_default("tokenizer_config.json")?,
            map: files.json_or_default("special_tokens_map.json")?,
        })
    }

    fn decoder(&self) -> Option<&Map<String, Value>> {
        self.config.get("added_tokens_decoder").and_then(Value::as_object)
    }

    /// Returns the value of a key. special_tokens_map.json is found in older directories; it has precedence over
    /// tokenizer_config.json unless the latter lists its added tokens itself.
    fn value(&self, key: &str) -> Option<&Value> {
        let (config, map) = (self.config.get(key), self.map.get(key));
        let chosen = if self.decoder().is_none() { map.or(config) } else { config.or(map) };
        chosen.filter(|v| !v.is_null())
    }

    /// Returns the special tokens by name, as text. Chat templates get them as variables.
    pub fn specials(&self) -> RowColumns {
        let found = |name: &&str| Some(((*name).to_string(), Value::String(text(self.value(name)?)?)));
        NAMED.iter().filter_map(found).collect()
    }

    /// Returns the special tokens that have a name, in the order in which they are added: those in `named`, then the
    /// model's own (such as `image_token`).
    fn named(&self, named: &RowColumns) -> Vec<AddedToken> {
        let own = |(key, value): (&String, &Value)| {
            let own = key.ends_with("_token") && !NAMED.contains(&key.as_str());
            own.then(|| value.as_str().map(|t| AddedToken::from(t, true))).flatten()
        };
        let by_name = NAMED.iter().filter_map(|name| {
            let plain = AddedToken::from(named.get(*name)?.as_str()?, true);
            Some(self.value(name).and_then(Value::as_object).map_or(plain.clone(), |v| with_flags(plain, v)))
        });
        by_name.chain(self.config.iter().filter_map(own)).collect()
    }

    /// Returns the special tokens that are listed without a name.
    fn unnamed(&self) -> Vec<AddedToken> {
        let listed = LISTS.iter().find_map(|key| self.value(key));
        let listed: Vec<&Value> = match listed {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(Value::Object(by_name)) => by_name.values().collect(),
            _ => Vec::new(),
        };
        let token = |v: &&Value| {
            let plain = AddedToken::from(text(v)?, true);
            Some(v.as_object().map_or(plain.clone(), |v| with_flags(plain, v)))
        };
        listed.iter().filter_map(token).collect()
    }

    /// Adds to `tokenizer` every token that it lacks or does not match as a whole in text. `named` are the special
    /// tokens by name, including defaults. Returns the tokens whose id differs from that in the directory's files, with
    /// the id in those files.
    pub fn add_missing_tokens(&self, tokenizer: &mut Tokenizer, named: &RowColumns) -> Result<Vec<(String, u32)>> {
        let (named, unnamed) = (self.named(named), self.unnamed());
        let listed = self.listed(&[&named[..], &unnamed[..]].concat())?;
        let mut add: Vec<AddedToken> = listed.values().cloned().collect();
        let there = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        for special in named {
            let there = there.values().find(|t| t.content == special.content);
            match (add.iter_mut().find(|t| t.content == special.content), there) {
                (Some(token), _) => token.special = true,
                // A name makes a token special, unless tokenizer_config.json lists added tokens and leaves this one out.
                (None, Some(token)) if !token.special && self.decoder().is_none() => {
                    add.push(AddedToken { special: true, ..token.clone() });
                }
                (None, Some(_)) => {}
                (None, None) => add.push(special),
            }
        }
        for special in unnamed {
            if !add.iter().chain(there.values()).any(|t| t.content == special.content) {
                add.push(special);
            }
        }
        tokenizer.add_tokens(&add);
        let elsewhere = listed.into_iter().filter(|(id, t)| tokenizer.token_to_id(&t.content) != Some(*id));
        Ok(elsewhere.map(|(id, t)| (t.content, id)).collect())
    }

    /// Returns the added tokens by id, from `added_tokens_decoder` or, if there is none, from the older
    /// added_tokens.json.
    fn listed(&self, specials: &[AddedToken]) -> Result<BTreeMap<u32, AddedToken>> {
        let mut listed = BTreeMap::new();
        if let Some(decoder) = self.decoder() {
            for (id, token) in decoder {
                let (Ok(number), Some(token)) = (id.parse(), token.as_object()) else {
                    return Err(self.bad_token_error(id));
                };
                let content = token.get("content").and_then(Value::as_str).ok_or_else(|| self.bad_token_error(id))?;
                let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
                listed.insert(number, with_flags(AddedToken::from(content, special), token));
            }
            return Ok(listed);
        }
        for (content, id) in self.files.json_or_default::<BTreeMap<String, u32>>("added_tokens.json")? {
            let special = specials.iter().any(|t| t.content == content);
            listed.insert(id, AddedToken::from(content, special));
        }
        Ok(listed)
    }

    fn bad_token_error(&self, id: &str) -> Error {
        let file = self.files.place("tokenizer_config.json");
        Error::user(format!("{}: added_tokens_decoder: entry `{id}` is not a token", file.display()))
            .hint("an entry is an id with {\"content\": TEXT, …}; fetch the file again with the model")
    }

    /// Returns a post-processor that adds BOS and EOS to every text, as `add_bos_token` and `add_eos_token` of
    /// tokenizer_config.json ask; `None` if they add nothing. For directories without a tokenizer.json.
    pub fn bos_eos_processor(&self, tokenizer: &Tokenizer, named: &RowColumns) -> Result<Option<PostProcessorWrapper>> {
        let wanted = |flag: &str, name: &str| {
            let on = self.config.get(flag) == Some(&Value::Bool(true));
            let token = named.get(name).and_then(Value::as_str).filter(|_| on)?;
            Some((token, u64::from(tokenizer.token_to_id(token)?)))
        };
        let processor = around(wanted("add_bos_token", "bos_token"), wanted("add_eos_token", "eos_token"));
        if processor.is_null() {
            return Ok(None);
        }
        let made = serde_json::from_value(processor).map_err(|e| Error::bug(format!("post_processor: {e}")))?;
        Ok(Some(made))
    }
}

/// Adds tokens, each with whether it is special, at the next free ids.
pub(in crate::data) fn add_tokens<'t>(tokenizer: &mut Tokenizer, tokens: impl Iterator<Item = (&'t str, bool)>) {
    let tokens: Vec<AddedToken> = tokens.map(|(text, special)| AddedToken::from(text, special)).collect();
    tokenizer.add_tokens(&tokens);
}

/// Returns the token with the flags that its JSON object sets.
fn with_flags(mut token: AddedToken, written: &Map<String, Value>) -> AddedToken {
    let flag = |key: &str| written.get(key).and_then(Value::as_bool);
    for (to, key) in [
        (&mut token.single_word, "single_word"),
        (&mut token.lstrip, "lstrip"),
        (&mut token.rstrip, "rstrip"),
        (&mut token.normalized, "normalized"),
    ] {
        *to = flag(key).unwrap_or(*to);
    }
    token
}

/// Returns the text of a token, which is written as a string or as `{content, …}`.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_string),
        _ => None,
    }
}
