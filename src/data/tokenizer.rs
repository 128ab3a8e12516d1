//! The tokenizer of a model directory, with its chat template and the special tokens that conversations need.
//!
//! Invariant: texts are never truncated or padded, whatever tokenizer.json asks for, and only `encode_plain` (and what
//! is built on it) adds special tokens.

use super::added_tokens::{TokenizerSettings, optional_json};
use super::answer_text::render_answer;
use super::record::{ChatMessage, Conversation, RowColumns};
use super::template::ChatTemplate;
use super::{bpe, sentencepiece};
use crate::error::{Error, Result};
use crate::{fsutil, report};
use jiff::civil::Date;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Tokenizer};

/// How conversations are rendered, as far as this differs from the model's directory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateOptions {
    /// A template file, or the name of one of the model's own templates.
    pub template: Option<PathBuf>,
    /// Variables of the template for every conversation (`enable_thinking`); a row's own variables have precedence.
    pub kwargs: RowColumns,
    /// The date that templates get; `None` for today.
    pub date: Option<Date>,
}

/// The tokenizer, chat template and special tokens of a model directory.
#[derive(Debug)]
pub struct ChatTokenizer {
    /// Has no post-processor, because that would add special tokens and trim spaces from offsets.
    inner: Tokenizer,
    post: Option<PostProcessorWrapper>,
    template: Option<ChatTemplate>,
    vocab_size: usize,
    /// Number of rows of the embedding, from the directory's config.json.
    rows: Option<usize>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    turn_end: Option<u32>,
    /// The tokens that the template writes after `turn_end`.
    after_turn: Vec<u32>,
    stop_ids: Vec<u32>,
    /// Stop tokens that generation_config.json (or config.json) names: the only ones that other programs know.
    written_stops: Vec<u32>,
    /// Whether the tokenizer adds a space before every text.
    prefixes: bool,
    /// Whether the token of a word includes the space before it, which is not decoded at the beginning of a text
    /// (SentencePiece).
    holds_spaces: bool,
}

impl ChatTokenizer {
    /// Reads the tokenizer of a model directory; `template_override` replaces the model's own chat template.
    pub fn load(model_dir: &Path, template_override: Option<&Path>) -> Result<Self> {
        let template = template_override.map(Path::to_path_buf);
        Self::load_with(model_dir, &TemplateOptions { template, ..Default::default() })
    }

    /// As `load`, with variables and a date for the template.
    ///
    /// Errors: the directory has no tokenizer that can be read, or no chat template of the given name.
    pub fn load_with(model_dir: &Path, rendering: &TemplateOptions) -> Result<Self> {
        let settings = TokenizerSettings::read(model_dir)?;
        let mut specials = settings.specials();
        let path = model_dir.join("tokenizer.json");
        let mut inner = if path.is_file() {
            let mut inner = Tokenizer::from_bytes(fsutil::read(&path)?).map_err(|e| {
                Error::user(format!("{}: {e}", path.display()))
                    .hint("the file is damaged or of another kind: fetch it again with the model")
            })?;
            for (token, id) in settings.add_missing_tokens(&mut inner, &specials)? {
                let got = inner.token_to_id(&token).unwrap_or_default();
                report::warn_once(format!(
                    "{}: tokenizer_config.json gives `{token}` the id {id}; it gets {got}, as in transformers",
                    model_dir.display()
                ));
            }
            inner
        } else if bpe::in_directory(model_dir) {
            bpe::default_specials(&mut specials);
            bpe::from_directory(model_dir, &settings, &specials)?
        } else if sentencepiece::in_directory(model_dir) {
            let mut inner = sentencepiece::from_directory(model_dir, &settings, &mut specials)?;
            settings.add_missing_tokens(&mut inner, &specials)?;
            inner
        } else {
            let error = Error::user(format!("{}: not found; a model directory needs its tokenizer", path.display()));
            return Err(match ["vocab.json", "merges.txt"].iter().find(|f| model_dir.join(f).is_file()) {
                Some(file) => error.hint(format!("the directory has {file}, an older form of tokenizer; save it as tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)")),
                None => error.hint("check model.path"),
            });
        };
        if !path.is_file() {
            let around = settings.bos_eos_processor(&inner, &specials)?;
            inner.with_post_processor(around);
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::bug(format!("{}: {e}", path.display())))?;
        let post = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);

