//! Decoding on a CUDA device, judged by the fake one: how often a step waits, what it launches and copies, the memory
//! of the cache, and answers equal to the CPU's.

use crate::support::fake_cuda::{self, Counts};
use crate::support::workspace::Workspace;
use crate::support::{assert_close, fixture, frozen};
use ft::generate::answer::GeneratedAnswer;
use ft::generate::beam::{self, BeamEarlyStopping, BeamSettings};
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest};
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::{Config, Heads, LoadOptions, Model, Storage, open};
use ft::native;
use ft::nn::Tokens;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);

fn tiny(device: Device, kind: Kind) -> Model {
    open(&fixture("tiny-llama"), &[], device, kind).unwrap()
}

/// Settings for answers of `tokens` tokens, which nothing ends earlier.
fn greedy(tokens: usize) -> GenerationSettings {
    GenerationSettings::greedy(tokens, &[])
}

fn sampling(tokens: usize) -> GenerationSettings {
    GenerationSettings { temperature: 0.8, seed: 7, log_probs: true, ..greedy(tokens) }
}

/// Ways to choose a token, and how many operations each may launch for it in float32, whatever the number of rows. Each
/// number is what libtorch's operations need today, so that an operation more is noticed.
fn ways(tokens: usize) -> Vec<(&'static str, GenerationSettings, i64)> {
    let sampling = || sampling(tokens);
    let penalty = || GenerationSettings { repetition_penalty: 1.2, ..sampling() };
    vec![
        ("greedy", greedy(tokens), 1),
        ("greedy, log-probabilities", GenerationSettings { log_probs: true, ..greedy(tokens) }, 10),
        ("temperature", sampling(), 10),
        ("top-k 40", GenerationSettings { top_k: 40, ..sampling() }, 12),
        ("top-p 0.9", GenerationSettings { top_p: 0.9, ..sampling() }, 18),
        ("min-p 0.05", GenerationSettings { min_p: 0.05, ..sampling() }, 15),
        ("repetition penalty 1.2", penalty(), 16),
        (
            "all of these, three more rules",
            GenerationSettings {
                top_k: 40,
                top_p: 0.9,
                min_p: 0.05,
                frequency_penalty: 0.1,
                no_repeat_ngram: 3,
                bad_words: vec![vec![17], vec![20, 21]],
                ..penalty()
            },
            31,
        ),
    ]
}

/// Operations that one token launches in a pass of the 3 layers of tiny-llama: 24 in each layer (norms 2, products 7,
/// rotation of queries and keys 8, writes to the cache 2, attention 1, SwiGLU 2, additions 2); embedding, last norm and
/// head; the angles 4; the next positions 2.
const PASS: i64 = 3 * 24 + 9;

/// Prompts of one length, so that every row gets a token in every step.
fn prompts(count: usize) -> Vec<Vec<u32>> {
    (0..count as u32).map(|i| (0..12).map(|t| (t * 31 + i * 7 + 3) % 512).collect()).collect()
}

fn engine<'m>(model: &'m Model, settings: &GenerationSettings, rows: usize) -> Engine<'m> {
    let mut engine = Engine::new(model, settings.clone(), BatchLimits::of(model).unwrap()).unwrap();
    for (i, prompt) in prompts(rows).iter().enumerate() {
        engine.add(GenerationRequest::new(prompt, i as u64)).unwrap();
    }
    engine
}

/// Returns the counts of one decoding step, which comes after the prompts and two steps. Every step has the same.
fn counts_of_a_step(model: &Model, settings: &GenerationSettings, rows: usize) -> Counts {
    let mut engine = engine(model, settings, rows);
    let mut step = || {
        fake_cuda::reset();
        assert_eq!(engine.step().unwrap().tokens.len(), rows);
        fake_cuda::counts()
    };
    for pass in ["the prompts", "the first step", "the second step"] {
        assert_eq!(step().waits, 1, "{pass}");
    }
    let counts = step();
    assert_eq!(step().launches, counts.launches);
    counts
}

#[test]
fn a_step_waits_once_for_the_whole_batch() {
    if !fake_cuda::inside("generate::on_device::a_step_waits_once_for_the_whole_batch", &[]) {
        return;
    }
    let model = tiny(GPU, Kind::Float);
    for (way, settings, operations) in ways(20) {
        let (one, many) = (counts_of_a_step(&model, &settings, 1), counts_of_a_step(&model, &settings, 16));
        println!("| {way} | {} | {} | {} and {} |", one.waits, one.launches, bytes(&one), bytes(&many));
        assert_eq!((one.waits, many.waits), (1, 1), "{way}");
        assert_eq!(one.launches, many.launches, "{way}: rows share every operation");
        assert!(one.launches <= PASS + operations, "{way}: {} launches, {PASS} + {operations} allowed", one.launches);
        // An id of 8 bytes and at most two numbers of 8 bytes for each row.
        assert!(many.download_bytes <= 16 * 24, "{way}: {} bytes", many.download_bytes);
        // Uploads: a random number for each row; rules also say which logits they change. Positions and ids stay.
        let uploads = i64::from(!settings.is_greedy()) + 2 * i64::from(settings.repetition_penalty != 1.0);
        assert!(many.uploads <= uploads, "{way}: {} uploads", many.uploads);
    }
}

