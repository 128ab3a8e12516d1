//! Decides which task each annotator gets next. Pure: time and the random seed come from the caller; storage and HTTP
//! are elsewhere.
//!
//! Invariants, whatever the order of events:
//! - the people who judged a pair and those who hold it are together at most as many as its overlap (a skip does not
//!   count);
//! - nobody gets a pair twice, except as a hidden repeat, and never directly after the original;
//! - among the tasks that one person judged, `b` was on the left as often as on the right, up to a difference of two;
//! - a task without a sign of activity is given to somebody else after the lease time.
//!
//! Times are milliseconds since 1970.

use super::task::{LabelProgress, TaskRefusal};
use crate::label::record::annotator::{Annotator, AnnotatorKind};
use crate::label::record::answer::CandidatePair;
use crate::label::record::lease::Lease;
use crate::label::record::vote::{Vote, VoteChoice};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Milliseconds that a closed page keeps its task: long enough for a reload.
const RELOAD_GRACE_MS: i64 = 30_000;

/// State of the assignment: the pairs with their votes and holders, and what each annotator was given.
#[derive(Debug, Clone)]
pub struct TaskAssignment {
    pub(super) seed: u64,
    /// Milliseconds that a task stays with its annotator without a sign of activity.
    pub(super) lease_ms: i64,
    pub(super) slots: Vec<PairState>,
    /// Index in `slots` by the pair's id.
    pub(super) index: HashMap<i64, usize>,
    /// Indices of the pairs (no repeats) that need one more person, in the order in which they are shown.
    pub(super) open: BTreeSet<usize>,
    pub(super) people: HashMap<i64, AnnotatorState>,
    /// Judgements given and wanted in total, without hidden repeats.
    pub(super) given: i64,
    pub(super) wanted: i64,
}

/// A pair with the number of its votes and holders.
#[derive(Debug, Clone)]
pub(super) struct PairState {
    pub(super) pair: CandidatePair,
    /// Index of the hidden repeat of this pair.
    pub(super) repeat: Option<usize>,
    /// Judgements, without skips.
    pub(super) votes: i64,
    /// Annotators who hold the pair as their task.
    pub(super) held: i64,
}

impl PairState {
    pub(super) fn has_room(&self) -> bool {
        self.votes + self.held < self.pair.overlap
    }
}

/// What one annotator has judged, will get again and holds.
#[derive(Debug, Clone, Default)]
pub(super) struct AnnotatorState {
    /// Votes that were not undone, oldest first.
    pub(super) given: Vec<GivenVote>,
    /// Indices of the pairs that this annotator has judged or skipped.
    pub(super) seen: HashSet<usize>,
    /// Indices of the hidden repeats still to be shown.
    pub(super) repeats: Vec<usize>,
    pub(super) hand: Option<HeldTask>,
    /// No pair before this index is both open and unseen.
    pub(super) cursor: usize,
    /// How many times `b` was shown on the left, minus how many times on the right.
    pub(super) left_excess: i64,
}

/// A vote that an annotator gave.
#[derive(Debug, Clone, Copy)]
pub(super) struct GivenVote {
    pub(super) vote: i64,
    pub(super) slot: usize,
    pub(super) swapped: bool,
    pub(super) skip: bool,
}

/// The task that an annotator holds. Once it has `lapsed`, others may get it too.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldTask {
    pub(super) slot: usize,
    pub(super) swapped: bool,
    pub(super) since: i64,
    pub(super) until: i64,
    pub(super) lapsed: bool,
}

/// Returns true if a vote affects the assignment: a person's vote that was not undone and is no final decision.
pub fn affects_assignment(vote: &Vote, annotators: &[Annotator]) -> bool {
    !vote.undone
        && !vote.adjudicates()
        && annotators.iter().any(|a| a.id == vote.annotator && a.kind == AnnotatorKind::Person)
}

