//! Judges with a reward model: the answer with the higher score is the better one.

use super::judge::{JudgeTask, Opinion, PairJudge};
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::generate::prompt_check::max_sequence_tokens;
use crate::label::project::encoding;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::answer::{Candidate, StoredPrompt};
use crate::label::record::vote::VoteChoice;
use crate::models::{Model, RewardScorer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A reward model as a judge: it prefers the answer with the higher score.
pub struct RewardJudge<'m> {
    /// The reward model.
    pub model: &'m Model,
    /// How its scores are read.
    pub scoring: &'m RewardScorer,
    /// The tokenizer of the model.
    pub tokenizer: &'m ChatTokenizer,
    /// A difference of scores up to this is a tie.
    pub margin: f64,
    /// Name of the model in the annotator's record.
    pub name: Value,
}

/// Computes the scores of answers with a reward model; returns them by candidate id.
///
/// Errors: an answer is too long for the model's context; a score is not finite.
pub fn reward_scores<'c>(
    model: &Model,
    scoring: &RewardScorer,
    tokenizer: &ChatTokenizer,
    answers: impl IntoIterator<Item = (&'c StoredPrompt, &'c Candidate)>,
) -> Result<BTreeMap<i64, f64>> {
    let mut rows: Vec<(i64, Vec<u32>)> = Vec::new();
    for (prompt, answer) in answers {
        let ids = encoding::answered_ids(prompt, answer, tokenizer)?;
        if ids.len() > max_sequence_tokens(model) {
            return Err(Error::user(format!(
                "prompt {}: an answer of {} has {} tokens with its prompt, the reward model's context has {}",
                prompt.key,
                answer.source,
                ids.len(),
                max_sequence_tokens(model)
            ))
            .hint("a truncated answer would get a different score: leave such answers out of the project"));
        }
        rows.push((answer.id, ids));
    }
    // Sorted by length, as attention pads the segments of a packed row to a common length.
    rows.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
    let found = scoring.scores(model, &rows.iter().map(|(_, ids)| ids).collect::<Vec<_>>())?;
    match found.iter().all(|s| s.is_finite()) {
        true => Ok(rows.into_iter().map(|(id, _)| id).zip(found).collect()),
        false => Err(Error::user("the reward model gives scores that are not finite")
            .hint("its weights or its adapter contain NaN or infinite values; was the training run stable?")),
    }
}

impl PairJudge for RewardJudge<'_> {
    fn kind(&self) -> AnnotatorKind {
        AnnotatorKind::Reward
    }

    fn detail(&self) -> Value {
        json!({ "reward": self.name, "margin": self.margin })
    }

    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>> {
        let answers = tasks.iter().flat_map(|t| [(t.prompt, t.first), (t.prompt, t.second)]);
        let unique: BTreeMap<i64, (&StoredPrompt, &Candidate)> = answers.map(|(p, c)| (c.id, (p, c))).collect();
        let scores = reward_scores(self.model, self.scoring, self.tokenizer, unique.into_values())?;
        let opinion = |task: &JudgeTask| {
            let (a, b) = (scores[&task.first.id], scores[&task.second.id]);
            let choice = match a - b {
                d if d.abs() <= self.margin => VoteChoice::Tie,
                d if d > 0.0 => VoteChoice::A,
                _ => VoteChoice::B,
            };
            Opinion { choice, strength: None, note: None, detail: json!({ "scores": [a, b] }) }
        };
        Ok(tasks.iter().map(opinion).collect())
    }
}
