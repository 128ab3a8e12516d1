//! Computes the admin's overview of a project: progress, speed and side bias of each annotator, and disagreements.
//!
//! Point estimates only; [`crate::label::report`] has the intervals.

use crate::label::record::annotator::{Annotator, AnnotatorKind};
use crate::label::record::answer::CandidatePair;
use crate::label::record::vote::{Vote, VoteChoice};
use crate::label::statistics::agreement::{DistanceScale, RatingTable};
use crate::label::statistics::summary::upper_median;
use crate::stats::bootstrap::Bootstrap;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Largest number of disagreements that the page shows at a time.
pub const MAX_DISAGREEMENTS: usize = 20;

/// Numbers of a project at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Number of pairs, without hidden repeats.
    pub pairs: usize,
    /// Pairs that were judged by as many people as wanted (their overlap).
    pub complete: usize,
    /// Judgements that people gave, without skips and repeats.
    pub given: i64,
    /// Judgements that are wanted from people.
    pub wanted: i64,
    /// Share of equal judgements among all couples of people who judged the same pair.
    pub agreement: Fraction,
    /// Krippendorff's alpha (nominal) of the same judgements: agreement beyond chance.
    pub alpha: Option<f64>,
    /// Share of hidden repeats that were judged as the original.
    pub consistency: Fraction,
    /// Number of pairs with a final decision.
    pub adjudicated: usize,
    /// The annotators who voted or may sign in.
    pub people: Vec<AnnotatorSummary>,
    /// Pairs that people judged differently and that have no final decision; those with the most votes first.
    pub disagreements: Vec<Disagreement>,
    /// Votes of people that are flagged or have a note.
    pub flags: Vec<VoteRemark>,
}

/// A share as two counts: `part` out of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Default)]
pub struct Fraction {
    /// The counted part.
    pub part: usize,
    /// The whole.
    pub of: usize,
}

/// Summary of one annotator's votes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnnotatorSummary {
    /// Name of the annotator.
    pub name: String,
    /// Kind of the annotator.
    pub kind: AnnotatorKind,
    /// Number of votes without skips.
    pub votes: usize,
    /// Number of skips.
    pub skips: usize,
    /// Number of ties.
    pub ties: usize,
    /// Number of flagged votes.
    pub flagged: usize,
    /// Median seconds per vote.
    pub seconds: Option<f64>,
    /// Choices of the left answer among the choices of one answer; half without bias.
    pub left: Fraction,
    /// Judgements equal to those of others on the same pairs.
    pub agreement: Fraction,
}

/// A pair that people judged differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Disagreement {
    /// Id of the pair.
    pub pair: i64,
    /// Annotator name and choice of each vote.
    pub votes: Vec<(String, VoteChoice)>,
}

/// A vote that is flagged or has a note.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoteRemark {
    /// Id of the pair.
    pub pair: i64,
    /// Name of the annotator.
    pub name: String,
    /// Whether the vote is flagged.
    pub flagged: bool,
    /// The annotator's note.
    pub note: Option<String>,
}

