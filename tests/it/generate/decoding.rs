//! Compares greedy decoding with transformers and with full forward passes, and sampling with transformers'
//! probabilities.

use crate::support::{Sequence, device, fixture, frozen, json, with_weights};
use ft::generate::answer::{GeneratedAnswer, StopReason};
use ft::generate::beam;
use ft::generate::beam::{BeamEarlyStopping, BeamSettings};
use ft::generate::engine::{BatchLimits, Engine, FinishedAnswer, GenerationRequest, complete};
use ft::generate::sampler::TokenCandidates;
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::{Model, open};
use ft::nn::Tokens;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

fn tiny() -> Model {
    open(&fixture("tiny-llama"), &[], device(), Kind::Float).unwrap()
}

fn lists(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokens(answers: &[GeneratedAnswer]) -> Vec<Vec<u32>> {
    answers.iter().map(|a| a.tokens.clone()).collect()
}

fn ignore(_: usize, _: u32) {}

#[test]
fn greedy_equals_transformers_in_a_batch_and_alone() {
    let (model, expected) = (tiny(), json::<Value>("generation.json"));
    let (prompts, new) = (lists(&expected["prompts"]), expected["max_new_tokens"].as_u64().unwrap() as usize);
    let mut heard: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let answers =
        complete(&model, &prompts, &GenerationSettings::greedy(new, &[]), &mut |i, id| heard[i].push(id)).unwrap();
    assert_eq!(tokens(&answers), lists(&expected["continuations"]));
    assert_eq!(heard, tokens(&answers));
    assert!(answers.iter().all(|a| a.stop_reason == StopReason::Length));
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let alone =
            complete(&model, std::slice::from_ref(prompt), &GenerationSettings::greedy(new, &[]), &mut ignore).unwrap();
        assert_eq!(alone, std::slice::from_ref(answer));
    }
}

#[test]
fn finished_rows_do_not_change_the_others() {
    let (model, expected) = (tiny(), json::<Value>("generation.json"));
    let stop: Vec<u32> = serde_json::from_value(expected["stop_tokens"].clone()).unwrap();
    let settings = GenerationSettings::greedy(expected["max_new_tokens"].as_u64().unwrap() as usize, &stop);
    // The prompts in order and in reverse: finished rows are removed from the middle and from the end of the cache.
    let (mut prompts, mut continuations) = (lists(&expected["prompts"]), lists(&expected["continuations_with_stop"]));
    for _ in 0..2 {
        let answers = complete(&model, &prompts, &settings, &mut ignore).unwrap();
        assert_eq!(tokens(&answers), continuations);
        for answer in &answers {
            let stopped = stop.contains(answer.tokens.last().unwrap());
            assert_eq!(answer.stop_reason, if stopped { StopReason::EndToken } else { StopReason::Length });
            assert_eq!(answer.answer_tokens().len(), answer.tokens.len() - usize::from(stopped));
        }
        prompts.reverse();
        continuations.reverse();
    }
}

/// Returns the logits of the last token of each sequence from one full forward pass without a cache.
fn full(model: &Model, sequences: &[Vec<u32>]) -> Tensor {
    let tokens = Tokens::pack(sequences, device());
    model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows())).unwrap()
}

fn close(a: &Tensor, b: &Tensor, what: &str) {
    let cpu = |t: &Tensor| t.to_device(tch::Device::Cpu);
    let gap = (cpu(a) - cpu(b)).abs().max().double_value(&[]);
    assert!(gap < 1e-4, "{what}: logits differ by {gap}");
}

#[test]
fn cached_steps_equal_the_full_forward() {
    for name in ["tiny-llama", "biased-llama", "wide-head-llama"] {
        let model = open(&fixture(name), &[], device(), Kind::Float).unwrap();
        // Prompts of unequal length. While the second one decodes, the cache has to grow for the first time.
        let mut sequences: Vec<Vec<u32>> =
            [9, 126, 40].iter().map(|n| (0..*n).map(|t| (t * 7 + n) as u32 % 60 + 3).collect()).collect();
        let mut cache = model.cache(sequences.len());
        let mut run = Tokens::pack(&sequences, device());
        for step in 0..6u32 {
            let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            close(&cached, &full(&model, &sequences), &format!("{name} step {step}"));
            if step == 3 {
                cache.retain_slots(&[2, 1]); // as if the first sequence had ended
                sequences.swap_remove(0);
            }
            sequences.iter_mut().for_each(|s| s.push(3 + step * 5));
            let last: Vec<&[u32]> = sequences.iter().map(|s| &s[s.len() - 1..]).collect();
            run = Tokens::pack_after(&last, &cache.lengths, device());
        }
        // Several tokens at once after the cached ones, another number for each sequence.
        sequences.iter_mut().zip([5usize, 2]).for_each(|(s, n)| s.extend(std::iter::repeat_n(11, n)));
        let new: Vec<&[u32]> = sequences.iter().zip(&cache.lengths).map(|(s, held)| &s[*held as usize..]).collect();
        let run = Tokens::pack_after(&new, &cache.lengths, device());
        let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
        close(&cached, &full(&model, &sequences), &format!("{name} continued"));
    }
}

