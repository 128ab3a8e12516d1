//! Handles the requests of annotators inside one transaction of the store.

use super::assignment::TaskAssignment;
use super::request::{DeskError, DeskRequest, DeskResponse};
use super::screen::{ScreenTask, ScreenVote, SideChoice, UndoneVote, rename_sides, side_names};
use super::task::{NextTask, TaskRefusal};
use crate::error::{Error, Result};
use crate::label::record::lease::Lease;
use crate::label::record::settings::ProjectSettings;
use crate::label::record::vote::{NewVote, Vote};
use crate::label::store::{StoreTransaction, VoteInsertion};

/// Handles the requests of one batch inside its transaction.
pub(super) struct BatchTransaction<'a, 'b> {
    pub(super) assignment: &'a mut TaskAssignment,
    pub(super) settings: &'a ProjectSettings,
    pub(super) writer: &'a mut StoreTransaction<'b>,
    pub(super) now: i64,
}

impl BatchTransaction<'_, '_> {
    /// Handles one request. The outer error comes from the store and ends the transaction; the inner one concerns this
    /// annotator only.
    pub(super) fn handle(&mut self, annotator: i64, ask: &DeskRequest) -> Result<Result<DeskResponse, DeskError>> {
        match ask {
            DeskRequest::Next => self.respond(annotator, None),
            DeskRequest::Vote(sent) => match self.vote(annotator, sent)? {
                Ok(()) => self.respond(annotator, None),
                Err(no) => Ok(Err(no)),
            },
            DeskRequest::Undo => self.undo(annotator),
            DeskRequest::Keep | DeskRequest::Leave => {
                match ask {
                    DeskRequest::Keep => self.assignment.renew(annotator, self.now),
                    _ => self.assignment.shorten(annotator, self.now),
                }
                Ok(Ok(DeskResponse { task: None, wait: false, progress: self.assignment.progress(annotator) }))
            }
        }
    }

    fn respond(&mut self, annotator: i64, before: Option<Vote>) -> Result<Result<DeskResponse, DeskError>> {
        let (task, wait) = match self.assignment.next_task(annotator, self.now) {
            NextTask::Task { lease, fresh } => {
                if fresh || before.is_some() {
                    self.writer.lease(&lease)?;
                }
                (Some(self.task(lease, before)?), false)
            }
            NextTask::Wait => (None, true),
            NextTask::Done => (None, false),
        };
        if task.is_none() {
            self.writer.delete_lease(annotator)?;
        }
        Ok(Ok(DeskResponse { task, wait, progress: self.assignment.progress(annotator) }))
    }

    fn task(&mut self, lease: Lease, before: Option<Vote>) -> Result<ScreenTask> {
        let (prompt, a, b) = self.writer.shown(lease.pair)?;
        let (left, right) = if lease.swapped { (b.text, a.text) } else { (a.text, b.text) };
        let before = before.map(|v| UndoneVote {
            choice: SideChoice::from_choice(v.choice, lease.swapped),
            strength: v.strength,
            ratings: rename_sides(&v.ratings, side_names(lease.swapped), ["left", "right"]),
            note: v.note,
            flagged: v.flagged,
            edited: v.edited,
        });
        Ok(ScreenTask { id: lease.pair, prompt, left, right, before })
    }

    fn vote(&mut self, annotator: i64, sent: &ScreenVote) -> Result<Result<(), DeskError>> {
        if let Err(why) = self.check(sent) {
            return Ok(Err(DeskError::Invalid(why)));
        }
        let lease = match self.assignment.may_vote(annotator, sent.task, self.now) {
            Ok(lease) => lease,
            // The response to this very vote may have been lost: the vote is saved, and the page sends it again.
            Err(refusal) => {
                let known = self.writer.vote_by_request(annotator, &sent.request)?;
                return Ok(if known.is_some_and(|v| v.pair == sent.task) { Ok(()) } else { Err(refusal.into()) });
            }
        };
        let waited = (self.now - lease.since) as f64 / 1000.0;
        let new = NewVote {
            choice: sent.choice.to_choice(lease.swapped),
            strength: sent.strength,
            swapped: lease.swapped,
            // The time on a task cannot exceed the time since it was assigned.
            seconds: Some(sent.seconds.filter(|s| s.is_finite() && *s >= 0.0).unwrap_or(waited).min(waited.max(0.0))),
            note: sent.note.clone().filter(|n| !n.trim().is_empty()),
            flagged: sent.flagged,
            ratings: rename_sides(&sent.ratings, ["left", "right"], side_names(lease.swapped)),
            edited: sent.edited.clone().filter(|e| !e.trim().is_empty()),
            request: Some(sent.request.clone()),
            ..NewVote::new(sent.task, annotator, sent.choice.to_choice(lease.swapped))
        };
        match self.writer.vote(&new)? {
            VoteInsertion::New(vote) => self.assignment.record_vote(&vote),
            // A request that arrives again after its vote was undone.
            VoteInsertion::Repeated(vote) if vote.pair == sent.task => {}
            VoteInsertion::Repeated(_) => {
                return Ok(Err(DeskError::Invalid("`request`: this id was already used for another vote".into())));
            }
            VoteInsertion::AlreadyJudged => return Ok(Err(TaskRefusal::NotYours.into())),
        }
        Ok(Ok(()))
    }

    /// Checks a vote; the error says what is wrong.
    fn check(&self, sent: &ScreenVote) -> Result<(), String> {
        if sent.request.is_empty() || sent.request.len() > 64 {
            return Err("`request`: expected 1 to 64 characters, new for each vote".into());
        }
        let one = matches!(sent.choice, SideChoice::Left | SideChoice::Right);
        match sent.strength {
            Some(_) if !self.settings.strength => return Err("`strength`: this project does not ask for it".into()),
            Some(_) if !one => return Err("`strength` is allowed only with the choice of one answer".into()),
            Some(n) if !(1..=3).contains(&n) => return Err(format!("`strength` {n}: expected 1, 2 or 3")),
            _ => {}
        }
        if sent.edited.is_some() && !self.settings.edit {
            return Err("`edited`: this project does not ask for better answers".into());
        }
        for (name, sides) in &sent.ratings {
            let best = self.settings.criteria.iter().find(|c| c.name == *name).map(|c| c.best);
            let best = best.ok_or_else(|| format!("`ratings`: no criterion {name:?}"))?;
            let rated = sides
                .as_object()
                .ok_or_else(|| format!("`ratings`: {name:?}: expected an object with left and right"))?;
            for (side, value) in rated {
                let good = value.as_i64().is_some_and(|n| (1..=best).contains(&n));
                if !good || !matches!(side.as_str(), "left" | "right") {
                    return Err(format!("`ratings`: {name:?}: expected left and right from 1 to {best}"));
                }
            }
        }
        let texts = [&sent.note, &sent.edited].into_iter().flatten();
        if texts.chain([&sent.request]).any(|t| t.contains('\0')) {
            return Err("text with a NUL character".into());
        }
        Ok(())
    }

    fn undo(&mut self, annotator: i64) -> Result<Result<DeskResponse, DeskError>> {
        let (vote, _) = match self.assignment.undo(annotator, self.now) {
            Ok(undone) => undone,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        match self.writer.undo(annotator, vote)? {
            Some(vote) => self.respond(annotator, Some(vote)),
            None => Err(Error::bug(format!("vote {vote} of annotator {annotator} cannot be undone"))),
        }
    }
}