fn bytes(c: &Counts) -> i64 {
    c.upload_bytes + c.download_bytes
}

fn beams(count: usize) -> BeamSettings {
    BeamSettings { count, answers: count, length_penalty: 1.0, early_stopping: BeamEarlyStopping::No }
}

#[test]
fn a_step_of_beams_or_of_a_conversation_waits_once() {
    if !fake_cuda::inside("generate::on_device::a_step_of_beams_or_of_a_conversation_waits_once", &[]) {
        return;
    }
    let model = tiny(GPU, Kind::Float);
    let prompt = prompts(1).remove(0);
    let waits = |run: &dyn Fn(usize)| {
        let [short, long] = [3, 11].map(|tokens| {
            fake_cuda::reset();
            run(tokens);
            fake_cuda::counts()
        });
        println!("{} launches a token", (long.launches - short.launches) as f64 / 8.0);
        long.waits - short.waits
    };
    for count in [1, 4] {
        let search = |tokens: usize| drop(beam::search(&model, &prompt, &[], &greedy(tokens), beams(count), None));
        assert_eq!(waits(&search), 8, "{count} beams");
    }
    let converse = |tokens: usize| {
        let mut session = ChatSession::new(&model);
        session.answer(&prompt, &sampling(tokens), &mut |_| ControlFlow::Continue(())).unwrap();
    };
    assert_eq!(waits(&converse), 8);
}

#[test]
fn answers_equal_those_of_the_cpu() {
    if !fake_cuda::inside("generate::on_device::answers_equal_those_of_the_cpu", &[]) {
        return;
    }
    let [cpu, gpu] = [Device::Cpu, GPU].map(|device| tiny(device, Kind::Float));
    for (way, settings, _) in ways(24) {
        // Rows end at different steps, and others take their places.
        let settings = GenerationSettings { stop_ids: (0..24).collect(), ..settings };
        let [ours, theirs] = [&gpu, &cpu].map(|model| answers(model, &settings));
        assert_eq!(ours.len(), 26);
        let lengths: Vec<usize> = ours.values().map(|a| a.tokens.len()).collect();
        assert!(lengths.iter().max() > lengths.iter().min(), "{way}: all rows end together");
        let pairs = || ours.values().zip(theirs.values());
        if settings.is_greedy() {
            same_answers(pairs(), way);
            continue;
        }
        // A random number that lies within rounding (about 1e-6) of the boundary between two tokens may choose either:
        // one token in 10^5, of 600. A fault would change most answers.
        let other = pairs().filter(|(a, b)| a.tokens != b.tokens).count();
        println!("{way}: {other} answers differ");
        assert!(other <= 1, "{way}: {other} of {} answers differ", ours.len());
        same_answers(pairs().filter(|(a, b)| a.tokens == b.tokens), way);
    }
    for count in [1, 3] {
        let found = [&gpu, &cpu]
            .map(|model| beam::search(model, &prompts(3)[2], &[], &greedy(12), beams(count), None).unwrap());
        same_answers(found[0].iter().zip(&found[1]), &format!("{count} beams"));
    }
    let found = [&gpu, &cpu].map(|model| {
        let mut session = ChatSession::new(model);
        let mut say = |prompt: &[u32]| session.answer(prompt, &greedy(8), &mut |_| ControlFlow::Continue(())).unwrap();
        let (first, longer): (Vec<u32>, Vec<u32>) = ((5..25).collect(), (5..40).collect());
        [say(&first), say(&longer), say(&[&longer[..10], &[99, 98]].concat())]
    });
    same_answers(found[0].iter().zip(&found[1]), "a conversation");
}

/// Answers 12 requests of different lengths, 1 to 4 answers each, 5 rows at a time.
fn answers(model: &Model, settings: &GenerationSettings) -> BTreeMap<(usize, usize), GeneratedAnswer> {
    let limits = BatchLimits { rows: 5, tokens: 1 << 20 };
    let mut engine = Engine::new(model, settings.clone(), limits).unwrap();
    for i in 0..12u32 {
        let prompt: Vec<u32> = (0..[3, 40, 7, 1, 22, 1][i as usize % 6]).map(|t| (t * 31 + i * 7) % 60).collect();
        let answers = [1, 3, 2, 4, 2, 1][i as usize % 6];
        engine.add(GenerationRequest { answers, ..GenerationRequest::new(&prompt, u64::from(i)) }).unwrap();
    }
    let mut found = BTreeMap::new();
    while !engine.is_idle() {
        found.extend(engine.step().unwrap().finished.into_iter().map(|f| ((f.request, f.sample), f.completion)));
    }
    found
}