#[test]
fn a_session_answers_the_same_whatever_it_has_cached() {
    let model = tiny();
    let settings = GenerationSettings::greedy(8, &[]);
    let mut session = ChatSession::new(&model);
    let mut on = |_| ControlFlow::Continue(());
    let first: Vec<u32> = (5..25).collect();
    let answer = session.answer(&first, &settings, &mut on).unwrap();
    let longer = [&first[..], &answer.tokens, &[7, 8, 9]].concat();
    let other = [&first[..10], &[99, 98]].concat();
    for prompt in [&longer, &longer, &other, &first, &vec![400]] {
        let fresh = complete(&model, std::slice::from_ref(prompt), &settings, &mut ignore).unwrap();
        assert_eq!(session.answer(prompt, &settings, &mut on).unwrap(), fresh[0]);
        assert!(session.cached_tokens() < prompt.len() + 8 && session.cached_tokens() >= prompt.len());
    }
    let mut left = 3;
    let mut until = |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let cut = session.answer(&first, &settings, &mut until).unwrap();
    assert_eq!((cut.tokens.len(), cut.stop_reason), (3, StopReason::Interrupted));
}

#[test]
fn sampled_rows_do_not_depend_on_their_batch() {
    let (model, expected) = (tiny(), json::<Value>("generation.json"));
    let prompts = lists(&expected["prompts"]);
    let settings = GenerationSettings { temperature: 1.0, top_p: 0.95, seed: 3, ..GenerationSettings::greedy(10, &[]) };
    let run = |prompts: &[Vec<u32>], settings: &GenerationSettings| {
        tokens(&complete(&model, prompts, settings, &mut ignore).unwrap())
    };
    let together = run(&prompts, &settings);
    assert_eq!(together, run(&prompts, &settings), "the same seed gave other answers");
    assert_eq!(together[..2], run(&prompts[..2], &settings)[..], "other prompts in the batch changed the answers");
    assert_ne!(together, run(&prompts, &GenerationSettings { seed: 4, ..settings.clone() }));
    let twice = run(&[prompts[0].clone(), prompts[0].clone()], &settings);
    assert_ne!(twice[0], twice[1], "two rows used the same random numbers");
    let cold = GenerationSettings { temperature: 1e-4, ..settings };
    assert_eq!(
        run(&prompts, &cold),
        lists(&expected["continuations"])[..].iter().map(|c| c[..10].to_vec()).collect::<Vec<_>>()
    );
}

#[test]
fn probabilities_equal_transformers() {
    let reference = json::<Value>("sampler.json");
    let logits: Vec<f32> = serde_json::from_value(reference["logits"].clone()).unwrap();
    let logits = Tensor::from_slice(&logits).view([1, -1]);
    let cases = reference["cases"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let settings = GenerationSettings {
            temperature: case["temperature"].as_f64().unwrap(),
            top_k: case["top_k"].as_u64().unwrap() as usize,
            top_p: case["top_p"].as_f64().unwrap(),
            ..GenerationSettings::greedy(1, &[])
        };
        let p = TokenCandidates::new(&logits, &settings).probabilities(logits.size()[1]).view([-1]);
        let expected: Vec<f64> = serde_json::from_value(case["p"].clone()).unwrap();
        let gap = (p.to_kind(Kind::Double) - Tensor::from_slice(&expected)).abs().max().double_value(&[]);
        assert!(gap < 1e-6, "{settings:?}: {gap}");
        assert_eq!(p.count_nonzero(None).int64_value(&[]), case["kept"].as_i64().unwrap(), "{settings:?}");
    }
}

