//! Aligns the vocabularies of models that are merged: which tokens the result has, and from which rows of the models' embeddings
//! and output heads the row of each token comes. As in mergekit: a model that lacks a token gets the row of the only model that
//! has it, or the base's, or the mean of all models that have it.

use super::ModelMerge;
use super::inputs::ModelInput;
use super::merged_tensor::read_rows;
use super::tensors::OutputTensor;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files, write_companion};
use crate::convert::folder::new_tokens::write_new_tokens;
use crate::convert::folder::template::write_template;
use crate::data::chat::{ChatTokenizer, NewToken};
use crate::error::{Error, Result};
use crate::model_files::ModelFiles;
use crate::recipe::merge_file::{
    ChatTemplateChoice, ModelMergeFile, TokenChoice, TokenRowSource, TokenizerSource, VocabularyPlan,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The tokens of a merged model, and where their rows are in each model.
pub(super) struct Vocabulary {
    /// Number of rows of the result.
    pub rows: usize,
    /// The folder whose tokenizer is completed.
    folder: PathBuf,
    tokenizer: ChatTokenizer,
    added: Vec<NewToken>,
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

    /// Returns, for each part of a tensor, how its rows are read.
    pub fn rows_of<'a>(
        &'a self,
        merge: &'a ModelMerge,
        tensor: &'a OutputTensor,
        models: &[usize],
    ) -> Result<Vec<Option<TokenRows<'a>>>> {
        let base = merge.file.slices[tensor.slice].base.filter(|base| models.contains(base));
        let substitutes: Rc<Vec<RowMean>> =
            Rc::new((0..self.count).map(|id| self.substitute(id, models, base)).collect());
        let mut rows = Vec::new();
        for (part, model) in models.iter().enumerate() {
            let of_part = TokenRows {
                merge,
                name: &tensor.inputs[part],
                model: *model,
                vocabulary: self,
                substitutes: substitutes.clone(),
                padding: None,
            };
            let padding = if self.rows > self.count { Some(of_part.mean(self.count, tensor.shape[1])?) } else { None };
            rows.push(Some(TokenRows { padding, ..of_part }));
        }
        Ok(rows)
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

/// Rows of models whose mean is used; zeros if there are none.
type RowMean = Vec<(usize, usize)>;

/// Reads the rows of one model in the order of the result's tokens.
pub(super) struct TokenRows<'a> {
    merge: &'a ModelMerge,
    name: &'a str,
    model: usize,
    vocabulary: &'a Vocabulary,
    /// The rows of tokens that the model lacks.
    substitutes: Rc<Vec<RowMean>>,
    /// The row after all tokens: (1, columns).
    padding: Option<Tensor>,
}

