//! Tests of comparisons, on results that are made by hand.

use super::*;
use crate::eval::results::{Direction, ItemAnswer, ItemInfo, Subject, SubjectResults};
use crate::recipe::gate::Gate;
use crate::stats::bootstrap::Bootstrap;
use std::collections::BTreeMap;

/// Makes a task with one metric from the scores of each model.
pub fn task(name: &str, metric: MetricInfo, scores: &[Vec<f64>]) -> TaskResults {
    let item = |i: usize| ItemInfo {
        line: i + 1,
        prompt: format!("question {i}"),
        expected: vec!["yes".into()],
        category: (i % 4 < 3).then(|| ["a", "b", "c"][i % 4].to_string()),
        group: None,
        choices: Vec::new(),
    };
    let answer = |score: &f64| ItemAnswer {
        text: if *score == 1.0 { "yes" } else { "no" }.into(),
        scores: BTreeMap::from([(metric.name.clone(), *score)]),
        log_likelihoods: Vec::new(),
        finish_reason: Some("stop".into()),
        ..Default::default()
    };
    let estimate = |scores: &Vec<f64>| {
        let rows: Vec<usize> = (0..scores.len()).collect();
        let mean = |drawn: &[f64]| {
            Some(drawn.iter().zip(scores).map(|(times, score)| times * score).sum::<f64>() / scores.len() as f64)
        };
        Bootstrap::default().estimate("test", &rows, scores.len(), mean).unwrap()
    };
    let subject = |scores: &Vec<f64>| SubjectResults {
        estimates: BTreeMap::from([(metric.name.clone(), estimate(scores))]),
        answers: scores.iter().map(answer).collect(),
    };
    TaskResults {
        name: name.into(),
        kind: "generate".into(),
        forgetting: false,
        positive: None,
        order_shown: false,
        main_metric: metric.name.clone(),
        metrics: vec![metric.clone()],
        data: "data.jsonl".into(),
        items: (0..scores[0].len()).map(item).collect(),
        results: scores.iter().map(subject).collect(),
    }
}

/// Makes the metric of this name; smaller values of a loss are better.
pub fn metric(name: &str) -> MetricInfo {
    MetricInfo { name: name.into(), higher_is_better: name != "loss", is_mean: true, neutral: None, undirected: false }
}

/// Makes results of models `base`, `tuned` and so on.
pub fn results(tasks: Vec<TaskResults>) -> SuiteResults {
    let names = ["base", "tuned", "other"];
    let subject = |name: &&str| Subject { name: name.to_string(), model: "models/tiny".into(), adapter: None };
    SuiteResults {
        suite: "suite.yaml".into(),
        title: None,
        evaluated: None,
        subjects: names[..tasks[0].results.len()].iter().map(subject).collect(),
        tasks,
    }
}

/// Scores of 0 and 1, of which `right` of 40 are 1.
fn right(right: usize) -> Vec<f64> {
    (0..40).map(|i| f64::from(u8::from(i < right))).collect()
}

#[test]
fn better_worse_and_not_shown_are_told_apart_after_correction() {
    let losses = |more: f64| (0..40).map(|i| 1.0 + f64::from(i % 5) / 10.0 + more).collect::<Vec<f64>>();
    let found = Comparison::of(&results(vec![
        task("gained", metric("exact_match"), &[right(10), right(30)]),
        task("same", metric("exact_match"), &[right(20), right(22)]),
        task("loss", metric("loss"), &[losses(0.0), losses(0.2)]),
    ]))
    .unwrap();
    assert_eq!((found.baseline.as_str(), found.subjects()), ("base", vec!["tuned"]));
    let [gained, same, loss] = [0, 1, 2].map(|i| &found.tasks[i].subjects[0]);
    assert_eq!([gained.verdict, same.verdict, loss.verdict], [Verdict::Better, Verdict::NotShown, Verdict::Worse]);
    assert_eq!(gained.difference, Some(0.5));
    assert!((same.difference.unwrap() - 0.05).abs() < 1e-12);
    assert!((loss.difference.unwrap() - 0.2).abs() < 1e-12, "a loss is shown as it is written");
    let [low, high] = gained.interval.unwrap();
    // The standard error is sqrt(0.25 / 40) = 0.079.
    assert!((low - 0.345).abs() < 0.03 && (high - 0.655).abs() < 0.03, "{low} {high}");
    let test = same.test.unwrap();
    assert_eq!((test.kind, test.p, test.p_corrected), (TestKind::Mcnemar, 0.5, 0.5));
    assert_eq!(loss.test.unwrap().kind, TestKind::SignFlip);
    assert!((loss.test.unwrap().p_corrected - 2.0 * 1e-4).abs() < 1e-12, "{:?}", loss.test);
    assert!((gained.test.unwrap().p - 2f64.powi(-19)).abs() < 1e-12);
    assert!((gained.test.unwrap().p_corrected - 3.0 * 2f64.powi(-19)).abs() < 1e-12);
    let detectable = same.detectable.unwrap();
    assert!((0.09..0.11).contains(&detectable), "2.8 * 0.2207 / sqrt(40): {detectable}");
    assert_eq!(loss.detectable.map(|d| d < 1e-12), Some(true));
    assert_eq!(found.tasks_with("tuned", Verdict::Better).len(), 1);
}

