//! Tests which tasks annotators get: the invariants of `label::people::assignment` are checked after every event of random
//! histories.

use ft::label::people::assignment::TaskAssignment;
use ft::label::people::task::{NextTask, TaskRefusal};
use ft::label::record::answer::{CandidatePair, JsonMap};
use ft::label::record::vote::{Vote, VoteChoice};
use ft::rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const LEASE: i64 = 60_000;

/// Returns ordinary pairs 1..=n, then repeats of the first `repeats` of them.
fn pairs(n: i64, overlap: i64, repeats: i64) -> Vec<CandidatePair> {
    let pair = |id: i64, repeat_of: Option<i64>| {
        let overlap = if repeat_of.is_some() { 2 } else { overlap };
        CandidatePair { id, prompt: id, a: 2 * id, b: 2 * id + 1, overlap, repeat_of, reason: String::new() }
    };
    (1..=n).map(|id| pair(id, None)).chain((1..=repeats).map(|id| pair(n + id, Some(id)))).collect()
}

fn vote(id: i64, pair: i64, annotator: i64, choice: VoteChoice, swapped: bool) -> Vote {
    Vote {
        id,
        pair,
        annotator,
        choice,
        strength: None,
        swapped,
        seconds: None,
        note: None,
        flagged: false,
        ratings: JsonMap::new(),
        edited: None,
        detail: json!({}),
        created: String::new(),
        undone: false,
    }
}

/// A task assignment together with an independent record of its history, against which the invariants are checked.
struct World {
    session: TaskAssignment,
    pairs: BTreeMap<i64, CandidatePair>,
    votes: Vec<Vote>,
    /// The task that each annotator was last given: annotator -> (pair, swapped).
    hands: BTreeMap<i64, (i64, bool)>,
    now: i64,
    next_id: i64,
}

impl World {
    fn new(pairs: Vec<CandidatePair>) -> Self {
        Self {
            session: TaskAssignment::new(7, LEASE, pairs.clone(), &[], &[], 0),
            pairs: pairs.into_iter().map(|p| (p.id, p)).collect(),
            votes: Vec::new(),
            hands: BTreeMap::new(),
            now: 0,
            next_id: 1,
        }
    }

    fn own(&self, who: i64) -> Vec<&Vote> {
        self.votes.iter().filter(|v| v.annotator == who).collect()
    }

    fn next(&mut self, who: i64) -> NextTask {
        let next = self.session.next_task(who, self.now);
        if let NextTask::Task { lease, .. } = next {
            let pair = &self.pairs[&lease.pair];
            let own = self.own(who);
            assert!(own.iter().all(|v| v.pair != pair.id), "{who} gets pair {} twice", pair.id);
            if let Some(first) = pair.repeat_of {
                let at = own
                    .iter()
                    .rposition(|v| v.pair == first && v.choice != VoteChoice::Skip)
                    .expect("a repeat of a judged pair");
                assert!(own.len() - at >= 2, "a repeat right after the first");
            }
            self.hands.insert(who, (lease.pair, lease.swapped));
        } else {
            self.hands.remove(&who);
        }
        next
    }

    /// Votes on the annotator's current task. Fails if the session no longer accepts it.
    fn vote(&mut self, who: i64, choice: VoteChoice) -> Result<(), TaskRefusal> {
        let Some(&(pair, swapped)) = self.hands.get(&who) else { return Err(TaskRefusal::NotYours) };
        let lease = self.session.may_vote(who, pair, self.now)?;
        assert_eq!(lease.swapped, swapped, "the sides differ from those that were shown");
        let vote = vote(self.next_id, pair, who, choice, swapped);
        self.next_id += 1;
        self.session.record_vote(&vote);
        self.votes.push(vote);
        self.hands.remove(&who);
        self.check();
        Ok(())
    }

