//! Scores rows with a reward model: pairs, answers with a label, or plain answers.

use crate::data::chat::ChatTokenizer;
use crate::data::dataset::DatasetItem;
use crate::data::encode::{PairExample, Supervise, UnpairedExample, encode_row};
use crate::data::rows::{
    Record, RecordRow, RowFormat, RowPurpose, RowReader, SourceSpec, TargetFormat, convert_record,
};
use crate::data::source;
use crate::error::{Context, Error, Result};
use crate::methods::reward::{HeldOutScores, ReportCard, ScoredPair};
use crate::models::{Model, RewardScorer};
use crate::stats::moments::mean_and_population_deviation;
use crate::stats::proportion::Proportion;
use crate::stats::ranks::auc;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

/// A row with the token sequences to score.
pub struct ScoreRow {
    /// Line in the file, counted from 1.
    pub line: usize,
    /// The row in TRL's format: `prompt` with `chosen` and `rejected`, or with `completion`.
    row_json: Value,
    /// Token ids of prompt and answer: one sequence, or the chosen and the rejected one.
    sequences: Vec<Vec<u32>>,
    /// Number of answer tokens of each sequence.
    lengths: Vec<usize>,
    /// Whether the answer is labelled as good; `None` without a label.
    answer_is_good: Option<bool>,
}

/// Statistics over all rows.
#[derive(Debug, Clone, Serialize)]
pub struct ScoreSummary {
    /// Number of rows.
    pub rows: usize,
    /// Rows that are pairs. Accuracy, lengths and calibration are of these.
    pub pairs: usize,
    /// Share of pairs whose chosen answer scores higher; a tie does not count.
    pub accuracy: Option<f64>,
    /// 95 % Wilson interval of `accuracy`.
    pub accuracy_ci: Option<[f64; 2]>,
    /// Share of pairs whose chosen answer is the longer one.
    pub longer_wins: Option<f64>,
    /// Share of pairs whose chosen answer is the shorter one.
    pub shorter_wins: Option<f64>,
    /// Expected calibration error of the pairs.
    pub ece: Option<f64>,
    /// Probability that a good answer scores higher than a bad one, over answers with a label.
    pub auc: Option<f64>,
    /// Mean of all scores.
    pub mean: f64,
    /// Standard deviation of all scores.
    pub std: f64,
    /// Lowest score.
    pub min: f64,
    /// Highest score.
    pub max: f64,
}

impl ScoreRow {
    /// Reads the rows of a file, at most `limit`. Fails for a row without an answer to score.
    pub fn read(path: &Path, limit: Option<usize>, tokenizer: &ChatTokenizer) -> Result<Vec<Self>> {
        let reading = RowReader::of(path, &SourceSpec::file(path, RowFormat::Auto), RowPurpose::Anything)?;
        let mut rows = Vec::new();
        source::for_each_selected_chunk(reading.wanted(), path, limit, |chunk| {
            rows.extend(reading.rows(chunk, path)?);
            Ok(())
        })?;
        rows.iter().map(|row| Self::of(row, path, tokenizer)).collect()
    }

    fn of(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer) -> Result<Self> {
        let place = || format!("{}:{}", path.display(), row.line);
        let supervise = Supervise::Last;
        let (target, sequences, lengths, good) = match &row.record {
            Record::Preference(_) => {
                let pair = first_or_error(PairExample::encode(row, path, tokenizer, supervise)?.examples, &place)?;
                let lengths = vec![pair.chosen.len(), pair.rejected.len()];
                (TargetFormat::Preference, pair.sequences().map(|s| s.ids).into(), lengths, None)
            }
            Record::Unpaired(_) => {
                let answer =
                    first_or_error(UnpairedExample::encode(row, path, tokenizer, supervise)?.examples, &place)?;
                let sequences = vec![answer.sequence().ids];
                (TargetFormat::Unpaired, sequences, vec![answer.completion.len()], Some(answer.good))
            }
            Record::Messages(talk) if talk.messages.last().is_none_or(|m| m.role != "assistant") => {
                return Err(Error::user(format!("{}: the conversation does not end with an assistant turn", place()))
                    .hint("the last answer is scored: the row must end with it"));
            }
            Record::Messages(_) | Record::Alpaca(_) | Record::PromptCompletion { .. } => {
                let answer = encode_row(row, path, tokenizer, supervise)?.examples;
                let answer = answer.into_iter().next_back().ok_or_else(|| no_answer_error(&place()))?;
                let from = answer.supervised.iter().position(|s| *s).unwrap_or(0);
                let length = answer.ids.len() - from;
                (TargetFormat::PromptCompletion, vec![answer.ids], vec![length], None)
            }
            Record::Prompt(_) | Record::Text(_) => return Err(no_answer_error(&place())),
        };
        sequences.iter().try_for_each(|ids| tokenizer.check_embedded(ids)).context(&place)?;
        let shown = first_or_error(convert_record(&row.record, target)?, &place)?;
        Ok(Self { line: row.line, row_json: shown, sequences, lengths, answer_is_good: good })
    }
}

