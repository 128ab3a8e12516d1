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

use super::record::{Annotator, AnnotatorKind, CandidatePair, Vote, VoteChoice};
use super::store::Lease;
use crate::rng;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Smallest number of judgements between a pair and its repeat; the random gap is up to twice as large. Without other
/// work left, repeats come earlier.
const REPEAT_GAP: usize = 8;
/// Milliseconds that a closed page keeps its task: long enough for a reload.
const RELOAD_GRACE_MS: i64 = 30_000;

/// State of the assignment: the pairs with their votes and holders, and what each annotator was given.
#[derive(Debug, Clone)]
pub struct TaskAssignment {
    seed: u64,
    /// Milliseconds that a task stays with its annotator without a sign of activity.
    lease_ms: i64,
    slots: Vec<PairState>,
    /// Index in `slots` by the pair's id.
    index: HashMap<i64, usize>,
    /// Indices of the pairs (no repeats) that need one more person, in the order in which they are shown.
    open: BTreeSet<usize>,
    people: HashMap<i64, AnnotatorState>,
    /// Judgements given and wanted in total, without hidden repeats.
    given: i64,
    wanted: i64,
}

/// A pair with the number of its votes and holders.
#[derive(Debug, Clone)]
struct PairState {
    pair: CandidatePair,
    /// Index of the hidden repeat of this pair.
    repeat: Option<usize>,
    /// Judgements, without skips.
    votes: i64,
    /// Annotators who hold the pair as their task.
    held: i64,
}

impl PairState {
    fn has_room(&self) -> bool {
        self.votes + self.held < self.pair.overlap
    }
}

/// What one annotator has judged, will get again and holds.
#[derive(Debug, Clone, Default)]
struct AnnotatorState {
    /// Votes that were not undone, oldest first.
    given: Vec<GivenVote>,
    /// Indices of the pairs that this annotator has judged or skipped.
    seen: HashSet<usize>,
    /// Indices of the hidden repeats still to be shown.
    repeats: Vec<usize>,
    hand: Option<HeldTask>,
    /// No pair before this index is both open and unseen.
    cursor: usize,
    /// How many times `b` was shown on the left, minus how many times on the right.
    left_excess: i64,
}

/// A vote that an annotator gave.
#[derive(Debug, Clone, Copy)]
struct GivenVote {
    vote: i64,
    slot: usize,
    swapped: bool,
    skip: bool,
}

/// The task that an annotator holds. Once it has `lapsed`, others may get it too.
#[derive(Debug, Clone, Copy)]
struct HeldTask {
    slot: usize,
    swapped: bool,
    since: i64,
    until: i64,
    lapsed: bool,
}

/// What an annotator is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextTask {
    /// Judge this task. `fresh`: the annotator did not hold it before.
    Task { lease: Lease, fresh: bool },
    /// Wait: all remaining tasks are held by other people and may become free again.
    Wait,
    /// Nothing is left to judge.
    Done,
}

/// Why a vote or an undo is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskRefusal {
    /// The task is not held by this person: never assigned to them, or already judged.
    NotYours,
    /// The lease ran out, and others have judged the task meanwhile.
    Taken,
    /// There is no vote to undo.
    NothingGiven,
}

