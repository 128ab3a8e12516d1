//! Who is shown what next: pure, without clock, chance of its own, database or page.
//!
//! Invariants, whatever the order of events:
//! - no more people hold or have judged a pair than its overlap (a skip is no judgement);
//! - nobody gets a pair twice, but as the hidden repeat that its selection asked for, never right after the first;
//! - of what one person has judged, `b` stood left as often as right, give or take two;
//! - a task nobody works on any more goes to somebody else.
//!
//! Times are milliseconds since 1970, given by the caller.

use super::record::{Annotator, Choice, Kind, Pair, Vote};
use super::store::Lease;
use crate::rng;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Judgements between a pair and its repeat: at least so many, and up to twice as many, while there is other work.
const GAP: usize = 8;
/// How long a task waits for a page that was closed: a reload is back sooner.
const GRACE: i64 = 30_000;

/// Pairs and people as they stand.
#[derive(Debug, Clone)]
pub struct Session {
    seed: u64,
    /// Milliseconds that a task is kept without a sign of life.
    patience: i64,
    slots: Vec<Slot>,
    /// By the pair's id.
    index: HashMap<i64, usize>,
    /// Pairs (no repeats) that have room for one more person, in the order in which they are shown.
    open: BTreeSet<usize>,
    people: HashMap<i64, Person>,
    /// Judgements given and wanted, of pairs that are no repeats.
    given: i64,
    wanted: i64,
}

#[derive(Debug, Clone)]
struct Slot {
    pair: Pair,
    repeat: Option<usize>,
    /// Judgements that count.
    votes: i64,
    held: i64,
}

impl Slot {
    fn has_room(&self) -> bool {
        self.votes + self.held < self.pair.overlap
    }
}

#[derive(Debug, Clone, Default)]
struct Person {
    /// Votes that stand, oldest first.
    given: Vec<Gift>,
    seen: HashSet<usize>,
    /// Repeats to come, by their slot.
    repeats: Vec<usize>,
    hand: Option<Hand>,
    /// No pair before this one is both open and unseen.
    cursor: usize,
    /// How much oftener `b` stood left than right.
    tilt: i64,
}

#[derive(Debug, Clone, Copy)]
struct Gift {
    vote: i64,
    slot: usize,
    swapped: bool,
    skip: bool,
}

/// A task in somebody's hand; `lapsed`: others may have it too.
#[derive(Debug, Clone, Copy)]
struct Hand {
    slot: usize,
    swapped: bool,
    since: i64,
    until: i64,
    lapsed: bool,
}

/// What somebody does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// `fresh`: it was not in this person's hand before.
    Task {
        lease: Lease,
        fresh: bool,
    },
    /// All that is left is in other people's hands and may come back.
    Wait,
    Done,
}

/// Why something is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The task was never given to this person, or was judged by them.
    NotYours,
    /// Too long without a sign of life: others have judged it meanwhile.
    Taken,
    /// There is no vote to take back.
    NothingGiven,
}

/// How far the project is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Votes of this person that stand.
    pub mine: usize,
    /// Judgements given and wanted, of all.
    pub given: i64,
    pub wanted: i64,
}

/// Votes that decide who is shown what: people's, but no final words.
pub fn counts(vote: &Vote, annotators: &[Annotator]) -> bool {
    !vote.undone && !vote.adjudicates() && annotators.iter().any(|a| a.id == vote.annotator && a.kind == Kind::Person)
}