impl Overview {
    /// Computes the overview. `votes` must not contain undone votes.
    pub fn new(pairs: &[CandidatePair], votes: &[Vote], annotators: &[Annotator]) -> Self {
        let by_id: HashMap<i64, &Annotator> = annotators.iter().map(|a| (a.id, a)).collect();
        let name = |v: &Vote| by_id.get(&v.annotator).map_or(String::new(), |a| a.name.clone());
        let person = |v: &&Vote| by_id.get(&v.annotator).is_some_and(|a| a.kind == AnnotatorKind::Person);
        let finals: HashMap<i64, &Vote> = votes.iter().filter(|v| v.adjudicates()).map(|v| (v.pair, v)).collect();
        let mut judged: BTreeMap<i64, Vec<&Vote>> = BTreeMap::new();
        let people = || votes.iter().filter(person).filter(|v| !v.adjudicates());
        for vote in people().filter(|v| v.choice != VoteChoice::Skip) {
            judged.entry(vote.pair).or_default().push(vote);
        }
        let ordinary: Vec<&CandidatePair> = pairs.iter().filter(|p| p.repeat_of.is_none()).collect();
        let count = |p: &CandidatePair| judged.get(&p.id).map_or(0, Vec::len) as i64;
        let (mut agreement, mut with_others) = (Fraction::default(), HashMap::<i64, Fraction>::new());
        for pair in &ordinary {
            let of = judged.get(&pair.id).map(Vec::as_slice).unwrap_or_default();
            for (i, one) in of.iter().enumerate() {
                for other in &of[i + 1..] {
                    let same = one.choice == other.choice;
                    agreement.add(same);
                    with_others.entry(one.annotator).or_default().add(same);
                    with_others.entry(other.annotator).or_default().add(same);
                }
            }
        }
        let rated = ordinary.iter().flat_map(|p| judged.get(&p.id).into_iter().flatten());
        let table = RatingTable::new(rated.map(|v| (v.pair as usize, v.annotator as usize, v.choice as usize as f64)));
        let alpha = table.alpha(DistanceScale::Nominal, &Bootstrap { replicates: 0, seed: 0 }).map(|a| a.value);
        let pairs_by_id: HashMap<i64, &CandidatePair> = pairs.iter().map(|p| (p.id, p)).collect();
        let mut consistency = Fraction::default();
        for repeat in pairs {
            let original = repeat.repeat_of.and_then(|id| pairs_by_id.get(&id));
            let first = repeat.repeat_of.and_then(|id| judged.get(&id));
            for again in judged.get(&repeat.id).into_iter().flatten().filter(|_| first.is_some()) {
                let before = first.and_then(|f| f.iter().find(|v| v.annotator == again.annotator));
                // A repeat may have the two answers exchanged.
                let turned = original.is_some_and(|p| p.a != repeat.a);
                if let Some(before) = before {
                    let now = if turned { again.choice.flipped() } else { again.choice };
                    consistency.add(now == before.choice);
                }
            }
        }
        let open = |p: &&&CandidatePair| {
            let of = judged.get(&p.id).map(Vec::as_slice).unwrap_or_default();
            !finals.contains_key(&p.id) && of.windows(2).any(|two| two[0].choice != two[1].choice)
        };
        let mut disagreements: Vec<Disagreement> = ordinary
            .iter()
            .filter(open)
            .map(|p| Disagreement { pair: p.id, votes: judged[&p.id].iter().map(|v| (name(v), v.choice)).collect() })
            .collect();
        disagreements.sort_by_key(|d| std::cmp::Reverse(d.votes.len()));
        let members = annotators.iter().filter_map(|a| {
            let own: Vec<&Vote> = votes.iter().filter(|v| v.annotator == a.id && !v.adjudicates()).collect();
            let shared = with_others.get(&a.id).copied().unwrap_or_default();
            (!own.is_empty() || a.token_hash.is_some()).then(|| AnnotatorSummary::new(a, &own, shared))
        });
        let flag = |v: &Vote| VoteRemark { pair: v.pair, name: name(v), flagged: v.flagged, note: v.note.clone() };
        Self {
            pairs: ordinary.len(),
            complete: ordinary.iter().filter(|p| count(p) >= p.overlap).count(),
            given: ordinary.iter().map(|p| count(p)).sum(),
            wanted: ordinary.iter().map(|p| p.overlap).sum(),
            agreement,
            alpha,
            consistency,
            adjudicated: finals.len(),
            people: members.collect(),
            disagreements,
            flags: people().filter(|v| v.flagged || v.note.is_some()).map(flag).collect(),
        }
    }
}

impl Fraction {
    fn add(&mut self, hit: bool) {
        self.part += usize::from(hit);
        self.of += 1;
    }
}