#[test]
fn a_metric_without_a_better_end_only_changes() {
    let undirected = MetricInfo { undirected: true, ..metric("extracted") };
    let neutral = MetricInfo { neutral: Some(0.5), ..metric("prefers_first") };
    let lower = MetricInfo { higher_is_better: false, ..metric("extracted") };
    let verdict = |metric: &MetricInfo, scores: [Vec<f64>; 2]| {
        let found = Comparison::of(&results(vec![task("t", metric.clone(), &scores)])).unwrap();
        (found.tasks[0].direction, found.tasks[0].subjects[0].verdict)
    };
    for metric in [&undirected, &neutral] {
        for scores in [[right(5), right(35)], [right(35), right(5)]] {
            assert_eq!(verdict(metric, scores), (Direction::Neither, Verdict::Changed));
        }
        assert_eq!(verdict(metric, [right(20), right(22)]).1, Verdict::NotShown);
    }
    assert_eq!(verdict(&lower, [right(5), right(35)]), (Direction::Lower, Verdict::Worse));
    assert_eq!(verdict(&lower, [right(35), right(5)]), (Direction::Lower, Verdict::Better));
    // What changed is counted by what is larger.
    let found = Comparison::of(&results(vec![task("t", undirected, &[right(5), right(35)])])).unwrap();
    let changes = found.tasks[0].subjects[0].changes.clone().unwrap();
    assert_eq!((changes.better.len(), changes.worse.len()), (30, 0));
}

#[test]
fn changed_items_come_with_the_largest_change_first() {
    let found = Comparison::of(&results(vec![
        task("flips", metric("exact_match"), &[vec![1.0, 0.0, 1.0, 0.0], vec![0.0, 1.0, 1.0, 1.0]]),
        task("graded", metric("loss"), &[vec![1.0, 2.0, 3.0], vec![1.5, 2.9, 2.0]]),
    ]))
    .unwrap();
    let changes = |i: usize| found.tasks[i].subjects[0].changes.clone().unwrap();
    assert_eq!(changes(0), ChangedItems { flips: true, better: vec![1, 3], worse: vec![0] });
    assert_eq!(changes(1), ChangedItems { flips: false, better: vec![2], worse: vec![1, 0] });
}

#[test]
fn categories_have_their_items_and_small_ones_no_interval() {
    let found = Comparison::of(&results(vec![task("t", metric("exact_match"), &[right(10), right(30)])])).unwrap();
    let categories = &found.tasks[0].subjects[0].categories;
    let shown: Vec<(&str, usize)> = categories.iter().map(|c| (c.category.as_str(), c.rows)).collect();
    assert_eq!(shown, [("a", 10), ("b", 10), ("c", 10)], "a fourth of the items has no category");
    assert_eq!((categories[0].baseline_value, categories[0].value, categories[0].difference.value), (0.3, 0.8, 0.5));
    assert!(categories.iter().all(|c| c.difference.interval.is_some()));
    let few = task("t", metric("exact_match"), &[vec![1.0; 8], vec![0.0; 8]]);
    let few = Comparison::of(&results(vec![few])).unwrap();
    assert!(few.tasks[0].subjects[0].categories.iter().all(|c| c.rows == 2 && c.difference.interval.is_none()));
}

#[test]
fn a_metric_that_is_no_mean_is_compared_but_not_tested() {
    let bleu =
        MetricInfo { name: "bleu".into(), higher_is_better: true, is_mean: false, neutral: None, undirected: false };
    let found = Comparison::of(&results(vec![task("t", bleu, &[right(10), right(30)])])).unwrap();
    let subject = &found.tasks[0].subjects[0];
    assert_eq!((subject.verdict, subject.difference, subject.test), (Verdict::NotTested, Some(0.5), None));
    assert!(subject.interval.is_none() && subject.changes.is_none() && subject.categories.is_empty());
}