#[test]
fn the_context_length_limits_answers_and_prompts() {
    let model = tiny(); // 256 positions
    let long: Vec<u32> = (0..250).map(|t| t % 50 + 3).collect();
    let answers =
        complete(&model, &[long.clone(), vec![5; 3]], &GenerationSettings::greedy(20, &[]), &mut ignore).unwrap();
    assert_eq!((answers[0].tokens.len(), answers[0].stop_reason), (6, StopReason::Context));
    assert_eq!((answers[1].tokens.len(), answers[1].stop_reason), (20, StopReason::Length));
    let refuse = |prompt: Vec<u32>, settings: GenerationSettings, part: &str| {
        let e = complete(&model, &[vec![5], prompt], &settings, &mut ignore).unwrap_err();
        assert!(e.to_string().contains(part), "{e}");
    };
    refuse(
        [long, vec![5; 6]].concat(),
        GenerationSettings::greedy(1, &[]),
        "prompt 2 has 256 tokens, the model's context is 256",
    );
    refuse(vec![], GenerationSettings::greedy(1, &[]), "prompt 2 is empty");
    refuse(vec![3, 512], GenerationSettings::greedy(1, &[]), "token 512");
    refuse(vec![3], GenerationSettings::greedy(0, &[]), "max-new-tokens");
    refuse(vec![3], GenerationSettings { top_p: 0.0, ..GenerationSettings::greedy(1, &[]) }, "top-p");
    refuse(vec![3], GenerationSettings { temperature: -1.0, ..GenerationSettings::greedy(1, &[]) }, "temperature");
    assert_eq!(complete(&model, &[], &GenerationSettings::greedy(1, &[]), &mut ignore).unwrap(), []);
}

/// Reads settings that are given under transformers' names.
fn settings_of(given: &Value) -> GenerationSettings {
    let number = |key: &str| given[key].as_f64();
    let count = |key: &str| given[key].as_u64().map(|n| n as usize);
    let stop: Vec<u32> = match &given["eos_token_id"] {
        Value::Number(id) => vec![id.as_u64().unwrap() as u32],
        Value::Null => Vec::new(),
        list => serde_json::from_value(list.clone()).unwrap(),
    };
    GenerationSettings {
        max_length: count("max_length"),
        min_new_tokens: count("min_new_tokens").unwrap_or(0),
        repetition_penalty: number("repetition_penalty").unwrap_or(1.0),
        no_repeat_ngram: count("no_repeat_ngram_size").unwrap_or(0),
        bad_words: serde_json::from_value(given["bad_words_ids"].clone()).unwrap_or_default(),
        forced_bos: count("forced_bos_token_id").map(|id| id as u32),
        forced_eos: count("forced_eos_token_id").map(|id| id as u32),
        log_probs: true,
        ..GenerationSettings::greedy(count("max_new_tokens").unwrap_or(usize::MAX), &stop)
    }
}

fn near(ours: &[f32], theirs: &Value, what: &str) {
    let theirs: Vec<f32> = serde_json::from_value(theirs.clone()).unwrap();
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let gap = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
    assert!(gap < 1e-4, "{what}: {gap}\n{ours:?}\n{theirs:?}");
}

#[test]
fn rules_equal_transformers_with_their_log_probabilities() {
    let (model, reference) = (tiny(), json::<Value>("generation/rules.json"));
    let cases = reference["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let prompt: Vec<u32> = serde_json::from_value(case["prompt"].clone()).unwrap();
        let settings = settings_of(&case["settings"]);
        let what = format!("{} {prompt:?}", case["settings"]);
        let answer = complete(&model, &[prompt], &settings, &mut ignore).unwrap().remove(0);
        assert_eq!(answer.tokens, serde_json::from_value::<Vec<u32>>(case["tokens"].clone()).unwrap(), "{what}");
        near(&answer.log_probs, &case["log_probs"], &what);
    }
}