impl TokenRows<'_> {
    /// Reads rows in float32: (rows, columns).
    pub fn read(&self, rows: Range<i64>, columns: i64) -> Result<Tensor> {
        let mut parts: Vec<Tensor> = Vec::new();
        let mut id = rows.start as usize;
        let end = rows.end as usize;
        while id < end.min(self.vocabulary.count) {
            let Some(first) = self.own(id) else {
                parts.push(self.mean_of(&self.substitutes[id], columns)?);
                id += 1;
                continue;
            };
            // Rows that lie one after another are read at once.
            let length = (1..).take_while(|n| id + n < end && self.own(id + n) == Some(first + n)).count() + 1;
            parts.push(self.rows(self.model, first, length, columns)?);
            id += length;
        }
        if id < end {
            let padding = self.padding.as_ref().ok_or_else(|| Error::bug("merge: rows without a token"))?;
            parts.push(padding.expand([(end - id) as i64, columns], true));
        }
        Ok(Tensor::cat(&parts, 0))
    }

    /// Returns the row of a token in the model, unless another is used in any case.
    fn own(&self, id: usize) -> Option<usize> {
        let own = self.vocabulary.own.get(self.model)?.get(id).copied().flatten();
        own.filter(|_| !self.vocabulary.chosen.get(&id).is_some_and(|(_, force)| *force))
    }

    fn rows(&self, model: usize, first: usize, count: usize, columns: i64) -> Result<Tensor> {
        read_rows(self.merge, model, self.name, first as i64..(first + count) as i64, columns)
    }

    fn mean_of(&self, sources: &[(usize, usize)], columns: i64) -> Result<Tensor> {
        let mut sum = Tensor::zeros([1, columns], (Kind::Float, Device::Cpu));
        for (model, row) in sources {
            sum += self.rows(*model, *row, 1, columns)?;
        }
        Ok(sum / sources.len().max(1) as f64)
    }

    /// Returns the mean of the first `count` rows: (1, columns).
    fn mean(&self, count: usize, columns: i64) -> Result<Tensor> {
        const ROWS: usize = 256;
        let mut sum = Tensor::zeros([1, columns], (Kind::Double, Device::Cpu));
        for start in (0..count).step_by(ROWS) {
            let rows = self.read(start as i64..(start + ROWS).min(count) as i64, columns)?;
            sum += crate::merging::on_one_thread(|| rows.sum_dim_intlist([0i64].as_slice(), true, Kind::Double));
        }
        Ok((sum / count as f64).to_kind(Kind::Float))
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

/// Returns what is suspicious about merging models by the numbers of their rows: unlike tokens.
pub(super) fn unlike_tokens(inputs: &[ModelInput], first: &Path) -> Vec<String> {
    let read = |folder: &Path| {
        let there = ChatTokenizer::in_directory(folder);
        there.then(|| ChatTokenizer::load(folder, None).ok()).flatten().map(|tokenizer| tokenizer.vocabulary())
    };
    let Some(of_first) = read(first) else { return Vec::new() };
    let others = inputs.iter().filter(|input| input.folder != first);
    let differs = |input: &ModelInput| {
        let tokens = read(&input.folder)?;
        let unlike = tokens.iter().filter(|(text, id)| of_first.get(*text) != Some(*id)).count();
        (unlike > 0).then(|| {
            format!(
                "{} and {} have unlike tokens ({unlike} of {}), and rows of embeddings are merged by their numbers: \
                 `tokenizer_source: base` or `union` aligns them",
                first.display(),
                input.folder.display(),
                tokens.len()
            )
        })
    };
    others.filter_map(differs).collect()
}

/// Writes the files of the tokenizer, the chat template and the model's other files into `folder`. Returns notes for the user.
pub(super) fn write(merge: &ModelMerge, folder: &Path) -> Result<Vec<String>> {
    let leading = &merge.inputs[merge.leading()].folder;
    let mut notes = Vec::new();
    match &merge.vocabulary {
        Some(vocabulary) if vocabulary.folder != *leading => {
            copy_companion_files(&vocabulary.folder, folder, &[])?;
            let files = ModelFiles::open(leading)?;
            MODEL_FILES.iter().try_for_each(|name| write_companion(&files, folder, name))?;
            notes.push(format!(
                "config.json has the ids of bos, eos and pad tokens of {}, the tokenizer is that of {}: compare them",
                leading.display(),
                vocabulary.folder.display()
            ));
        }
        _ => copy_companion_files(leading, folder, MODEL_FILES)?,
    }
    if let Some(vocabulary) = &merge.vocabulary {
        write_new_tokens(folder, &vocabulary.added, &vocabulary.tokenizer)?;
    }
    match &merge.file.chat_template {
        None => {}
        Some(ChatTemplateChoice::Text(text)) => write_template(folder, text)?,
        Some(ChatTemplateChoice::Auto) => match most_common_template(&merge.inputs) {
            Some(text) => write_template(folder, &text)?,
            None => notes.push("`chat_template: auto`: no model has a chat template".into()),
        },
    }
    Ok(notes)
}

/// Returns the chat template that most models have; of equally many, the first.
fn most_common_template(inputs: &[ModelInput]) -> Option<String> {
    let template = |input: &ModelInput| {
        let tokenizer =
            ChatTokenizer::in_directory(&input.folder).then(|| ChatTokenizer::load(&input.folder, None).ok());
        tokenizer.flatten()?.template().map(|template| template.source().trim().to_string())
    };
    let mut counts: Vec<(String, usize)> = Vec::new();
    for text in inputs.iter().filter_map(template) {
        match counts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => counts.push((text, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(text, _)| text)
}
