//! Computes the report on a project's labels: agreement between annotators, their biases, the ranking of the sources,
//! and how well machines match the verdicts of people. [`Report`] has all numbers and is written as JSON; `page`
//! renders it.

mod findings;
mod page;

pub use findings::LabelFinding;
pub use page::render;

use super::aggregate::{Aggregation, PairVerdict, UnitRatings, VERDICTS, aggregate, symmetric_dawid_skene};
use super::agreement::{DistanceScale, RatingTable};
use super::bias::{JudgeHabits, LengthBaseline, habits, length_baseline};
use super::project::{JudgeFilter, Project, ResolvedVote};
use super::ranking::SourceRanking;
use super::record::{AnnotatorKind, VoteChoice};
use crate::stats::bootstrap::{Bootstrap, Estimate};
use crate::stats::proportion::Proportion;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// All numbers of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelReport {
    pub title: String,
    pub counts: ProjectCounts,
    /// How votes were aggregated into verdicts, and the names of the annotators whose votes were used.
    pub aggregation: Aggregation,
    pub judged_by: Vec<String>,
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Agreement between the annotators whose votes the verdicts are based on.
    pub agreement: Agreement,
    pub judges: Vec<JudgeReport>,
    pub ranking: SourceRanking,
    pub length: Option<LengthBaseline>,
    pub findings: Vec<LabelFinding>,
    pub ft_version: &'static str,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProjectCounts {
    pub prompts: usize,
    pub candidates: usize,
    pub pairs: usize,
    /// Hidden repeats among the pairs.
    pub repeats: usize,
    /// Votes that count, including skips; and the skips among them.
    pub votes: usize,
    pub skips: usize,
    pub people: usize,
    pub machines: usize,
    /// Pairs that two or more annotators judged.
    pub shared: usize,
}

/// Agreement between annotators. Choices are compared as nominal values, and as preferences on a scale from `b` to `a`
/// with ties and "both bad" in the middle; the scale uses strengths if every choice has one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Krippendorff's alpha of the choices (nominal) and of the preferences (ordinal, interval).
    pub alpha_nominal: Option<Estimate>,
    pub alpha_ordinal: Option<Estimate>,
    pub alpha_interval: Option<Estimate>,
    pub fleiss: Option<FleissKappa>,
    /// Share of equal votes among all couples of votes on the same pair.
    pub raw: Option<Estimate>,
    /// Cohen's kappa of every two annotators who judged the same pairs.
    pub cohen: Vec<CohenKappa>,
    /// Rate of equal judgements on hidden repeats, over all annotators.
    pub self_consistency: Option<Proportion>,
}

/// Fleiss' kappa.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FleissKappa {
    pub kappa: Estimate,
    /// Number of pairs that were used, each with `votes` votes.
    pub pairs: usize,
    pub votes: usize,
}

/// Cohen's kappa of two annotators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CohenKappa {
    pub a: String,
    pub b: String,
    pub kappa: Estimate,
    pub pairs: usize,
}

/// One annotator: habits, reliability, and agreement with the verdicts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeReport {
    #[serde(flatten)]
    pub habits: JudgeHabits,
    /// Probability of a true vote according to Dawid and Skene's model; `None` if only one annotator voted.
    pub reliability: Option<f64>,
    /// Agreement with the verdicts, for an annotator whose votes are not used for them.
    pub with_verdicts: Option<VerdictAgreement>,
}

/// Agreement of an annotator with the verdicts: rate of equal choices, and Cohen's kappa.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct VerdictAgreement {
    pub pairs: usize,
    pub same: Proportion,
    pub kappa: Option<Estimate>,
}

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

fn counts(project: &Project, ballots: &[ResolvedVote]) -> ProjectCounts {
    let kinds: BTreeMap<i64, AnnotatorKind> = ballots.iter().map(|b| (b.annotator.id, b.annotator.kind)).collect();
    let people = kinds.values().filter(|k| **k == AnnotatorKind::Person).count();
    let repeats = project.pairs.iter().filter(|p| p.repeat_of.is_some()).count();
    ProjectCounts {
        prompts: project.prompts.len(),
        candidates: project.candidates.len(),
        pairs: project.pairs.len() - repeats,
        repeats,
        votes: ballots.len(),
        skips: ballots.iter().filter(|b| b.choice == VoteChoice::Skip).count(),
        people,
        machines: kinds.len() - people,
        shared: rating_table(ballots, choice_index).shared_units(),
    }
}

