//! Adds imported rows to a project.

use super::row::ImportedRow;
use crate::error::{Context, Error, Result};
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::answer::{CandidatePair, NewCandidate, NewPair, NewPrompt};
use crate::label::record::vote::NewVote;
use crate::label::store::Store;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Counts of an import: rows read, and records that were added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportCounts {
    /// Rows that were read.
    pub rows: usize,
    /// Prompts that were added.
    pub prompts: usize,
    /// Answers that were added.
    pub candidates: usize,
    /// Pairs that were added.
    pub pairs: usize,
    /// Votes that were added.
    pub votes: usize,
}

/// Adds items to a project. Known records are left unchanged, so that a file may be imported again.
///
/// Errors: an id that the project uses for another prompt.
pub fn import(store: &Store, items: &[ImportedRow], overlap: i64) -> Result<ImportCounts> {
    let mut done = ImportCounts { rows: items.len(), ..ImportCounts::default() };
    let key = |p: &NewPrompt, known: &HashMap<String, String>| {
        known.get(&p.messages.to_string()).cloned().unwrap_or_else(|| p.key.clone())
    };
    let before = store.prompts()?;
    let by_content: HashMap<String, String> = before.iter().map(|p| (p.messages.to_string(), p.key.clone())).collect();
    let fresh: Vec<NewPrompt> = items.iter().map(|i| i.prompt.clone()).collect();
    let fresh: Vec<NewPrompt> =
        fresh.into_iter().filter(|p| !by_content.contains_key(&p.messages.to_string())).collect();
    let taken: HashMap<&str, &Value> = before.iter().map(|p| (p.key.as_str(), &p.messages)).collect();
    if let Some(p) = fresh.iter().find(|p| taken.contains_key(p.key.as_str())) {
        return Err(Error::user(format!(
            "{}: the id `{}` is already used by another prompt of the project",
            store.location(),
            p.key
        ))
        .hint("give the prompt another id, or no id: then ft derives one from the content"));
    }
    done.prompts = store.add_prompts(&fresh)?.new;
    let by_key: HashMap<String, i64> = store.prompts()?.into_iter().map(|p| (p.key, p.id)).collect();
    let prompt = |item: &ImportedRow| {
        let key = key(&item.prompt, &by_content);
        by_key.get(&key).copied().ok_or_else(|| Error::bug(format!("prompt `{key}` was not added")))
    };
    let mut candidates = Vec::new();
    for item in items {
        let prompt = prompt(item)?;
        candidates.extend(item.answers.iter().map(|a| NewCandidate {
            prompt,
            source: a.source.clone(),
            text: a.text.clone(),
            tokens: None,
        }));
    }
    done.candidates = store.add_candidates(&candidates)?.new;
    if items.iter().any(|i| !i.verdicts.is_empty()) {
        (done.pairs, done.votes) = judgements(store, items, prompt, overlap)?;
    }
    Ok(done)
}

/// Adds the judged pairs and their votes; returns how many of each were new.
fn judgements(
    store: &Store,
    items: &[ImportedRow],
    prompt: impl Fn(&ImportedRow) -> Result<i64>,
    overlap: i64,
) -> Result<(usize, usize)> {
    let all = store.candidates()?;
    let ids: HashMap<(i64, &str, &str), i64> =
        all.iter().map(|c| ((c.prompt, c.source.as_str(), c.text.as_str()), c.id)).collect();
    let (mut pairs, mut said) = (Vec::new(), Vec::new());
    for item in items {
        let prompt = prompt(item)?;
        let id = |i: usize| {
            let answer = &item.answers[i];
            ids.get(&(prompt, answer.source.as_str(), answer.text.as_str()))
                .copied()
                .ok_or_else(|| Error::bug(format!("an answer of {} was not added", answer.source)))
        };
        for verdict in &item.verdicts {
            let (a, b) = (id(verdict.a)?, id(verdict.b)?);
            // The same text from the same source is one answer, so there is nothing to compare.
            if a != b {
                pairs.push(NewPair { prompt, a, b, overlap, repeat_of: None, reason: "imported".into() });
                said.push((a, b, verdict));
            }
        }
    }
    let added = store.add_pairs(&pairs)?.new;
    let known = store.pairs()?;
    let find: HashMap<(i64, i64), &CandidatePair> =
        known.iter().filter(|p| p.repeat_of.is_none()).map(|p| ((p.a.min(p.b), p.a.max(p.b)), p)).collect();
    let mut people: HashMap<&str, i64> = HashMap::new();
    let mut votes = Vec::new();
    for (a, b, verdict) in said {
        let pair = find.get(&(a.min(b), a.max(b))).ok_or_else(|| Error::bug("a pair was not added"))?;
        let annotator = match people.get(verdict.annotator.as_str()) {
            Some(id) => *id,
            None => {
                let made = store.annotator(&verdict.annotator, AnnotatorKind::Person, &json!({ "imported": true }))?;
                people.insert(&verdict.annotator, made.id);
                made.id
            }
        };
        let choice = if pair.a == a { verdict.choice } else { verdict.choice.flipped() };
        votes.push(NewVote { detail: json!({ "imported": true }), ..NewVote::new(pair.id, annotator, choice) });
    }
    Ok((added, store.add_votes(&votes).context(|| "imported judgements")?.new))
}
