//! Tests of reports, on results that are made by hand.

use super::*;
use crate::eval::comparison::tests::{metric, results, task};
use crate::eval::results::{MetricInfo, TaskResults};

fn right(right: usize) -> Vec<f64> {
    (0..40).map(|i| f64::from(u8::from(i < right))).collect()
}

/// A task with choices: a model that is right is 90 % sure, one that is wrong 60 %.
fn choice_task(scores: &[Vec<f64>]) -> TaskResults {
    let mut made = task("arc", metric("acc"), scores);
    made.kind = "choice".into();
    for (i, item) in made.items.iter_mut().enumerate() {
        item.choices = ["alpha", "beta", "gamma delta"].map(String::from).to_vec();
        item.expected = vec![item.choices[i % 3].clone()];
    }
    for result in &mut made.results {
        for (i, answer) in result.answers.iter_mut().enumerate() {
            let (chosen, p) = if answer.scores["acc"] == 1.0 { (i % 3, 0.9f64) } else { ((i + 1) % 3, 0.6) };
            answer.text = made.items[i].choices[chosen].clone();
            answer.log_likelihoods =
                (0..3).map(|k| if k == chosen { p.ln() } else { ((1.0 - p) / 2.0).ln() }).collect();
        }
    }
    made
}

fn sample() -> EvaluationReport {
    let losses = |more: f64| (0..40).map(|i| 1.0 + f64::from(i % 5) / 10.0 + more).collect::<Vec<f64>>();
    let mut written = task("icd10", metric("exact_match"), &[right(10), right(30)]);
    written.items.iter_mut().enumerate().for_each(|(i, item)| {
        item.expected = vec![["yes", "no"][i % 2].into()];
        item.prompt = format!("Is <b>{i}</b> a \u{202e}case?");
    });
    let all = results(vec![
        written,
        choice_task(&[right(20), right(22)]),
        task("wiki", metric("loss"), &[losses(0.0), losses(0.2)]),
    ]);
    let gates = ["icd10.exact_match >= baseline - 0.02", "wiki.loss <= 1.3", "arc.acc >= baseline + 0.01"];
    let gates: Vec<Gate> = gates.iter().map(|text| Gate::parse(text).unwrap()).collect();
    EvaluationReport::of(all, &gates).unwrap()
}

#[test]
fn the_verdict_comes_first_and_names_the_tasks() {
    let report = sample();
    assert_eq!(
        report.verdicts(),
        [
            "tuned is better than base on 1 of 3 tasks (icd10), and worse on 1 (wiki). On 1 task (arc), no difference was shown."
        ]
    );
    let one = |tasks| EvaluationReport::of(results(tasks), &[]).unwrap().verdicts().join(" ");
    assert_eq!(
        one(vec![task("t", metric("exact_match"), &[right(20), right(22)])]),
        "No difference between tuned and base was shown on t: exact match 55.0 % instead of 50.0 % (difference +5.0 points, \
         95 % 0.0 to +12.5)."
    );
    assert!(
        one(vec![task("t", metric("exact_match"), &[right(5), right(35)])])
            .starts_with("tuned is better than base on t:")
    );
    assert_eq!(
        one(vec![task("t", metric("exact_match"), &[right(5)])]),
        "Only base was evaluated, so nothing is compared."
    );
    let same = || task("t", metric("exact_match"), &[right(5), right(5)]);
    assert_eq!(one(vec![same(), same()]), "No difference between tuned and base was shown on any of 2 tasks.");
    let better = || task("t", metric("exact_match"), &[right(5), right(35)]);
    assert_eq!(
        one(vec![same(), better(), better()]),
        "tuned is better than base on 2 of 3 tasks (t and t), worse on none. On 1 task (t), no difference was shown."
    );
}

#[test]
fn the_page_shows_everything_and_runs_nothing() {
    let page = sample().page();
    for text in [
        "tuned is better than base on 1 of 3 tasks",
        "1 of 3 gates does not hold.",
        "holds, not certain",
        "+50.0 points",
        "items became right with tuned",
        "items got a worse score with tuned",
        "Reliability of",
        "Answers of",
        "By category:",
        "always “alpha”",
        "a choice at random",
        "items show differences of",
    ] {
        let found = page.replace("<bdi>", "").replace("</bdi>", "");
        assert!(found.contains(text), "{text} is not on the page");
    }
    assert!(!page.contains("NaN") && !page.contains("<b>12</b>") && page.contains("&lt;b&gt;12&lt;/b&gt;"));
    assert!(!page.contains('\u{202e}'), "text of people cannot change the direction of the page");
    assert_eq!(page.matches("<script").count(), 1);
    assert_eq!(page.matches("class=\"chart reliability\"").count(), 2);
    assert_eq!(page.matches("class=\"confusion\"").count(), 4, "of icd10 and arc, for two models");
}

#[test]
fn what_got_worse_is_said_in_words_of_the_metric() {
    let page = |metric: MetricInfo| {
        let made = task("memory", metric, &[right(2), right(30)]);
        let page = EvaluationReport::of(results(vec![made]), &[]).unwrap().page();
        page.replace("<bdi>", "").replace("</bdi>", "")
    };
    let lower = MetricInfo { higher_is_better: false, ..metric("extracted") };
    let (worse, changed) = (page(lower.clone()), page(MetricInfo { undirected: true, ..lower }));
    assert!(
        worse.contains("0 items got better and 28 worse") && worse.contains("28 items got a worse score"),
        "{worse}"
    );
    assert!(worse.contains("(lower is better)") && !worse.contains("became"));
    for text in [
        "tuned differs from base on memory, where neither end of the metric is better",
        "28 items have a larger score and 0 a smaller one",
        "28 items have a larger score with tuned",
        "(neither end is better)",
        "changed",
    ] {
        assert!(changed.contains(text), "{text}: {changed}");
    }
    assert!(!changed.contains("with the worst scores"));
}

#[test]
fn markdown_and_summary_say_the_same() {
    let report = sample();
    let (markdown, summary) = (report.markdown(), report.summary());
    for text in [&markdown, &summary] {
        assert!(text.contains("tuned is better than base on 1 of 3 tasks"), "{text}");
        for part in ["+50.0 points", "no difference shown", "does not hold", "a choice at random", "33.3 %"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert!(markdown.contains("| icd10 | 40 | exact match | tuned | 75.0 % (60.0 to 87.5) |"), "{markdown}");
    let mut hostile = sample().results;
    hostile.tasks[0].name = "a|b\n# <i>".into();
    let text = EvaluationReport::of(hostile, &[]).unwrap().markdown();
    assert!(text.contains("| a\\|b \\# \\<i\\> |"), "{text}");
}

#[test]
fn a_metric_without_a_better_end_shows_its_neutral_value_and_how_it_changed() {
    let mut made = task("pairs", metric("absolute_difference"), &[right(10), right(30)]);
    made.metrics.push(MetricInfo {
        name: "prefers_first".into(),
        higher_is_better: false,
        is_mean: true,
        neutral: Some(0.5),
        undirected: false,
    });
    for found in &mut made.results {
        found.estimates.insert("prefers_first".into(), found.estimates["absolute_difference"]);
        for answer in &mut found.answers {
            answer.scores.insert("prefers_first".into(), answer.scores["absolute_difference"]);
        }
    }
    let page = EvaluationReport::of(results(vec![made]), &[]).unwrap().page();
    let table = &page[page.find("50.0 % is without preference").expect("the neutral value")..];
    let row = &table[..table.find("</tr>").unwrap()];
    assert!(row.contains("25.0 %") && row.contains("75.0 %") && row.contains("+50.0 points (+"), "{row}");
}
