//! Gathers what is known about a pair: prompt, answers, verdict and votes.

use crate::label::project::votes::ResolvedVote;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::answer::{Candidate, CandidatePair, StoredPrompt};
use crate::label::record::vote::VoteChoice;
use crate::label::results::verdict::PairVerdict;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A pair with its prompt, answers, verdict and votes.
pub(super) struct JudgedPair<'p> {
    pub(super) prompt: &'p StoredPrompt,
    pub(super) pair: &'p CandidatePair,
    pub(super) a: &'p Candidate,
    pub(super) b: &'p Candidate,
    pub(super) verdict: &'p PairVerdict,
    pub(super) votes: Vec<&'p ResolvedVote<'p>>,
}

impl<'p> JudgedPair<'p> {
    /// Returns the better and the worse answer; `None` if neither won.
    pub(super) fn sides(&self) -> Option<(&'p Candidate, &'p Candidate)> {
        match self.verdict.choice {
            VoteChoice::A => Some((self.a, self.b)),
            VoteChoice::B => Some((self.b, self.a)),
            _ => None,
        }
    }

    /// Returns the columns that say who judged the pair and with which confidence.
    pub(super) fn provenance(&self) -> Map<String, Value> {
        let kinds: BTreeSet<AnnotatorKind> = self.votes.iter().map(|b| b.annotator.kind).collect();
        let kinds: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
        let Value::Object(columns) = json!({
            "prompt_id": self.prompt.key,
            "pair_id": self.pair.id,
            "verdict": self.verdict.choice.name(),
            "confidence": self.verdict.confidence(),
            "votes": self.verdict.votes,
            "judged_by": kinds.join("+"),
            "adjudicated": self.verdict.adjudicated,
        }) else {
            return Map::new();
        };
        columns
    }
}

/// Returns an answer as a list of one assistant message.
pub(super) fn assistant_messages(text: &str) -> Value {
    json!([{ "role": "assistant", "content": text }])
}

/// Returns a row's first columns: the prompt, and the columns that the chat template reads.
pub(super) fn prompt_columns(prompt: &StoredPrompt) -> Map<String, Value> {
    let mut row = Map::from_iter([("prompt".to_string(), prompt.messages.clone())]);
    let beside = ["tools", "chat_template_kwargs"].iter();
    row.extend(beside.filter_map(|k| Some((k.to_string(), prompt.columns.get(*k)?.clone()))));
    row
}

pub(super) fn judged<'p>(
    pair: &'p CandidatePair,
    prompts: &HashMap<i64, &'p StoredPrompt>,
    candidates: &HashMap<i64, &'p Candidate>,
    verdicts: &'p BTreeMap<i64, PairVerdict>,
    votes: &HashMap<i64, Vec<&'p ResolvedVote<'p>>>,
) -> Option<JudgedPair<'p>> {
    Some(JudgedPair {
        prompt: prompts.get(&pair.prompt)?,
        pair,
        a: candidates.get(&pair.a)?,
        b: candidates.get(&pair.b)?,
        verdict: verdicts.get(&pair.id)?,
        votes: votes.get(&pair.id).cloned().unwrap_or_default(),
    })
}
