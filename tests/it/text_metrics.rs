//! Text metrics and classification scores, against rouge-score, sacrebleu, SQuAD's rules, scikit-learn and scipy
//! (tests/fixtures/text_metrics.py).

use crate::support::fixture;
use ft::stats::classification::Confusion;
use ft::stats::{moments, ranks};
use ft::text_metrics::bleu::BleuCounts;
use ft::text_metrics::chrf::Chrf;
use ft::text_metrics::question_answering;
use ft::text_metrics::rouge::Rouge;
use ft::text_metrics::ter::TerCounts;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    rows: Vec<Row>,
    corpus: Corpus,
    classes: Vec<Classes>,
    numbers: Numbers,
}

#[derive(Deserialize)]
struct Row {
    answer: String,
    references: Vec<String>,
    rouge: [[f64; 3]; 4],
    bleu: f64,
    chrf: f64,
    #[serde(rename = "chrf++")]
    chrf_words: f64,
    squad_em: bool,
    squad_f1: f64,
}

#[derive(Deserialize)]
struct Corpus {
    bleu: f64,
    chrf: f64,
    #[serde(rename = "chrf++")]
    chrf_words: f64,
}

#[derive(Deserialize)]
struct Classes {
    classes: usize,
    expected: Vec<usize>,
    predicted: Vec<usize>,
    accuracy: f64,
    macro_f1: f64,
    weighted_f1: f64,
    balanced_accuracy: f64,
    matthews: f64,
}

#[derive(Deserialize)]
struct Numbers {
    a: Vec<f64>,
    b: Vec<f64>,
    pearson: f64,
    spearman: f64,
}

fn expected() -> Expected {
    serde_json::from_slice(&std::fs::read(fixture("text-metrics.json")).unwrap()).unwrap()
}

fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-9 * expected.abs().max(1.0)
}

#[test]
fn overlap_of_one_answer_equals_the_reference_packages() {
    for (i, row) in expected().rows.iter().enumerate() {
        let kinds = [Rouge::Ngrams(1), Rouge::Ngrams(2), Rouge::Longest, Rouge::LongestBySentence];
        for (kind, expected) in kinds.into_iter().zip(row.rouge) {
            let best = kind.best(&row.answer, &row.references);
            for (found, expected) in [best.precision, best.recall, best.f1].into_iter().zip(expected) {
                assert!(close(found, expected), "row {i}, {kind:?}: {best:?}, {expected}");
            }
        }
        let bleu = BleuCounts::of(&row.answer, &row.references).score(true);
        assert!(close(bleu, row.bleu), "row {i}, BLEU: {bleu}, {}", row.bleu);
        for (kind, expected) in [(Chrf::Characters, row.chrf), (Chrf::CharactersAndWords, row.chrf_words)] {
            let found = kind.count(&row.answer, &row.references).score();
            assert!(close(found, expected), "row {i}, {kind:?}: {found}, {expected}");
        }
        assert_eq!(question_answering::exact_match(&row.answer, &row.references), row.squad_em, "row {i}");
        let f1 = question_answering::f1(&row.answer, &row.references);
        assert!(close(f1, row.squad_f1), "row {i}, F1: {f1}, {}", row.squad_f1);
    }
}

#[test]
fn scores_of_a_file_are_those_of_its_counts() {
    let Expected { rows, corpus, .. } = expected();
    let mut bleu = BleuCounts::default();
    let mut sums = [Chrf::Characters, Chrf::CharactersAndWords].map(|kind| (kind, kind.zero()));
    for row in &rows {
        bleu.add(&BleuCounts::of(&row.answer, &row.references));
        sums.iter_mut().for_each(|(kind, sum)| sum.add(&kind.count(&row.answer, &row.references)));
    }
    assert!(close(bleu.score(false), corpus.bleu), "{} {}", bleu.score(false), corpus.bleu);
    for ((kind, sum), expected) in sums.iter().zip([corpus.chrf, corpus.chrf_words]) {
        assert!(close(sum.score(), expected), "{kind:?}: {} {expected}", sum.score());
    }
}

#[test]
fn scores_of_classes_equal_scikit_learn() {
    for case in expected().classes {
        let pairs = case.expected.iter().copied().zip(case.predicted.iter().copied());
        let found = Confusion::of(pairs, case.classes);
        assert!(close(found.accuracy().unwrap(), case.accuracy));
        assert!(close(found.macro_f1().unwrap(), case.macro_f1), "{:?} {}", found.macro_f1(), case.macro_f1);
        assert!(close(found.weighted_f1().unwrap(), case.weighted_f1));
        assert!(close(found.balanced_accuracy().unwrap(), case.balanced_accuracy));
        assert!(close(found.matthews(), case.matthews), "{} {}", found.matthews(), case.matthews);
    }
    let nothing = Confusion::of([], 2);
    assert_eq!(
        (nothing.accuracy(), nothing.macro_f1(), nothing.weighted_f1(), nothing.matthews()),
        (None, None, None, 0.0)
    );
}

#[test]
fn correlations_equal_scipy() {
    let Numbers { a, b, pearson, spearman } = expected().numbers;
    assert!(close(moments::correlation(&a, &b).unwrap(), pearson));
    assert!(close(ranks::spearman(&a, &b).unwrap(), spearman));
}

#[derive(Deserialize)]
struct Filters {
    ter: EditRates,
}

#[derive(Deserialize)]
struct EditRates {
    rows: Vec<EditRate>,
    all: f64,
}

#[derive(Deserialize)]
struct EditRate {
    answer: String,
    references: Vec<String>,
    ter: f64,
}

#[test]
fn translation_edit_rates_equal_those_of_sacrebleu() {
    let found: Filters = serde_json::from_slice(&std::fs::read(fixture("answer-filters.json")).unwrap()).unwrap();
    assert!(found.ter.rows.len() > 80);
    let mut sum = TerCounts::default();
    for row in &found.ter.rows {
        let counts = TerCounts::of(&row.answer, &row.references);
        assert!(
            close(counts.score(), row.ter),
            "{} {}: {:?} {:?}",
            counts.score(),
            row.ter,
            row.answer,
            row.references
        );
        sum.add(&counts);
    }
    assert!(close(sum.score(), found.ter.all), "{} {}", sum.score(), found.ter.all);
}
