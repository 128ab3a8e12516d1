//! What rules reach that no model is needed for: the most frequent answer or place, a random choice, the length of choices, and n-grams
//! of the training rows (`kneser_ney`, `words`). A model that is not better than these has learnt nothing of the task.

pub mod kneser_ney;
mod words;

pub use words::WordModel;

use super::answer_metrics::AnswerMetric;
use super::results::{ItemInfo, TaskResults};
use crate::stats::bootstrap::Estimate;
use crate::stats::moments::mean;
use serde::Serialize;
use std::collections::HashMap;

/// With more different expected answers, they are no classes among which one could be drawn.
const MOST_CLASSES: usize = 100;

/// What a rule reaches on a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleResult {
    /// The rule in words, such as `the longest choice`.
    pub rule: String,
    /// The metric, in the task's own words.
    pub metric: String,
    /// Its value. Where the rule draws lots (or choices tie), its expected value, exactly.
    pub value: f64,
}

/// Returns true if an answer is the expected one but for white space around it and case.
pub fn is_answer(answer: &str, expected: &str) -> bool {
    super::metrics::matches_ignoring_case(answer, expected)
}

/// Returns the right ones among an item's choices, counted from 0.
pub fn right_choices(item: &ItemInfo) -> Vec<usize> {
    let right = |choice: &String| item.expected.iter().any(|expected| expected.trim() == choice.trim());
    item.choices.iter().enumerate().filter(|(_, choice)| right(choice)).map(|(i, _)| i).collect()
}

/// Computes what rules reach on a task, as far as they apply to it.
pub fn rules(task: &TaskResults) -> Vec<RuleResult> {
    let have_choices = !task.items.is_empty() && task.items.iter().all(|item| !right_choices(item).is_empty());
    match task.kind.as_str() {
        "choice" if have_choices => choice_rules(task),
        "generate" => answer_rules(task),
        _ => Vec::new(),
    }
}

fn choice_rules(task: &TaskResults) -> Vec<RuleResult> {
    let items = &task.items;
    let most = items.iter().map(|item| item.choices.len()).max().unwrap_or(0);
    let place = |place: usize| mean_of(items, |item| f64::from(u8::from(right_choices(item).contains(&place))));
    let by_length =
        |sign: f64| mean_of(items, |item| share_of_best(item, |choice| sign * choice.chars().count() as f64));
    let best_place = (0..most).map(place).enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    let mut found: Vec<(String, f64)> = Vec::new();
    let (class, classes) = most_frequent_choice(items);
    found.extend(class);
    // Where data has the right choice in the same place and no prompt shows it, that place tells nothing about the task; where all
    // items have the same choices, it is one of them.
    found.extend(
        best_place
            .filter(|_| task.order_shown && !classes)
            .map(|(place, value)| (format!("always choice {}", place + 1), value)),
    );
    found.push(("a choice at random".into(), mean_of(items, |item| share_of_best(item, |_| 0.0))));
    found.push(("the longest choice".into(), by_length(1.0)));
    found.push(("the shortest choice".into(), by_length(-1.0)));
    found.into_iter().map(|(rule, value)| RuleResult { rule, metric: "right answers".into(), value }).collect()
}

/// Returns the rule of giving the same choice, of those that every item has, to all items; `None` if no choice is in all of them. Says
/// also whether all items have the same choices in the same order.
fn most_frequent_choice(items: &[ItemInfo]) -> (Option<(String, f64)>, bool) {
    let Some(first) = items.first() else { return (None, false) };
    let in_all = |choice: &&String| items.iter().all(|item| item.choices.contains(choice));
    let right = |choice: &String| mean_of(items, |item| f64::from(u8::from(item.expected.contains(choice))));
    let value = |choice: &String| (format!("always “{}”", shortened(choice)), right(choice));
    // Of choices that are right as often, the first.
    let best = first.choices.iter().filter(in_all).map(value).rev().max_by(|a, b| a.1.total_cmp(&b.1));
    // One that is never right only stands beside the right ones.
    (best.filter(|(_, right)| *right > 0.0), items.iter().all(|item| item.choices == first.choices))
}

/// Returns the expected share of right answers if the choice with the largest score is taken, and lots are drawn among equals.
pub fn share_of_best(item: &ItemInfo, score: impl Fn(&str) -> f64) -> f64 {
    let scores: Vec<f64> = item.choices.iter().map(|choice| score(choice)).collect();
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let tied: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] >= best).collect();
    let right = right_choices(item);
    tied.iter().filter(|i| right.contains(i)).count() as f64 / tied.len().max(1) as f64
}

fn answer_rules(task: &TaskResults) -> Vec<RuleResult> {
    let mut counts: HashMap<String, (usize, &str)> = HashMap::new();
    for answer in task.items.iter().filter_map(|item| item.expected.first()) {
        counts.entry(answer.trim().to_lowercase()).or_insert((0, answer)).0 += 1;
    }
    // Of answers that are as frequent, the first in the alphabet.
    let most = counts.iter().max_by(|a, b| a.1.0.cmp(&b.1.0).then(b.0.cmp(a.0))).map(|(_, found)| *found);
    let Some((2.., answer)) = most else { return Vec::new() };
    let mut found = Vec::new();
    if let Some(value) = value_of_answer(task, answer) {
        found.push(RuleResult {
            rule: format!("always “{}”", shortened(answer)),
            metric: task.main_metric.clone(),
            value,
        });
    }
    if counts.len() <= MOST_CLASSES && task.items.len() >= 2 * counts.len() && is_share_of_right(&task.main_metric) {
        let value = mean_of(&task.items, |item| item.expected.len().min(counts.len()) as f64 / counts.len() as f64);
        let rule = format!("one of {} answers at random", counts.len());
        found.push(RuleResult { rule, metric: task.main_metric.clone(), value });
    }
    found
}