/// Progress of one person and of the whole project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelProgress {
    /// Votes of this person that were not undone.
    pub mine: usize,
    /// Judgements given and wanted in the whole project.
    pub given: i64,
    pub wanted: i64,
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

    /// Returns the task that this person holds, or assigns another one.
    pub fn next_task(&mut self, annotator: i64, now: i64) -> NextTask {
        self.expire(now);
        let patience = self.lease_ms;
        let person = self.people.entry(annotator).or_default();
        if let Some(hand) = person.hand.as_mut().filter(|h| !h.lapsed) {
            hand.until = now + patience;
            let hand = *hand;
            return NextTask::Task { lease: self.lease(annotator, hand), fresh: false };
        }
        let Some(slot) = self.choose_pair(annotator) else {
            let person = &self.people[&annotator];
            let others = |(i, s): (usize, &PairState)| {
                s.pair.repeat_of.is_none() && s.votes < s.pair.overlap && !person.seen.contains(&i)
            };
            return if self.slots.iter().enumerate().any(others) { NextTask::Wait } else { NextTask::Done };
        };
        let swapped = self.choose_swapped(annotator, slot);
        let hand = self.hold(annotator, slot, swapped, now, now);
        NextTask::Task { lease: self.lease(annotator, hand), fresh: true }
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

    /// Returns the progress of this person and of the project.
    pub fn progress(&self, annotator: i64) -> LabelProgress {
        let mine = self.people.get(&annotator).map_or(0, |p| p.given.len());
        LabelProgress { mine, given: self.given, wanted: self.wanted }
    }

    fn person(&mut self, annotator: i64) -> &mut AnnotatorState {
        self.people.entry(annotator).or_default()
    }

    fn lease(&self, annotator: i64, hand: HeldTask) -> Lease {
        Lease { pair: self.slots[hand.slot].pair.id, annotator, swapped: hand.swapped, since: hand.since }
    }

    /// Chooses the next pair (its index) for somebody who holds no task.
    fn choose_pair(&mut self, annotator: i64) -> Option<usize> {
        if let Some(slot) = self.due_repeat(annotator, |gap| gap) {
            return Some(slot);
        }
        let person = self.people.get_mut(&annotator)?;
        let slot = self.open.range(person.cursor..).find(|i| !person.seen.contains(i)).copied();
        person.cursor = slot.unwrap_or(self.slots.len());
        // Without other work left, a repeat comes early, but not directly after the original.
        slot.or_else(|| self.due_repeat(annotator, |_| 2))
    }

    /// Returns a repeat that is due. `gap` maps its random gap to the number of judgements that is required.
    fn due_repeat(&self, annotator: i64, gap: impl Fn(usize) -> usize) -> Option<usize> {
        let person = self.people.get(&annotator)?;
        let due = |&&slot: &&usize| {
            let Some(first) = self.slots[slot].pair.repeat_of.and_then(|id| self.index.get(&id)) else { return false };
            let Some(at) = person.given.iter().rposition(|g| g.slot == *first) else { return false };
            let extra = rng::derived_seed(self.seed, "label: gap of a repeat", slot as u64) as usize % (REPEAT_GAP + 1);
            person.given.len() - at >= gap(REPEAT_GAP + extra).max(2) && self.slots[slot].has_room()
        };
        person.repeats.iter().find(due).copied()
    }

    /// Decides whether `b` is shown on the left: at random, unless one side is two ahead.
    fn choose_swapped(&self, annotator: i64, slot: usize) -> bool {
        match self.people.get(&annotator).map_or(0, |p| p.left_excess) {
            2.. => false,
            ..=-2 => true,
            _ => {
                let purpose = format!("label: side for {annotator}");
                rng::derived_seed(self.seed, &purpose, self.slots[slot].pair.id as u64) & 1 == 1
            }
        }
    }

    /// Assigns a task to an annotator, who gives up the one they held.
    fn hold(&mut self, annotator: i64, slot: usize, swapped: bool, since: i64, now: i64) -> HeldTask {
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
    fn release(&mut self, annotator: i64) {
        if let Some(hand) = self.person(annotator).hand.take().filter(|h| !h.lapsed) {
            self.slots[hand.slot].held -= 1;
            self.reopen(hand.slot);
        }
    }

    /// Frees the tasks whose lease has run out. Their holders may still vote while the pair needs votes.
    fn expire(&mut self, now: i64) {
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
    fn reopen(&mut self, slot: usize) {
        if self.slots[slot].has_room() && self.slots[slot].pair.repeat_of.is_none() && self.open.insert(slot) {
            for person in self.people.values_mut() {
                person.cursor = person.cursor.min(slot);
            }
        }
    }

    /// Counts a vote that was not undone.
    fn count_vote(&mut self, annotator: i64, gift: GivenVote) {
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