impl TaskAssignment {
    /// Builds the state after these votes (in the order in which they were given), with these leases. `patience` in
    /// milliseconds.
    pub fn new(
        seed: u64,
        patience: i64,
        pairs: Vec<CandidatePair>,
        votes: &[Vote],
        leases: &[Lease],
        now: i64,
    ) -> Self {
        let mut new = Self {
            seed,
            lease_ms: patience,
            slots: Vec::new(),
            index: HashMap::new(),
            open: BTreeSet::new(),
            people: HashMap::new(),
            given: 0,
            wanted: 0,
        };
        new.add_pairs(pairs);
        for vote in votes {
            if let Some(&slot) = new.index.get(&vote.pair) {
                let skip = vote.choice == VoteChoice::Skip;
                new.count_vote(vote.annotator, GivenVote { vote: vote.id, slot, swapped: vote.swapped, skip });
            }
        }
        for lease in leases {
            let Some(&slot) = new.index.get(&lease.pair) else { continue };
            if new.slots[slot].has_room() && !new.person(lease.annotator).seen.contains(&slot) {
                new.hold(lease.annotator, slot, lease.swapped, lease.since, now);
            }
        }
        new
    }

    /// Returns how the pair was shown to this person, or why they may not judge it now.
    pub fn may_vote(&mut self, annotator: i64, pair: i64, now: i64) -> Result<Lease, TaskRefusal> {
        self.expire(now);
        let slot = *self.index.get(&pair).ok_or(TaskRefusal::NotYours)?;
        let person = self.people.get(&annotator).ok_or(TaskRefusal::NotYours)?;
        let hand = person.hand.filter(|h| h.slot == slot).ok_or(TaskRefusal::NotYours)?;
        match hand.lapsed && !self.slots[slot].has_room() {
            true => Err(TaskRefusal::Taken),
            false => Ok(self.lease(annotator, hand)),
        }
    }

    /// Records a vote that [`TaskAssignment::may_vote`] allowed and the store has saved.
    pub fn record_vote(&mut self, vote: &Vote) {
        let Some(&slot) = self.index.get(&vote.pair) else { return };
        self.release(vote.annotator);
        let skip = vote.choice == VoteChoice::Skip;
        self.count_vote(vote.annotator, GivenVote { vote: vote.id, slot, swapped: vote.swapped, skip });
    }

    /// Undoes this person's last vote and assigns its task to them again, with the same sides. Returns the vote's id
    /// and the task.
    pub fn undo(&mut self, annotator: i64, now: i64) -> Result<(i64, Lease), TaskRefusal> {
        self.expire(now);
        let person = self.people.get_mut(&annotator).ok_or(TaskRefusal::NothingGiven)?;
        let gift = *person.given.last().ok_or(TaskRefusal::NothingGiven)?;
        // A skipped task was free for others, who may have judged it since.
        if gift.skip && !self.slots[gift.slot].has_room() {
            return Err(TaskRefusal::Taken);
        }
        person.given.pop();
        person.seen.remove(&gift.slot);
        person.cursor = person.cursor.min(gift.slot);
        person.left_excess -= if gift.swapped { 1 } else { -1 };
        if let Some(repeat) = self.slots[gift.slot].repeat {
            person.repeats.retain(|r| *r != repeat);
        }
        if self.slots[gift.slot].pair.repeat_of.is_some() {
            person.repeats.push(gift.slot);
        }
        self.release(annotator);
        if !gift.skip {
            self.slots[gift.slot].votes -= 1;
            self.given -= i64::from(self.slots[gift.slot].pair.repeat_of.is_none());
        }
        self.reopen(gift.slot);
        let hand = self.hold(annotator, gift.slot, gift.swapped, now, now);
        Ok((gift.vote, self.lease(annotator, hand)))
    }

    /// Renews the lease of the task that this person holds.
    pub fn renew(&mut self, annotator: i64, now: i64) {
        self.expire(now);
        let until = now + self.lease_ms;
        if let Some(hand) = self.people.get_mut(&annotator).and_then(|p| p.hand.as_mut()).filter(|h| !h.lapsed) {
            hand.until = until;
        }
    }

    /// Called when the page was closed: shortens the lease, so that the task goes to somebody else unless the page is
    /// opened again soon.
    pub fn shorten(&mut self, annotator: i64, now: i64) {
        if let Some(hand) = self.people.get_mut(&annotator).and_then(|p| p.hand.as_mut()) {
            hand.until = hand.until.min(now + RELOAD_GRACE_MS);
        }
    }

