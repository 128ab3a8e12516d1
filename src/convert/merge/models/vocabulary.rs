//! Aligns the vocabularies of models that are merged: which tokens the result has, and from which rows of the models' embeddings
//! and output heads the row of each token comes. As in mergekit: a model that lacks a token gets the row of the only model that
//! has it, or the base's, or the mean of all models that have it.

use super::ModelMerge;
use super::aligned_rows::{AlignedRows, RowMean};
use super::tensors::OutputTensor;
use crate::convert::merge::model_input::ModelInput;
use crate::data::chat::{ChatTokenizer, NewToken};
use crate::error::{Error, Result};
use crate::recipe::merge_file::{ModelMergeFile, TokenChoice, TokenRowSource, TokenizerSource, VocabularyPlan};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The tokens of a merged model, and where their rows are in each model.
pub(super) struct Vocabulary {
    /// Number of rows of the result.
    pub rows: usize,
    /// The folder whose tokenizer is completed.
    pub folder: PathBuf,
    /// The tokenizer with the new tokens.
    pub tokenizer: ChatTokenizer,
    /// The new tokens.
    pub added: Vec<NewToken>,
    /// Number of tokens; rows after them have no token.
    count: usize,
    /// By model and token: the row of the token in the model.
    own: Vec<Vec<Option<usize>>>,
    /// Rows that were chosen, by token.
    chosen: BTreeMap<usize, (ChosenRow, bool)>,
}

/// A row that was chosen for a token.
#[derive(Clone)]
enum ChosenRow {
    Zero,
    Row(usize, usize),
}

impl Vocabulary {
    /// Plans the tokens of the result; `None` if the file does not ask for it. Fails if a model that is merged has no tokenizer, or
    /// if a row is chosen that does not exist.
    pub fn of(file: &ModelMergeFile, inputs: &[ModelInput]) -> Result<Option<Self>> {
        let Some(plan) = &file.vocabulary else { return Ok(None) };
        let first = file.base.unwrap_or(0);
        let tokenizers = inputs.iter().map(tokenizer_of).collect::<Result<Vec<_>>>()?;
        let known: Vec<BTreeMap<String, u32>> =
            tokenizers.iter().zip(inputs).map(|(tokenizer, input)| embedded_tokens(tokenizer, input)).collect();
        let folder = match &plan.source {
            TokenizerSource::Folder(folder) => folder.clone(),
            _ => inputs[first].folder.clone(),
        };
        let mut tokenizer = ChatTokenizer::load(&folder, None)?;
        let mut there = match plan.source {
            TokenizerSource::Folder(_) => tokenizer.vocabulary(),
            _ => known[first].clone(),
        };
        if matches!(plan.source, TokenizerSource::Base | TokenizerSource::Union) {
            refuse_unembedded(&tokenizer, &there, &folder)?;
        }
        let mut missing = match plan.source {
            TokenizerSource::Union => tokens_of_others(&there, first, &tokenizers, &known),
            _ => Vec::new(),
        };
        let listed: BTreeSet<String> = missing.iter().map(|(text, _)| text.clone()).collect();
        let new = |text: &&String| !there.contains_key(*text) && !listed.contains(*text);
        missing.extend(plan.tokens.keys().filter(new).map(|text| (text.clone(), false)));
        let added = tokenizer.append_tokens(&missing)?;
        there.extend(added.iter().map(|token| (token.text.clone(), token.id)));

        let count = there.values().map(|id| *id as usize + 1).max().unwrap_or(0).max(there.len());
        let multiple = plan.pad_to_multiple_of.unwrap_or(1);
        let mut own = vec![vec![None; count]; inputs.len()];
        for (text, id) in &there {
            for (model, tokens) in known.iter().enumerate() {
                own[model][*id as usize] = tokens.get(text).map(|row| *row as usize);
            }
        }
        let chosen = chosen_rows(plan, inputs, &there, &known)?;
        Ok(Some(Self { rows: count.div_ceil(multiple) * multiple, folder, tokenizer, added, count, own, chosen }))
    }

    /// Returns, for each part of a tensor, its rows in the order of the tokens.
    pub fn rows_of<'a>(
        &'a self,
        merge: &'a ModelMerge,
        tensor: &'a OutputTensor,
        models: &[usize],
    ) -> Result<Vec<AlignedRows<'a>>> {
        let base = merge.file.slices[tensor.slice].base.filter(|base| models.contains(base));
        let substitutes: Arc<Vec<RowMean>> =
            Arc::new((0..self.count).map(|id| self.substitute(id, models, base)).collect());
        let columns = tensor.shape[1] as usize;
        let part = |(part, model): (usize, &usize)| {
            let own = (0..self.count).map(|id| self.own[*model][id].filter(|_| !self.is_forced(id))).collect();
            let padded = self.rows > self.count;
            AlignedRows::new(merge, &tensor.inputs[part], *model, own, substitutes.clone(), padded.then_some(columns))
        };
        models.iter().enumerate().map(part).collect()
    }

    /// Returns whether a row was chosen for a token that is used in models with a row of their own, too.
    fn is_forced(&self, id: usize) -> bool {
        self.chosen.get(&id).is_some_and(|(_, force)| *force)
    }

    /// Returns the row of a token for models that have none, among models that are merged.
    fn substitute(&self, id: usize, models: &[usize], base: Option<usize>) -> RowMean {
        if let Some((row, _)) = self.chosen.get(&id) {
            return match row {
                ChosenRow::Zero => Vec::new(),
                ChosenRow::Row(model, row) => vec![(*model, *row)],
            };
        }
        let of = |model: usize| self.own[model][id].map(|row| (model, row));
        let found: Vec<(usize, usize)> = models.iter().filter_map(|model| of(*model)).collect();
        match base.and_then(of).filter(|_| found.len() > 1) {
            Some(of_base) => vec![of_base],
            None => found,
        }
    }
}

