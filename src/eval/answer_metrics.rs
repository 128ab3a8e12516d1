//! Metrics of generated answers beside exact match: overlap of words and characters, and scores of classes.

use crate::stats::bootstrap::{Bootstrap, Estimate};
use crate::stats::classification::Confusion;
use crate::stats::moments::correlation;
use crate::stats::ranks::spearman;
use crate::text_metrics::bleu::BleuCounts;
use crate::text_metrics::chrf::{Chrf, ChrfCounts};
use crate::text_metrics::edit_distance::relative_edit_distance;
use crate::text_metrics::numbers::{last_number, within};
use crate::text_metrics::question_answering;
use crate::text_metrics::rouge::Rouge;
use crate::text_metrics::ter::TerCounts;
use std::collections::BTreeMap;

/// A generated answer, and the answers that are right.
pub type ReferencedAnswer<'a> = (&'a str, Vec<&'a str>);

/// A metric of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerMetric {
    /// F1 of words as SQuAD normalizes them; the mean over rows.
    F1,
    /// The share of answers that are equal as SQuAD normalizes them: without case, punctuation and articles.
    SquadExactMatch,
    /// F1 of words or equality, of the rows that have an answer or of those that have none (SQuAD 2.0's HasAns and NoAns).
    SquadPart(SquadPart),
    /// F1 of ROUGE; the mean over rows.
    Rouge(Rouge),
    /// BLEU of all answers, 0 to 100.
    Bleu,
    /// chrF or chrF++ of all answers, 0 to 100.
    Chrf(Chrf),
    /// The translation edit rate of all answers, in percent of the references' words.
    Ter,
    /// The edit distance of characters divided by the longer length; the mean over rows.
    EditDistance,
    /// The share of answers whose last number is that of the expected answer, within a relative 1e-6.
    Number,
    /// A score of the expected answers as classes.
    Classes(ClassScore),
    /// A correlation of the last number of each answer with that of the expected one.
    Correlation(Correlation),
}

/// A score of some of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquadPart {
    /// Whether it is that of rows with an answer; otherwise of rows whose expected answer is empty.
    pub answerable: bool,
    /// Whether answers have to be equal; otherwise it is F1 of words.
    pub exact: bool,
}

/// A correlation of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correlation {
    /// Pearson's.
    Pearson,
    /// Spearman's, of ranks.
    Spearman,
}

/// A score of a classification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassScore {
    /// The mean of F1 over the classes.
    MacroF1,
    /// The mean of F1, weighted by how often each class is expected.
    WeightedF1,
    /// Matthews' correlation.
    Matthews,
    /// The mean of the shares of each class's rows that are right.
    BalancedAccuracy,
}

impl AnswerMetric {
    /// All metrics by their names.
    pub const ALL: [(&str, Self); 22] = [
        ("f1", Self::F1),
        ("squad_em", Self::SquadExactMatch),
        ("HasAns_f1", Self::SquadPart(SquadPart { answerable: true, exact: false })),
        ("HasAns_exact", Self::SquadPart(SquadPart { answerable: true, exact: true })),
        ("NoAns_f1", Self::SquadPart(SquadPart { answerable: false, exact: false })),
        ("NoAns_exact", Self::SquadPart(SquadPart { answerable: false, exact: true })),
        ("rouge1", Self::Rouge(Rouge::Ngrams(1))),
        ("rouge2", Self::Rouge(Rouge::Ngrams(2))),
        ("rougeL", Self::Rouge(Rouge::Longest)),
        ("rougeLsum", Self::Rouge(Rouge::LongestBySentence)),
        ("bleu", Self::Bleu),
        ("chrf", Self::Chrf(Chrf::Characters)),
        ("chrf++", Self::Chrf(Chrf::CharactersAndWords)),
        ("ter", Self::Ter),
        ("edit_distance", Self::EditDistance),
        ("number", Self::Number),
        ("macro_f1", Self::Classes(ClassScore::MacroF1)),
        ("weighted_f1", Self::Classes(ClassScore::WeightedF1)),
        ("mcc", Self::Classes(ClassScore::Matthews)),
        ("balanced_accuracy", Self::Classes(ClassScore::BalancedAccuracy)),
        ("pearson", Self::Correlation(Correlation::Pearson)),
        ("spearman", Self::Correlation(Correlation::Spearman)),
    ];