    /// Adds the pairs that are not known yet. A repeat must come after its original.
    pub fn add_pairs(&mut self, pairs: Vec<CandidatePair>) {
        for pair in pairs {
            if self.index.contains_key(&pair.id) {
                continue;
            }
            let slot = self.slots.len();
            self.index.insert(pair.id, slot);
            let first = pair.repeat_of.and_then(|id| self.index.get(&id).copied());
            if pair.repeat_of.is_none() {
                self.open.insert(slot);
                self.wanted += pair.overlap;
            }
            self.slots.push(PairState { pair, repeat: None, votes: 0, held: 0 });
            let Some(first) = first else { continue };
            self.slots[first].repeat = Some(slot);
            for person in self.people.values_mut() {
                if person.given.iter().any(|g| g.slot == first && !g.skip) {
                    person.repeats.push(slot);
                }
            }
        }
    }

    /// Returns the progress of this person and of the project.
    pub fn progress(&self, annotator: i64) -> LabelProgress {
        let mine = self.people.get(&annotator).map_or(0, |p| p.given.len());
        LabelProgress { mine, given: self.given, wanted: self.wanted }
    }

    pub(super) fn person(&mut self, annotator: i64) -> &mut AnnotatorState {
        self.people.entry(annotator).or_default()
    }

    pub(super) fn lease(&self, annotator: i64, hand: HeldTask) -> Lease {
        Lease { pair: self.slots[hand.slot].pair.id, annotator, swapped: hand.swapped, since: hand.since }
    }

    /// Assigns a task to an annotator, who gives up the one they held.
    pub(super) fn hold(&mut self, annotator: i64, slot: usize, swapped: bool, since: i64, now: i64) -> HeldTask {
        self.release(annotator);
        let hand = HeldTask { slot, swapped, since, until: now + self.lease_ms, lapsed: false };
        self.person(annotator).hand = Some(hand);
        self.slots[slot].held += 1;
        if !self.slots[slot].has_room() {
            self.open.remove(&slot);
        }
        hand
    }

    /// Ends the annotator's hold of their task.
    pub(super) fn release(&mut self, annotator: i64) {
        if let Some(hand) = self.person(annotator).hand.take().filter(|h| !h.lapsed) {
            self.slots[hand.slot].held -= 1;
            self.reopen(hand.slot);
        }
    }

    /// Frees the tasks whose lease has run out. Their holders may still vote while the pair needs votes.
    pub(super) fn expire(&mut self, now: i64) {
        let mut free = Vec::new();
        for person in self.people.values_mut() {
            if let Some(hand) = person.hand.as_mut().filter(|h| !h.lapsed && h.until <= now) {
                hand.lapsed = true;
                free.push(hand.slot);
            }
        }
        for slot in free {
            self.slots[slot].held -= 1;
            self.reopen(slot);
        }
    }

    /// Offers a pair again if it needs one more person.
    pub(super) fn reopen(&mut self, slot: usize) {
        if self.slots[slot].has_room() && self.slots[slot].pair.repeat_of.is_none() && self.open.insert(slot) {
            for person in self.people.values_mut() {
                person.cursor = person.cursor.min(slot);
            }
        }
    }

    /// Counts a vote that was not undone.
    pub(super) fn count_vote(&mut self, annotator: i64, gift: GivenVote) {
        let slot = &mut self.slots[gift.slot];
        if !gift.skip {
            slot.votes += 1;
            self.given += i64::from(slot.pair.repeat_of.is_none());
        }
        if !slot.has_room() {
            self.open.remove(&gift.slot);
        }
        let (repeat, is_repeat) = (slot.repeat.filter(|_| !gift.skip), slot.pair.repeat_of.is_some());
        let person = self.people.entry(annotator).or_default();
        person.given.push(gift);
        person.seen.insert(gift.slot);
        person.left_excess += if gift.swapped { 1 } else { -1 };
        if is_repeat {
            person.repeats.retain(|r| *r != gift.slot);
        }
        person.repeats.extend(repeat);
    }
}
