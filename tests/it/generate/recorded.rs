//! Decoding steps that are recorded as CUDA graphs, on the fake device of tests/fake_cuda: the answers of plain steps, and few launches.

use super::adapters_by_row::{requests, with_adapters};
use super::decoding::drain;
use crate::support::fake_cuda;
use crate::support::families;
use crate::support::fixture;
use ft::generate::engine::{BatchLimits, Engine, FinishedAnswer, GenerationRequest};
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::{Model, open};
use ft::native::OwnStream;
use serde_json::json;
use std::ops::ControlFlow;
use tch::{Device, Kind};

const GPU: Device = Device::Cuda(0);

fn sampling(tokens: usize) -> GenerationSettings {
    let greedy = GenerationSettings::greedy(tokens, &[]);
    GenerationSettings { temperature: 0.8, seed: 7, log_probs: true, ..greedy }
}

/// Returns what `f` finds with plain steps and with recorded ones.
fn both<R>(model: &Model, f: impl Fn(&Model) -> R) -> [R; 2] {
    assert_eq!(model.hindrance_to_recording(GPU), None);
    let plain = f(model);
    let _stream = OwnStream::begin(GPU).unwrap();
    model.set_records_passes(true);
    let recorded = f(model);
    model.set_records_passes(false);
    [plain, recorded]
}

/// Answers 9 requests of different lengths, 1 to 3 answers each, 5 rows at a time. Rows end at different steps.
fn answers(model: &Model, stop: u32) -> Vec<FinishedAnswer> {
    let settings = GenerationSettings { stop_ids: (0..stop).collect(), ..sampling(40) };
    let engine = Engine::new(model, settings, BatchLimits { rows: 5, tokens: 1 << 20 }).unwrap();
    let request = |i: u64| {
        let length = [3, 40, 7, 1, 22][i as usize % 5];
        let prompt: Vec<u32> = (0..length).map(|t| (t * 31 + i as u32 * 7) % 60).collect();
        GenerationRequest { answers: 1 + i as usize % 3, ..GenerationRequest::new(&prompt, i) }
    };
    drain(engine, &(0..9).map(request).collect::<Vec<_>>())
}

/// The same operations with the same numbers: the same bits.
#[test]
fn recorded_steps_give_the_answers_of_plain_ones() {
    if !fake_cuda::inside("generate::recorded::recorded_steps_give_the_answers_of_plain_ones", &[]) {
        return;
    }
    for (name, kind) in [
        ("tiny-llama", Kind::Float),
        ("tiny-llama", Kind::BFloat16),
        ("tiny-gpt2", Kind::Float),
        ("tiny-qwen3", Kind::Float),
    ] {
        let model = open(&fixture(name), &[], GPU, kind).unwrap();
        let [plain, recorded] = both(&model, |model| answers(model, 12));
        assert_eq!(plain.len(), 18);
        let lengths: Vec<usize> = plain.iter().map(|a| a.completion.tokens.len()).collect();
        assert!(lengths.iter().max() > lengths.iter().min(), "{name}: all rows end together");
        assert_eq!(plain, recorded, "{name} in {kind:?}");
    }
}