    /// Returns the metric of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, metric)| metric)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, metric)| *metric == self).map_or("", |(name, _)| name)
    }

    /// Returns true if a larger value is better.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::EditDistance | Self::Ter)
    }

    /// Returns true if it is the mean of a score of each row.
    pub fn is_mean(self) -> bool {
        !matches!(
            self,
            Self::Bleu | Self::Chrf(_) | Self::Ter | Self::Classes(_) | Self::Correlation(_) | Self::SquadPart(_)
        )
    }

    /// Computes the metric of pairs of (generated, expected) answers, with its 95 % bootstrap interval over rows. `None` if
    /// it has no value, as without rows.
    pub fn measure(self, answers: &[(&str, &str)]) -> Option<Estimate> {
        self.measure_any(&answers.iter().map(|(answer, expected)| (*answer, vec![*expected])).collect::<Vec<_>>())
    }

    /// Does the same for answers of which several are right. Classes are the first of them.
    pub fn measure_any(self, answers: &[ReferencedAnswer]) -> Option<Estimate> {
        if answers.is_empty() {
            return None;
        }
        let counted = self.count(answers);
        let rows: Vec<usize> = (0..answers.len()).collect();
        Bootstrap::default().estimate(self.name(), &rows, answers.len(), |drawn| counted.value(drawn))
    }

    /// Returns the score of each row, if the metric is their mean. Of several right answers the nearest counts.
    pub fn scores(self, answers: &[ReferencedAnswer]) -> Option<Vec<f64>> {
        match self.count(answers) {
            Counted::Mean(scores) => Some(scores),
            _ => None,
        }
    }

    fn count(self, answers: &[ReferencedAnswer]) -> Counted {
        let each = |score: &dyn Fn(&str, &[&str]) -> f64| {
            Counted::Mean(answers.iter().map(|(answer, expected)| score(answer, expected)).collect())
        };
        match self {
            Self::F1 => each(&|answer, expected| question_answering::f1(answer, expected)),
            Self::SquadExactMatch => {
                each(&|answer, expected| f64::from(u8::from(question_answering::exact_match(answer, expected))))
            }
            Self::SquadPart(SquadPart { answerable, exact }) => {
                let score = |(answer, expected): &ReferencedAnswer| match exact {
                    true => f64::from(u8::from(question_answering::exact_match(answer, expected))),
                    false => question_answering::f1(answer, expected),
                };
                let of_part = |row: &ReferencedAnswer| {
                    (question_answering::is_answerable(&row.1) == answerable).then(|| score(row))
                };
                Counted::Part(answers.iter().map(of_part).collect())
            }
            Self::Rouge(kind) => each(&|answer, expected| kind.best(answer, expected).f1),
            Self::EditDistance => each(&|answer, expected| {
                let distance = |expected: &&str| relative_edit_distance(answer.trim(), expected.trim());
                expected.iter().map(distance).fold(1.0, f64::min)
            }),
            Self::Number => each(&|answer, expected| {
                f64::from(u8::from(expected.iter().any(|expected| same_number(answer, expected))))
            }),
            Self::Bleu => Counted::Bleu(answers.iter().map(|(a, e)| BleuCounts::of(a, e)).collect()),
            Self::Chrf(kind) => Counted::Chrf(kind, answers.iter().map(|(a, e)| kind.count(a, e)).collect()),
            Self::Ter => Counted::Ter(answers.iter().map(|(a, e)| TerCounts::of(a, e)).collect()),
            Self::Classes(score) => {
                let pairs: Vec<(&str, &str)> =
                    answers.iter().map(|(answer, e)| (*answer, e.first().copied().unwrap_or_default())).collect();
                Counted::classes(score, &pairs)
            }
            Self::Correlation(kind) => {
                let number = |text: &str| last_number(text).unwrap_or(NO_NUMBER);
                let pair = |(answer, expected): &ReferencedAnswer| {
                    (number(expected.first().copied().unwrap_or_default()), number(answer))
                };
                Counted::Numbers(kind, answers.iter().map(pair).collect())
            }
        }
    }
}

