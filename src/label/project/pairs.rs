//! Selects the pairs of answers that people are to compare.
//!
//! Pure: takes the project and the scores of reward models, returns new pairs; the same seed gives the same pairs.
//! Invariant: a selected pair has two different answers to one prompt, occurs once, and is not yet in the project.

use super::similar::Shingles;
use super::snapshot::Project;
use crate::label::record::answer::{Candidate, CandidatePair, NewPair};
use crate::label::statistics::summary::binary_entropy;
use crate::rng;
use crate::stats::moments::mean_and_population_deviation;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How pairs are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Random pairs, taking the prompts in turn.
    Random,
    /// Every pair of answers to one prompt, in the order of the prompts.
    All,
    /// Pairs with an uncertain outcome and answers of similar length, on prompts unlike those already chosen.
    Informative,
}

/// Options of the selection.
#[derive(Debug, Clone)]
pub struct SelectionOptions {
    /// How pairs are chosen.
    pub strategy: Strategy,
    /// Largest number of pairs; `None`: all.
    pub budget: Option<usize>,
    /// How many people judge each pair.
    pub overlap: i64,
    /// Share of the selected pairs that get a hidden repeat.
    pub repeats: f64,
    /// Random seed.
    pub seed: u64,
}

/// Selected pairs, and which of them get a hidden repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedPairs {
    /// The selected pairs.
    pub pairs: Vec<NewPair>,
    /// Indices in `pairs` of those that get a hidden repeat. A repeat refers to the id of its original, so it is
    /// created only after the pairs are stored.
    pub repeated: Vec<usize>,
}

impl SelectedPairs {
    /// Returns the hidden repeats. `kept` are the pairs as the store has them, with ids. The two answers are exchanged,
    /// so that the repeat does not look like the original.
    pub fn repeats(&self, kept: &[CandidatePair]) -> Vec<NewPair> {
        let by_answers: HashMap<(i64, i64), &CandidatePair> =
            kept.iter().filter(|p| p.repeat_of.is_none()).map(|p| ((p.a, p.b), p)).collect();
        let repeat = |p: &&CandidatePair| NewPair {
            prompt: p.prompt,
            a: p.b,
            b: p.a,
            overlap: p.overlap,
            repeat_of: Some(p.id),
            reason: "repeat".into(),
        };
        let wanted = self.repeated.iter().filter_map(|i| self.pairs.get(*i));
        wanted.filter_map(|p| by_answers.get(&(p.a, p.b)).map(repeat)).collect()
    }
}

/// Scores of reward models: for each model a map from candidate id to score.
pub type RewardScores = Vec<BTreeMap<i64, f64>>;

/// Selects pairs. `scores` are used by the informative strategy; without scores it uses lengths and prompts only.
pub fn select(project: &Project, wanted: &SelectionOptions, scores: &RewardScores) -> SelectedPairs {
    let known: HashSet<(i64, i64)> = project.pairs.iter().map(|p| (p.a.min(p.b), p.a.max(p.b))).collect();
    let mut by_prompt: BTreeMap<i64, Vec<&Candidate>> = BTreeMap::new();
    project.candidates.iter().for_each(|c| by_prompt.entry(c.prompt).or_default().push(c));
    let mut chance = rng::stream(wanted.seed, "label: pairs", project.pairs.len() as u64);
    let budget = wanted.budget.unwrap_or(usize::MAX);
    let mut possible: BTreeMap<i64, Vec<[&Candidate; 2]>> = BTreeMap::new();
    for prompt in &project.prompts {
        let answers = by_prompt.get(&prompt.id).map_or(&[][..], Vec::as_slice);
        let pairs = answers.iter().enumerate().flat_map(|(i, a)| answers[i + 1..].iter().map(|b| [*a, *b]));
        let new = pairs.filter(|[a, b]| a.text != b.text && !known.contains(&(a.id.min(b.id), a.id.max(b.id))));
        possible.insert(prompt.id, new.collect());
    }
    let chosen: Vec<([&Candidate; 2], &str)> = match wanted.strategy {
        Strategy::All => possible.into_values().flatten().take(budget).map(|p| (p, "all")).collect(),
        Strategy::Random => {
            let mut turns: Vec<Vec<[&Candidate; 2]>> = possible.into_values().collect();
            turns.iter_mut().for_each(|pairs| pairs.shuffle(&mut chance));
            turns.shuffle(&mut chance);
            let most = turns.iter().map(Vec::len).max().unwrap_or(0);
            let in_turn = (0..most).flat_map(|i| turns.iter().filter_map(move |pairs| pairs.get(i).copied()));
            in_turn.take(budget).map(|p| (p, "random")).collect()
        }
        Strategy::Informative => informative(project, possible, scores, budget),
    };
    let mut pairs: Vec<NewPair> = chosen
        .into_iter()
        .map(|([a, b], reason)| NewPair {
            prompt: a.prompt,
            a: a.id,
            b: b.id,
            overlap: wanted.overlap,
            repeat_of: None,
            reason: reason.into(),
        })
        .collect();
    // `a` and `b` are exchanged at random: otherwise the name would reveal the source.
    for pair in &mut pairs {
        if rand::RngExt::random::<bool>(&mut chance) {
            std::mem::swap(&mut pair.a, &mut pair.b);
        }
    }
    let mut places: Vec<usize> = (0..pairs.len()).collect();
    places.shuffle(&mut chance);
    places.truncate((wanted.repeats * pairs.len() as f64).round() as usize);
    places.sort_unstable();
    SelectedPairs { pairs, repeated: places }
}