#[test]
fn beams_equal_transformers() {
    let (model, reference) = (tiny(), json::<Value>("generation/beams.json"));
    let cases = reference["cases"].as_array().unwrap();
    assert!(cases.len() > 150);
    for case in cases {
        let (given, prompt) = (&case["settings"], serde_json::from_value::<Vec<u32>>(case["prompt"].clone()).unwrap());
        let beams = BeamSettings {
            count: given["num_beams"].as_u64().unwrap() as usize,
            answers: given["num_return_sequences"].as_u64().unwrap() as usize,
            length_penalty: given["length_penalty"].as_f64().unwrap_or(1.0),
            early_stopping: match &given["early_stopping"] {
                Value::Bool(true) => BeamEarlyStopping::Yes,
                Value::String(_) => BeamEarlyStopping::Never,
                _ => BeamEarlyStopping::No,
            },
        };
        let what = format!("{given} {prompt:?}");
        let answers = beam::search(&model, &prompt, &[], &settings_of(given), beams, None).unwrap();
        assert_eq!(tokens(&answers), lists(&case["tokens"]), "{what}");
        near(&answers.iter().map(|a| a.score.unwrap()).collect::<Vec<_>>(), &case["scores"], &what);
        for answer in &answers {
            let weight = (answer.tokens.len() as f64).powf(beams.length_penalty) as f32;
            let score = answer.log_probs.iter().sum::<f32>() / weight;
            // The log-probabilities of a beam are those after the penalties.
            assert!((score - answer.score.unwrap()).abs() < 1e-3 * score.abs().max(1.0), "{what}");
        }
    }
}

/// Runs an engine until it is idle. Checks that the tokens it streams equal those of the finished answers.
pub(super) fn drain(mut engine: Engine, requests: &[GenerationRequest]) -> Vec<FinishedAnswer> {
    for request in requests {
        engine.add(request.clone()).unwrap();
    }
    let (mut heard, mut done) = (std::collections::BTreeMap::<(usize, usize), Vec<u32>>::new(), Vec::new());
    while !engine.is_idle() {
        let step = engine.step().unwrap();
        assert!(!step.tokens.is_empty());
        for (request, sample, id) in step.tokens {
            heard.entry((request, sample)).or_default().push(id);
        }
        done.extend(step.finished);
    }
    for f in &done {
        let prefix = requests[f.request].prefix.len();
        assert_eq!(f.completion.tokens[prefix..], heard[&(f.request, f.sample)][..]);
    }
    done.sort_by_key(|f| (f.request, f.sample));
    done
}

#[test]
fn continuous_batching_gives_the_answers_of_single_requests() {
    let settings = GenerationSettings {
        temperature: 1.3,
        top_p: 0.9,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        no_repeat_ngram: 3,
        min_new_tokens: 2,
        stop_ids: (0..60).collect(),
        seed: 11,
        log_probs: true,
        ..GenerationSettings::greedy(30, &[])
    };
    let requests: Vec<GenerationRequest> = (0..12u64)
        .map(|i| {
            let prompt: Vec<u32> =
                (0..[3, 40, 7, 130, 1, 22][i as usize % 6]).map(|t| (t * 31 + i as u32 * 7) % 512).collect();
            let prefix = if i % 4 == 3 { vec![70, 71] } else { Vec::new() };
            GenerationRequest { answers: [1, 3, 2, 7][i as usize % 4], prefix, ..GenerationRequest::new(&prompt, i) }
        })
        .collect();
    let same_tokens = |a: &[FinishedAnswer], b: &[FinishedAnswer], what: &str| {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert_eq!((a.request, a.sample), (b.request, b.sample));
            assert_eq!(a.completion.tokens, b.completion.tokens, "{what}");
            assert_eq!(a.completion.stop_reason, b.completion.stop_reason);
        }
    };
    // In float32 answers are equal however requests are batched.
    let model = open(&fixture("tiny-llama"), &[], device(), Kind::Float).unwrap();
    fn engine<'m>(model: &'m Model, settings: &GenerationSettings, rows: usize, tokens: usize) -> Engine<'m> {
        Engine::new(model, settings.clone(), BatchLimits { rows, tokens }).unwrap()
    }
    let alone = drain(engine(&model, &settings, 1, 1), &requests);
    assert_eq!(alone.len(), requests.iter().map(|r| r.answers).sum::<usize>());
    let lengths: BTreeSet<usize> = alone.iter().map(|f| f.completion.tokens.len()).collect();
    assert!(lengths.len() > 8, "too few different lengths to test rows that finish at different times: {lengths:?}");
    for (rows, tokens) in [(5, 1 << 20), (64, 600), (64, 1 << 20)] {
        let together = drain(engine(&model, &settings, rows, tokens), &requests);
        same_tokens(&alone, &together, &format!("{rows} rows, {tokens} tokens"));
        for (a, b) in alone.iter().zip(&together) {
            let gaps = a.completion.log_probs.iter().zip(&b.completion.log_probs).map(|(a, b)| (a - b).abs());
            assert!(gaps.fold(0.0, f32::max) < 1e-4);
        }
    }
    if device() != tch::Device::Cpu {
        return;
    }
    // In batches of up to `product_rows` rows, a decoding step computes each row bit-identically to a batch of one. So
    // even in bfloat16 tokens and log-probabilities are equal to the last bit, provided that each prompt is run by
    // itself. Several prompts together have more rows and use libtorch's products: there bfloat16 may decide a near tie
    // differently.
    for kind in [Kind::Float, Kind::BFloat16] {
        let model = open(&fixture("tiny-llama"), &[], device(), kind).unwrap();
        let alone = drain(engine(&model, &settings, 1, 1), &requests);
        let most = ft::native::product_rows(kind, kind) as usize;
        for rows in [5, most] {
            let together = drain_prompt_by_prompt(engine(&model, &settings, rows, 1 << 20), &requests);
            same_tokens(&alone, &together, &format!("{kind:?}, {rows} rows"));
            assert!(alone.iter().zip(&together).all(|(a, b)| a.completion.log_probs == b.completion.log_probs));
        }
    }
}

