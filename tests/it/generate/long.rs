//! Sequences much longer than the windows of layers, whose cache keeps little more than the window, and prompts that are run in
//! parts: every result equals that of full forward passes.

use super::decoding::drain;
use crate::support::{Sequence, assert_close, device, fixture, frozen, with_weights};
use ft::generate::beam::{self, BeamEarlyStopping, BeamSettings};
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest, complete};
use ft::generate::prefill::prefill;
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::Model;
use ft::nn::Tokens;
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

/// Models whose layers have windows of 8 or 9 tokens, all or some of them, and whose weights they get.
const WINDOWED: [(&str, &str); 11] = [
    ("mistral-window", "wide-head-llama"),
    ("dense/cohere2", "dense/cohere2"),
    ("dense/gemma2", "dense/gemma2"),
    ("dense/gemma3", "dense/gemma3"),
    ("dense/gemma3-old", "dense/gemma3"),
    ("dense/ministral", "wide-head-llama"),
    ("dense/olmo3", "dense/olmo2"),
    ("dense/phi3", "dense/phi3"),
    ("dense/qwen2-window", "tiny-qwen2"),
    ("dense/smollm3-window", "dense/smollm3"),
    ("tiny-gpt-oss", "tiny-gpt-oss"),
];

fn model((config, weights): (&str, &str), kind: Kind) -> Model {
    frozen(with_weights(config, weights).path(), kind)
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    Sequence::random(count, 60, seed).ids
}

/// Returns the logits of the last token of each sequence from one full forward pass without a cache.
fn full(model: &Model, sequences: &[Vec<u32>]) -> Tensor {
    let row = Tokens::pack(sequences, device());
    model.infer(&row, |out| out.logits(&row.segments.last_rows())).unwrap()
}

#[test]
fn cached_steps_equal_the_full_forward_far_beyond_the_windows() {
    for case in WINDOWED {
        let model = model(case, Kind::Float);
        assert!(model.attentions().any(|a| a.window.is_some_and(|window| window < 10)), "{case:?}");
        // A prompt longer than what a layer keeps, one within its window, one of about its length.
        let mut sequences = vec![tokens(23, 1), tokens(3, 2), tokens(8, 3)];
        let mut cache = model.cache(sequences.len());
        let mut logits = prefill(&model, &sequences, &mut cache, 4096).unwrap();
        for step in 0..30u32 {
            assert_close(&format!("{case:?} step {step}"), &logits, &full(&model, &sequences), 2e-5);
            match step {
                9 => {
                    cache.retain_slots(&[2, 1]); // as if the first sequence had ended
                    sequences.swap_remove(0);
                }
                14 => {
                    cache.fork_slot(1, 1);
                    sequences.push(sequences[1].clone());
                }
                19 => {
                    cache.retain_slots(&[1, 0, 0]); // as beams are
                    sequences = [1, 0, 0].map(|i: usize| sequences[i].clone()).into();
                }
                _ => {}
            }
            // Some steps have several tokens at once, more than the windows have, or none of some sequences.
            let added = match step {
                11 => vec![14, 2],
                22 => vec![0, 3, 5],
                _ => vec![1; sequences.len()],
            };
            for (i, (sequence, added)) in sequences.iter_mut().zip(&added).enumerate() {
                sequence.extend((0..*added).map(|t| (step * 7 + t * 13 + i as u32 * 5) % 60));
            }
            let new: Vec<&[u32]> =
                sequences.iter().zip(&added).map(|(s, added)| &s[s.len() - *added as usize..]).collect();
            if added.contains(&0) {
                let run = Tokens::pack_after(&new, &cache.lengths, device());
                model.extend(&run, &mut cache, |_| ()).unwrap();
                sequences.iter_mut().for_each(|s| s.push(9));
                let last: Vec<&[u32]> = sequences.iter().map(|s| &s[s.len() - 1..]).collect();
                logits = prefill(&model, &last, &mut cache, 4096).unwrap();
            } else if added.iter().all(|n| *n == 1) && step % 2 == 0 {
                let ids: Vec<i64> = sequences.iter().map(|s| i64::from(s[s.len() - 1])).collect();
                logits = model.next_logits(&Tensor::from_slice(&ids).to_device(device()), &mut cache).unwrap();
            } else {
                logits = prefill(&model, &new, &mut cache, 4096).unwrap();
            }
        }
        assert!(sequences.iter().all(|s| s.len() > 30), "{case:?}");
    }
}

#[test]
fn prompts_in_parts_equal_prompts_in_one_piece() {
    // With `dynamic` and `longrope`, keys are rotated for the length of the whole prompt.
    let others = [
        ("tiny-llama", "tiny-llama"),
        ("tiny-gpt2", "tiny-gpt2"),
        ("tiny-qwen3-moe", "tiny-qwen3-moe"),
        ("dynamic-rope", "wide-head-llama"),
        ("yarn-rope", "wide-head-llama"),
        ("dense/phi3-long", "dense/phi3"),
        ("tiny-deepseek-v2", "tiny-deepseek-v2"),
        ("dense/falcon-alibi", "dense/falcon-alibi"),
        ("dense/bloom", "dense/bloom"),
        ("dense/mpt", "dense/mpt"),
        ("own/gru", "own/gru"),
        ("own/lstm", "own/lstm"),
    ];
    for case in WINDOWED.into_iter().chain(others) {
        let model = model(case, Kind::Float);
        let prompts = [tokens(41, 5), tokens(2, 6), tokens(17, 7)];
        let whole = {
            let mut cache = model.cache(3);
            let first = prefill(&model, &prompts, &mut cache, 4096).unwrap();
            let ids = Tensor::from_slice(&[5i64, 6, 7]).to_device(device());
            (first, model.next_logits(&ids, &mut cache).unwrap())
        };
        assert_close(&format!("{case:?}"), &whole.0, &full(&model, &prompts), 2e-5);
        for most in [1, 3, 8, 16, 42] {
            let what = format!("{case:?} in parts of {most}");
            let mut cache = model.cache(3);
            let first = prefill(&model, &prompts, &mut cache, most).unwrap();
            assert_close(&what, &first, &whole.0, 2e-5);
            let ids = Tensor::from_slice(&[5i64, 6, 7]).to_device(device());
            assert_close(&what, &model.next_logits(&ids, &mut cache).unwrap(), &whole.1, 2e-5);
        }
    }
}