        let id_of = |name: &str| specials.get(name).and_then(Value::as_str).and_then(|token| inner.token_to_id(token));
        let generation = optional_json(&model_dir.join("generation_config.json"))?;
        let model = optional_json(&model_dir.join("config.json"))?;
        let rows = model.get("vocab_size").and_then(Value::as_u64).map(|n| n as usize);
        let stops_written = ids_in(generation.get("eos_token_id").or_else(|| model.get("eos_token_id")));
        let (bos, pad) = (id_of("bos_token"), id_of("pad_token"));
        let eos = id_of("eos_token").or_else(|| stops_written.first().copied());

        let template = find_template(model_dir, &settings.config, rendering.template.as_deref())?
            .map(|found| found.compile(&specials))
            .transpose()?
            .map(|template| template.with_variables(&rendering.kwargs, rendering.date));
        let mut made = Self {
            inner,
            post,
            template,
            vocab_size,
            rows,
            bos,
            eos,
            pad,
            turn_end: None,
            after_turn: Vec::new(),
            stop_ids: Vec::new(),
            written_stops: stops_written.clone(),
            prefixes: false,
            holds_spaces: false,
        };
        let first = made.encode("a")?.first().and_then(|id| made.token(*id)).unwrap_or_default();
        made.prefixes = first.starts_with(['▁', 'Ġ', ' ']);
        if let Some(last) = made.encode("a a")?.last() {
            let spaced = made.token(*last).is_some_and(|token| token.starts_with('▁') && token.len() > '▁'.len_utf8());
            made.holds_spaces = spaced && made.decode(&[*last], false)? == "a";
        }
        if let Some((end, after)) = made.find_turn_end() {
            (made.turn_end, made.after_turn) = (Some(end), after);
        }
        for id in stops_written.into_iter().chain(made.eos).chain(made.turn_end) {
            if !made.stop_ids.contains(&id) {
                made.stop_ids.push(id);
            }
        }
        Ok(made)
    }

    /// Returns true if the directory has a tokenizer that can be loaded.
    pub fn in_directory(folder: &Path) -> bool {
        folder.join("tokenizer.json").is_file() || bpe::in_directory(folder) || sentencepiece::in_directory(folder)
    }

    /// Returns the tokenizer without the limit of the directory's config.json, for a model that will be made to fit it.
    pub fn without_embedding_limit(self) -> Self {
        Self { rows: None, ..self }
    }

    /// Encodes `text`. Special tokens written in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.encode_fast(text, false).map(|e| e.get_ids().to_vec()).map_err(|e| tokenizer_error(&e))
    }

    /// Encodes `text` with the special tokens that the tokenizer adds (a BOS if the model has one).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| tokenizer_error(&e))?;
        match &self.post {
            Some(post) => {
                post.process(encoding, None, true).map(|e| e.get_ids().to_vec()).map_err(|e| tokenizer_error(&e))
            }
            None => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// Returns the byte position at which the token ids of a prompt end: before a last space if that space belongs to
    /// the token of the next word, else at the end. The answer then begins with the space, in training and in
    /// generation.
    pub fn prompt_end(&self, prompt: &str) -> usize {
        match prompt.strip_suffix(' ') {
            Some(before) if self.holds_spaces && !before.is_empty() => before.len(),
            _ => prompt.len(),
        }
    }

    /// Encodes a rendered prompt as in generation.
    pub fn encode_prompt(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(&rendered[..self.prompt_end(rendered)])
    }

    /// As `encode_prompt`, for text without a template: adds a BOS if the model has one.
    pub fn encode_plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_without_eos(&text[..self.prompt_end(text)])
    }

    /// Encodes text that will be continued: as `encode_plain`, but without the EOS that some tokenizers add at the end.
    pub(super) fn encode_without_eos(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_plain(text)?;
        if self.eos.is_some_and(|eos| ids.last() == Some(&eos)) && self.encode(text)?.last() != ids.last() {
            ids.pop();
        }
        Ok(ids)
    }

    /// Encodes a given answer, or the given beginning of one, that follows `prompt`.
    pub fn encode_answer_after(&self, prompt: &str, answer: &str) -> Result<Vec<u32>> {
        self.encode_after(&format!("{}{answer}", &prompt[self.prompt_end(prompt)..]))
    }

    /// Encodes `text` with the range of bytes of each token; adds no special tokens.
    pub(super) fn encode_offsets(&self, text: &str) -> Result<Encoding> {
        self.inner.encode(text, false).map_err(|e| tokenizer_error(&e))
    }

    /// Encodes text that continues another text: without the space that SentencePiece-like tokenizers add before every
    /// text.
    pub fn encode_after(&self, text: &str) -> Result<Vec<u32>> {
        if self.prefixes { self.encode_offsets_after(text).map(|(ids, _)| ids) } else { self.encode(text) }
    }

    /// As `encode_after`, with the range of bytes of each token.
    ///
    /// Errors: the tokenizer joins every tried guard character with the beginning of the text.
    pub(super) fn encode_offsets_after(&self, text: &str) -> Result<(Vec<u32>, Vec<(usize, usize)>)> {
        // Put a guard character before the text: the space is added before it, and its own tokens are dropped
        // afterwards.
        let stands_before: &[&str] = if self.prefixes { &["\n", ".", "a", "。", "\u{1}"] } else { &[""] };
        for guard in stands_before {
            let encoding = self.encode_offsets(&format!("{guard}{text}"))?;
            let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
            let from = offsets.partition_point(|(a, _)| *a < guard.len());
            if offsets[..from].iter().all(|(_, b)| *b <= guard.len()) {
                let shifted = offsets[from..].iter().map(|(a, b)| (a - guard.len(), b - guard.len()));
                return Ok((ids[from..].to_vec(), shifted.collect()));
            }
        }
        Err(Error::user(format!(
            "the tokenizer cannot encode text that begins with {:?} without adding a space",
            text.chars().next()
        ))
        .hint("move the boundary between prompt and answer by one character"))
    }

    /// Decodes `ids`; with `skip_special`, leaves out special tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| tokenizer_error(&e))
    }

    /// Returns the last line of a prompt's text, without special tokens and the assistant's header; for display.
    pub fn last_prompt_line(&self, ids: &[u32]) -> Result<String> {
        let prompt = self.decode(ids, true)?;
        let asked = prompt.trim().lines().rfind(|l| !l.trim().is_empty() && *l != "assistant");
        Ok(asked.unwrap_or_default().trim().to_string())
    }

    /// Returns a decoder for one token at a time, for streaming output; special tokens are left out.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream { inner: self.inner.decode_stream(true) }
    }

    /// Returns the SHA-256 of everything that ids and masks depend on: vocabulary, rules, template, special and stop
    /// tokens.
    pub fn fingerprint(&self) -> Result<String> {
        let json = |e: &dyn std::fmt::Display| Error::bug(format!("writing the tokenizer as JSON: {e}"));
        let mut hash = Sha256::new();
        hash.update(self.inner.to_string(false).map_err(|e| json(&e))?);
        hash.update(serde_json::to_string(&self.post).map_err(|e| json(&e))?);
        hash.update(format!("{:?}{:?}{:?}{:?}", self.bos, self.eos, self.turn_end, self.stop_ids));
        if self.embedded_size() < self.vocab_size {
            hash.update(format!("{:?}", self.rows));
        }
        hash.update(self.template.as_ref().map(ChatTemplate::identity).unwrap_or_default());
        Ok(fsutil::hex(&hash.finalize()))
    }

    /// Returns the highest token id plus one: the number of rows an embedding for all tokens needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the number of token ids that the model has embeddings for.
    pub fn embedded_size(&self) -> usize {
        self.vocab_size.min(self.rows.unwrap_or(usize::MAX))
    }

    /// Returns the tokens that the model has no embedding for, with their ids.
    pub fn without_embedding(&self) -> Vec<(u32, String)> {
        let beyond = self.embedded_size() as u32..self.vocab_size as u32;
        beyond.filter_map(|id| Some((id, self.token(id)?))).collect()
    }

    /// Fails if the model has no embedding for one of the ids.
    pub fn check_embedded(&self, ids: &[u32]) -> Result<()> {
        let rows = self.rows.unwrap_or(usize::MAX);
        let Some(id) = ids.iter().find(|id| **id as usize >= rows) else { return Ok(()) };
        let token = self.token(*id).unwrap_or_default();
        Err(Error::user(format!(
            "the token `{token}` has id {id}, but the model (vocab_size {rows} in config.json) has no embedding for it"
        ))
        .hint("remove it from the rows or the chat template, or use the tokenizer that belongs to the model"))
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Returns the special token that the template writes after an assistant turn.
    pub fn turn_end(&self) -> Option<u32> {
        self.turn_end
    }

    /// Returns the stop tokens, which end an answer: those of generation_config.json, EOS, and the template's end of
    /// turn.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Returns the texts of the stop tokens.
    pub(super) fn stop_texts(&self) -> Vec<String> {
        self.stop_ids.iter().filter_map(|id| self.token(*id)).collect()
    }

    /// Returns the token that ends a turn, if generation_config.json does not name it, so that other programs do not
    /// stop at it.
    pub fn undeclared_stop(&self) -> Option<u32> {
        self.turn_end.filter(|id| !self.written_stops.contains(id))
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Fixes the date of the chat template to today, if the template uses the date and none is set.
    pub fn fix_date(&mut self) {
        self.template = self.template.take().map(ChatTemplate::at_fixed_date);
    }

    /// Returns the fixed date of the chat template, if there is one and the template uses it.
    pub fn date(&self) -> Option<Date> {
        self.template.as_ref().and_then(ChatTemplate::date)
    }

    /// Renders the messages with the chat template, exactly as transformers does.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.require_template()?.render_with(messages, None, &Map::new(), add_generation_prompt)
    }

    pub(super) fn require_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::user("the rows are conversations, but the model has no chat template")
                .hint("set data.template (a .jinja file), use an instruct model, or use rows of prompt and completion")
        })
    }

    /// Returns the text of a token as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns true for a special token, which is not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Completes a generated answer as in a rendered conversation: appends what the template writes after the end of a
    /// turn (often a newline), where a reward model was trained to score. An answer without its end of turn is left
    /// unchanged.
    pub fn close_turn(&self, ids: &mut Vec<u32>) {
        if self.turn_end.is_some() && ids.last().copied() == self.turn_end {
            ids.extend(&self.after_turn);
        }
    }

    /// Finds the special token that ends an answer, and the tokens after it, by rendering a short conversation.
    fn find_turn_end(&self) -> Option<(u32, Vec<u32>)> {
        let template = self.template.as_ref()?;
        let messages = vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")];
        let talk = Conversation { messages, ..Default::default() };
        let answered = render_answer(&talk, 1, template, &[]).ok()?;
        let answer = answered.text.strip_prefix(&answered.prompt)?;
        let after = answer.rfind('b').map_or(answer, |at| &answer[at + 1..]);
        let ids = self.encode(after).ok()?;
        let end = ids.iter().position(|id| self.is_special(*id))?;
        Some((ids[end], ids[end + 1..].to_vec()))
    }
}