/// Like `drain`, but adds a request only if no other one is waiting, so that each prompt is run by itself.
pub(super) fn drain_prompt_by_prompt(mut engine: Engine, requests: &[GenerationRequest]) -> Vec<FinishedAnswer> {
    let (mut done, mut left) = (Vec::new(), requests.iter());
    loop {
        if engine.waiting() == 0
            && let Some(request) = left.next()
        {
            engine.add(request.clone()).unwrap();
        }
        if engine.is_idle() {
            break;
        }
        done.extend(engine.step().unwrap().finished);
    }
    done.sort_by_key(|f| (f.request, f.sample));
    done
}

#[test]
fn log_probabilities_are_those_of_the_sampling_distribution() {
    let model = tiny();
    let settings = GenerationSettings {
        temperature: 1.5,
        top_k: 60,
        top_p: 0.9,
        log_probs: true,
        ..GenerationSettings::greedy(12, &[])
    };
    let prompt: Vec<u32> = (5..20).collect();
    let request = GenerationRequest { answers: 4, prefix: vec![9], ..GenerationRequest::new(&prompt, 0) };
    let done = drain(Engine::new(&model, settings.clone(), BatchLimits::of(&model).unwrap()).unwrap(), &[request]);
    let different: BTreeSet<Vec<u32>> = done.iter().map(|f| f.completion.tokens.clone()).collect();
    assert_eq!(different.len(), 4, "{different:?}");
    for f in done {
        let (ids, log_probs) = (f.completion.tokens, f.completion.log_probs);
        assert_eq!((ids.len(), ids[0], log_probs[0]), (12, 9, 0.0));
        for (t, (id, log_prob)) in ids.iter().zip(log_probs).enumerate().skip(1) {
            let logits = full(&model, &[[&prompt[..], &ids[..t]].concat()]);
            let p = TokenCandidates::new(&logits, &settings).probabilities(512).double_value(&[0, i64::from(*id)]);
            assert!((p.ln() - f64::from(log_prob)).abs() < 1e-4, "{p} {log_prob}");
        }
    }
}

