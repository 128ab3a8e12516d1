//! Decoding on a CUDA device, judged by the counters of the fake one: waits, launches and bytes per token, the memory of
//! the cache, and answers equal to the CPU's.

use crate::support::fake_cuda;
use crate::support::fixture;
use ft::generate::answer::GeneratedAnswer;
use ft::generate::beam::{self, BeamEarlyStopping, BeamSettings};
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest, complete};
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::{Model, open};
use ft::native;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);

fn tiny(device: Device, kind: Kind) -> Model {
    open(&fixture("tiny-llama"), &[], device, kind).unwrap()
}

fn greedy(tokens: usize) -> GenerationSettings {
    GenerationSettings { log_probs: true, ..GenerationSettings::greedy(tokens, &[]) }
}

fn sampling(tokens: usize) -> GenerationSettings {
    GenerationSettings { temperature: 0.8, seed: 7, ..greedy(tokens) }
}

/// Ways to choose a token, by name.
fn ways(tokens: usize) -> Vec<(&'static str, GenerationSettings)> {
    let sampling = || sampling(tokens);
    vec![
        ("greedy", GenerationSettings::greedy(tokens, &[])),
        ("greedy, log-probabilities", greedy(tokens)),
        ("temperature", sampling()),
        ("top-k", GenerationSettings { top_k: 40, ..sampling() }),
        ("top-p", GenerationSettings { top_p: 0.9, ..sampling() }),
        ("min-p", GenerationSettings { min_p: 0.05, ..sampling() }),
        ("top-k, top-p, min-p", GenerationSettings { top_k: 40, top_p: 0.9, min_p: 0.05, ..sampling() }),
        ("repetition penalty", GenerationSettings { repetition_penalty: 1.2, ..sampling() }),
        (
            "all rules",
            GenerationSettings {
                repetition_penalty: 1.2,
                presence_penalty: 0.1,
                frequency_penalty: 0.1,
                no_repeat_ngram: 3,
                bad_words: vec![vec![17], vec![20, 21]],
                ..sampling()
            },
        ),
    ]
}

/// Prompts of one length, so that every way decodes the same number of tokens.
fn prompts(count: usize) -> Vec<Vec<u32>> {
    (0..count as u32).map(|i| (0..12).map(|t| (t * 31 + i * 7 + 3) % 512).collect()).collect()
}

fn per(n: f64) -> [f64; 7] {
    let c = fake_cuda::counts();
    [c.launches, c.waits, c.uploads, c.upload_bytes, c.downloads, c.download_bytes, c.allocations].map(|x| x as f64 / n)
}

/// Returns the mean counts of a decoding step, after the prompts and two steps.
fn counts_of_a_step(model: &Model, settings: &GenerationSettings, rows: usize) -> [f64; 7] {
    const STEPS: f64 = 8.0;
    let mut engine = Engine::new(model, settings.clone(), BatchLimits::of(model).unwrap()).unwrap();
    for (i, prompt) in prompts(rows).iter().enumerate() {
        engine.add(GenerationRequest::new(prompt, i as u64)).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(engine.step().unwrap().tokens.len(), rows);
    }
    fake_cuda::reset();
    for _ in 0..8 {
        assert_eq!(engine.step().unwrap().tokens.len(), rows);
    }
    per(STEPS)
}

fn show(way: &str, kind: Kind, rows: usize, c: [f64; 7]) {
    let [launches, waits, uploads, up, downloads, down, _] = c;
    println!("| {way} {kind:?} | {rows} | {waits:.1} | {launches:.1} | {uploads:.1} ({up:.0}) | {downloads:.1} ({down:.0}) |");
}

#[test]
fn table() {
    let environment = [("FT_TEST_TABLE", "1")];
    let Some(output) = fake_cuda::run_inside("generate::on_device::table", &environment).map(|o| o.stdout) else {
        return table_inside();
    };
    println!("{}", String::from_utf8_lossy(&output));
}

fn table_inside() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let model = tiny(GPU, kind);
        for (way, settings) in ways(20) {
            for rows in [1, 16] {
                show(way, kind, rows, counts_of_a_step(&model, &settings, rows));
            }
        }
        let settings = GenerationSettings::greedy(11, &[]);
        for count in [1, 4] {
            let beams = BeamSettings { count, answers: 1, length_penalty: 1.0, early_stopping: BeamEarlyStopping::No };
            let run = |tokens: usize| {
                fake_cuda::reset();
                let s = GenerationSettings { max_new_tokens: tokens, ..settings.clone() };
                beam::search(&model, &prompts(1)[0], &[], &s, beams, None).unwrap();
                per(1.0)
            };
            let (short, long) = (run(3), run(11));
            let step = std::array::from_fn(|i| (long[i] - short[i]) / 8.0);
            show(&format!("beams {count}"), kind, 1, step);
        }
    }
}