/// The number of an answer without one, as T5 has it for STS-B: below all scores.
const NO_NUMBER: f64 = -1.0;

/// Returns true if both texts have a number, and their last ones are equal. Twelve digits that differ in the last are
/// not.
fn same_number(answer: &str, expected: &str) -> bool {
    const RELATIVE: f64 = 1e-6;
    matches!((last_number(answer), last_number(expected)), (Some(a), Some(b)) if within(a, b, RELATIVE, 0.0))
}

/// What a metric of any resampled rows is computed from.
enum Counted {
    /// A score of each row.
    Mean(Vec<f64>),
    /// A score of each row that counts.
    Part(Vec<Option<f64>>),
    Bleu(Vec<BleuCounts>),
    Chrf(Chrf, Vec<ChrfCounts>),
    Ter(Vec<TerCounts>),
    /// (expected, predicted) class of each row, and the number of classes.
    Classes(ClassScore, Vec<(usize, usize)>, usize),
    /// (expected, found) number of each row.
    Numbers(Correlation, Vec<(f64, f64)>),
}

impl Counted {
    /// Makes a class of each distinct expected answer, and one more of all other answers. Whitespace around
    /// them and case do not count.
    fn classes(score: ClassScore, answers: &[(&str, &str)]) -> Self {
        let key = |text: &str| text.trim().to_lowercase();
        let mut numbers: BTreeMap<String, usize> = answers.iter().map(|(_, expected)| (key(expected), 0)).collect();
        numbers.values_mut().enumerate().for_each(|(i, number)| *number = i);
        let number = |text: &str| numbers.get(&key(text)).copied().unwrap_or(numbers.len());
        let pairs = answers.iter().map(|(answer, expected)| (number(expected), number(answer))).collect();
        Self::Classes(score, pairs, numbers.len() + 1)
    }