/// A task of texts with these log-likelihoods of each model, of 10 words each, and one token for each in `tokens`.
fn texts(name: &str, log_likelihoods: &[Vec<f64>], tokens: &[f64]) -> TaskResults {
    let metric =
        MetricInfo { name: name.into(), higher_is_better: false, is_mean: false, neutral: None, undirected: false };
    let mut made = task("wiki", metric, log_likelihoods);
    made.kind = "perplexity".into();
    for ((result, log_likelihoods), tokens) in made.results.iter_mut().zip(log_likelihoods).zip(tokens) {
        let n = log_likelihoods.len() as f64;
        let value = (-log_likelihoods.iter().sum::<f64>() / (10.0 * n)).exp();
        result.estimates.get_mut(name).unwrap().value = value;
        for (answer, log_likelihood) in result.answers.iter_mut().zip(log_likelihoods) {
            let scores = [("log_likelihood", *log_likelihood), ("words", 10.0), ("tokens", *tokens)];
            answer.scores.extend(scores.map(|(name, score)| (name.to_string(), score)));
        }
    }
    made
}

#[test]
fn perplexities_are_compared_by_the_likelihoods_of_the_same_texts() {
    let likelihoods = |more: f64| (0..40).map(|i| -20.0 - f64::from(i % 7) - more).collect::<Vec<f64>>();
    let both = [likelihoods(0.0), likelihoods(1.0)];
    let all = results(vec![texts("word_perplexity", &both, &[12.0, 12.0])]);
    let found = Comparison::of(&all).unwrap();
    let subject = &found.tasks[0].subjects[0];
    // The mean log-likelihood of a word falls by 0.1.
    let [base, tuned] = [subject.baseline_value.unwrap(), subject.value.unwrap()];
    assert!((tuned / base - 0.1f64.exp()).abs() < 1e-12);
    assert!((subject.difference.unwrap() - (tuned - base)).abs() < 1e-9, "{subject:?}");
    let [low, high] = subject.interval.unwrap();
    assert!(low > 0.0 && low < subject.difference.unwrap() && subject.difference.unwrap() < high);
    assert_eq!((subject.verdict, subject.test.unwrap().kind), (Verdict::Worse, TestKind::SignFlip));
    assert_eq!((subject.changes.as_ref().unwrap().worse.len(), subject.categories.len()), (40, 3));
    assert!(subject.detectable.unwrap() > 0.0);
    let gate = |text: &str| check_gates(&all, &[Gate::parse(text).unwrap()]).unwrap().remove(0);
    assert_eq!([gate("wiki.word_perplexity <= 1.2 * baseline")].map(|o| (o.holds, o.certain)), [(true, true)]);
    assert_eq!([gate("wiki.word_perplexity <= 1.02 * baseline")].map(|o| (o.holds, o.certain)), [(false, true)]);
    // Models with other tokens are not compared by token.
    let other = results(vec![texts("token_perplexity", &both, &[12.0, 13.0])]);
    assert_eq!(Comparison::of(&other).unwrap().tasks[0].subjects[0].verdict, Verdict::NotTested);
    let same = results(vec![texts("token_perplexity", &both, &[10.0, 10.0])]);
    assert_eq!(Comparison::of(&same).unwrap().tasks[0].subjects[0].verdict, Verdict::Worse);
}

#[test]
fn gates_hold_or_not_and_are_certain_or_not() {
    let all = results(vec![
        task("t", metric("exact_match"), &[right(20), right(21), right(4)]),
        task("u", metric("loss"), &[vec![1.0; 40], vec![1.4; 40], vec![1.6; 40]]),
    ]);
    let check = |text: &str| check_gates(&all, &[Gate::parse(text).unwrap()]).unwrap();
    let states = |text: &str| check(text).iter().map(|o| (o.holds, o.certain)).collect::<Vec<_>>();
    assert_eq!(states("t.exact_match >= baseline - 0.02"), [(true, true), (false, true)]);
    assert_eq!(states("t.exact_match >= baseline + 0.02"), [(true, false), (false, true)]);
    assert_eq!(states("t.exact_match >= 0.6"), [(false, false), (false, true)]);
    assert_eq!(states("u.loss <= 1.5"), [(true, true), (false, true)]);
    assert_eq!(states("u.loss < 1.5 * baseline"), [(true, true), (false, true)]);
    let outcome = &check("t.exact_match >= baseline - 0.02")[0];
    assert_eq!((outcome.subject.as_str(), outcome.value, outcome.bound), ("tuned", 0.525, 0.48));
    let [low, high] = outcome.margin.interval.unwrap();
    assert!((outcome.margin.value - 0.045).abs() < 1e-12 && low >= 0.02 - 1e-9 && high > 0.045, "{outcome:?}");
}