/// Returns the ratings of pairs as a table, without repeats, skips and final decisions.
fn rating_table(ballots: &[ResolvedVote], value: impl Fn(&ResolvedVote) -> f64) -> RatingTable {
    let counted = ballots.iter().filter(|b| !b.repeat && b.choice != VoteChoice::Skip && !b.vote.adjudicates());
    RatingTable::new(counted.map(|b| (b.pair.id as usize, b.annotator.id as usize, value(b))))
}

fn choice_index(ballot: &ResolvedVote) -> f64 {
    VERDICTS.iter().position(|c| *c == ballot.choice).unwrap_or_default() as f64
}

fn agreement(ballots: &[ResolvedVote], bootstrap: &Bootstrap) -> Agreement {
    let choices = rating_table(ballots, choice_index);
    let decided = || ballots.iter().filter(|b| matches!(b.choice, VoteChoice::A | VoteChoice::B));
    let strengths = decided().all(|b| b.vote.strength.is_some());
    let preference = |b: &ResolvedVote| match b.preference().unwrap_or(0.0) {
        p if p == 0.0 || strengths => p,
        p => p.signum(),
    };
    let preferences = rating_table(ballots, preference);
    let names: BTreeMap<i64, &str> = ballots.iter().map(|b| (b.annotator.id, b.annotator.name.as_str())).collect();
    let couples = names.iter().flat_map(|(a, x)| names.range(a + 1..).map(move |(b, y)| ((*a, *x), (*b, *y))));
    let cohen = couples.filter_map(|((a, x), (b, y))| {
        let (kappa, pairs) = choices.cohen(a as usize, b as usize, bootstrap)?;
        Some(CohenKappa { a: x.into(), b: y.into(), kappa, pairs })
    });
    let mut same = (0, 0);
    let mut first: BTreeMap<(i64, i64), VoteChoice> = BTreeMap::new();
    for ballot in ballots.iter().filter(|b| b.choice != VoteChoice::Skip) {
        let key = (ballot.pair.id, ballot.annotator.id);
        // Ballots are sorted so that the original of a pair comes before its repeat.
        match first.get(&key).filter(|_| ballot.repeat) {
            Some(before) => same = (same.0 + usize::from(*before == ballot.choice), same.1 + 1),
            None if !ballot.repeat => drop(first.insert(key, ballot.choice)),
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
    ballots: &[ResolvedVote],
    deciding: &BTreeSet<&str>,
    verdicts: &BTreeMap<i64, PairVerdict>,
    bootstrap: &Bootstrap,
) -> Vec<JudgeReport> {
    let reliability = reliability(ballots);
    let judge = |habits: JudgeHabits| {
        let own: Vec<&ResolvedVote> = ballots.iter().filter(|b| b.annotator.name == habits.name && !b.repeat).collect();
        let apart = !deciding.contains(habits.name.as_str());
        let with_verdicts = if apart { with_verdicts(&own, verdicts, bootstrap) } else { None };
        let reliability = own.first().and_then(|b| reliability.get(&b.annotator.id).copied());
        JudgeReport { habits, reliability, with_verdicts }
    };
    habits(project, ballots).into_iter().map(judge).collect()
}

/// Computes the reliability `Σ_c p_c π_cc` of each annotator; empty if fewer than two voted.
fn reliability(ballots: &[ResolvedVote]) -> BTreeMap<i64, f64> {
    let ids: Vec<i64> = ballots.iter().map(|b| b.annotator.id).collect::<BTreeSet<_>>().into_iter().collect();
    if ids.len() < 2 {
        return BTreeMap::new();
    }
    let mut units: BTreeMap<i64, UnitRatings> = BTreeMap::new();
    for b in ballots.iter().filter(|b| !b.repeat && b.choice != VoteChoice::Skip) {
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