    /// Computes the metric where row i was drawn `drawn[i]` times.
    fn value(&self, drawn: &[f64]) -> Option<f64> {
        let rows = || drawn.iter().enumerate().flat_map(|(row, times)| std::iter::repeat_n(row, *times as usize));
        match self {
            Self::Mean(scores) => {
                let sum: f64 = drawn.iter().zip(scores).map(|(times, score)| times * score).sum();
                Some(sum / drawn.iter().sum::<f64>())
            }
            Self::Part(scores) => {
                let counted = || drawn.iter().zip(scores).filter_map(|(times, score)| Some((times, (*score)?)));
                let (sum, rows) = counted().fold((0.0, 0.0), |(sum, rows), (n, score)| (sum + n * score, rows + n));
                (rows > 0.0).then(|| sum / rows)
            }
            Self::Ter(counts) => {
                let mut sum = TerCounts::default();
                rows().for_each(|row| sum.add(&counts[row]));
                Some(sum.score())
            }
            Self::Bleu(counts) => {
                let mut sum = BleuCounts::default();
                rows().for_each(|row| sum.add(&counts[row]));
                Some(sum.score(false))
            }
            Self::Chrf(kind, counts) => {
                let mut sum = kind.zero();
                rows().for_each(|row| sum.add(&counts[row]));
                Some(sum.score())
            }
            Self::Classes(score, pairs, classes) => {
                let confusion = Confusion::of(rows().map(|row| pairs[row]), *classes);
                match score {
                    ClassScore::MacroF1 => confusion.macro_f1(),
                    ClassScore::WeightedF1 => confusion.weighted_f1(),
                    ClassScore::Matthews => Some(confusion.matthews()),
                    ClassScore::BalancedAccuracy => confusion.balanced_accuracy(),
                }
            }
            Self::Numbers(kind, pairs) => {
                let (expected, found): (Vec<f64>, Vec<f64>) = rows().map(|row| pairs[row]).unzip();
                match kind {
                    Correlation::Pearson => correlation(&expected, &found),
                    Correlation::Spearman => spearman(&expected, &found),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(name: &str, answers: &[(&str, &str)]) -> f64 {
        AnswerMetric::named(name).unwrap().measure(answers).unwrap().value
    }

    #[test]
    fn every_metric_has_its_best_value_for_right_answers() {
        let right =
            [("A long answer of words, 17", "A long answer of words, 17"), ("one two three 4", "one two three 4")];
        for (name, metric) in AnswerMetric::ALL {
            assert_eq!(metric.name(), name);
            let found = metric.measure(if is_of_no_answer(name) { &[("", "")] } else { &right }).unwrap();
            let best = if matches!(metric, AnswerMetric::Bleu | AnswerMetric::Chrf(_)) { 100.0 } else { 1.0 };
            let best = if metric.higher_is_better() { best } else { 0.0 };
            assert!((found.value - best).abs() < 1e-9, "{name}: {found:?}");
            assert!(metric.measure(&[]).is_none());
        }
    }

    fn is_of_no_answer(name: &str) -> bool {
        name.starts_with("NoAns")
    }

    #[test]
    fn rows_with_and_without_an_answer_are_scored_apart() {
        let answers = [("nine", "nine"), ("at nine", "nine"), ("", "ten"), ("", ""), ("five", "")];
        assert_eq!(measure("squad_em", &answers), 2.0 / 5.0);
        assert_eq!([measure("HasAns_exact", &answers), measure("NoAns_exact", &answers)], [1.0 / 3.0, 0.5]);
        assert!((measure("HasAns_f1", &answers) - (1.0 + 2.0 / 3.0) / 3.0).abs() < 1e-12);
        assert_eq!(measure("NoAns_f1", &answers), 0.5);
        let all = AnswerMetric::named("NoAns_f1").unwrap();
        assert!(all.measure(&answers[..3]).is_none(), "there is no such row");
        assert!(!all.is_mean() && all.scores(&[("a", vec!["b"])]).is_none());
    }

    #[test]
    fn answers_that_are_no_class_count_as_wrong() {
        let answers = [("yes", "yes"), ("Yes ", "yes"), ("perhaps", "no"), ("no", "no")];
        // F1: yes 1, no 2/3, everything else 0.
        assert!((measure("macro_f1", &answers) - (1.0 + 2.0 / 3.0) / 3.0).abs() < 1e-12);
        assert!((measure("weighted_f1", &answers) - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(measure("balanced_accuracy", &answers), 0.75);
    }

    #[test]
    fn an_answer_without_a_number_is_below_all_numbers() {
        let answers = [("5.0", "5"), ("about 4", "4"), ("who knows", "1")];
        assert_eq!(measure("spearman", &answers), 1.0);
        let expected = correlation(&[5.0, 4.0, 1.0], &[5.0, 4.0, -1.0]).unwrap();
        assert_eq!(measure("pearson", &answers), expected);
    }

    #[test]
    fn intervals_hold_the_value() {
        const RIGHT: &str = "one two three four five 1";
        const WRONG: &str = "one two three four and 2";
        let answers: Vec<(&'static str, &'static str)> = (0..40)
            .map(|i| match i % 4 {
                0 => (WRONG, RIGHT),
                1 => (WRONG, WRONG),
                _ => (RIGHT, RIGHT),
            })
            .collect();
        for (name, metric) in AnswerMetric::ALL {
            let blank =
                |(answer, expected): &(&'static str, &'static str)| match (answer == expected, is_of_no_answer(name)) {
                    (true, true) => ("", ""),
                    (false, true) => (*answer, ""),
                    _ => (*answer, *expected),
                };
            let found = metric.measure(&answers.iter().map(blank).collect::<Vec<_>>()).unwrap();
            let [low, high] = found.interval.unwrap();
            assert!(low <= found.value && found.value <= high && low < high, "{name}: {found:?}");
        }
        assert_eq!(measure("number", &answers), 0.75);
    }
}
