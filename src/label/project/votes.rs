//! Resolves the votes of a project for the statistics.
//!
//! A stored vote refers to its annotator and pair by id, may be undone, and may be on a hidden repeat. A
//! [`ResolvedVote`] is a vote with these references resolved. Invariant: for each annotator and pair there is one, the
//! last vote that was not undone. A vote on a hidden repeat becomes a vote on the original pair with `repeat` set, so
//! that a statistic counts a person twice only on purpose.

use super::snapshot::Project;
use crate::label::record::annotator::{Annotator, AnnotatorKind};
use crate::label::record::answer::CandidatePair;
use crate::label::record::vote::{Vote, VoteChoice};
use std::collections::{BTreeMap, HashMap};

/// Selects annotators whose votes count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum JudgeFilter {
    /// Every annotator.
    #[default]
    All,
    /// The annotators of this kind.
    Kind(AnnotatorKind),
    /// Every annotator that is not a person.
    Machines,
    /// The annotators with these names.
    Named(Vec<String>),
}

impl JudgeFilter {
    fn includes(&self, annotator: &Annotator) -> bool {
        match self {
            Self::All => true,
            Self::Kind(kind) => annotator.kind == *kind,
            Self::Machines => annotator.kind != AnnotatorKind::Person,
            Self::Named(names) => names.contains(&annotator.name),
        }
    }
}

/// A vote that counts, with its annotator and pair.
#[derive(Debug, Clone, Copy)]
pub struct ResolvedVote<'p> {
    /// The stored vote: its choice and sides refer to the pair that was shown, which may be a repeat.
    pub vote: &'p Vote,
    /// Who voted.
    pub annotator: &'p Annotator,
    /// The pair that was judged; for a hidden repeat, the original pair.
    pub pair: &'p CandidatePair,
    /// The choice in terms of `a` and `b` of `pair`.
    pub choice: VoteChoice,
    /// Whether the vote was on a hidden repeat.
    pub repeat: bool,
}

impl ResolvedVote<'_> {
    /// Returns by how much `a` is preferred: the strength if `a` was chosen (1 if none was given), the negative
    /// strength if `b` was, 0 for a tie and for "both bad", `None` for a skip.
    pub fn preference(&self) -> Option<f64> {
        let strength = self.vote.strength.unwrap_or(1) as f64;
        match self.choice {
            VoteChoice::A => Some(strength),
            VoteChoice::B => Some(-strength),
            VoteChoice::Tie | VoteChoice::BothBad => Some(0.0),
            VoteChoice::Skip => None,
        }
    }
}

impl Project {
    /// Returns the votes of the selected annotators, ordered by pair and annotator. Skips are included.
    pub fn resolved_votes(&self, judges: &JudgeFilter) -> Vec<ResolvedVote<'_>> {
        let pairs: HashMap<i64, &CandidatePair> = self.pairs.iter().map(|p| (p.id, p)).collect();
        let annotators: HashMap<i64, &Annotator> =
            self.annotators.iter().filter(|a| judges.includes(a)).map(|a| (a.id, a)).collect();
        let mut last: BTreeMap<(i64, bool, i64), ResolvedVote> = BTreeMap::new();
        let mut votes: Vec<&Vote> = self.votes.iter().filter(|v| !v.undone).collect();
        votes.sort_by_key(|v| v.id);
        for vote in votes {
            let (Some(&annotator), Some(&shown)) = (annotators.get(&vote.annotator), pairs.get(&vote.pair)) else {
                continue;
            };
            let pair = shown.repeat_of.and_then(|id| pairs.get(&id).copied()).unwrap_or(shown);
            let choice = if shown.a == pair.a { vote.choice } else { vote.choice.flipped() };
            let repeat = shown.repeat_of.is_some();
            let resolved = ResolvedVote { vote, annotator, pair, choice, repeat };
            last.insert((pair.id, repeat, annotator.id), resolved);
        }
        last.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::project::fixture::{project, vote};

    #[test]
    fn the_last_vote_counts_and_repeats_speak_of_the_first_pair() {
        let mut p = project(2, &[("ann", AnnotatorKind::Person), ("rm", AnnotatorKind::Reward)]);
        p.pairs.push(CandidatePair { id: 9, a: 3, b: 2, repeat_of: Some(1), ..p.pairs[1].clone() });
        vote(&mut p, 0, 0, VoteChoice::A);
        vote(&mut p, 0, 0, VoteChoice::B);
        vote(&mut p, 0, 0, VoteChoice::Tie).undone = true;
        vote(&mut p, 1, 0, VoteChoice::A);
        vote(&mut p, 9, 0, VoteChoice::B);
        vote(&mut p, 0, 1, VoteChoice::A);
        let found: Vec<(i64, bool, VoteChoice)> = p
            .resolved_votes(&JudgeFilter::Kind(AnnotatorKind::Person))
            .iter()
            .map(|b| (b.pair.id, b.repeat, b.choice))
            .collect();
        assert_eq!(found, [(0, false, VoteChoice::B), (1, false, VoteChoice::A), (1, true, VoteChoice::A)]);
        assert_eq!(p.resolved_votes(&JudgeFilter::Machines).len(), 1);
        assert_eq!(p.resolved_votes(&JudgeFilter::Named(vec!["rm".into()])).len(), 1);
        assert_eq!(p.resolved_votes(&JudgeFilter::All).len(), 4);
    }
}
