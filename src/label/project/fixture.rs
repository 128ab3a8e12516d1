//! Builds small projects for tests.

use super::snapshot::Project;
use crate::label::record::annotator::{Annotator, AnnotatorKind};
use crate::label::record::answer::{Candidate, CandidatePair, StoredPrompt};
use crate::label::record::settings::ProjectSettings;
use crate::label::record::vote::{Vote, VoteChoice};
use serde_json::json;

/// Creates a project of `prompts` with two answers each: `a` has source x and 10 + i characters, `b` source y and
/// 20.
pub fn project(prompts: i64, judges: &[(&str, AnnotatorKind)]) -> Project {
    let message = |i: i64| json!([{ "role": "user", "content": format!("question {i}") }]);
    let answer = |id, prompt, source: &str, length| Candidate {
        id,
        prompt,
        source: source.into(),
        text: "x".repeat(length),
        tokens: None,
    };
    let pair = |i: i64| CandidatePair {
        id: i,
        prompt: i,
        a: 2 * i,
        b: 2 * i + 1,
        overlap: 2,
        repeat_of: None,
        reason: "random".into(),
    };
    Project {
        settings: ProjectSettings::default(),
        prompts: (0..prompts)
            .map(|id| StoredPrompt { id, key: format!("p{id}"), messages: message(id), columns: Default::default() })
            .collect(),
        candidates: (0..prompts)
            .flat_map(|i| [answer(2 * i, i, "x", 10 + i as usize), answer(2 * i + 1, i, "y", 20)])
            .collect(),
        pairs: (0..prompts).map(pair).collect(),
        annotators: judges
            .iter()
            .enumerate()
            .map(|(i, (name, kind))| Annotator {
                id: i as i64,
                name: name.to_string(),
                kind: *kind,
                token_hash: None,
                detail: json!({}),
            })
            .collect(),
        votes: Vec::new(),
    }
}

/// Adds a vote.
pub fn vote(project: &mut Project, pair: i64, annotator: i64, choice: VoteChoice) -> &mut Vote {
    project.votes.push(Vote {
        id: project.votes.len() as i64,
        pair,
        annotator,
        choice,
        strength: None,
        swapped: false,
        seconds: None,
        note: None,
        flagged: false,
        ratings: Default::default(),
        edited: None,
        detail: json!({}),
        created: "2026-01-01T00:00:00Z".into(),
        undone: false,
    });
    project.votes.last_mut().unwrap()
}