impl Session {
    /// The state after these votes (in the order in which they were given), with these tasks in hand.
    pub fn new(seed: u64, patience: i64, pairs: Vec<Pair>, votes: &[Vote], leases: &[Lease], now: i64) -> Self {
        let mut new = Self {
            seed,
            patience,
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
                let skip = vote.choice == Choice::Skip;
                new.give(vote.annotator, Gift { vote: vote.id, slot, swapped: vote.swapped, skip });
            }
        }
        for lease in leases {
            let Some(&slot) = new.index.get(&lease.pair) else { continue };
            if new.slots[slot].has_room() && !new.person(lease.annotator).seen.contains(&slot) {
                new.take(lease.annotator, slot, lease.swapped, lease.since, now);
            }
        }
        new
    }

    /// Adds pairs that are not known; repeats come after what they repeat.
    pub fn add_pairs(&mut self, pairs: Vec<Pair>) {
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
            self.slots.push(Slot { pair, repeat: None, votes: 0, held: 0 });
            let Some(first) = first else { continue };
            self.slots[first].repeat = Some(slot);
            for person in self.people.values_mut() {
                if person.given.iter().any(|g| g.slot == first && !g.skip) {
                    person.repeats.push(slot);
                }
            }
        }
    }

    /// The task of this person: the one in hand, or another.
    pub fn next(&mut self, annotator: i64, now: i64) -> Next {
        self.lapse(now);
        let patience = self.patience;
        let person = self.people.entry(annotator).or_default();
        if let Some(hand) = person.hand.as_mut().filter(|h| !h.lapsed) {
            hand.until = now + patience;
            let hand = *hand;
            return Next::Task { lease: self.lease(annotator, hand), fresh: false };
        }
        let Some(slot) = self.choose(annotator) else {
            let person = &self.people[&annotator];
            let others = |(i, s): (usize, &Slot)| {
                s.pair.repeat_of.is_none() && s.votes < s.pair.overlap && !person.seen.contains(&i)
            };
            return if self.slots.iter().enumerate().any(others) { Next::Wait } else { Next::Done };
        };
        let swapped = self.side(annotator, slot);
        let hand = self.take(annotator, slot, swapped, now, now);
        Next::Task { lease: self.lease(annotator, hand), fresh: true }
    }

    /// Whether this person may judge this pair now, and how it was shown.
    pub fn may_vote(&mut self, annotator: i64, pair: i64, now: i64) -> Result<Lease, Refusal> {
        self.lapse(now);
        let slot = *self.index.get(&pair).ok_or(Refusal::NotYours)?;
        let person = self.people.get(&annotator).ok_or(Refusal::NotYours)?;
        let hand = person.hand.filter(|h| h.slot == slot).ok_or(Refusal::NotYours)?;
        match hand.lapsed && !self.slots[slot].has_room() {
            true => Err(Refusal::Taken),
            false => Ok(self.lease(annotator, hand)),
        }
    }

    /// Notes the vote that [`Session::may_vote`] allowed and the store has kept.
    pub fn voted(&mut self, vote: &Vote) {
        let Some(&slot) = self.index.get(&vote.pair) else { return };
        self.drop_hand(vote.annotator);
        let skip = vote.choice == Choice::Skip;
        self.give(vote.annotator, Gift { vote: vote.id, slot, swapped: vote.swapped, skip });
    }

    /// Takes this person's last vote back: its task is in their hand again, as it was shown. Gives the vote's id.
    pub fn undo(&mut self, annotator: i64, now: i64) -> Result<(i64, Lease), Refusal> {
        self.lapse(now);
        let person = self.people.get_mut(&annotator).ok_or(Refusal::NothingGiven)?;
        let gift = *person.given.last().ok_or(Refusal::NothingGiven)?;
        // Others may have judged what was only skipped.
        if gift.skip && !self.slots[gift.slot].has_room() {
            return Err(Refusal::Taken);
        }
        person.given.pop();
        person.seen.remove(&gift.slot);
        person.cursor = person.cursor.min(gift.slot);
        person.tilt -= if gift.swapped { 1 } else { -1 };
        if let Some(repeat) = self.slots[gift.slot].repeat {
            person.repeats.retain(|r| *r != repeat);
        }
        if self.slots[gift.slot].pair.repeat_of.is_some() {
            person.repeats.push(gift.slot);
        }
        self.drop_hand(annotator);
        if !gift.skip {
            self.slots[gift.slot].votes -= 1;
            self.given -= i64::from(self.slots[gift.slot].pair.repeat_of.is_none());
        }
        self.reopen(gift.slot);
        let hand = self.take(annotator, gift.slot, gift.swapped, now, now);
        Ok((gift.vote, self.lease(annotator, hand)))
    }

    /// A sign of life: the task stays in hand.
    pub fn keep(&mut self, annotator: i64, now: i64) {
        self.lapse(now);
        let until = now + self.patience;
        if let Some(hand) = self.people.get_mut(&annotator).and_then(|p| p.hand.as_mut()).filter(|h| !h.lapsed) {
            hand.until = until;
        }
    }

    /// The page was closed: the task goes to somebody else unless it is opened again soon.
    pub fn leave(&mut self, annotator: i64, now: i64) {
        if let Some(hand) = self.people.get_mut(&annotator).and_then(|p| p.hand.as_mut()) {
            hand.until = hand.until.min(now + GRACE);
        }
    }

    pub fn progress(&self, annotator: i64) -> Progress {
        let mine = self.people.get(&annotator).map_or(0, |p| p.given.len());
        Progress { mine, given: self.given, wanted: self.wanted }
    }

    fn person(&mut self, annotator: i64) -> &mut Person {
        self.people.entry(annotator).or_default()
    }

    fn lease(&self, annotator: i64, hand: Hand) -> Lease {
        Lease { pair: self.slots[hand.slot].pair.id, annotator, swapped: hand.swapped, since: hand.since }
    }

    /// The next slot for somebody with empty hands.
    fn choose(&mut self, annotator: i64) -> Option<usize> {
        if let Some(slot) = self.repeat(annotator, |gap| gap) {
            return Some(slot);
        }
        let person = self.people.get_mut(&annotator)?;
        let slot = self.open.range(person.cursor..).find(|i| !person.seen.contains(i)).copied();
        person.cursor = slot.unwrap_or(self.slots.len());
        // With no other work left a repeat comes early, but not right after the first.
        slot.or_else(|| self.repeat(annotator, |_| 2))
    }

    /// A repeat that is due; `gap` makes of the distance it would like the one that is asked for.
    fn repeat(&self, annotator: i64, gap: impl Fn(usize) -> usize) -> Option<usize> {
        let person = self.people.get(&annotator)?;
        let due = |&&slot: &&usize| {
            let Some(first) = self.slots[slot].pair.repeat_of.and_then(|id| self.index.get(&id)) else { return false };
            let Some(at) = person.given.iter().rposition(|g| g.slot == *first) else { return false };
            let extra = rng::number(self.seed, "label: gap of a repeat", slot as u64) as usize % (GAP + 1);
            person.given.len() - at >= gap(GAP + extra).max(2) && self.slots[slot].has_room()
        };
        person.repeats.iter().find(due).copied()
    }

    /// Whether `b` goes to the left: chance, until one side is two ahead.
    fn side(&self, annotator: i64, slot: usize) -> bool {
        match self.people.get(&annotator).map_or(0, |p| p.tilt) {
            2.. => false,
            ..=-2 => true,
            _ => {
                let purpose = format!("label: side for {annotator}");
                rng::number(self.seed, &purpose, self.slots[slot].pair.id as u64) & 1 == 1
            }
        }
    }

    /// Puts a task into somebody's hand.
    fn take(&mut self, annotator: i64, slot: usize, swapped: bool, since: i64, now: i64) -> Hand {
        self.drop_hand(annotator);
        let hand = Hand { slot, swapped, since, until: now + self.patience, lapsed: false };
        self.person(annotator).hand = Some(hand);
        self.slots[slot].held += 1;
        if !self.slots[slot].has_room() {
            self.open.remove(&slot);
        }
        hand
    }

    /// Takes a task out of somebody's hand.
    fn drop_hand(&mut self, annotator: i64) {
        if let Some(hand) = self.person(annotator).hand.take().filter(|h| !h.lapsed) {
            self.slots[hand.slot].held -= 1;
            self.reopen(hand.slot);
        }
    }

    /// Frees tasks without a sign of life. They stay known to who had them: a late vote counts while there is room.
    fn lapse(&mut self, now: i64) {
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

    /// Offers a pair again where it has room.
    fn reopen(&mut self, slot: usize) {
        if self.slots[slot].has_room() && self.slots[slot].pair.repeat_of.is_none() && self.open.insert(slot) {
            for person in self.people.values_mut() {
                person.cursor = person.cursor.min(slot);
            }
        }
    }

    /// Notes a vote that stands.
    fn give(&mut self, annotator: i64, gift: Gift) {
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
        person.tilt += if gift.swapped { 1 } else { -1 };
        if is_repeat {
            person.repeats.retain(|r| *r != gift.slot);
        }
        person.repeats.extend(repeat);
    }
}
