//! Computes the report on a project's labels.

use super::contents::{Agreement, CohenKappa, FleissKappa, JudgeReport, LabelReport, ProjectCounts, VerdictAgreement};
use super::findings;
use crate::label::project::snapshot::Project;
use crate::label::project::votes::{JudgeFilter, ResolvedVote};
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::vote::VoteChoice;
use crate::label::results::bias::{JudgeHabits, habits, length_baseline};
use crate::label::results::ranking::SourceRanking;
use crate::label::results::verdict::{Aggregation, PairVerdict, VERDICTS, aggregate, symmetric_dawid_skene};
use crate::label::statistics::agreement::{DistanceScale, RatingTable};
use crate::label::statistics::dawid_skene::UnitRatings;
use crate::stats::bootstrap::Bootstrap;
use crate::stats::proportion::Proportion;
use std::collections::{BTreeMap, BTreeSet};

impl LabelReport {
    /// Computes the report; intervals come from `bootstrap`. Verdicts are based on the votes of `judges`; if `None`, on
    /// the votes of people if there are any, otherwise on all votes.
    pub fn of(
        project: &Project,
        judges: Option<&JudgeFilter>,
        aggregation: Aggregation,
        bootstrap: &Bootstrap,
    ) -> Self {
        let all = project.resolved_votes(&JudgeFilter::All);
        let people = project.resolved_votes(&JudgeFilter::Kind(AnnotatorKind::Person));
        let deciding = match judges {
            Some(judges) => project.resolved_votes(judges),
            None if people.is_empty() => all.clone(),
            None => people,
        };
        let names: BTreeSet<&str> = deciding.iter().map(|b| b.annotator.name.as_str()).collect();
        let verdicts = aggregate(&deciding, aggregation);
        let mut named: BTreeMap<&'static str, usize> = VERDICTS.iter().map(|c| (c.name(), 0)).collect();
        verdicts.values().for_each(|v| *named.entry(v.choice.name()).or_default() += 1);
        let mut report = Self {
            title: project.settings.title.clone(),
            counts: counts(project, &all),
            aggregation,
            judged_by: names.iter().map(|n| n.to_string()).collect(),
            verdicts: named,
            agreement: agreement(&deciding, bootstrap),
            judges: judge_reports(project, &all, &names, &verdicts, bootstrap),
            ranking: SourceRanking::of(project, &verdicts, bootstrap),
            length: length_baseline(project, &verdicts),
            findings: Vec::new(),
            ft_version: env!("CARGO_PKG_VERSION"),
        };
        report.findings = findings::find(&report);
        report
    }
}

fn counts(project: &Project, votes: &[ResolvedVote]) -> ProjectCounts {
    let kinds: BTreeMap<i64, AnnotatorKind> = votes.iter().map(|b| (b.annotator.id, b.annotator.kind)).collect();
    let people = kinds.values().filter(|k| **k == AnnotatorKind::Person).count();
    let repeats = project.pairs.iter().filter(|p| p.repeat_of.is_some()).count();
    ProjectCounts {
        prompts: project.prompts.len(),
        candidates: project.candidates.len(),
        pairs: project.pairs.len() - repeats,
        repeats,
        votes: votes.len(),
        skips: votes.iter().filter(|b| b.choice == VoteChoice::Skip).count(),
        people,
        machines: kinds.len() - people,
        shared: rating_table(votes, choice_index).shared_units(),
    }
}

/// Returns the ratings of pairs as a table, without repeats, skips and final decisions.
fn rating_table(votes: &[ResolvedVote], value: impl Fn(&ResolvedVote) -> f64) -> RatingTable {
    let counted = votes.iter().filter(|b| !b.repeat && b.choice != VoteChoice::Skip && !b.vote.adjudicates());
    RatingTable::new(counted.map(|b| (b.pair.id as usize, b.annotator.id as usize, value(b))))
}

fn choice_index(resolved: &ResolvedVote) -> f64 {
    VERDICTS.iter().position(|c| *c == resolved.choice).unwrap_or_default() as f64
}

