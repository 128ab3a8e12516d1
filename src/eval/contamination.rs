//! Finds items of an evaluation that share text with training rows, and the scores with and without them.
//!
//! Two texts overlap if they share a run of words (Brown et al. 2020, arXiv 2005.14165, appendix C): letters and digits only, without
//! case. A run that is in more than ten training rows or items is a phrase or a prompt's template and counts for nothing.

use super::comparison::{PairedMetric, main_metric};
use super::results::TaskResults;
use crate::stats::bootstrap::Estimate;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A run that more texts than this contain is no sign that they share content.
const MOST_TEXTS: u32 = 10;
/// The shortest and the longest run by the rule of appendix C.
const RUNS: [usize; 2] = [8, 13];

/// Which runs of words count as overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlapRule {
    /// As many words as the item has that only 5 % of the items are shorter than, at least 8 and at most 13.
    Gpt3,
    /// Eight words.
    EightWords,
}

/// Whether an item shares text with training rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It shares no run.
    Clean,
    /// It shares a run.
    Overlapping,
    /// It has fewer words than a run, so that nothing can be said.
    TooShort,
}

/// The overlap of a task's items with training rows, and the scores on its parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contamination {
    /// The rule.
    pub rule: OverlapRule,
    /// Number of words of a run.
    pub run: usize,
    /// The overlap of each item.
    pub items: Vec<Overlap>,
    /// The main metric of each subject; empty if it is no mean over items or likelihood of texts.
    pub scores: Vec<ContaminatedScores>,
}

/// The main metric of a subject on all items, on those that are not known to overlap, and on those that do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContaminatedScores {
    /// On all items.
    pub all: Option<Estimate>,
    /// Without the overlapping items.
    pub without: Option<Estimate>,
    /// On the overlapping items.
    pub overlapping: Option<Estimate>,
    /// Difference from the first subject without the overlapping items; `None` for the first.
    pub difference_without: Option<Estimate>,
}

/// The words of texts that are compared.
pub struct TextWords(Vec<Vec<u64>>);

impl TextWords {
    /// Splits texts into words.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let words = |text: &str| {
            let lower = text.to_lowercase();
            lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(hash).collect::<Vec<u64>>()
        };
        Self(texts.into_iter().map(words).collect())
    }

    /// Counts the texts that each run of `n` words is in.
    fn runs(&self, n: usize) -> HashMap<u64, u32> {
        let mut counts = HashMap::new();
        for words in &self.0 {
            let own: HashSet<u64> = words.windows(n).map(hash).collect();
            own.into_iter().for_each(|run| *counts.entry(run).or_insert(0) += 1);
        }
        counts
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut state = DefaultHasher::new();
    value.hash(&mut state);
    state.finish()
}

impl OverlapRule {
    /// Returns the number of words of a run.
    fn run(self, items: &TextWords) -> usize {
        let [shortest, longest] = RUNS;
        match self {
            Self::EightWords => shortest,
            Self::Gpt3 => {
                let mut lengths: Vec<usize> = items.0.iter().map(Vec::len).collect();
                lengths.sort_unstable();
                lengths.get(lengths.len() / 20).map_or(longest, |length| (*length).clamp(shortest, longest))
            }
        }
    }
}

/// Returns for each item whether it shares a run of words with training rows, and the length of a run.
pub fn overlaps(items: &TextWords, training: &TextWords, rule: OverlapRule) -> (usize, Vec<Overlap>) {
    let run = rule.run(items);
    let (rows, own) = (training.runs(run), items.runs(run));
    let counts = |run: u64| (1..=MOST_TEXTS).contains(rows.get(&run).unwrap_or(&0)) && own[&run] <= MOST_TEXTS;
    let state = |words: &Vec<u64>| match words.len() < run {
        true => Overlap::TooShort,
        false if words.windows(run).map(hash).any(counts) => Overlap::Overlapping,
        false => Overlap::Clean,
    };
    (run, items.0.iter().map(state).collect())
}

impl Contamination {
    /// Compares the items of a task (prompts and expected answers) with training rows.
    pub fn of(task: &TaskResults, training: &TextWords, rule: OverlapRule) -> Self {
        let text =
            |item: &super::results::ItemInfo| [vec![item.prompt.clone()], item.expected.clone()].concat().join("\n");
        let texts: Vec<String> = task.items.iter().map(text).collect();
        let (run, items) = overlaps(&TextWords::of(texts.iter().map(String::as_str)), training, rule);
        let scores = (0..task.results.len()).filter_map(|i| ContaminatedScores::of(task, i, &items)).collect();
        Self { rule, run, items, scores }
    }

