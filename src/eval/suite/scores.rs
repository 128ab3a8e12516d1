//! What is taken of a written answer, exact match, and estimates of metrics from the scores of items.

use super::choice_letter::{ChoiceLetter, WordTags};
use crate::error::{Error, Result};
use crate::eval::results::MetricInfo;
use crate::recipe::suite_file::{AnswerFilter, AnswerMap, GenerateTask, Normaliser, RegexFilter};
use crate::stats::bootstrap::{Bootstrap, Estimate};
use crate::stats::proportion::Proportion;
use fancy_regex::{Captures, Regex};
use std::collections::HashMap;

/// Compiles a regular expression.
pub(super) fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| Error::user(format!("`{pattern}` is no regular expression: {e}")))
}

/// The filters of a task, compiled.
pub struct Extraction {
    filters: Vec<CompiledFilter>,
}

enum CompiledFilter {
    Plain(AnswerFilter),
    Regex(RegexFilter, Regex),
    Letter(ChoiceLetter),
    Tags(WordTags),
}

impl Extraction {
    /// Compiles the filters of a task.
    pub fn of(task: &GenerateTask) -> Result<Self> {
        let compiled = |filter: &AnswerFilter| {
            Ok(match filter {
                AnswerFilter::Regex(settings) => CompiledFilter::Regex(settings.clone(), compile(&settings.pattern)?),
                AnswerFilter::Letter(settings) => CompiledFilter::Letter(ChoiceLetter::of(settings)?),
                AnswerFilter::Tags => CompiledFilter::Tags(WordTags::new()?),
                plain => CompiledFilter::Plain(plain.clone()),
            })
        };
        Ok(Self { filters: task.extract.iter().map(compiled).collect::<Result<_>>()? })
    }

    /// Applies the filters in order. `choices`: those of the row for each filter that looks for letters.
    pub fn apply(&self, answer: &str, choices: &[Vec<String>]) -> String {
        let mut choices = choices.iter();
        self.filters.iter().fold(answer.to_string(), |text, filter| match filter {
            CompiledFilter::Regex(settings, regex) => found(settings, regex, &text),
            CompiledFilter::Letter(letter) => letter.of_answer(&text, choices.next().map_or(&[], Vec::as_slice)),
            CompiledFilter::Tags(tags) => tags.of_answer(&text),
            CompiledFilter::Plain(AnswerFilter::Lowercase) => text.to_lowercase(),
            CompiledFilter::Plain(AnswerFilter::Uppercase) => text.to_uppercase(),
            CompiledFilter::Plain(AnswerFilter::Map(map)) => replaced(map, text),
            CompiledFilter::Plain(_) => text.trim().to_string(),
        })
    }
}

/// Returns what takes the place of a text.
fn replaced(map: &AnswerMap, text: String) -> String {
    match map.texts.iter().find(|(from, _)| *from == text) {
        Some((_, to)) => to.clone(),
        None => map.otherwise.clone().unwrap_or(text),
    }
}

/// Returns what the filter finds, as lm-evaluation-harness's `regex` does: of the match that is picked its first group that is
/// not empty, or all of it without groups, without whitespace around it.
fn found(settings: &RegexFilter, regex: &Regex, text: &str) -> String {
    let picked = picked(regex, settings.pick, text);
    match picked.as_ref().map(|found| (first_group(found), found.len())) {
        Some((Some(found), _)) => found.trim().to_string(),
        // With one group, an empty match is a match.
        Some((None, 2)) => String::new(),
        _ => settings.otherwise.clone(),
    }
}

/// Returns a match of those that an expression has; negative numbers count from the last. A match that takes too many steps counts
/// as none.
pub(super) fn picked<'t>(regex: &Regex, pick: i64, text: &'t str) -> Option<Captures<'t, str>> {
    let mut matches: Vec<_> = regex.captures_iter(text).map_while(|found| found.ok()).collect();
    let place = match pick {
        n if n < 0 => matches.len().checked_sub(n.unsigned_abs() as usize),
        n => Some(n as usize),
    };
    place.filter(|place| *place < matches.len()).map(|place| matches.swap_remove(place))
}

/// Returns the first group of a match that is not empty, or all of it without groups.
pub(super) fn first_group<'t>(found: &Captures<'t, str>) -> Option<&'t str> {
    match found.len() {
        1 => found.get(0).map(|whole| whole.as_str()),
        _ => found.iter().skip(1).flatten().map(|group| group.as_str()).find(|group| !group.is_empty()),
    }
}

/// Exact match with what it ignores.
pub struct ExactMatch {
    ignored: Vec<Regex>,
    normalise: Vec<Normaliser>,
}