impl AnnotatorSummary {
    fn new(annotator: &Annotator, own: &[&Vote], agreement: Fraction) -> Self {
        let count = |f: &dyn Fn(&Vote) -> bool| own.iter().filter(|v| f(v)).count();
        let seconds = own.iter().filter(|v| v.choice != VoteChoice::Skip).filter_map(|v| v.seconds);
        let mut left = Fraction::default();
        for vote in own.iter().filter(|v| matches!(v.choice, VoteChoice::A | VoteChoice::B)) {
            left.add((vote.choice == VoteChoice::A) != vote.swapped);
        }
        Self {
            name: annotator.name.clone(),
            kind: annotator.kind,
            votes: count(&|v| v.choice != VoteChoice::Skip),
            skips: count(&|v| v.choice == VoteChoice::Skip),
            ties: count(&|v| v.choice == VoteChoice::Tie),
            flagged: count(&|v| v.flagged),
            seconds: upper_median(seconds.collect()),
            left,
            agreement,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pair(id: i64, overlap: i64, repeat_of: Option<i64>) -> CandidatePair {
        CandidatePair { id, prompt: 1, a: 10 + id, b: 20 + id, overlap, repeat_of, reason: "random".into() }
    }

    fn vote(id: i64, pair: i64, annotator: i64, choice: VoteChoice) -> Vote {
        Vote {
            id,
            pair,
            annotator,
            choice,
            strength: None,
            swapped: id % 2 == 0,
            seconds: Some(id as f64),
            note: None,
            flagged: id == 1,
            ratings: Default::default(),
            edited: None,
            detail: json!({ "adjudicated": annotator == 9 }),
            created: String::new(),
            undone: false,
        }
    }

    fn somebody(id: i64, kind: AnnotatorKind) -> Annotator {
        Annotator { id, name: format!("n{id}"), kind, token_hash: None, detail: json!({}) }
    }

    #[test]
    fn numbers_of_a_small_project() {
        let mut repeat = pair(3, 1, Some(1));
        (repeat.a, repeat.b) = (11, 21);
        let pairs = [pair(1, 2, None), pair(2, 2, None), repeat];
        let people = [
            somebody(1, AnnotatorKind::Person),
            somebody(2, AnnotatorKind::Person),
            somebody(3, AnnotatorKind::Judge),
            somebody(9, AnnotatorKind::Person),
        ];
        use VoteChoice::*;
        let mut votes = vec![
            vote(1, 1, 1, A), // left
            vote(2, 1, 2, A), // swapped: right
            vote(3, 2, 1, A),
            vote(4, 2, 2, Tie),
            vote(5, 3, 1, B),
            vote(6, 1, 3, B),
        ];
        let view = Overview::new(&pairs, &votes, &people);
        assert_eq!((view.pairs, view.complete, view.given, view.wanted), (2, 2, 4, 4));
        assert_eq!((view.agreement.part, view.agreement.of), (1, 2));
        // Three of A and one tie: observed 2 of 4 apart, expected 2 * 3 of 4 * 3.
        assert_eq!(view.alpha, Some(0.0));
        assert_eq!((view.consistency.part, view.consistency.of), (0, 1));
        assert_eq!(view.disagreements, [Disagreement { pair: 2, votes: vec![("n1".into(), A), ("n2".into(), Tie)] }]);
        let first = &view.people[0];
        assert_eq!((first.votes, first.left, first.seconds), (3, Fraction { part: 2, of: 3 }, Some(3.0)));
        assert_eq!((view.people[1].left, view.people[1].ties), (Fraction { part: 0, of: 1 }, 1));
        assert_eq!(view.flags.len(), 1);
        // The final decision ends the disagreement and does not count towards the agreement.
        votes.push(vote(7, 2, 9, A));
        let view = Overview::new(&pairs, &votes, &people);
        assert_eq!((view.disagreements.len(), view.adjudicated, view.agreement.of), (0, 1, 2));
    }

    /// Half of the repeats have the two answers exchanged. With so many repeats, a search through all pairs for each
    /// of them would take minutes.
    #[test]
    fn repeats_of_a_large_project_are_matched_with_their_originals() {
        let originals = 100_000;
        let repeat = |i: i64| {
            let (a, b) = if i % 2 == 0 { (10 + i, 20 + i) } else { (20 + i, 10 + i) };
            CandidatePair { a, b, ..pair(originals + i, 1, Some(i)) }
        };
        let pairs: Vec<CandidatePair> =
            (0..originals).map(|i| pair(i, 1, None)).chain((0..originals).map(repeat)).collect();
        // Always the answer named `a`: the same answer again only where the two are not exchanged.
        let votes: Vec<Vote> = pairs.iter().map(|p| vote(p.id, p.id, 1, VoteChoice::A)).collect();
        let began = std::time::Instant::now();
        let view = Overview::new(&pairs, &votes, &[somebody(1, AnnotatorKind::Person)]);
        let n = originals as usize;
        assert_eq!(view.consistency, Fraction { part: n / 2, of: n });
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    }
}
