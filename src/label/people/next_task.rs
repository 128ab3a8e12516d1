//! Chooses the next task of an annotator: a hidden repeat that is due, otherwise the first open pair that they have not
//! seen; and on which side its answers are shown.

use super::assignment::{PairState, TaskAssignment};
use super::task::NextTask;
use crate::rng;

/// Smallest number of judgements between a pair and its repeat; the random gap is up to twice as large. Without other
/// work left, repeats come earlier.
const REPEAT_GAP: usize = 8;

impl TaskAssignment {
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
}