impl ExactMatch {
    /// Compiles what exact match of a task ignores.
    pub fn of(task: &GenerateTask) -> Result<Self> {
        let ignored = task.ignore.iter().map(|pattern| compile(pattern)).collect::<Result<_>>()?;
        Ok(Self { ignored, normalise: task.normalise.clone() })
    }

    /// Returns 1 if the answer is one of the expected ones, else 0.
    pub fn score(&self, answer: &str, expected: &[String]) -> f64 {
        let answer = self.normalised(answer);
        f64::from(u8::from(expected.iter().any(|expected| self.normalised(expected) == answer)))
    }

    fn normalised(&self, text: &str) -> String {
        let has = |wanted| self.normalise.contains(&wanted);
        let mut text =
            self.ignored.iter().fold(text.to_string(), |text, regex| regex.replace_all(&text, "").into_owned());
        if has(Normaliser::Case) {
            text = text.to_lowercase();
        }
        text.retain(|c| {
            !(has(Normaliser::Punctuation) && c.is_ascii_punctuation()
                || has(Normaliser::Numbers) && c.is_ascii_digit())
        });
        if has(Normaliser::Whitespace) { text.trim().to_string() } else { text }
    }
}

/// Returns the most frequent text; of several the one that occurs first.
pub fn vote(texts: &[String]) -> &str {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    texts.iter().for_each(|text| *counts.entry(text).or_default() += 1);
    let most = counts.values().copied().max().unwrap_or(0);
    texts.iter().find(|text| counts[text.as_str()] == most).map_or("", String::as_str)
}

/// Describes a metric that is the mean over items.
pub fn mean_metric(name: &str, higher_is_better: bool) -> MetricInfo {
    MetricInfo { name: name.into(), higher_is_better, is_mean: true, neutral: None, undirected: false }
}

/// Describes a metric of all items together.
pub fn joint_metric(name: &str, higher_is_better: bool) -> MetricInfo {
    MetricInfo { name: name.into(), higher_is_better, is_mean: false, neutral: None, undirected: false }
}

/// Estimates the mean of a score: with Wilson's interval if it is 0 or 1 for each item, else by the bootstrap. `None` without items.
pub fn mean_estimate(name: &str, scores: &[f64]) -> Option<Estimate> {
    if scores.iter().all(|score| *score == 0.0 || *score == 1.0) {
        let hits = scores.iter().filter(|score| **score == 1.0).count();
        return Proportion::of(hits, scores.len()).map(|p| Estimate { value: p.share, interval: Some(p.interval) });
    }
    joint_estimate(name, scores.len(), |drawn| {
        let sum: f64 = drawn.iter().zip(scores).map(|(times, score)| times * score).sum();
        Some(sum / drawn.iter().sum::<f64>())
    })
}

/// Estimates a statistic of `items` items, of which it gets how often each was drawn.
pub fn joint_estimate(name: &str, items: usize, statistic: impl Fn(&[f64]) -> Option<f64>) -> Option<Estimate> {
    let all: Vec<usize> = (0..items).collect();
    if all.is_empty() { None } else { Bootstrap::default().estimate(name, &all, items, statistic) }
}

