//! Lets machines compare answers: a reward model, a language model with a rubric, or a command.
//!
//! A machine sees two answers in some order and says which is better. Its choice may depend on the order, so such a
//! machine is asked in both orders, and a choice that differs between them becomes a tie. Votes store the choices in
//! both orders, so that the flips can be counted later. Invariant: a machine never sees other votes or the source of an
//! answer.

use crate::error::Result;
use crate::label::project::snapshot::Project;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::answer::{Candidate, CandidatePair, StoredPrompt};
use crate::label::record::vote::{NewVote, VoteChoice};
use crate::rng;
use rand::RngExt;
use serde_json::{Value, json};
use std::collections::HashSet;

/// A pair to judge, with its answers in the order in which they are shown.
#[derive(Debug, Clone, Copy)]
pub struct JudgeTask<'p> {
    /// The pair to judge.
    pub pair: &'p CandidatePair,
    /// Its prompt.
    pub prompt: &'p StoredPrompt,
    /// The answer shown first.
    pub first: &'p Candidate,
    /// The answer shown second.
    pub second: &'p Candidate,
}

impl JudgeTask<'_> {
    fn turned(self) -> Self {
        Self { first: self.second, second: self.first, ..self }
    }
}

/// A machine's opinion on a task. `VoteChoice::A` means the answer that was shown first.
#[derive(Debug, Clone, PartialEq)]
pub struct Opinion {
    /// The preferred answer, in the order shown.
    pub choice: VoteChoice,
    /// How much better it is, from 1 to 3.
    pub strength: Option<i64>,
    /// Reasons, as text.
    pub note: Option<String>,
    /// Scores or probabilities, stored with the vote.
    pub detail: Value,
}

/// A machine that compares two answers.
pub trait PairJudge {
    /// Returns the kind of annotator that it votes as.
    fn kind(&self) -> AnnotatorKind;
    /// Returns its description (model, rubric, …), which is stored with its annotator.
    fn detail(&self) -> Value;
    /// Returns an opinion on each task, in their order.
    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>>;
}

/// In which order the answers are shown to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgingOrder {
    /// `a` first: for a machine that scores each answer alone.
    One,
    /// One random order, with this seed.
    Random(u64),
    /// Both orders; opinions that differ become a tie.
    Both,
}

/// Returns the pairs that this annotator has not judged. Hidden repeats are left out: they test the consistency of
/// people.
pub fn open_tasks(project: &Project, annotator: i64) -> Vec<JudgeTask<'_>> {
    let judged: HashSet<i64> =
        project.votes.iter().filter(|v| !v.undone && v.annotator == annotator).map(|v| v.pair).collect();
    let (prompts, candidates) = (project.prompts_by_id(), project.candidates_by_id());
    project
        .pairs
        .iter()
        .filter(|p| p.repeat_of.is_none() && !judged.contains(&p.id))
        .filter_map(|pair| {
            let (prompt, a, b) = (prompts.get(&pair.prompt)?, candidates.get(&pair.a)?, candidates.get(&pair.b)?);
            Some(JudgeTask { pair, prompt, first: a, second: b })
        })
        .collect()
}

/// Asks a machine for its opinions on some tasks and returns them as votes.
pub fn collect_votes(
    judge: &mut dyn PairJudge,
    tasks: &[JudgeTask],
    orders: JudgingOrder,
    annotator: i64,
) -> Result<Vec<NewVote>> {
    let vote = |task: &JudgeTask, choice, swapped, opinion: Opinion, detail| NewVote {
        strength: opinion.strength.filter(|_| matches!(choice, VoteChoice::A | VoteChoice::B)),
        note: opinion.note,
        swapped,
        detail,
        ..NewVote::new(task.pair.id, annotator, choice)
    };
    if orders != JudgingOrder::Both {
        let swap = |task: &JudgeTask| match orders {
            JudgingOrder::Random(seed) => rng::stream(seed, "label: order", task.pair.id as u64).random::<bool>(),
            _ => false,
        };
        let shown: Vec<(JudgeTask, bool)> =
            tasks.iter().map(|t| if swap(t) { (t.turned(), true) } else { (*t, false) }).collect();
        let opinions = judge.opinions(&shown.iter().map(|(t, _)| *t).collect::<Vec<_>>())?;
        let each = shown.iter().zip(opinions).map(|((task, swapped), o)| {
            let choice = if *swapped { o.choice.flipped() } else { o.choice };
            let detail = o.detail.clone();
            vote(task, choice, *swapped, o, detail)
        });
        return Ok(each.collect());
    }
    let ab = judge.opinions(tasks)?;
    let ba = judge.opinions(&tasks.iter().map(|t| t.turned()).collect::<Vec<_>>())?;
    let said = |choice: VoteChoice, o: &Opinion| {
        let mut said = o.detail.clone();
        if !said.is_object() {
            said = json!({});
        }
        said["choice"] = json!(choice.name());
        said
    };
    let each = tasks.iter().zip(ab.into_iter().zip(ba)).map(|(task, (ab, ba))| {
        let turned = ba.choice.flipped();
        let detail = json!({ "ab": said(ab.choice, &ab), "ba": said(turned, &ba) });
        let agreed = ab.choice == turned;
        // A skip in one order leaves nothing to compare.
        let choice = match (ab.choice, turned) {
            (VoteChoice::Skip, _) | (_, VoteChoice::Skip) => VoteChoice::Skip,
            (a, b) if a == b => a,
            _ => VoteChoice::Tie,
        };
        let strength = ab.strength.zip(ba.strength).map(|(x, y)| x.min(y)).filter(|_| agreed);
        vote(task, choice, false, Opinion { strength, ..ab }, detail)
    });
    Ok(each.collect())
}