fn first_or_error<T>(items: Vec<T>, place: &dyn Fn() -> String) -> Result<T> {
    items.into_iter().next().ok_or_else(|| no_answer_error(&place()))
}

fn no_answer_error(place: &str) -> Error {
    Error::user(format!("{place}: no answer to score"))
        .hint("a row needs `prompt` and `completion`, `chosen` and `rejected`, or `messages` that end with an answer")
}

/// Scores rows. Returns the statistics, and each row as a JSON object with its score or scores. `on_row` is called
/// after each row.
pub fn score(
    model: &Model,
    scoring: &RewardScorer,
    rows: &[ScoreRow],
    path: &Path,
    on_row: &mut dyn FnMut(),
) -> Result<(ScoreSummary, Vec<Value>)> {
    check_lengths(model, rows, path)?;
    // Sequences of similar length are scored together, because attention pads within a packed row.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let longest = |i: &usize| rows[*i].sequences.iter().map(Vec::len).max();
    order.sort_by_key(|i| std::cmp::Reverse(longest(i)));
    let mut scores: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
    for part in order.chunks(64) {
        let flat: Vec<&Vec<u32>> = part.iter().flat_map(|i| &rows[*i].sequences).collect();
        let mut found = scoring.scores(model, &flat)?.into_iter();
        for i in part {
            scores[*i] = found.by_ref().take(rows[*i].sequences.len()).collect();
            on_row();
        }
    }
    let all: Vec<f64> = scores.iter().flatten().copied().collect();
    if let Some(line) = rows.iter().zip(&scores).find(|(_, s)| s.iter().any(|x| !x.is_finite())).map(|(r, _)| r.line) {
        return Err(Error::user(format!("{}:{line}: the score is not a finite number", path.display()))
            .hint("the model's weights or its adapter contain NaN or infinite values; was the training run stable?"));
    }
    let lines = rows.iter().zip(&scores).map(|(row, scores)| row.to_json(scores)).collect();
    Ok((summarize(rows, &scores, &all), lines))
}

/// Fails for a sequence longer than the model's context; the error names its line.
fn check_lengths(model: &Model, rows: &[ScoreRow], path: &Path) -> Result<()> {
    let limit = model.longest_sequence();
    for (row, ids) in rows.iter().flat_map(|r| r.sequences.iter().map(move |ids| (r, ids))) {
        if limit.is_some_and(|limit| ids.len() as i64 > limit) {
            return Err(Error::user(format!(
                "{}:{}: {} tokens, the model's context is {}",
                path.display(),
                row.line,
                ids.len(),
                limit.unwrap_or_default()
            ))
            .hint("shorten the row or leave it out: a truncated answer would get another score"));
        }
    }
    Ok(())
}

impl ScoreRow {
    /// Returns the row as JSON with its score or scores.
    fn to_json(&self, scores: &[f64]) -> Value {
        let mut line = self.row_json.clone();
        line["line"] = json!(self.line);
        match scores {
            [chosen, rejected] => {
                line["score_chosen"] = json!(chosen);
                line["score_rejected"] = json!(rejected);
                line["correct"] = json!(chosen > rejected);
            }
            scores => line["score"] = json!(scores.first()),
        }
        line
    }
}

/// Computes the statistics; `all` are the scores of all rows in one list.
fn summarize(rows: &[ScoreRow], scores: &[Vec<f64>], all: &[f64]) -> ScoreSummary {
    let pairs: Vec<ScoredPair> = rows
        .iter()
        .zip(scores)
        .filter_map(|(row, scores)| match (scores.as_slice(), row.lengths.as_slice()) {
            ([chosen, rejected], [a, b]) => {
                Some(ScoredPair { chosen: *chosen, rejected: *rejected, lengths: [*a, *b] })
            }
            _ => None,
        })
        .collect();
    let card = ReportCard::of(&HeldOutScores { pairs, ..Default::default() });
    let accuracy: Option<Proportion> = card.as_ref().map(|c| c.accuracy);
    let of = |good: bool| -> Vec<f64> {
        rows.iter().zip(scores).filter(|(r, _)| r.answer_is_good == Some(good)).map(|(_, s)| s[0]).collect()
    };
    let (mean, std) = mean_and_population_deviation(all);
    ScoreSummary {
        rows: rows.len(),
        pairs: card.as_ref().map_or(0, |c| c.pairs),
        accuracy: accuracy.map(|a| a.share),
        accuracy_ci: accuracy.map(|a| a.interval),
        longer_wins: card.as_ref().map(|c| c.length.longer_wins),
        shorter_wins: card.as_ref().map(|c| c.length.shorter_wins),
        ece: card.as_ref().map(|c| c.calibration.ece),
        auc: auc(&of(true), &of(false)),
        mean,
        std,
        min: all.iter().copied().fold(f64::INFINITY, f64::min),
        max: all.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}