/// Returns true for metrics that are the share of right answers.
fn is_share_of_right(metric: &str) -> bool {
    matches!(metric, "exact_match" | "acc" | "accuracy")
}

/// Computes the main metric of giving the same answer to every item; `None` if ft does not know how it is computed.
fn value_of_answer(task: &TaskResults, answer: &str) -> Option<f64> {
    if is_share_of_right(&task.main_metric) {
        let right = |item: &ItemInfo| item.expected.iter().any(|expected| is_answer(answer, expected));
        return Some(mean_of(&task.items, |item| f64::from(u8::from(right(item)))));
    }
    let pairs: Option<Vec<(&str, &str)>> =
        task.items.iter().map(|item| Some((answer, item.expected.first()?.as_str()))).collect();
    let found: Option<Estimate> = AnswerMetric::named(&task.main_metric)?.measure(&pairs?);
    found.map(|found| found.value)
}

fn mean_of(items: &[ItemInfo], score: impl Fn(&ItemInfo) -> f64) -> f64 {
    mean(&items.iter().map(score).collect::<Vec<f64>>())
}

fn shortened(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or("");
    match line.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, task};

    fn choices(of: &[(&[&str], &str)]) -> TaskResults {
        let mut made = task("t", metric("acc"), &[vec![1.0; of.len()]]);
        made.kind = "choice".into();
        for (item, (choices, right)) in made.items.iter_mut().zip(of) {
            item.choices = choices.iter().map(|c| c.to_string()).collect();
            item.expected = vec![right.to_string()];
        }
        made
    }

    fn value(found: &[RuleResult], rule: &str) -> f64 {
        found.iter().find(|r| r.rule.contains(rule)).unwrap_or_else(|| panic!("{rule}: {found:?}")).value
    }

    #[test]
    fn a_place_is_a_rule_only_where_it_is_shown() {
        // Pairs in which the right one is first in the file, each scored by itself.
        let mut pairs =
            choices(&[(&["The cat sits.", "The cat sit."], "The cat sits."), (&["I am.", "I is."], "I am.")]);
        let names = |task: &TaskResults| rules(task).into_iter().map(|r| r.rule).collect::<Vec<_>>();
        assert_eq!(names(&pairs), ["a choice at random", "the longest choice", "the shortest choice"]);
        assert_eq!(value(&rules(&pairs), "at random"), 0.5);
        pairs.order_shown = true;
        assert_eq!(value(&rules(&pairs), "always choice 1"), 1.0);
    }

    #[test]
    fn a_choice_that_all_items_have_is_a_class() {
        let same = [(&["no", "yes"][..], "yes"), (&["no", "yes"], "no"), (&["no", "yes"], "yes")];
        let mut made = choices(&same);
        assert_eq!(value(&rules(&made), "always “yes”"), 2.0 / 3.0);
        made.order_shown = true;
        assert!(rules(&made).iter().all(|r| !r.rule.contains("always choice")), "it would be the same rule twice");
        let decoys = choices(&[(&["a", "none"], "a"), (&["b", "none"], "b")]);
        assert!(rules(&decoys).iter().all(|r| !r.rule.contains("none")), "it is never right");
        // In another order, and beside others.
        let mut mixed = choices(&[(&["a", "none"], "none"), (&["none", "b", "c"], "none"), (&["d", "none"], "d")]);
        assert_eq!(value(&rules(&mixed), "always “none”"), 2.0 / 3.0);
        mixed.order_shown = true;
        assert_eq!(value(&rules(&mixed), "always choice 1"), 2.0 / 3.0);
    }

    #[test]
    fn rules_for_choices_have_their_exact_expected_values() {
        let mut made = choices(&[
            (&["long one", "b"], "long one"),
            (&["aa", "bb", "cc", "d"], "cc"),
            (&["x", "yes"], "yes"),
            (&["one", "two"], "one"),
        ]);
        made.order_shown = true;
        let found = rules(&made);
        assert_eq!(value(&found, "at random"), (0.5 + 0.25 + 0.5 + 0.5) / 4.0);
        assert_eq!(value(&found, "always choice 1"), 0.5);
        // Three choices of the second item and both of the last are equally long.
        assert_eq!(value(&found, "longest"), (1.0 + 1.0 / 3.0 + 1.0 + 0.5) / 4.0);
        assert_eq!(value(&found, "shortest"), (0.0 + 0.0 + 0.0 + 0.5) / 4.0);
        let unmarked = choices(&[(&["a", "b"], "c")]);
        assert!(rules(&unmarked).is_empty(), "the right one is not known");
    }

    #[test]
    fn the_most_frequent_answer_scores_by_the_tasks_metric() {
        let answers = ["Yes", "yes ", "no", "maybe", "no", "yes"];
        let mut made = task("t", metric("exact_match"), &[vec![1.0; 6]]);
        made.items.iter_mut().zip(answers).for_each(|(item, answer)| item.expected = vec![answer.to_string()]);
        let found = rules(&made);
        assert_eq!((value(&found, "always “Yes”"), value(&found, "3 answers at random")), (0.5, 1.0 / 3.0));
        made.main_metric = "f1".into();
        assert_eq!(rules(&made).iter().map(|r| r.value).collect::<Vec<_>>(), [0.5]);
        made.main_metric = "something_else".into();
        assert!(rules(&made).is_empty());
        made.main_metric = "exact_match".into();
        made.items.iter_mut().enumerate().for_each(|(i, item)| item.expected = vec![i.to_string()]);
        assert!(rules(&made).is_empty(), "no answer repeats");
    }
}