/// Reads the tokenizer of a model that is merged.
fn tokenizer_of(input: &ModelInput) -> Result<ChatTokenizer> {
    if !ChatTokenizer::in_directory(&input.folder) {
        return Err(Error::user(format!(
            "{}: no tokenizer, and its rows are merged by their tokens",
            input.folder.display()
        ))
        .hint("leave out `tokenizer_source` if all models have the same tokens, or add the tokenizer's files"));
    }
    ChatTokenizer::load(&input.folder, None)
}

/// Returns the tokens that have a row in the model's embedding.
fn embedded_tokens(tokenizer: &ChatTokenizer, input: &ModelInput) -> BTreeMap<String, u32> {
    let rows = input.config.vocab_size;
    tokenizer.vocabulary().into_iter().filter(|(_, id)| i64::from(*id) < rows).collect()
}

/// Fails if the tokenizer that is kept has tokens without a row in its own model: new tokens would get their ids.
fn refuse_unembedded(tokenizer: &ChatTokenizer, embedded: &BTreeMap<String, u32>, folder: &Path) -> Result<()> {
    match tokenizer.vocabulary().keys().find(|text| !embedded.contains_key(*text)) {
        None => Ok(()),
        Some(text) => Err(Error::user(format!(
            "{}: the tokenizer has a token `{text}` that has no row in the model's embedding",
            folder.display()
        ))
        .hint("remove it from the tokenizer's files, or name another tokenizer with `tokenizer_source: FOLDER`")),
    }
}

/// Returns the tokens of the other models that the first model lacks, with whether they are special: those of vocabularies
/// first, then added ones, by model and id.
fn tokens_of_others(
    there: &BTreeMap<String, u32>,
    first: usize,
    tokenizers: &[ChatTokenizer],
    known: &[BTreeMap<String, u32>],
) -> Vec<(String, bool)> {
    let (mut plain, mut added) = (Vec::new(), Vec::new());
    let mut seen: BTreeSet<&String> = there.keys().collect();
    for (tokenizer, tokens) in
        tokenizers.iter().zip(known).enumerate().filter(|(i, _)| *i != first).map(|(_, pair)| pair)
    {
        let mut by_id: Vec<(&String, u32)> = tokens.iter().map(|(text, id)| (text, *id)).collect();
        by_id.sort_by_key(|(_, id)| *id);
        for (text, id) in by_id {
            if seen.insert(text) {
                let list = if tokenizer.is_added(id) { &mut added } else { &mut plain };
                list.push((text.clone(), tokenizer.is_special(id)));
            }
        }
    }
    plain.into_iter().chain(added).collect()
}

/// Resolves the rows that a file chooses for tokens.
fn chosen_rows(
    plan: &VocabularyPlan,
    inputs: &[ModelInput],
    there: &BTreeMap<String, u32>,
    known: &[BTreeMap<String, u32>],
) -> Result<BTreeMap<usize, (ChosenRow, bool)>> {
    let mut chosen = BTreeMap::new();
    for (token, TokenChoice { source, force }) in &plan.tokens {
        let row = |model: usize, text: &str| {
            known[model].get(text).map(|row| ChosenRow::Row(model, *row as usize)).ok_or_else(|| {
                let folder = inputs[model].folder.display();
                Error::user(format!("the row of `{token}`: {folder} has no token `{text}`"))
                    .hint("name another model or another token in `tokenizer.tokens`")
            })
        };
        let found = match source {
            TokenRowSource::Zero => ChosenRow::Zero,
            TokenRowSource::Model(model) => row(*model, token)?,
            TokenRowSource::Token(model, text) => row(*model, text)?,
            TokenRowSource::Row(model, number) if (*number as i64) < inputs[*model].config.vocab_size => {
                ChosenRow::Row(*model, *number)
            }
            TokenRowSource::Row(model, number) => {
                let input = &inputs[*model];
                let (folder, rows) = (input.folder.display(), input.config.vocab_size);
                return Err(Error::user(format!(
                    "the row of `{token}`: {folder} has {rows} rows, and no row {number}"
                ))
                .hint("rows are counted from 0"));
            }
        };
        chosen.insert(there[token] as usize, (found, *force));
    }
    Ok(chosen)
}
