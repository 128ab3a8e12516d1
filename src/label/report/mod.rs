//! Computes the report on a project's labels: agreement between annotators, their biases, the ranking of the sources,
//! and how well machines match the verdicts of people. [`Report`] has all numbers and is written as JSON; `page`
//! renders it.

mod findings;
mod page;

pub use findings::Finding;
pub use page::render;

use super::aggregate::{Aggregation, Unit, VERDICTS, Verdict, aggregate, symmetric};
use super::agreement::{Scale, Table};
use super::ballot::{Ballot, Judges, Project};
use super::bias::{Habits, LengthBaseline, habits, length_baseline};
use super::bootstrap::{Bootstrap, Estimate};
use super::ranking::Ranking;
use super::record::{Choice, Kind};
use crate::methods::rate::Rate;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// All numbers of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub title: String,
    pub counts: Counts,
    /// How votes were aggregated into verdicts, and the names of the annotators whose votes were used.
    pub aggregation: Aggregation,
    pub judged_by: Vec<String>,
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Agreement between the annotators whose votes the verdicts are based on.
    pub agreement: Agreement,
    pub judges: Vec<Judge>,
    pub ranking: Ranking,
    pub length: Option<LengthBaseline>,
    pub findings: Vec<Finding>,
    pub ft_version: &'static str,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
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
    pub fleiss: Option<Fleiss>,
    /// Share of equal votes among all couples of votes on the same pair.
    pub raw: Option<Estimate>,
    /// Cohen's kappa of every two annotators who judged the same pairs.
    pub cohen: Vec<Cohen>,
    /// Rate of equal judgements on hidden repeats, over all annotators.
    pub self_consistency: Option<Rate>,
}

/// Fleiss' kappa.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fleiss {
    pub kappa: Estimate,
    /// Number of pairs that were used, each with `votes` votes.
    pub pairs: usize,
    pub votes: usize,
}

/// Cohen's kappa of two annotators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cohen {
    pub a: String,
    pub b: String,
    pub kappa: Estimate,
    pub pairs: usize,
}

/// One annotator: habits, reliability, and agreement with the verdicts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judge {
    #[serde(flatten)]
    pub habits: Habits,
    /// Probability of a true vote according to Dawid and Skene's model; `None` if only one annotator voted.
    pub reliability: Option<f64>,
    /// Agreement with the verdicts, for an annotator whose votes are not used for them.
    pub with_verdicts: Option<WithVerdicts>,
}

/// Agreement of an annotator with the verdicts: rate of equal choices, and Cohen's kappa.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WithVerdicts {
    pub pairs: usize,
    pub same: Rate,
    pub kappa: Option<Estimate>,
}

impl Report {
    /// Computes the report; intervals come from `bootstrap`. Verdicts are based on the votes of `judges`; if `None`, on
    /// the votes of people if there are any, otherwise on all votes.
    pub fn of(project: &Project, judges: Option<&Judges>, aggregation: Aggregation, bootstrap: &Bootstrap) -> Self {
        let all = project.ballots(&Judges::All);
        let people = project.ballots(&Judges::Kind(Kind::Person));
        let deciding = match judges {
            Some(judges) => project.ballots(judges),
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
            judges: describe(project, &all, &names, &verdicts, bootstrap),
            ranking: Ranking::of(project, &verdicts, bootstrap),
            length: length_baseline(project, &verdicts),
            findings: Vec::new(),
            ft_version: env!("CARGO_PKG_VERSION"),
        };
        report.findings = findings::find(&report);
        report
    }
}

fn counts(project: &Project, ballots: &[Ballot]) -> Counts {
    let kinds: BTreeMap<i64, Kind> = ballots.iter().map(|b| (b.annotator.id, b.annotator.kind)).collect();
    let people = kinds.values().filter(|k| **k == Kind::Person).count();
    let repeats = project.pairs.iter().filter(|p| p.repeat_of.is_some()).count();
    Counts {
        prompts: project.prompts.len(),
        candidates: project.candidates.len(),
        pairs: project.pairs.len() - repeats,
        repeats,
        votes: ballots.len(),
        skips: ballots.iter().filter(|b| b.choice == Choice::Skip).count(),
        people,
        machines: kinds.len() - people,
        shared: table(ballots, choice).shared_units(),
    }
}

/// Returns the ratings of pairs as a table, without repeats, skips and final decisions.
fn table(ballots: &[Ballot], value: impl Fn(&Ballot) -> f64) -> Table {
    let counted = ballots.iter().filter(|b| !b.repeat && b.choice != Choice::Skip && !b.vote.adjudicates());
    Table::new(counted.map(|b| (b.pair.id as usize, b.annotator.id as usize, value(b))))
}

fn choice(ballot: &Ballot) -> f64 {
    VERDICTS.iter().position(|c| *c == ballot.choice).unwrap_or_default() as f64
}