/// Decodes tokens one at a time; text is returned as soon as its last character is complete.
pub struct DecodeStream<'t> {
    inner: tokenizers::DecodeStream<
        't,
        tokenizers::ModelWrapper,
        tokenizers::NormalizerWrapper,
        tokenizers::PreTokenizerWrapper,
        PostProcessorWrapper,
        tokenizers::DecoderWrapper,
    >,
}

impl DecodeStream<'_> {
    /// Adds a token. Returns the text that it completes, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.inner.step(id).map_err(|e| tokenizer_error(&e))
    }
}

fn tokenizer_error(e: &tokenizers::Error) -> Error {
    Error::user(format!("tokenizer: {e}")).hint("is tokenizer.json complete, and made for this model?")
}

/// Reads an id or a list of ids; other values are ignored.
fn ids_in(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The chat templates that were found, each as (place, text); the place is for errors.
struct FoundTemplates {
    default: Option<(String, String)>,
    tool_use: Option<(String, String)>,
}

impl FoundTemplates {
    fn one(name: String, text: String) -> Option<Self> {
        Some(Self { default: Some((name, text)), tool_use: None })
    }

    fn compile(&self, specials: &RowColumns) -> Result<ChatTemplate> {
        fn parts(found: &Option<(String, String)>) -> Option<(&str, &str)> {
            found.as_ref().map(|(place, text)| (place.as_str(), text.as_str()))
        }
        ChatTemplate::of_named(parts(&self.default), parts(&self.tool_use), specials)
    }
}

/// Finds the templates that may render a row. `chosen` is a file, or the name of one of the model's own templates.
/// Without it they are those that transformers chooses: chat_template.jinja and the files in
/// additional_chat_templates/, else those in tokenizer_config.json (one text or a list of named ones).
fn find_template(dir: &Path, config: &RowColumns, chosen: Option<&Path>) -> Result<Option<FoundTemplates>> {
    if let Some(path) = chosen.filter(|path| !is_template_name(path)) {
        return Ok(FoundTemplates::one(path.display().to_string(), fsutil::read_to_string(path)?));
    }
    let mut named = named_templates(dir, config)?;
    let names: Vec<String> = named.iter().map(|(name, ..)| format!("`{name}`")).collect();
    if let Some(name) = chosen.and_then(Path::to_str) {
        let found = named.into_iter().find(|(own, ..)| own == name);
        let (_, place, text) = found.ok_or_else(|| {
            Error::user(format!("{}: no chat template named `{name}`", dir.display())).hint(match names.is_empty() {
                true => "the model has no chat template; the path of a file has a `/` or a `.` in it".to_string(),
                false => format!("the model has {}; the path of a file has a `/` or a `.` in it", names.join(", ")),
            })
        })?;
        return Ok(FoundTemplates::one(place, text));
    }
    let mut take = |name: &str| {
        let at = named.iter().position(|(own, ..)| own == name)?;
        let (_, place, text) = named.remove(at);
        Some((place, text))
    };
    let found = FoundTemplates { default: take("default"), tool_use: take("tool_use") };
    if found.default.is_none() && found.tool_use.is_none() && !named.is_empty() {
        return Err(Error::user(format!("{}: several chat templates, none of them named `default`", dir.display()))
            .hint(format!("choose one with data.template or --template: {}", names.join(", "))));
    }
    Ok(Some(found).filter(|f| f.default.is_some() || f.tool_use.is_some()))
}

/// Returns true if this is the name of a template, not of a file: it has no `/`, `\` or `.`.
pub fn is_template_name(chosen: &Path) -> bool {
    chosen.to_str().is_some_and(|text| !text.is_empty() && !text.contains(['/', '\\', '.']))
}

/// Returns the model's own templates as (name, place, text).
fn named_templates(dir: &Path, config: &RowColumns) -> Result<Vec<(String, String, String)>> {
    let mut named = Vec::new();
    let mut add = |name: &str, file: &Path| -> Result<()> {
        named.push((name.to_string(), file.display().to_string(), fsutil::read_to_string(file)?));
        Ok(())
    };
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        add("default", &file)?;
    }
    let folder = dir.join("additional_chat_templates");
    let entries = if folder.is_dir() { std::fs::read_dir(&folder).ok() } else { None };
    let mut files: Vec<PathBuf> = entries.into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jinja"));
    files.sort();
    for file in files {
        add(&file.file_stem().unwrap_or_default().to_string_lossy(), &file)?;
    }
    if !named.is_empty() {
        return Ok(named);
    }
    let place = dir.join("tokenizer_config.json").display().to_string();
    match config.get("chat_template") {
        Some(Value::String(source)) => {
            named.push(("default".into(), format!("{place} (chat_template)"), source.clone()));
            return Ok(named);
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let part = |key: &str| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(text)) = (part("name"), part("template")) else {
                    return Err(Error::user(format!("{place}: chat_template: an entry has no `name` and `template`"))
                        .hint("fetch the file again with the model, or give a template with data.template"));
                };
                named.push((name.into(), format!("{place} (chat_template `{name}`)"), text.into()));
            }
            return Ok(named);
        }
        _ => {}
    }
    let legacy = dir.join("chat_template.json");
    if let Some(source) = optional_json(&legacy)?.get("chat_template").and_then(Value::as_str) {
        named.push(("default".into(), legacy.display().to_string(), source.to_string()));
    }
    Ok(named)
}