fn agreement(votes: &[ResolvedVote], bootstrap: &Bootstrap) -> Agreement {
    let choices = rating_table(votes, choice_index);
    let decided = || votes.iter().filter(|b| matches!(b.choice, VoteChoice::A | VoteChoice::B));
    let strengths = decided().all(|b| b.vote.strength.is_some());
    let preference = |b: &ResolvedVote| match b.preference().unwrap_or(0.0) {
        p if p == 0.0 || strengths => p,
        p => p.signum(),
    };
    let preferences = rating_table(votes, preference);
    let names: BTreeMap<i64, &str> = votes.iter().map(|b| (b.annotator.id, b.annotator.name.as_str())).collect();
    let couples = names.iter().flat_map(|(a, x)| names.range(a + 1..).map(move |(b, y)| ((*a, *x), (*b, *y))));
    let cohen = couples.filter_map(|((a, x), (b, y))| {
        let (kappa, pairs) = choices.cohen(a as usize, b as usize, bootstrap)?;
        Some(CohenKappa { a: x.into(), b: y.into(), kappa, pairs })
    });
    let mut same = (0, 0);
    let mut first: BTreeMap<(i64, i64), VoteChoice> = BTreeMap::new();
    for resolved in votes.iter().filter(|b| b.choice != VoteChoice::Skip) {
        let key = (resolved.pair.id, resolved.annotator.id);
        // Votes are sorted so that the original of a pair comes before its repeat.
        match first.get(&key).filter(|_| resolved.repeat) {
            Some(before) => same = (same.0 + usize::from(*before == resolved.choice), same.1 + 1),
            None if !resolved.repeat => drop(first.insert(key, resolved.choice)),
            None => {}
        }
    }
    Agreement {
        alpha_nominal: choices.alpha(DistanceScale::Nominal, bootstrap),
        alpha_ordinal: preferences.alpha(DistanceScale::Ordinal, bootstrap),
        alpha_interval: preferences.alpha(DistanceScale::Interval, bootstrap),
        fleiss: choices.fleiss(bootstrap).map(|(kappa, pairs, votes)| FleissKappa { kappa, pairs, votes }),
        raw: choices.raw_agreement(bootstrap),
        cohen: cohen.collect(),
        self_consistency: Proportion::of(same.0, same.1),
    }
}

fn judge_reports(
    project: &Project,
    votes: &[ResolvedVote],
    deciding: &BTreeSet<&str>,
    verdicts: &BTreeMap<i64, PairVerdict>,
    bootstrap: &Bootstrap,
) -> Vec<JudgeReport> {
    let reliability = reliability(votes);
    let judge = |habits: JudgeHabits| {
        let own: Vec<&ResolvedVote> = votes.iter().filter(|b| b.annotator.name == habits.name && !b.repeat).collect();
        let apart = !deciding.contains(habits.name.as_str());
        let with_verdicts = if apart { with_verdicts(&own, verdicts, bootstrap) } else { None };
        let reliability = own.first().and_then(|b| reliability.get(&b.annotator.id).copied());
        JudgeReport { habits, reliability, with_verdicts }
    };
    habits(project, votes).into_iter().map(judge).collect()
}

/// Computes the reliability `Σ_c p_c π_cc` of each annotator; empty if fewer than two voted.
fn reliability(votes: &[ResolvedVote]) -> BTreeMap<i64, f64> {
    let ids: Vec<i64> = votes.iter().map(|b| b.annotator.id).collect::<BTreeSet<_>>().into_iter().collect();
    if ids.len() < 2 {
        return BTreeMap::new();
    }
    let mut units: BTreeMap<i64, UnitRatings> = BTreeMap::new();
    for b in votes.iter().filter(|b| !b.repeat && b.choice != VoteChoice::Skip) {
        let rater = ids.binary_search(&b.annotator.id).unwrap_or_default();
        units.entry(b.pair.id).or_default().push((rater, choice_index(b) as usize));
    }
    let found = symmetric_dawid_skene(&units.into_values().collect::<Vec<_>>(), ids.len());
    let right = |c: &Vec<Vec<f64>>| found.prior.iter().enumerate().map(|(k, p)| p * c[k][k]).sum::<f64>();
    ids.iter().zip(&found.confusion).map(|(id, c)| (*id, right(c).min(1.0))).collect()
}

fn with_verdicts(
    own: &[&ResolvedVote],
    verdicts: &BTreeMap<i64, PairVerdict>,
    bootstrap: &Bootstrap,
) -> Option<VerdictAgreement> {
    let place = |c: VoteChoice| VERDICTS.iter().position(|v| *v == c).map(|i| i as f64);
    let both: Vec<(usize, f64, f64)> = own
        .iter()
        .filter_map(|b| Some((b.pair.id as usize, place(b.choice)?, place(verdicts.get(&b.pair.id)?.choice)?)))
        .collect();
    let same = Proportion::of(both.iter().filter(|(_, a, b)| a == b).count(), both.len())?;
    let table = RatingTable::new(both.iter().flat_map(|(pair, a, b)| [(*pair, 0, *a), (*pair, 1, *b)]));
    Some(VerdictAgreement { pairs: both.len(), same, kappa: table.cohen(0, 1, bootstrap).map(|(k, _)| k) })
}