    /// Returns how many items are in this state.
    pub fn count(&self, state: Overlap) -> usize {
        self.items.iter().filter(|item| **item == state).count()
    }
}

impl ContaminatedScores {
    fn of(task: &TaskResults, subject: usize, overlaps: &[Overlap]) -> Option<Self> {
        let paired = PairedMetric::of(task, main_metric(task), subject)?;
        let items = |keep: &dyn Fn(Overlap) -> bool| -> Vec<usize> {
            (0..overlaps.len()).filter(|i| keep(overlaps[*i])).collect()
        };
        let own = |items: &[usize]| paired.estimate("contamination", items, |_, subject| subject);
        let without = items(&|item| item != Overlap::Overlapping);
        Some(Self {
            all: own(&items(&|_| true)),
            without: own(&without),
            overlapping: own(&items(&|item| item == Overlap::Overlapping)),
            difference_without: match subject {
                0 => None,
                _ => paired.estimate("contamination", &without, |base, subject| subject - base),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, task};

    /// A text of words that no other text has.
    fn unique(name: &str, words: usize) -> String {
        (0..words).map(|i| format!("{name}{i}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_shared_run_of_words_is_found_whatever_stands_between_them() {
        let shared = unique("s", 13);
        let training = TextWords::of([&*format!("{} {shared} {}", unique("a", 5), unique("b", 5)), &unique("c", 40)]);
        let marked = shared.to_uppercase().replace(' ', ", ");
        let twelve = unique("s", 12);
        let texts = [
            format!("{} {marked}", unique("x", 20)),
            format!("{} {twelve} {}", unique("y", 20), unique("z", 20)),
            unique("w", 30),
            unique("v", 12),
        ];
        let items = TextWords::of(texts.iter().map(String::as_str));
        use Overlap::{Clean, Overlapping, TooShort};
        // The item at 5 % is the shortest of four: 12 words, so that a run has 12.
        assert_eq!(overlaps(&items, &training, OverlapRule::Gpt3), (12, vec![Overlapping, Overlapping, Clean, Clean]));
        let eight = TextWords::of([&*unique("s", 9), &unique("q", 7)]);
        assert_eq!(overlaps(&eight, &training, OverlapRule::EightWords), (8, vec![Overlapping, TooShort]));
        let long = TextWords::of([&*texts[0], &texts[1], &texts[2]]);
        assert_eq!(overlaps(&long, &training, OverlapRule::Gpt3), (13, vec![Overlapping, Clean, Clean]));
        assert_eq!(overlaps(&TextWords::of([]), &training, OverlapRule::Gpt3), (13, vec![]));
    }

    #[test]
    fn phrases_of_many_texts_count_for_nothing() {
        let phrase = unique("p", 20);
        let rows = |n: usize| TextWords::of((0..n).map(|_| phrase.as_str()));
        let item = TextWords::of([phrase.as_str()]);
        assert_eq!(overlaps(&item, &rows(10), OverlapRule::EightWords).1, [Overlap::Overlapping]);
        assert_eq!(overlaps(&item, &rows(11), OverlapRule::EightWords).1, [Overlap::Clean]);
        let many = TextWords::of((0..11).map(|_| phrase.as_str()));
        assert_eq!(overlaps(&many, &rows(1), OverlapRule::EightWords).1, [Overlap::Clean; 11]);
    }

    #[test]
    fn scores_are_told_with_and_without_overlapping_items() {
        let mut made = task("t", metric("exact_match"), &[vec![0.0; 20], [vec![1.0; 10], vec![0.0; 10]].concat()]);
        made.items.iter_mut().enumerate().for_each(|(i, item)| item.prompt = unique(&format!("item{i}x"), 20));
        let known: Vec<String> = made.items[..10].iter().map(|item| item.prompt.clone()).collect();
        let training = TextWords::of(known.iter().map(String::as_str));
        let found = Contamination::of(&made, &training, OverlapRule::Gpt3);
        assert_eq!((found.run, found.count(Overlap::Overlapping), found.count(Overlap::Clean)), (13, 10, 10));
        let scores = &found.scores[1];
        let value = |e: Option<Estimate>| e.unwrap().value;
        assert_eq!([value(scores.all), value(scores.without), value(scores.overlapping)], [0.5, 0.0, 1.0]);
        assert_eq!((value(scores.difference_without), found.scores[0].difference_without), (0.0, None));
    }
}