/// bfloat16 has 8 bits, and results are rounded in other places.
#[test]
fn prompts_in_parts_are_near_in_bfloat16() {
    for case in [("tiny-llama", "tiny-llama"), ("mistral-window", "wide-head-llama")] {
        let model = model(case, Kind::BFloat16);
        let prompts = [tokens(200, 5)];
        let [whole, parts] = [4096, 64].map(|most| prefill(&model, &prompts, &mut model.cache(1), most).unwrap());
        assert_close(&format!("{case:?}"), &parts, &whole, 2e-2);
    }
}

#[test]
fn answers_of_windowed_models_do_not_depend_on_their_batch() {
    let settings = GenerationSettings { temperature: 1.0, seed: 5, ..GenerationSettings::greedy(25, &[7, 9]) };
    for case in [("mistral-window", "wide-head-llama"), ("dense/cohere2", "dense/cohere2")] {
        let model = model(case, Kind::Float);
        let request = |i: u64| GenerationRequest {
            answers: 1 + i as usize % 3,
            ..GenerationRequest::new(&tokens(2 + 5 * i as usize, i), i)
        };
        let requests: Vec<GenerationRequest> = (0..7).map(request).collect();
        let run = |rows, tokens| {
            let engine = Engine::new(&model, settings.clone(), BatchLimits { rows, tokens }).unwrap();
            drain(engine, &requests)
        };
        let alone = run(1, 1);
        assert_eq!(alone.len(), 13);
        for (rows, tokens) in [(4, 1 << 20), (64, 150), (64, 1 << 20)] {
            let together = run(rows, tokens);
            for (a, b) in alone.iter().zip(&together) {
                assert_eq!((a.request, a.sample), (b.request, b.sample));
                assert_eq!(a.completion.tokens, b.completion.tokens, "{case:?}: {rows} rows, {tokens} tokens");
            }
        }
    }
}

/// A sequence with a cache that is shortened further than it keeps tokens is computed again.
#[test]
fn a_conversation_with_a_windowed_model_may_change_its_past() {
    let model = model(("mistral-window", "wide-head-llama"), Kind::Float);
    let settings = GenerationSettings::greedy(8, &[]);
    let mut session = ChatSession::new(&model);
    let mut on = |_| ControlFlow::Continue(());
    let first = tokens(40, 1);
    let answer = session.answer(&first, &settings, &mut on).unwrap();
    let longer = [&first[..], &answer.tokens, &[7, 8, 9]].concat();
    let little = [&longer[..longer.len() - 1], &[5, 6]].concat();
    let other = [&first[..10], &[59, 58]].concat();
    for prompt in [&longer, &little, &longer, &other, &first, &vec![40]] {
        let fresh = complete(&model, std::slice::from_ref(prompt), &settings, &mut |_, _| ()).unwrap();
        assert_eq!(session.answer(prompt, &settings, &mut on).unwrap(), fresh[0]);
    }
}

#[test]
fn the_scores_of_beams_are_those_of_their_answers() {
    for case in [("mistral-window", "wide-head-llama"), ("dense/gemma2", "dense/gemma2")] {
        let model = model(case, Kind::Float);
        let prompt = tokens(21, 4);
        let beams = BeamSettings { count: 4, answers: 4, length_penalty: 0.0, early_stopping: BeamEarlyStopping::No };
        let found = beam::search(&model, &prompt, &[], &GenerationSettings::greedy(20, &[]), beams, None).unwrap();
        assert_eq!(found.len(), 4);
        for answer in &found {
            let ids = [&prompt[..], &answer.tokens].concat();
            let row = Tokens::pack(&[&ids], device());
            let logits = model.infer(&row, |out| out.all_logits()).unwrap().log_softmax(-1, Kind::Float);
            let targets: Vec<i64> = answer.tokens.iter().map(|id| i64::from(*id)).collect();
            let targets = Tensor::from_slice(&targets).to_device(device()).unsqueeze(-1);
            let of_answer = logits.narrow(0, prompt.len() as i64 - 1, answer.tokens.len() as i64);
            let sum = of_answer.gather(1, &targets, false).sum(Kind::Double).double_value(&[]);
            let score = f64::from(answer.score.unwrap());
            assert!((sum - score).abs() < 1e-4, "{case:?}: {score}, and {sum} by a full pass");
        }
    }
}

#[test]
fn a_budget_counts_what_layers_keep() {
    let windowed = model(("dense/ministral", "wide-head-llama"), Kind::Float);
    let layout = windowed.cache_layout();
    assert_eq!(layout.windows[..], [None, Some(8)]);
    // Two tokens more than the window.
    let spare = i64::from(device() != tch::Device::Cpu);
    let mean = (2 * (1000 + 10) + spare * 1000) as f64 / (4 + spare) as f64;
    assert_eq!(layout.kept_tokens(1000), mean.ceil() as i64);
    assert_eq!(layout.kept_tokens(7), 7);
    let plain = frozen(&fixture("tiny-llama"), Kind::Float).cache_layout();
    assert_eq!(plain.kept_tokens(1000), 1000);
}
