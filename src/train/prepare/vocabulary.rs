//! Adds a recipe's new tokens to the model: decides how their rows start, and that they are trained.

use crate::adapters::{AdapterSpec, HEAD};
use crate::data::chat::{ChatTokenizer, NewToken, RowInit};
use crate::error::{Error, Result};
use crate::models::{Config, Heads, RowStart, VocabularyRows};
use crate::nn::LayerKind;
use crate::recipe::sections::Recipe;
use crate::report;
use serde::Serialize;

/// Tokens that a run adds to a model's vocabulary.
#[derive(Debug, Clone, Serialize)]
pub struct AddedVocabulary {
    /// The tokens.
    pub tokens: Vec<NewToken>,
    /// Number of rows of the base's embedding.
    pub rows_before: usize,
    /// Number of rows of the model's embedding.
    pub rows_after: usize,
    /// How the rows start.
    pub init: RowInit,
    /// What trains the rows.
    pub trained_by: &'static str,
    /// The rows, for loading the model.
    #[serde(skip)]
    pub rows: VocabularyRows,
}

/// Looks up the tokens that the adapter's settings name, and plans the rows of the `added` tokens: an adapter that neither
/// adapts nor saves the embedding trains just these. Fails for an adapter that would not train them.
pub fn add(recipe: &mut Recipe, tokenizer: &ChatTokenizer, added: Vec<NewToken>) -> Result<Option<AddedVocabulary>> {
    if let Some(adapter) = &mut recipe.adapter {
        adapter.resolve_tokens(&|text| tokenizer.token_id(text))?;
    }
    let Some(new) = recipe.model.new_tokens.as_ref().filter(|_| !added.is_empty()) else { return Ok(None) };
    let config = Config::read(&recipe.model.path)?;
    let rows_before = config.vocab_size as usize;
    let rows_after = tokenizer.embedding_rows().unwrap_or(rows_before).max(rows_before);
    // Rows without a token are trained, too: their logits are part of every probability.
    let mut rows: Vec<i64> = added.iter().map(|token| i64::from(token.id)).collect();
    rows.extend((rows_before as i64..rows_after as i64).filter(|row| added.iter().all(|t| i64::from(t.id) != *row)));
    let heads = recipe.method.parts(recipe.adapter.as_ref())?.heads;
    let trained_by = match &mut recipe.adapter {
        Some(adapter) => train_rows(adapter, &config, &rows, heads)?,
        None => "the embedding is trained as a whole",
    };
    let mean_of = |token: &NewToken| match new.init {
        RowInit::Pieces => token.pieces.clone(),
        RowInit::Mean => Vec::new(),
    };
    let starts = added.iter().map(|token| RowStart { id: token.id, mean_of: mean_of(token) }).collect();
    let rows = VocabularyRows::starting(rows_after as i64, starts);
    Ok(Some(AddedVocabulary { tokens: added, rows_before, rows_after, init: new.init, trained_by, rows }))
}

/// Makes an adapter train the rows of new tokens, and returns what trains them.
fn train_rows(adapter: &mut AdapterSpec, config: &Config, rows: &[i64], heads: Heads) -> Result<&'static str> {
    let embedding = config.family().embedding.trim_end_matches(".weight");
    let selection = adapter.selection()?;
    let saved = |module: &str| selection.is_saved_whole(&format!("{module}.weight"));
    // LoRA is the only kind that adapts tables.
    let low_rank = |module: &str, layer| adapter.as_lora().is_some() && selection.adaptation(module, layer).is_some();
    let whole = |module: &str, layer| saved(module) || low_rank(module, layer);
    let (embedding_adapted, head_adapted) = (whole(embedding, LayerKind::Embedding), whole(HEAD, LayerKind::Head));
    let (shared, own_head) = (config.tie_word_embeddings, !config.tie_word_embeddings && heads != Heads::Score);
    let tied = shared && adapter.asks_to_tie();
    if shared && !tied && (embedding_adapted || head_adapted) && !saved(embedding) {
        return Err(Error::user(format!(
            "model.new_tokens: embedding and output head share one weight, and a low-rank update of one of them trains only half of \
             what the model knows of new tokens"
        ))
        .hint(format!("leave {embedding} and {HEAD} out of targets: the new rows are then trained in full; or set `tie: true`")));
    }
    let embedding_adapted = embedding_adapted || (tied && head_adapted);
    if embedding_adapted && !saved(embedding) && !saved(HEAD) && rows.iter().any(|row| *row < config.vocab_size) {
        return Err(Error::user(format!(
            "model.new_tokens: a low-rank update of `{embedding}` cannot contain the first values of rows that the base has already"
        ))
        .hint(format!("leave {embedding} out of targets: the rows of the new tokens are then trained in full")));
    }
    let embedding_rows = if embedding_adapted { &[] } else { rows };
    let head_rows = if own_head && !head_adapted { rows } else { &[] };
    if embedding_rows.is_empty() && head_rows.is_empty() {
        return Ok("the adapter adapts or saves the embedding");
    }
    if adapter.train_token_rows(embedding_rows, head_rows) {
        return Ok("the adapter trains these rows in full");
    }
    Err(Error::user(format!(
        "model.new_tokens: an adapter of {} would not train the rows of new tokens",
        adapter.title()
    ))
    .hint(format!("add them to its modules: modules_to_save: [{embedding}, {HEAD}]; or use adapter: {{ lora: {{}} }}")))
}

impl AddedVocabulary {
    /// Describes the new tokens for people.
    pub fn describe(&self) -> String {
        const SHOWN: usize = 4;
        let mut names: Vec<String> = self.tokens.iter().take(SHOWN).map(|token| format!("`{}`", token.text)).collect();
        if self.tokens.len() > SHOWN {
            names.push(format!("… and {} more", self.tokens.len() - SHOWN));
        }
        let ids = match (self.tokens.iter().map(|t| t.id).min(), self.tokens.iter().map(|t| t.id).max()) {
            (Some(first), Some(last)) if first != last => format!("ids {first} to {last}"),
            (Some(id), _) => format!("id {id}"),
            _ => String::new(),
        };
        let n = |rows: usize| report::count(rows as u64);
        let rows = match self.rows_after == self.rows_before {
            true => format!("the embedding's {} rows have room", n(self.rows_before)),
            false => format!("the embedding grows from {} to {} rows", n(self.rows_before), n(self.rows_after)),
        };
        let start = match self.init {
            RowInit::Pieces => "each row starts as the mean of those of the tokens that the text was before",
            RowInit::Mean => "each row starts as the mean of all rows",
        };
        let s = if self.tokens.len() == 1 { "" } else { "s" };
        format!(
            "{} new token{s} ({}), {ids}: {rows}; {start}; {}",
            self.tokens.len(),
            names.join(", "),
            self.trained_by
        )
    }
}