/// Checks that tokens and reasons of the end are equal, and log-probabilities up to the rounding of another formula of
/// attention.
fn same_answers<'a>(pairs: impl Iterator<Item = (&'a GeneratedAnswer, &'a GeneratedAnswer)>, what: &str) {
    for (ours, theirs) in pairs {
        assert_eq!((&ours.tokens, ours.stop_reason), (&theirs.tokens, theirs.stop_reason), "{what}");
        let gaps = ours.log_probs.iter().zip(&theirs.log_probs).map(|(a, b)| (a - b).abs());
        assert!(gaps.fold(0.0, f32::max) < 1e-4, "{what}: {ours:?} {theirs:?}");
    }
}

/// Heads whose size the attention kernels do not take are padded in the cache; numbers for which the device has no such
/// kernel are attended to by libtorch's operations.
#[test]
fn heads_and_devices_of_every_kind_decode() {
    const NAME: &str = "generate::on_device::heads_and_devices_of_every_kind_decode";
    if !fake_cuda::inside(NAME, &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config: serde_json::Value = crate::support::json("tiny-llama/config.json");
    config["head_dim"] = 12.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let [cpu, gpu] = [Device::Cpu, GPU].map(|device| {
        let (kind, storage, adapters, heads) = (Kind::Float, Storage::Auto, Vec::new(), Heads::Tokens);
        let load = LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads };
        Model::initialise(Config::read(folder.path()).unwrap(), folder.path(), 3, load).unwrap()
    });
    let [ours, theirs] = [&gpu, &cpu].map(|model| answers(model, &sampling(10)));
    same_answers(ours.values().zip(theirs.values()), "heads of 12");
    for family in ["tiny-gpt2", "tiny-qwen3", "biased-llama"] {
        let [ours, theirs] = [GPU, Device::Cpu]
            .map(|device| answers(&open(&fixture(family), &[], device, Kind::Float).unwrap(), &sampling(10)));
        same_answers(ours.values().zip(theirs.values()), family);
    }
}

/// Below compute capability 8.0 the kernels do not take bfloat16: cached keys are read by libtorch's operations.
#[test]
fn bfloat16_decodes_where_no_kernel_takes_it() {
    let name = "generate::on_device::bfloat16_decodes_where_no_kernel_takes_it";
    if !fake_cuda::inside(name, &[("FAKE_CUDA_CAPABILITY", "75")]) {
        return;
    }
    let model = tiny(GPU, Kind::BFloat16);
    let rows: Vec<Vec<u32>> = [9u32, 14].iter().map(|n| (0..*n).map(|t| (t * 31 + n) % 512).collect()).collect();
    let mut cache = model.cache(2);
    let prompts: Vec<&[u32]> = rows.iter().map(|row| &row[..row.len() - 4]).collect();
    model.extend(&Tokens::pack(&prompts, GPU), &mut cache, |_| ()).unwrap();
    for left in (1..=4).rev() {
        let ids: Vec<i64> = rows.iter().map(|row| i64::from(row[row.len() - left])).collect();
        let ours = model.next_logits(&Tensor::from_slice(&ids).to_device(GPU), &mut cache).unwrap();
        let whole: Vec<&[u32]> = rows.iter().map(|row| &row[..row.len() + 1 - left]).collect();
        let tokens = Tokens::pack(&whole, GPU);
        let theirs = model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows())).unwrap();
        // bfloat16 has 8 bits; attention rounds its probabilities in one formula and not in the other.
        assert_close("logits", &ours, &theirs, 2f64.powi(-5));
    }
}

/// With one token in every new prompt, the packed kernel of half precision counts one query for each segment.
#[test]
fn prompts_of_one_token_join_running_rows() {
    if !fake_cuda::inside("generate::on_device::prompts_of_one_token_join_running_rows", &[]) {
        return;
    }
    let model = tiny(GPU, Kind::BFloat16);
    let run = |together: bool| {
        let limits = BatchLimits::of(&model).unwrap();
        let mut engine = Engine::new(&model, greedy(6), limits).unwrap();
        engine.add(GenerationRequest::new(&prompts(1)[0], 0)).unwrap();
        let mut found = BTreeMap::new();
        for round in 0.. {
            if round == if together { 2 } else { 6 } {
                for id in [7, 9, 11] {
                    engine.add(GenerationRequest::new(&[id], u64::from(id))).unwrap();
                }
            } else if round > 6 && engine.is_idle() {
                break;
            }
            found.extend(engine.step().unwrap().finished.into_iter().map(|f| (f.request, f.completion.tokens)));
        }
        found
    };
    let (together, apart) = (run(true), run(false));
    assert_eq!((together.len(), &together), (4, &apart));
}