/// Selects pairs by their value, the highest first: value = uncertainty * length ratio * freshness of the prompt.
///
/// - Uncertainty: the entropy of the mean of the models' Bradley-Terry probabilities `p = 1 / (1 + exp(s_b - s_a))`,
///   where the scores of each model are scaled to unit variance. It covers the doubt of each model and the disagreement
///   between models (Bayesian active learning, Houlsby et al. 2011, arXiv 1112.5745).
/// - Length ratio: the shorter over the longer answer, so that length cannot decide the vote.
/// - Freshness: `(1 - s / 2) / (1 + n)`, where the prompt was already chosen n times and s is its largest similarity to
///   a chosen prompt (1 to itself).
fn informative<'p>(
    project: &Project,
    possible: BTreeMap<i64, Vec<[&'p Candidate; 2]>>,
    scores: &RewardScores,
    budget: usize,
) -> Vec<([&'p Candidate; 2], &'static str)> {
    let scores: RewardScores = scores.iter().map(standardised).collect();
    let texts: HashMap<i64, Shingles> =
        project.prompts.iter().map(|p| (p.id, Shingles::of(&p.messages.to_string()))).collect();
    let length = |c: &Candidate| c.text.chars().count().max(1) as f64;
    let worth = |[a, b]: &[&Candidate; 2]| {
        let ratio = length(a).min(length(b)) / length(a).max(length(b));
        let said: Vec<f64> =
            scores.iter().filter_map(|s| Some(1.0 / (1.0 + (s.get(&b.id)? - s.get(&a.id)?).exp()))).collect();
        let doubt = if said.is_empty() { 1.0 } else { binary_entropy(said.iter().sum::<f64>() / said.len() as f64) };
        doubt * ratio
    };
    // The pairs of each prompt, the best one last.
    let mut left: BTreeMap<i64, Vec<(f64, [&Candidate; 2])>> = possible
        .into_iter()
        .filter(|(_, pairs)| !pairs.is_empty())
        .map(|(prompt, pairs)| {
            let mut pairs: Vec<_> = pairs.into_iter().map(|p| (worth(&p), p)).collect();
            pairs.sort_by(|x, y| x.0.total_cmp(&y.0));
            (prompt, pairs)
        })
        .collect();
    let mut freshness: HashMap<i64, (f64, f64)> = left.keys().map(|p| (*p, (0.0, 0.0))).collect();
    let mut chosen = Vec::new();
    let reason = match scores.len() {
        0 => "like length",
        1 => "uncertainty",
        _ => "disagreement",
    };
    while chosen.len() < budget {
        let value = |(prompt, pairs): (&i64, &Vec<(f64, [&Candidate; 2])>)| {
            let (times, like) = freshness[prompt];
            let fresh = (1.0 - like / 2.0) / (1.0 + times);
            pairs.last().map(|(worth, _)| (worth * fresh, std::cmp::Reverse(*prompt)))
        };
        let best = left.iter().filter_map(value).max_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
        let Some((_, std::cmp::Reverse(prompt))) = best else { break };
        let pairs = left.get_mut(&prompt).and_then(Vec::pop);
        chosen.extend(pairs.map(|(_, pair)| (pair, reason)));
        left.retain(|_, pairs| !pairs.is_empty());
        for (other, (times, like)) in freshness.iter_mut().filter(|(p, _)| left.contains_key(p)) {
            *times += f64::from(u8::from(*other == prompt));
            *like = like.max(texts[&prompt].similarity(&texts[other]));
        }
    }
    chosen
}

/// Scales scores to mean 0 and variance 1. Sums in the order of ids, on which the last bits depend.
fn standardised(scores: &BTreeMap<i64, f64>) -> BTreeMap<i64, f64> {
    let (mean, deviation) = mean_and_population_deviation(&scores.values().copied().collect::<Vec<_>>());
    let unit = if deviation > 0.0 { deviation } else { 1.0 };
    scores.iter().map(|(id, s)| (*id, (s - mean) / unit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::project::fixture::project;

    /// Three prompts with three answers each: nine pairs.
    fn three() -> Project {
        let mut p = project(3, &[]);
        p.pairs.clear();
        (0..3).for_each(|i| {
            p.candidates.push(Candidate { id: 100 + i, prompt: i, source: "z".into(), text: "zz".into(), tokens: None })
        });
        p
    }

    fn wanted(strategy: Strategy, budget: Option<usize>) -> SelectionOptions {
        SelectionOptions { strategy, budget, overlap: 2, repeats: 0.0, seed: 1 }
    }

    #[test]
    fn every_strategy_gives_new_pairs_once() {
        for strategy in [Strategy::Random, Strategy::All, Strategy::Informative] {
            let mut p = three();
            let found = select(&p, &wanted(strategy, None), &Vec::new());
            assert_eq!(found.pairs.len(), 9, "{strategy:?}");
            let mut seen = HashSet::new();
            for pair in &found.pairs {
                assert!(seen.insert((pair.a.min(pair.b), pair.a.max(pair.b))), "{strategy:?}: {pair:?} twice");
                assert!(pair.a != pair.b && pair.overlap == 2);
            }
            let five = select(&p, &wanted(strategy, Some(5)), &Vec::new());
            assert_eq!(five.pairs.len(), 5);
            assert_eq!(five, select(&p, &wanted(strategy, Some(5)), &Vec::new()));
            p.pairs = kept(&five.pairs);
            assert_eq!(select(&p, &wanted(strategy, None), &Vec::new()).pairs.len(), 4, "{strategy:?}");
        }
        let mut same = project(1, &[]);
        same.pairs.clear();
        same.candidates[1].text = same.candidates[0].text.clone();
        assert!(select(&same, &wanted(Strategy::All, None), &Vec::new()).pairs.is_empty(), "equal answers");
    }

    fn kept(new: &[NewPair]) -> Vec<CandidatePair> {
        let keep = |(i, p): (usize, &NewPair)| CandidatePair {
            id: i as i64,
            prompt: p.prompt,
            a: p.a,
            b: p.b,
            overlap: p.overlap,
            repeat_of: p.repeat_of,
            reason: p.reason.clone(),
        };
        new.iter().enumerate().map(keep).collect()
    }

    #[test]
    fn random_pairs_take_prompts_in_turn_and_names_by_chance() {
        let p = project(40, &[]);
        let all = select(&Project { pairs: Vec::new(), ..p.clone() }, &wanted(Strategy::Random, None), &Vec::new());
        let first = all.pairs.iter().filter(|p| p.a < p.b).count();
        assert!((8..=32).contains(&first), "{first} of 40");
        let three = three();
        let found = select(&three, &wanted(Strategy::Random, Some(3)), &Vec::new());
        assert_eq!(found.pairs.iter().map(|p| p.prompt).collect::<HashSet<_>>().len(), 3);
    }

    #[test]
    fn doubt_like_length_and_new_prompts_come_first() {
        let p = three();
        // The reward model is sure of all but answers 2 and 3, of prompt 1.
        let scores = vec![BTreeMap::from([(0, 5.0), (1, -5.0), (2, 1.0), (3, 1.1), (4, 4.0), (5, -4.0)])];
        let found = select(&p, &wanted(Strategy::Informative, Some(1)), &scores);
        assert_eq!(found.pairs[0].prompt, 1);
        assert_eq!((found.pairs[0].a.min(found.pairs[0].b), found.pairs[0].reason.as_str()), (2, "uncertainty"));
        // Without scores: pairs of similar length come first, before those with an answer of two characters.
        let found = select(&p, &wanted(Strategy::Informative, Some(3)), &Vec::new());
        assert_eq!(found.pairs.iter().map(|p| p.prompt).collect::<HashSet<_>>().len(), 3, "each prompt once");
        assert!(found.pairs.iter().all(|p| p.a < 100 && p.b < 100), "{found:?}");
    }

    #[test]
    fn scores_have_the_same_bits_in_every_process() {
        let scores: Vec<(i64, f64)> = (0..500).map(|i| (i, (i as f64 * 0.7).sin() / 3.0)).collect();
        let (mean, deviation) = mean_and_population_deviation(&scores.iter().map(|(_, s)| *s).collect::<Vec<_>>());
        let expected: Vec<(i64, f64)> = scores.iter().map(|(id, s)| (*id, (s - mean) / deviation)).collect();
        // Inserted in another order, they are summed in the same one.
        let given: BTreeMap<i64, f64> = scores.into_iter().rev().collect();
        assert_eq!(standardised(&given).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn repeats_show_the_same_answers_the_other_way_round() {
        let p = three();
        let found = select(&p, &SelectionOptions { repeats: 0.34, ..wanted(Strategy::All, None) }, &Vec::new());
        assert_eq!(found.repeated.len(), 3);
        let kept = kept(&found.pairs);
        let repeats = found.repeats(&kept);
        assert_eq!(repeats.len(), 3);
        for (repeat, place) in repeats.iter().zip(&found.repeated) {
            assert_eq!((repeat.repeat_of, repeat.a, repeat.b), (Some(*place as i64), kept[*place].b, kept[*place].a));
        }
    }
}