#[test]
fn samples_have_the_expected_support_and_frequencies() {
    // the probabilities 0.4, 0.3, 0.15, 0.1 and 0.05 in another order
    let p = [0.1f32, 0.4, 0.05, 0.3, 0.15];
    let logits = Tensor::from_slice(&p).log().view([1, -1]);
    for (top_k, top_p, min_p, support) in [
        (0, 1.0, 0.0, vec![0, 1, 2, 3, 4]),
        (3, 1.0, 0.0, vec![1, 3, 4]),
        (0, 0.6, 0.0, vec![1, 3]),
        (0, 0.71, 0.0, vec![1, 3, 4]),
        (0, 1.0, 0.2, vec![0, 1, 3, 4]), // min_p keeps probabilities of at least 0.2 * 0.4 = 0.08
        (0, 1.0, 0.26, vec![1, 3, 4]),   // min_p keeps probabilities of at least 0.26 * 0.4 = 0.104
        (0, 1.0, 1.0, vec![1]),
        (4, 0.9, 0.5, vec![1, 3]),
    ] {
        let settings =
            GenerationSettings { temperature: 1.0, top_k, top_p, min_p, ..GenerationSettings::greedy(1, &[]) };
        let n = 20_000;
        let candidates = TokenCandidates::new(&logits.expand([n, 5], false).contiguous(), &settings);
        let mut chance = ft::rng::stream(1, "tests: draws", top_k as u64);
        let draws: Vec<f64> = (0..n).map(|_| rand::RngExt::random(&mut chance)).collect();
        let drawn = candidates.sample(&draws).unwrap();
        let whole: f32 = support.iter().map(|&i| p[i as usize]).sum();
        assert_eq!(drawn.iter().map(|d| d.0).collect::<BTreeSet<u32>>(), support.iter().copied().collect());
        for &id in &support {
            let expected = f64::from(p[id as usize] / whole);
            let share = drawn.iter().filter(|d| d.0 == id).count() as f64 / n as f64;
            let deviation = (expected * (1.0 - expected) / n as f64).sqrt();
            assert!((share - expected).abs() <= 4.0 * deviation, "{settings:?}: token {id} {share}, not {expected}");
            let log_prob = drawn.iter().find(|d| d.0 == id).unwrap().1;
            assert!((f64::from(log_prob) - expected.ln()).abs() < 1e-5);
        }
    }
}

#[test]
fn stop_texts_need_not_align_with_tokens() {
    let model = tiny();
    // Token n is decoded as a bar and the five digits of n in base 4, written as letters a to d: |aabca
    let decode = |ids: &[u32]| {
        let letters =
            |id: &u32| (0..5).rev().map(|i| b"abcd"[(id >> (2 * i)) as usize & 3] as char).collect::<String>();
        Ok(ids.iter().map(|id| format!("|{}", letters(id))).collect())
    };
    let prompt: Vec<u32> = (5..20).collect();
    let free = complete(&model, std::slice::from_ref(&prompt), &GenerationSettings::greedy(20, &[]), &mut ignore)
        .unwrap()
        .remove(0);
    let text: String = decode(&free.tokens).unwrap();
    // A stop text from inside the 4th token into the 6th, and another one that never occurs.
    let stop_texts = vec!["nowhere".to_string(), text[20..32].to_string()];
    let first = text.find(&stop_texts[1]).unwrap();
    let settings = GenerationSettings { stop_texts: stop_texts.clone(), ..GenerationSettings::greedy(20, &[]) };
    let engine = |settings: &GenerationSettings| {
        let engine = Engine::new(&model, settings.clone(), BatchLimits { rows: 2, tokens: 1000 }).unwrap();
        drain(engine.with_decoder(&decode), &[GenerationRequest::new(&prompt, 0)]).remove(0).completion
    };
    let answer = engine(&settings);
    assert_eq!((answer.stop_reason, answer.text.as_deref()), (StopReason::Text, Some(&text[..first])));
    assert_eq!(answer.tokens[..], free.tokens[..(first + 12).div_ceil(6)]);
    // A stop text does not end an answer before `min_new_tokens`.
    let late = engine(&GenerationSettings { min_new_tokens: 12, ..settings.clone() });
    assert!(late.tokens.len() >= 12 && late.tokens.len() > answer.tokens.len(), "{late:?}");
    assert_eq!(late.tokens[..], free.tokens[..late.tokens.len()]);
    // The same in a session and in beam search.
    let mut session = ChatSession::new(&model).with_decoder(&decode);
    assert_eq!(session.answer(&prompt, &settings, &mut |_| ControlFlow::Continue(())).unwrap(), answer);
    let beams = BeamSettings { count: 2, answers: 2, length_penalty: 1.0, early_stopping: BeamEarlyStopping::No };
    let all =
        GenerationSettings { stop_texts: ["|a", "|b", "|c", "|d"].map(String::from).to_vec(), ..settings.clone() };
    for answer in beam::search(&model, &prompt, &[], &all, beams, Some(&decode)).unwrap() {
        assert_eq!((answer.stop_reason, answer.text.as_deref(), answer.tokens.len()), (StopReason::Text, Some(""), 1));
    }
    let e = complete(&model, &[prompt], &settings, &mut ignore).unwrap_err();
    assert!(e.message().contains("decode"));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let model = tiny();
    let refuse = |settings: GenerationSettings, part: &str| {
        let e = complete(&model, &[vec![5, 6]], &settings, &mut ignore).unwrap_err();
        assert!(e.to_string().contains(part), "{e}");
    };
    let greedy = || GenerationSettings::greedy(5, &[]);
    refuse(GenerationSettings { max_length: Some(2), ..greedy() }, "--max-length 2 leaves no room");
    refuse(GenerationSettings { min_p: 1.5, ..greedy() }, "min-p must be from 0 to 1");
    refuse(GenerationSettings { repetition_penalty: 0.0, ..greedy() }, "repetition-penalty");
    refuse(GenerationSettings { min_new_tokens: 6, ..greedy() }, "at most 5");
    refuse(GenerationSettings { bad_words: vec![vec![]], ..greedy() }, "bad-words");
    let beams =
        |count, answers| BeamSettings { count, answers, length_penalty: 1.0, early_stopping: BeamEarlyStopping::No };
    let search =
        |settings: &GenerationSettings, b| beam::search(&model, &[5], &[], settings, b, None).unwrap_err().to_string();
    assert!(search(&greedy(), beams(2, 3)).contains("3 answers of 2 beams"));
    assert!(search(&GenerationSettings { temperature: 1.0, ..greedy() }, beams(2, 1)).contains("does not sample"));
    let every: Vec<Vec<u32>> = (0..512).map(|id| vec![id]).collect();
    assert!(
        search(&GenerationSettings { bad_words: every.clone(), ..greedy() }, beams(2, 1)).contains("leave no token")
    );
    refuse(GenerationSettings { bad_words: every, ..greedy() }, "leave no token");
    let mut engine = Engine::new(&model, greedy(), BatchLimits { rows: 1, tokens: 1 }).unwrap();
    let e = engine.add(GenerationRequest { prefix: vec![1; 5], ..GenerationRequest::new(&[5], 0) }).unwrap_err();
    assert!(e.message().contains("prefix has 5 tokens"), "{e}");
}