fn agreement(ballots: &[Ballot], bootstrap: &Bootstrap) -> Agreement {
    let choices = table(ballots, choice);
    let decided = || ballots.iter().filter(|b| matches!(b.choice, Choice::A | Choice::B));
    let strengths = decided().all(|b| b.vote.strength.is_some());
    let preference = |b: &Ballot| match b.preference().unwrap_or(0.0) {
        p if p == 0.0 || strengths => p,
        p => p.signum(),
    };
    let preferences = table(ballots, preference);
    let names: BTreeMap<i64, &str> = ballots.iter().map(|b| (b.annotator.id, b.annotator.name.as_str())).collect();
    let couples = names.iter().flat_map(|(a, x)| names.range(a + 1..).map(move |(b, y)| ((*a, *x), (*b, *y))));
    let cohen = couples.filter_map(|((a, x), (b, y))| {
        let (kappa, pairs) = choices.cohen(a as usize, b as usize, bootstrap)?;
        Some(Cohen { a: x.into(), b: y.into(), kappa, pairs })
    });
    let mut same = (0, 0);
    let mut first: BTreeMap<(i64, i64), Choice> = BTreeMap::new();
    for ballot in ballots.iter().filter(|b| b.choice != Choice::Skip) {
        let key = (ballot.pair.id, ballot.annotator.id);
        // Ballots are sorted so that the original of a pair comes before its repeat.
        match first.get(&key).filter(|_| ballot.repeat) {
            Some(before) => same = (same.0 + usize::from(*before == ballot.choice), same.1 + 1),
            None if !ballot.repeat => drop(first.insert(key, ballot.choice)),
            None => {}
        }
    }
    Agreement {
        alpha_nominal: choices.alpha(Scale::Nominal, bootstrap),
        alpha_ordinal: preferences.alpha(Scale::Ordinal, bootstrap),
        alpha_interval: preferences.alpha(Scale::Interval, bootstrap),
        fleiss: choices.fleiss(bootstrap).map(|(kappa, pairs, votes)| Fleiss { kappa, pairs, votes }),
        raw: choices.raw(bootstrap),
        cohen: cohen.collect(),
        self_consistency: Rate::of(same.0, same.1),
    }
}

fn describe(
    project: &Project,
    ballots: &[Ballot],
    deciding: &BTreeSet<&str>,
    verdicts: &BTreeMap<i64, Verdict>,
    bootstrap: &Bootstrap,
) -> Vec<Judge> {
    let reliability = reliability(ballots);
    let judge = |habits: Habits| {
        let own: Vec<&Ballot> = ballots.iter().filter(|b| b.annotator.name == habits.name && !b.repeat).collect();
        let apart = !deciding.contains(habits.name.as_str());
        let with_verdicts = if apart { with_verdicts(&own, verdicts, bootstrap) } else { None };
        let reliability = own.first().and_then(|b| reliability.get(&b.annotator.id).copied());
        Judge { habits, reliability, with_verdicts }
    };
    habits(project, ballots).into_iter().map(judge).collect()
}

/// Computes the reliability `Σ_c p_c π_cc` of each annotator; empty if fewer than two voted.
fn reliability(ballots: &[Ballot]) -> BTreeMap<i64, f64> {
    let ids: Vec<i64> = ballots.iter().map(|b| b.annotator.id).collect::<BTreeSet<_>>().into_iter().collect();
    if ids.len() < 2 {
        return BTreeMap::new();
    }
    let mut units: BTreeMap<i64, Unit> = BTreeMap::new();
    for b in ballots.iter().filter(|b| !b.repeat && b.choice != Choice::Skip) {
        let rater = ids.binary_search(&b.annotator.id).unwrap_or_default();
        units.entry(b.pair.id).or_default().push((rater, choice(b) as usize));
    }
    let found = symmetric(&units.into_values().collect::<Vec<_>>(), ids.len());
    let right = |c: &Vec<Vec<f64>>| found.prior.iter().enumerate().map(|(k, p)| p * c[k][k]).sum::<f64>();
    ids.iter().zip(&found.confusion).map(|(id, c)| (*id, right(c).min(1.0))).collect()
}

fn with_verdicts(own: &[&Ballot], verdicts: &BTreeMap<i64, Verdict>, bootstrap: &Bootstrap) -> Option<WithVerdicts> {
    let place = |c: Choice| VERDICTS.iter().position(|v| *v == c).map(|i| i as f64);
    let both: Vec<(usize, f64, f64)> = own
        .iter()
        .filter_map(|b| Some((b.pair.id as usize, place(b.choice)?, place(verdicts.get(&b.pair.id)?.choice)?)))
        .collect();
    let same = Rate::of(both.iter().filter(|(_, a, b)| a == b).count(), both.len())?;
    let table = Table::new(both.iter().flat_map(|(pair, a, b)| [(*pair, 0, *a), (*pair, 1, *b)]));
    Some(WithVerdicts { pairs: both.len(), same, kappa: table.cohen(0, 1, bootstrap).map(|(k, _)| k) })
}
