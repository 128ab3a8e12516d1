//! Tests against scikit-learn (tests/fixtures/logistic.py).

use super::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct LogisticFit {
    difference: Vec<f64>,
    x: Vec<f64>,
    won: Vec<f64>,
    weights: Vec<f64>,
    ridge: f64,
    intercept: f64,
    slope: f64,
}

#[derive(Deserialize)]
struct LogisticFits {
    cases: Vec<LogisticFit>,
    difficult: Vec<Difficult>,
}

/// Comparisons with the difficulty of their prompts.
#[derive(Deserialize)]
struct Difficult {
    difference: Vec<f64>,
    difficulty: Vec<f64>,
    won: Vec<f64>,
    rate: f64,
}

fn fixture() -> LogisticFits {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/logistic.json");
    crate::fsutil::read_json(&path).unwrap()
}

fn cases() -> Vec<LogisticFit> {
    let cases = fixture().cases;
    assert_eq!(cases.len(), 5);
    cases
}

fn comparison(difference: f64, won: f64) -> LengthComparison {
    LengthComparison { difference, difficulty: 0.0, won }
}

#[test]
fn with_difficulties_the_rate_is_the_mean_prediction_at_equal_length() {
    let cases = fixture().difficult;
    assert_eq!(cases.len(), 3);
    for case in cases {
        let each = case.difference.iter().zip(&case.difficulty).zip(&case.won);
        let comparisons: Vec<LengthComparison> = each
            .map(|((difference, difficulty), won)| LengthComparison {
                difference: *difference,
                difficulty: *difficulty,
                won: *won,
            })
            .collect();
        let rate = length_controlled_win_rate(&comparisons, &vec![1.0; comparisons.len()]).unwrap();
        assert!((rate - case.rate).abs() < 1e-5, "{rate}, expected {}", case.rate);
        let without: Vec<LengthComparison> =
            comparisons.iter().map(|c| LengthComparison { difficulty: 0.0, ..*c }).collect();
        let plain = length_controlled_win_rate(&without, &vec![1.0; without.len()]).unwrap();
        assert!((plain - rate).abs() > 1e-4, "the difficulty matters: {plain} {rate}");
    }
}

#[test]
fn equations_without_one_solution_are_told() {
    assert_eq!(solve(vec![vec![0.0, 2.0, 4.0], vec![3.0, 1.0, 5.0]]), Some(vec![1.0, 2.0]));
    assert_eq!(solve(vec![vec![1.0, 2.0, 4.0], vec![2.0, 4.0, 5.0]]), None);
}

#[test]
fn estimates_equal_those_of_scikit_learn() {
    for case in cases() {
        let observations: Vec<Observation<1>> =
            case.x.iter().zip(&case.won).map(|(x, y)| Observation { x: [*x], y: *y }).collect();
        let (a, [b]) = logistic(&observations, &case.weights, case.ridge).unwrap();
        assert!((a - case.intercept).abs() < 2e-5, "{a} {}", case.intercept);
        assert!((b - case.slope).abs() < 2e-5, "{b} {}", case.slope);
    }
}

#[test]
fn a_win_rate_at_equal_length_is_that_of_the_intercept() {
    for case in cases().iter().filter(|case| case.ridge == 1.0) {
        let comparisons: Vec<LengthComparison> =
            case.difference.iter().zip(&case.won).map(|(d, w)| comparison(*d, *w)).collect();
        let ones = vec![1.0; comparisons.len()];
        let rate = length_controlled_win_rate(&comparisons, &ones).unwrap();
        let observations: Vec<Observation<1>> =
            case.x.iter().zip(&case.won).map(|(x, y)| Observation { x: [*x], y: *y }).collect();
        let (a, _) = logistic(&observations, &ones, 1.0).unwrap();
        assert!((rate - 1.0 / (1.0 + (-a).exp())).abs() < 1e-9, "{rate}");
    }
}

#[test]
fn answers_that_win_only_by_their_length_win_half_of_the_time() {
    // The longer answer wins nine of ten times, and more of them are longer. So many rows that the ridge does not matter.
    let of = |n: usize, difference: f64, won: f64| vec![comparison(difference, won); n];
    let comparisons = [of(2700, 100.0, 1.0), of(300, 100.0, 0.0), of(900, -100.0, 0.0), of(100, -100.0, 1.0)].concat();
    let ones = vec![1.0; comparisons.len()];
    let rate = length_controlled_win_rate(&comparisons, &ones).unwrap();
    assert!((rate - 0.5).abs() < 0.002, "{rate}, 0.7 without control");
}

#[test]
fn equal_lengths_and_equal_outcomes_have_the_plain_rate() {
    let of = comparison;
    let rate =
        |comparisons: &[LengthComparison]| length_controlled_win_rate(comparisons, &vec![1.0; comparisons.len()]);
    assert_eq!(rate(&[of(3.0, 1.0), of(3.0, 0.5)]), Some(0.75));
    assert_eq!(rate(&[of(3.0, 1.0), of(-5.0, 1.0)]), Some(1.0));
    assert_eq!(rate(&[]), None);
    let half = rate(&[of(1.0, 0.5), of(2.0, 0.5), of(9.0, 0.5)]).unwrap();
    assert!((half - 0.5).abs() < 1e-12);
}