#[test]
fn gates_that_results_cannot_answer_are_refused() {
    let all = results(vec![task("t", metric("exact_match"), &[right(20)])]);
    let refused = |text: &str| check_gates(&all, &[Gate::parse(text).unwrap()]).unwrap_err().to_string();
    assert!(refused("u.exact_match >= 1").contains("no task u\nhint: there is t"));
    assert!(refused("t.f1 >= 1").contains("no metric f1 of task t\nhint: there is exact_match"));
    assert!(refused("t.exact_match >= baseline").contains("no baseline"));
    let gate = Gate::parse("t.exact_match >= 0.4").unwrap();
    assert_eq!(check_gates(&all, &[gate]).unwrap()[0].subject, "base", "the only model");
    let mut bleu = task("t", metric("bleu"), &[right(20), right(30)]);
    bleu.metrics[0].is_mean = false;
    let outcome = check_gates(&results(vec![bleu]), &[Gate::parse("t.bleu >= baseline").unwrap()]).unwrap();
    assert!(outcome[0].holds && !outcome[0].certain && outcome[0].margin.interval.is_none());
}

fn evaluated(place: &str, results: SuiteResults) -> Evaluated {
    Evaluated { place: place.into(), results }
}

#[test]
fn evaluations_of_the_same_items_are_joined() {
    let both = results(vec![task("t", metric("exact_match"), &[right(10), right(20)])]);
    let mut tuned = results(vec![task("t", metric("exact_match"), &[right(10), right(30)])]);
    tuned.subjects[1].adapter = Some("runs/second".into());
    let joined = join(vec![evaluated("out/one/results.json", both), evaluated("out/two/results.json", tuned)]).unwrap();
    let names: Vec<&str> = joined.subjects.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["base", "tuned", "tuned (two)"], "the base was evaluated twice with the same answers");
    assert_eq!(joined.tasks[0].results.len(), 3);
    assert_eq!(joined.tasks[0].results[2].estimates["exact_match"].value, 0.75);
}

#[test]
fn evaluations_of_other_questions_are_refused_with_the_difference() {
    let base = || results(vec![task("t", metric("exact_match"), &[right(10)])]);
    let refused = |change: &dyn Fn(&mut TaskResults)| {
        let mut other = base();
        change(&mut other.tasks[0]);
        join(vec![evaluated("a", base()), evaluated("b", other)]).unwrap_err().to_string()
    };
    assert!(
        refused(&|t| t.name = "u".into()).contains("a and b are results of different questions: the tasks are t and u")
    );
    assert!(refused(&|t| t.kind = "choice".into()).contains("task t: its kind is generate and choice"));
    assert!(refused(&|t| t.items[3].prompt = "other".into()).contains("item 4 (line 4): other prompts"));
    assert!(refused(&|t| t.items[5].expected = vec![]).contains("item 6 (line 6): other expected answers"));
    let fewer = |t: &mut TaskResults| {
        t.items.pop();
        t.results[0].answers.pop();
    };
    assert!(refused(&fewer).contains("40 and 39 items"));
    assert!(join(Vec::new()).unwrap_err().to_string().contains("no results"));
}

#[test]
fn damaged_results_are_refused_before_anything_is_computed() {
    let refused = |change: &dyn Fn(&mut TaskResults)| {
        let mut all = results(vec![task("t", metric("exact_match"), &[right(10), right(11)])]);
        change(&mut all.tasks[0]);
        Comparison::of(&all).unwrap_err().to_string()
    };
    assert!(refused(&|t| t.main_metric = "f1".into()).contains("its main metric f1 is not among its metrics"));
    assert!(refused(&|t| drop(t.results.pop())).contains("1 results of 2 models"));
    assert!(refused(&|t| drop(t.results[1].answers.pop())).contains("39 answers to 40 items"));
    assert!(refused(&|t| t.results[1].answers[2].scores.clear()).contains("line 3 has no finite score exact_match"));
    assert!(
        refused(&|t| t.results[1].answers[2].log_likelihoods = vec![1.0]).contains("0 choices and 1 log-likelihoods")
    );
    let mut nothing = results(vec![task("t", metric("exact_match"), &[right(10)])]);
    nothing.subjects.clear();
    assert!(Comparison::of(&nothing).is_err());
}