/// Greedy answers are those of whole passes over the growing text: through windows, with capped scores, and where a
/// sequence outgrows the length beyond which LongRoPE has other factors (16 tokens), alone and beside shorter ones.
#[test]
fn dense_families_generate_what_whole_passes_say() {
    for (name, weights) in [
        ("dense/phi3-long", "dense/phi3"),
        ("dense/gemma2", "dense/gemma2"),
        ("dense/gemma3", "dense/gemma3"),
        ("dense/cohere2", "dense/cohere2"),
        ("dense/falcon-alibi", "dense/falcon-alibi"),
        ("dense/bloom", "dense/bloom"),
        ("dense/mpt", "dense/mpt"),
        ("own/gru", "own/gru"),
        ("own/lstm", "own/lstm"),
        ("own/sinusoidal", "own/sinusoidal"),
    ] {
        let folder = with_weights(name, weights);
        let model = frozen(folder.path(), Kind::Float);
        let prompts: Vec<Vec<u32>> = [10, 3, 20].iter().map(|n| Sequence::random(*n, 64, 5).ids).collect();
        let answers = complete(&model, &prompts, &GenerationSettings::greedy(14, &[]), &mut ignore).unwrap();
        for (prompt, answer) in prompts.iter().zip(tokens(&answers)) {
            let whole: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
            for at in prompt.len()..whole.len() {
                // One pass over exactly the tokens so far: a longer one may be rotated by other factors.
                let row_so_far = Tokens::pack(&[&whole[..at]], device());
                let last = row_so_far.segments.last_rows();
                let logits = model.infer(&row_so_far, |out| out.logits(&last)).unwrap();
                let (values, best) = logits.topk(2, -1, true, true);
                let margin = values.double_value(&[0, 0]) - values.double_value(&[0, 1]);
                assert!(best.int64_value(&[0, 0]) == i64::from(whole[at]) || margin < 1e-4, "{name}, token {at}");
            }
            assert_eq!(answer.len(), 14);
        }
        // A conversation keeps its cache between turns, if its keys still hold.
        let mut session = ChatSession::new(&model);
        for length in [8, 30, 12, 18] {
            let prompt = Sequence::random(30, 64, 6).ids[..length].to_vec();
            let settings = GenerationSettings::greedy(4, &[]);
            let on_token = &mut |_| ControlFlow::Continue(());
            let told = session.answer(&prompt, &settings, on_token).unwrap();
            let alone = complete(&model, std::slice::from_ref(&prompt), &settings, &mut ignore).unwrap();
            assert_eq!(told.tokens, tokens(&alone)[0], "{name}, a prompt of {length}");
        }
    }
}
