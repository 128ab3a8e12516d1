//! Loads the tokenizer of a model directory: tokenizer.json or its older forms, added tokens, chat template, and the
//! tokens that begin, end and stop a text.

use super::answer_text::render_answer;
use super::template_files::{TemplateOptions, find_template};
use super::tokenizer::ChatTokenizer;
use crate::data::rows::{ChatMessage, Conversation};
use crate::data::source::RowColumns;
use crate::data::tokenizer_files::added_tokens::TokenizerSettings;
use crate::data::tokenizer_files::{bpe, sentencepiece};
use crate::error::{Error, Result};
use crate::model_files::{CONFIG, ModelFiles, gguf_within, is_gguf};
use crate::report;
use serde_json::Value;
use std::path::Path;
use tokenizers::{PostProcessorWrapper, Tokenizer};

const FILE: &str = "tokenizer.json";

impl ChatTokenizer {
    /// Reads the tokenizer of a model, a directory or a GGUF file; `template_override` replaces the model's own chat template.
    pub fn load(model_dir: &Path, template_override: Option<&Path>) -> Result<Self> {
        let template = template_override.map(Path::to_path_buf);
        Self::load_with(model_dir, &TemplateOptions { template, ..Default::default() })
    }

    /// As `load`, with variables and a date for the template.
    ///
    /// Errors: the directory has no tokenizer that can be read, or no chat template of the given name.
    pub fn load_with(model_dir: &Path, rendering: &TemplateOptions) -> Result<Self> {
        Self::load_from(model_dir, model_dir, rendering)
    }

    /// As `load_with`, with the tokenizer and the templates of another folder: that of an adapter on the model.
    pub(super) fn load_from(base: &Path, model_dir: &Path, rendering: &TemplateOptions) -> Result<Self> {
        let files = ModelFiles::open(model_dir)?;
        let settings = TokenizerSettings::read(&files)?;
        let mut specials = settings.specials();
        let (path, written) = (files.place(FILE), files.read(FILE)?);
        let ready = written.is_some();
        let mut inner = if let Some(written) = written {
            let mut inner = Tokenizer::from_bytes(written).map_err(|e| {
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
                None => match gguf_within(model_dir) {
                    Some(gguf) => error.hint(format!("name the GGUF file itself: {}", gguf.display())),
                    None => error.hint("check model.path"),
                },
            });
        };
        if !ready {
            let around = settings.bos_eos_processor(&inner, &specials)?;
            inner.with_post_processor(around);
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::bug(format!("{}: {e}", path.display())))?;
        let post = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);

        let id_of = |name: &str| specials.get(name).and_then(Value::as_str).and_then(|token| inner.token_to_id(token));
        let of_base = ModelFiles::open(base)?;
        let generation: RowColumns = of_base.json_or_default("generation_config.json")?;
        let model: RowColumns = of_base.json_or_default(CONFIG)?;
        let rows = model.get("vocab_size").and_then(Value::as_u64).map(|n| n as usize);
        let stops_written = ids_in(generation.get("eos_token_id").or_else(|| model.get("eos_token_id")));
        let (bos, pad) = (id_of("bos_token"), id_of("pad_token"));
        let eos = id_of("eos_token").or_else(|| stops_written.first().copied());

        let template = find_template(&files, &settings.config, rendering.template.as_deref())?
            .map(|found| found.compile(&specials))
            .transpose()?
            .map(|template| template.with_variables(&rendering.kwargs, rendering.date));
        let mut made = Self {
            inner,
            post,
            template,
            vocab_size: 0,
            rows,
            bos,
            eos,
            pad,
            turn_end: None,
            after_turn: Vec::new(),
            stop_ids: Vec::new(),
            written_stops: stops_written,
            prefixes: false,
            holds_spaces: false,
        };
        made.settle()?;
        if base != model_dir {
            // An adapter's new tokens have rows in its file.
            made.rows = made.rows.map(|rows| rows.max(made.vocab_size));
        }
        Ok(made)
    }

    /// Finds out what follows from the vocabulary and the template: after they were read, and after tokens were added.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.vocab_size = self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let first = self.encode("a")?.first().and_then(|id| self.token(*id)).unwrap_or_default();
        self.prefixes = first.starts_with(['▁', 'Ġ', ' ']);
        if let Some(last) = self.encode("a a")?.last() {
            let spaced = self.token(*last).is_some_and(|token| token.starts_with('▁') && token.len() > '▁'.len_utf8());
            self.holds_spaces = spaced && self.decode(&[*last], false)? == "a";
        }
        if let Some((end, after)) = self.find_turn_end() {
            (self.turn_end, self.after_turn) = (Some(end), after);
        }
        self.stop_ids.clear();
        for id in self.written_stops.iter().copied().chain(self.eos).chain(self.turn_end) {
            if !self.stop_ids.contains(&id) {
                self.stop_ids.push(id);
            }
        }
        Ok(())
    }

    /// Returns true if the model has a tokenizer that can be loaded. A GGUF file must have one.
    pub fn in_directory(folder: &Path) -> bool {
        is_gguf(folder)
            || folder.join(FILE).is_file()
            || bpe::in_directory(folder)
            || sentencepiece::in_directory(folder)
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

/// Reads an id or a list of ids; other values are ignored.
fn ids_in(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}