/// Computes the expected calibration error of items given as (confidence, whether right), 10 bins of equal width (Guo et al. 2017,
/// arXiv 1706.04599, equation 3): the mean distance between confidence and accuracy of a bin, weighted by its items.
pub fn calibration_error(items: &[(f64, bool)], drawn: &[f64]) -> Option<f64> {
    const BINS: usize = 10;
    let mut bins = [(0.0, 0.0); BINS];
    for ((confidence, right), times) in items.iter().zip(drawn) {
        // Bins are open below and closed above.
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        bins[bin].0 += times * confidence;
        bins[bin].1 += times * f64::from(u8::from(*right));
    }
    let count: f64 = drawn.iter().sum();
    (count > 0.0).then(|| bins.iter().map(|(confidence, right)| (confidence - right).abs()).sum::<f64>() / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(extract: Vec<AnswerFilter>) -> GenerateTask {
        GenerateTask {
            metrics: vec!["exact_match".into()],
            max_new_tokens: None,
            stop: None,
            extract,
            normalise: Vec::new(),
            ignore: Vec::new(),
            samples: None,
            scorers: Default::default(),
        }
    }

    fn extracted(pattern: &str, pick: i64, answer: &str) -> String {
        let filter = RegexFilter { pick, ..RegexFilter::first(pattern) };
        Extraction::of(&task(vec![AnswerFilter::Regex(filter)])).unwrap().apply(answer, &[])
    }

    /// The expected values are those of lm-evaluation-harness 0.4.13's RegexFilter.
    #[test]
    fn regular_expressions_take_what_lm_eval_takes() {
        assert_eq!(extracted(r"#### (\-?[0-9\.\,]+)", 0, "so 4\n#### 12 \n#### 13"), "12");
        assert_eq!(extracted(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, "5 or 12.50 or 7"), "7");
        assert_eq!(extracted(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -3, "5 or 12.50"), "[invalid]");
        assert_eq!(extracted(r"answer is (.*?)\.", 0, "The answer is  blue ."), "blue");
        assert_eq!(extracted(r"answer is (\w*)", 0, "The answer is ."), "");
        assert_eq!(extracted(r"\d+", 1, "1 2 3"), "2");
        assert_eq!(extracted("x", 0, "y"), "[invalid]");
    }

    /// The filter of eval/humaneval-chat.yaml.
    #[test]
    fn code_is_taken_from_its_first_block_or_is_the_whole_answer() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/humaneval-chat.yaml");
        let suite = crate::recipe::suite_file::read(&path).unwrap();
        let crate::recipe::suite_file::TaskKind::Generate(generate) = &suite.tasks[0].kind else { panic!("generate") };
        let extraction = Extraction::of(generate).unwrap();
        for (answer, code) in [
            ("Here:\n```python\ndef f():\n    return 1\n```\nIt is\n```\n1\n```", "def f():\n    return 1"),
            ("```py \nx = 1\n", "x = 1"),
            ("```\nx = 1\n```", "x = 1"),
            ("def f():\n    return 1\n", "def f():\n    return 1"),
        ] {
            assert_eq!(extraction.apply(answer, &[]), code, "{answer}");
        }
    }

    #[test]
    fn filters_follow_each_other() {
        let filters = vec![AnswerFilter::Regex(RegexFilter::first("is(.*)")), AnswerFilter::Uppercase];
        assert_eq!(Extraction::of(&task(filters)).unwrap().apply("It is so ", &[]), "SO");
        let texts = vec![("yes".to_string(), "1".to_string())];
        let map = |otherwise: Option<&str>, answer: &str| {
            let map = AnswerMap { texts: texts.clone(), otherwise: otherwise.map(str::to_string) };
            Extraction::of(&task(vec![AnswerFilter::Map(map)])).unwrap().apply(answer, &[])
        };
        assert_eq!([map(None, "yes"), map(None, "no"), map(Some("0"), "no")], ["1", "no", "0"]);
        let strip = vec![AnswerFilter::Strip, AnswerFilter::Lowercase];
        assert_eq!(Extraction::of(&task(strip)).unwrap().apply(" A \n", &[]), "a");
    }

    #[test]
    fn exact_match_ignores_what_it_is_told() {
        let score = |normalise: &[Normaliser], ignore: &[&str], answer: &str| {
            let ignore = ignore.iter().map(|text| text.to_string()).collect();
            let task = GenerateTask { normalise: normalise.to_vec(), ignore, ..task(Vec::new()) };
            ExactMatch::of(&task).unwrap().score(answer, &["Ja".to_string(), "yes".to_string()])
        };
        assert_eq!([score(&[], &[], "yes"), score(&[], &[], "Yes"), score(&[], &[], "Ja")], [1.0, 0.0, 1.0]);
        assert_eq!(score(&[Normaliser::Case], &[], "YES"), 1.0);
        assert_eq!(score(&[Normaliser::Punctuation, Normaliser::Numbers], &[], "y1es!"), 1.0);
        assert_eq!(score(&[Normaliser::Whitespace], &[], " yes\n"), 1.0);
        assert_eq!(score(&[], &["[sx]+$", "^!"], "!yex"), 1.0, "the expected text loses its s too");
        assert_eq!(score(&[], &["x$", "^!"], "!yesx"), 1.0);
    }

    #[test]
    fn the_most_frequent_answer_wins_and_the_first_among_equals() {
        let of = |texts: &[&str]| vote(&texts.iter().map(|t| t.to_string()).collect::<Vec<_>>()).to_string();
        assert_eq!([of(&["b", "a", "a"]), of(&["b", "a"]), of(&[])], ["a", "b", ""]);
    }

    #[test]
    fn calibration_compares_confidence_with_accuracy_by_bins() {
        let items = [(0.95, true), (0.95, false), (0.15, false), (0.3, true)];
        // Bins: (0.9, 1] 1.9 - 1, (0.1, 0.2] 0.15 - 0, (0.2, 0.3] 0.3 - 1.
        let expected = (0.9 + 0.15 + 0.7) / 4.0;
        assert!((calibration_error(&items, &[1.0; 4]).unwrap() - expected).abs() < 1e-12);
        assert_eq!(calibration_error(&items, &[0.0; 4]), None);
    }
}