    fn undo(&mut self, who: i64) -> Result<(), TaskRefusal> {
        let (id, lease) = self.session.undo(who, self.now)?;
        let last = self.votes.iter().rposition(|v| v.annotator == who).unwrap();
        assert_eq!(self.votes[last].id, id, "undo returned another vote than the last one");
        let gone = self.votes.remove(last);
        assert_eq!((lease.pair, lease.swapped), (gone.pair, gone.swapped), "undo returned another task or other sides");
        self.hands.insert(who, (gone.pair, gone.swapped));
        self.check();
        Ok(())
    }

    fn check(&self) {
        let mut count: BTreeMap<i64, i64> = BTreeMap::new();
        for vote in self.votes.iter().filter(|v| v.choice != VoteChoice::Skip) {
            *count.entry(vote.pair).or_default() += 1;
        }
        for (id, n) in count {
            assert!(n <= self.pairs[&id].overlap, "{n} votes on pair {id}");
        }
        let people: BTreeSet<i64> = self.votes.iter().map(|v| v.annotator).collect();
        for who in people {
            let own = self.own(who);
            let swapped = own.iter().filter(|v| v.swapped).count() as i64;
            assert!((2 * swapped - own.len() as i64).abs() <= 2, "{swapped} of {} swapped", own.len());
        }
    }
}

fn any_choice(rng: &mut ChaCha8Rng) -> VoteChoice {
    VoteChoice::ALL[rng.random_range(0..VoteChoice::ALL.len())]
}

#[test]
fn random_histories_keep_every_invariant() {
    for seed in 0..60u64 {
        let mut rng = rng::stream(seed, "tests: sessions", 0);
        let (n, overlap) = (rng.random_range(1..25), rng.random_range(1..4));
        let mut world = World::new(pairs(n, overlap, rng.random_range(0..=n)));
        let people = rng.random_range(1..7i64);
        for _ in 0..600 {
            let who = rng.random_range(1..=people);
            match rng.random_range(0..20) {
                0..=7 => drop(world.next(who)),
                8..=14 => drop(world.vote(who, any_choice(&mut rng))),
                15 | 16 => drop(world.undo(who)),
                17 => world.session.shorten(who, world.now),
                18 => world.session.renew(who, world.now),
                _ => world.now += rng.random_range(0..LEASE * 2),
            }
            world.now += rng.random_range(0..500);
        }
        // After a restart from the stored votes, nobody gets a pair twice and the overlap is still respected.
        let all: Vec<CandidatePair> = world.pairs.values().cloned().collect();
        world.session = TaskAssignment::new(7, LEASE, all, &world.votes, &[], world.now);
        world.hands.clear();
        for who in 1..=people {
            while let NextTask::Task { .. } = world.next(who) {
                world.vote(who, VoteChoice::A).unwrap();
            }
        }
    }
}

#[test]
fn every_pair_gets_as_many_votes_as_its_overlap() {
    let mut world = World::new(pairs(30, 2, 5));
    let mut done = BTreeSet::new();
    while done.len() < 3 {
        for who in 1..=3 {
            match world.next(who) {
                NextTask::Task { .. } => world.vote(who, VoteChoice::B).unwrap(),
                NextTask::Wait => {}
                NextTask::Done => drop(done.insert(who)),
            }
        }
    }
    let ordinary = world.votes.iter().filter(|v| v.pair <= 30).count();
    assert_eq!(ordinary, 60);
    let progress = world.session.progress(1);
    assert_eq!((progress.given, progress.wanted), (60, 60));
    assert!(world.votes.iter().any(|v| v.pair > 30), "no repeat was shown");
}

#[test]
fn a_leased_task_is_not_given_to_others_until_the_lease_ends() {
    let mut world = World::new(pairs(1, 1, 0));
    assert!(matches!(world.next(1), NextTask::Task { fresh: true, .. }));
    assert!(matches!(world.next(1), NextTask::Task { fresh: false, .. }), "a reload must show the same task");
    assert_eq!(world.next(2), NextTask::Wait);
    world.now += LEASE - 1;
    world.session.renew(1, world.now);
    world.now += LEASE - 1;
    assert_eq!(world.next(2), NextTask::Wait, "`keep` must extend the lease");
    world.now += 2;
    assert!(matches!(world.next(2), NextTask::Task { fresh: true, .. }));
    assert_eq!(world.vote(1, VoteChoice::A), Err(TaskRefusal::Taken));
    world.vote(2, VoteChoice::A).unwrap();
    assert_eq!(world.next(1), NextTask::Done);
}