/// A layer with a window moves what it keeps from time to time, so that the tokens of a sequence lie elsewhere.
#[test]
fn windows_move_under_a_recorded_step() {
    if !fake_cuda::inside("generate::recorded::windows_move_under_a_recorded_step", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    families::write("mistral", json!({"sliding_window": 8}), Kind::Float, folder.path());
    let model = open(folder.path(), &[], GPU, Kind::Float).unwrap();
    let [plain, recorded] = both(&model, |model| answers(model, 2));
    assert!(plain.iter().any(|a| a.completion.tokens.len() > 30), "answers are longer than the window");
    assert_eq!(plain, recorded);
}

#[test]
fn rows_of_several_adapters_are_recorded_together() {
    if !fake_cuda::inside("generate::recorded::rows_of_several_adapters_are_recorded_together", &[]) {
        return;
    }
    let specs = [json!({"lora": {"rank": 4, "targets": "all-linear"}}), json!({"lora": {"rank": 2, "dora": true}})];
    let model = with_adapters(&fixture("tiny-llama"), Kind::Float, &specs);
    let run = |model: &Model| {
        let limits = BatchLimits { rows: 6, tokens: 1 << 20 };
        let engine = Engine::new(model, GenerationSettings { stop_ids: (0..16).collect(), ..sampling(24) }, limits);
        drain(engine.unwrap(), &requests(2, 512))
    };
    let [plain, recorded] = both(&model, run);
    assert_eq!(plain, recorded);
}

#[test]
fn a_conversation_goes_on_with_recorded_steps() {
    if !fake_cuda::inside("generate::recorded::a_conversation_goes_on_with_recorded_steps", &[]) {
        return;
    }
    let model = open(&fixture("tiny-llama"), &[], GPU, Kind::Float).unwrap();
    let converse = |model: &Model| {
        let mut session = ChatSession::new(model);
        let mut say =
            |prompt: &[u32]| session.answer(prompt, &sampling(20), &mut |_| ControlFlow::Continue(())).unwrap();
        let (first, longer): (Vec<u32>, Vec<u32>) = ((5..25).collect(), (5..40).collect());
        [say(&first), say(&longer), say(&[&longer[..10], &[99, 98]].concat())]
    };
    let [plain, recorded] = both(&model, converse);
    assert_eq!(plain, recorded);
}

/// A recorded step is one launch, beside a copy of the ids and what chooses the next tokens, and waits once.
#[test]
fn a_recorded_step_takes_few_launches() {
    if !fake_cuda::inside("generate::recorded::a_recorded_step_takes_few_launches", &[]) {
        return;
    }
    let model = open(&fixture("tiny-llama"), &[], GPU, Kind::Float).unwrap();
    let counts = |model: &Model, settings: &GenerationSettings| {
        let mut engine = Engine::new(model, settings.clone(), BatchLimits::of(model).unwrap()).unwrap();
        for i in 0..4 {
            engine.add(GenerationRequest::new(&[7, 8, 9 + i as u32], i)).unwrap();
        }
        (0..5).for_each(|_| drop(engine.step().unwrap())); // the prompts, two plain steps, the recording, a recorded step
        fake_cuda::reset();
        assert_eq!(engine.step().unwrap().tokens.len(), 4);
        fake_cuda::counts()
    };
    for (name, settings, most) in
        [("greedy", GenerationSettings::greedy(20, &[]), 3), ("temperature", sampling(20), 12)]
    {
        let [plain, recorded] = both(&model, |model| counts(model, &settings));
        println!("{name}: {plain:?} {recorded:?}");
        assert_eq!((plain.waits, recorded.waits), (1, 1), "{name}");
        assert!(recorded.launches <= most, "{name}: {} launches", recorded.launches);
        assert!(plain.launches > recorded.launches + 45, "{name}: {} launches", plain.launches);
    }
}

#[test]
fn models_whose_steps_cannot_be_recorded_say_why() {
    if !fake_cuda::inside("generate::recorded::models_whose_steps_cannot_be_recorded_say_why", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (family, more, reason) in [
        ("mixtral", json!({}), "expert"),
        ("gemma2", json!({}), "bounded, biased or have sinks"),
        ("llama", json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "how long its sequence is"),
    ] {
        families::write(family, more, Kind::Float, folder.path());
        let model = open(folder.path(), &[], GPU, Kind::Float).unwrap();
        let why = model.hindrance_to_recording(GPU).unwrap_or_default();
        assert!(why.contains(reason), "{family}: {why}");
    }
    let cpu = open(&fixture("tiny-llama"), &[], Device::Cpu, Kind::Float).unwrap();
    assert!(cpu.hindrance_to_recording(Device::Cpu).unwrap().contains("only a GPU"));
}
