//! The kinds of items that methods train on: how each is made from a row, and how it is stored.

use crate::data::cache::MarkedSequence;
use crate::data::chat::ChatTokenizer;
use crate::data::encode::{
    EncodedRow, Example, PairExample, PromptExample, Supervise, UnpairedExample, encode_pair, encode_prompt,
    encode_row, encode_unpaired,
};
use crate::data::rows::{RecordRow, RowPurpose};
use crate::error::Result;
use std::path::Path;

/// An item of a data set, made from one row.
pub trait DatasetItem: Sized + Send {
    /// What rows must contain.
    const PURPOSE: RowPurpose;
    /// Number of sequences per item.
    const SEQUENCES: usize;

    /// Makes the items of a row. Errors name file and line.
    fn encode(
        row: &RecordRow,
        path: &Path,
        tokenizer: &ChatTokenizer,
        supervise: Supervise,
    ) -> Result<EncodedRow<Self>>;
    /// Returns the sequences that the model sees, with the tokens that are trained on or judged.
    fn to_examples(&self) -> Vec<Example>;
    /// Converts the item to its stored form: [`DatasetItem::SEQUENCES`] sequences, the line, and a number (margin or
    /// label).
    fn into_stored(self) -> (Vec<MarkedSequence>, usize, f64);
    /// Converts the stored form back to the item.
    fn from_stored(sequences: Vec<MarkedSequence>, line: usize, value: f64) -> Self;
}

impl DatasetItem for Example {
    const PURPOSE: RowPurpose = RowPurpose::Answers;
    const SEQUENCES: usize = 1;

    fn encode(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<EncodedRow> {
        encode_row(row, path, tokenizer, supervise)
    }
    fn to_examples(&self) -> Vec<Example> {
        vec![self.clone()]
    }
    fn into_stored(self) -> (Vec<MarkedSequence>, usize, f64) {
        (vec![MarkedSequence { ids: self.ids, marked: self.supervised }], self.line, 0.0)
    }
    fn from_stored(sequences: Vec<MarkedSequence>, line: usize, _: f64) -> Self {
        let MarkedSequence { ids, marked } =
            sequences.into_iter().next().unwrap_or(MarkedSequence { ids: vec![], marked: vec![] });
        Self { ids, supervised: marked, line }
    }
}

impl DatasetItem for PairExample {
    const PURPOSE: RowPurpose = RowPurpose::Pairs;
    const SEQUENCES: usize = 2;

    fn encode(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer, _: Supervise) -> Result<EncodedRow<Self>> {
        encode_pair(row, path, tokenizer)
    }
    fn to_examples(&self) -> Vec<Example> {
        self.sequences().into()
    }
    fn into_stored(self) -> (Vec<MarkedSequence>, usize, f64) {
        let sequences = [&self.chosen, &self.rejected].map(|answer| marked(&self.prompt, answer));
        (sequences.into(), self.line, self.margin.unwrap_or(f64::NAN))
    }
    fn from_stored(sequences: Vec<MarkedSequence>, line: usize, value: f64) -> Self {
        let mut sequences = sequences.into_iter().map(split_at_first_mark);
        let (prompt, chosen) = sequences.next().unwrap_or_default();
        let (_, rejected) = sequences.next().unwrap_or_default();
        Self { prompt, chosen, rejected, margin: Some(value).filter(|v| !v.is_nan()), line }
    }
}

impl DatasetItem for UnpairedExample {
    const PURPOSE: RowPurpose = RowPurpose::Verdicts;
    const SEQUENCES: usize = 1;

    fn encode(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer, _: Supervise) -> Result<EncodedRow<Self>> {
        encode_unpaired(row, path, tokenizer)
    }
    fn to_examples(&self) -> Vec<Example> {
        vec![self.sequence()]
    }
    fn into_stored(self) -> (Vec<MarkedSequence>, usize, f64) {
        (vec![marked(&self.prompt, &self.completion)], self.line, f64::from(u8::from(self.good)))
    }
    fn from_stored(sequences: Vec<MarkedSequence>, line: usize, value: f64) -> Self {
        let (prompt, completion) = sequences.into_iter().next().map(split_at_first_mark).unwrap_or_default();
        Self { prompt, completion, good: value != 0.0, line }
    }
}

impl DatasetItem for PromptExample {
    const PURPOSE: RowPurpose = RowPurpose::Prompts;
    const SEQUENCES: usize = 1;

    fn encode(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer, _: Supervise) -> Result<EncodedRow<Self>> {
        encode_prompt(row, path, tokenizer)
    }
    fn to_examples(&self) -> Vec<Example> {
        vec![Example { ids: self.ids.clone(), supervised: vec![false; self.ids.len()], line: self.line }]
    }
    fn into_stored(self) -> (Vec<MarkedSequence>, usize, f64) {
        (vec![MarkedSequence { marked: vec![false; self.ids.len()], ids: self.ids }], self.line, 0.0)
    }
    fn from_stored(sequences: Vec<MarkedSequence>, line: usize, _: f64) -> Self {
        Self { ids: sequences.into_iter().next().map(|s| s.ids).unwrap_or_default(), line }
    }
}

fn marked(prompt: &[u32], answer: &[u32]) -> MarkedSequence {
    let ids = [prompt, answer].concat();
    MarkedSequence { marked: (0..ids.len()).map(|t| t >= prompt.len()).collect(), ids }
}

/// Splits a sequence before its first marked token: prompt and answer.
fn split_at_first_mark(sequence: MarkedSequence) -> (Vec<u32>, Vec<u32>) {
    let at = sequence.marked.iter().position(|m| *m).unwrap_or(sequence.ids.len());
    let mut prompt = sequence.ids;
    let answer = prompt.split_off(at);
    (prompt, answer)
}