#[test]
fn a_late_vote_is_accepted_below_the_overlap() {
    let mut world = World::new(pairs(1, 1, 0));
    world.next(1);
    world.now += LEASE * 10;
    world.vote(1, VoteChoice::A).unwrap();
    assert_eq!(world.next(2), NextTask::Done);
}

#[test]
fn closing_the_page_shortens_the_lease_and_a_reload_restores_it() {
    let mut world = World::new(pairs(1, 1, 0));
    world.next(1);
    world.session.shorten(1, world.now);
    world.now += 20_000;
    assert_eq!(world.next(2), NextTask::Wait);
    assert!(matches!(world.next(1), NextTask::Task { fresh: false, .. }), "a reload must get the task back");
    world.now += 20_000;
    assert_eq!(world.next(2), NextTask::Wait);
    world.session.shorten(1, world.now);
    world.now += 31_000;
    assert!(matches!(world.next(2), NextTask::Task { .. }));
}

#[test]
fn skipped_tasks_go_to_other_annotators() {
    let mut world = World::new(pairs(1, 1, 0));
    world.next(1);
    world.vote(1, VoteChoice::Skip).unwrap();
    assert_eq!(world.next(1), NextTask::Done, "a skipped task must not come back to the same annotator");
    assert!(matches!(world.next(2), NextTask::Task { .. }));
    assert_eq!(world.undo(1), Err(TaskRefusal::Taken), "another annotator has the task now");
    world.vote(2, VoteChoice::A).unwrap();
    assert_eq!(world.next(1), NextTask::Done);
    assert_eq!(world.undo(3), Err(TaskRefusal::NothingGiven));
}

#[test]
fn repeats_come_later_and_to_the_same_annotator() {
    let mut world = World::new(pairs(60, 1, 10));
    let mut order = Vec::new();
    while let NextTask::Task { lease, .. } = world.next(1) {
        order.push(lease.pair);
        world.vote(1, VoteChoice::A).unwrap();
    }
    assert_eq!(order.len(), 70);
    for repeat in 61..=70 {
        let place = |id: i64| order.iter().position(|p| *p == id).unwrap();
        assert!(place(repeat) - place(repeat - 60) >= 8, "{order:?}");
        assert!(place(repeat) < 69 || repeat == 70);
    }
    assert_eq!(world.next(2), NextTask::Done, "a repeat must go to the annotator who judged the pair");
    // With a single pair, the repeat would come directly after it, so it is not shown.
    let mut world = World::new(pairs(1, 1, 1));
    world.next(1);
    world.vote(1, VoteChoice::A).unwrap();
    assert_eq!(world.next(1), NextTask::Done);
}

#[test]
fn leases_survive_a_restart() {
    let mut world = World::new(pairs(3, 1, 0));
    let NextTask::Task { lease, .. } = world.next(1) else { panic!() };
    let all: Vec<CandidatePair> = world.pairs.values().cloned().collect();
    let mut again = TaskAssignment::new(7, LEASE, all, &[], &[lease], 5);
    assert_eq!(again.next_task(1, 6), NextTask::Task { lease, fresh: false });
    assert!(matches!(again.next_task(2, 6), NextTask::Task { lease: other, .. } if other.pair != lease.pair));
}

#[test]
fn pairs_added_later_are_shown() {
    let mut world = World::new(pairs(1, 1, 0));
    world.next(1);
    world.vote(1, VoteChoice::A).unwrap();
    assert_eq!(world.next(1), NextTask::Done);
    for pair in pairs(2, 1, 0) {
        world.pairs.insert(pair.id, pair);
    }
    world.session.add_pairs(pairs(2, 1, 0));
    assert!(matches!(world.next(1), NextTask::Task { lease, .. } if lease.pair == 2));
}