fn peak() -> u64 {
    native::memory(GPU).unwrap().peak
}

/// Answers 40 prompts of 2 to 8 tokens with `tokens` tokens each. Returns the bytes that this took at most, beside what
/// was there before.
fn memory_of_answers(model: &Model, limits: BatchLimits, tokens: usize) -> u64 {
    let before = native::memory(GPU).unwrap().live;
    native::reset_peak(GPU).unwrap();
    let mut engine = Engine::new(model, greedy(tokens), limits).unwrap();
    for i in 0..40u32 {
        // The shorter the sequences that are left, the more of them fit into the cache.
        let prompt: Vec<u32> = (0..8 - i * 6 / 40).map(|t| (t * 31 + i * 7) % 512).collect();
        engine.add(GenerationRequest::new(&prompt, u64::from(i))).unwrap();
    }
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    peak() - before
}

#[test]
fn the_cache_keeps_its_budget() {
    if !fake_cuda::inside("generate::on_device::the_cache_keeps_its_budget", &[]) {
        return;
    }
    let model = tiny(GPU, Kind::Float);
    const BUDGET: u64 = 2 << 20;
    let limits = BatchLimits::within(&model, BUDGET);
    // Keys and values of 3 layers, and a table that is being replaced: 2 heads of 16 numbers of 4 bytes each.
    assert_eq!(limits.tokens as u64, BUDGET / (7 * 128));
    let all = memory_of_answers(&model, limits, 200);
    println!("{all} bytes at most, budget {BUDGET}");
    // Besides the cache: 11 rows of logits (V 512) in float32 and a few copies of them, and packed prompts of 88 tokens.
    assert!(all <= BUDGET + BUDGET / 8, "{all} bytes where {BUDGET} are allowed for the cache");
    // The budget is also used.
    assert!(all >= BUDGET / 4 * 3, "{all} bytes of {BUDGET}");
}

#[test]
fn memory_that_the_allocator_keeps_is_free() {
    let memory = (64u64 << 20).to_string();
    let name = "generate::on_device::memory_that_the_allocator_keeps_is_free";
    if !fake_cuda::inside(name, &[("FAKE_CUDA_MEMORY", &memory)]) {
        return;
    }
    let model = frozen(&fixture("tiny-llama"), Kind::Float);
    let before = BatchLimits::of(&model).unwrap();
    assert!(before.tokens < 1 << 17, "{before:?}: memory does not limit the batch");
    drop(Tensor::zeros([20 << 20], (Kind::Uint8, GPU)));
    assert_eq!(BatchLimits::of(&model).unwrap(), before);
    let _held = Tensor::zeros([20 << 20], (Kind::Uint8, GPU));
    let after = BatchLimits::of(&model).unwrap();
    assert!(after.tokens <= before.tokens - (20 << 20) / 2 / (7 * 128), "{before:?} {after:?}");
}

/// Rollouts share the device with training, whose memory the allocator keeps. 192 answers of up to 137 tokens would take
/// more than half of 40 MiB; a cache that took more than its half left too little for the passes.
#[test]
fn rollouts_keep_their_speed_in_little_memory() {
    let space = Workspace::new();
    let method = "method={grpo: {rewards: [{regex: {pattern: '^[a-m]'}}, {length: {max: 6, falloff: 12}}], \
                  sampling: {prompts: 24, max_new_tokens: 40}, answers: 8}}";
    let mut arguments = vec!["train", "recipes/grpo-icd10.yaml"];
    for setting in [
        "model.device=cuda",
        "model.dtype=f32",
        "run.steps=3",
        "run.eval_every=0",
        "run.save_every=0",
        "run.samples=0",
        "run.threads=1",
        "batch.tokens=2048",
        method,
    ] {
        arguments.extend(["--set", setting]);
    }
    let memory = (40 << 20).to_string();
    let trace = fake_cuda::ft(&space, &arguments, &[("FAKE_CUDA_MEMORY", &memory)]).succeeded();
    let launches: Vec<i64> = trace.marks.iter().map(|m| m.launches).collect();
    println!("{launches:?}");
    assert_eq!(launches.len(), 3);
    // The first also has the answers before training. Batches of half the rows would double the others.
    assert!(launches[1..].iter().all(|n| *n < launches[0]), "{launches:?}");
}
