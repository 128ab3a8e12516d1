//! Decoding against transformers' greedy continuations and against the full forward; sampling against its probabilities.

use crate::support::device;
use ft::generate::sampler::Candidates;
use ft::generate::{Completion, Session, Settings, Stop, complete};
use ft::models::{Model, open};
use ft::nn::Tokens;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn tiny() -> Model {
    open(&fixture("tiny-llama"), &[], device(), Kind::Float).unwrap()
}

fn lists(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokens(answers: &[Completion]) -> Vec<Vec<u32>> {
    answers.iter().map(|a| a.tokens.clone()).collect()
}

fn ignore(_: usize, _: u32) {}

#[test]
fn greedy_equals_transformers_in_a_batch_and_alone() {
    let (model, expected) = (tiny(), json("generation.json"));
    let (prompts, new) = (lists(&expected["prompts"]), expected["max_new_tokens"].as_u64().unwrap() as usize);
    let mut heard: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let answers = complete(&model, &prompts, &Settings::greedy(new, &[]), &mut |i, id| heard[i].push(id)).unwrap();
    assert_eq!(tokens(&answers), lists(&expected["continuations"]));
    assert_eq!(heard, tokens(&answers));
    assert!(answers.iter().all(|a| a.stopped == Stop::Length));
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let alone = complete(&model, std::slice::from_ref(prompt), &Settings::greedy(new, &[]), &mut ignore).unwrap();
        assert_eq!(alone, std::slice::from_ref(answer));
    }
}

#[test]
fn rows_that_stop_leave_the_others_as_they_were() {
    let (model, expected) = (tiny(), json("generation.json"));
    let stop: Vec<u32> = serde_json::from_value(expected["stop_tokens"].clone()).unwrap();
    let settings = Settings::greedy(expected["max_new_tokens"].as_u64().unwrap() as usize, &stop);
    // Forward and backward: rows leave from the middle and from the end of the cache.
    let (mut prompts, mut continuations) = (lists(&expected["prompts"]), lists(&expected["continuations_with_stop"]));
    for _ in 0..2 {
        let answers = complete(&model, &prompts, &settings, &mut ignore).unwrap();
        assert_eq!(tokens(&answers), continuations);
        for answer in &answers {
            let stopped = stop.contains(answer.tokens.last().unwrap());
            assert_eq!(answer.stopped, if stopped { Stop::EndToken } else { Stop::Length });
            assert_eq!(answer.answer().len(), answer.tokens.len() - usize::from(stopped));
        }
        prompts.reverse();
        continuations.reverse();
    }
}

/// Logits of the last token of each sequence, the whole sequence run at once.
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
        // Unequal prompts; the second crosses the first growth of the cache while it decodes.
        let mut sequences: Vec<Vec<u32>> =
            [9, 126, 40].iter().map(|n| (0..*n).map(|t| (t * 7 + n) as u32 % 60 + 3).collect()).collect();
        let mut cache = model.cache(sequences.len());
        let mut run = Tokens::pack(&sequences, device());
        for step in 0..6u32 {
            let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            close(&cached, &full(&model, &sequences), &format!("{name} step {step}"));
            if step == 3 {
                cache.keep(&[2, 1]); // the first ended
                sequences.swap_remove(0);
            }
            sequences.iter_mut().for_each(|s| s.push(3 + step * 5));
            let last: Vec<&[u32]> = sequences.iter().map(|s| &s[s.len() - 1..]).collect();
            run = Tokens::pack_after(&last, &cache.lengths, device());
        }
        // Several tokens at once behind what is cached, unequally many.
        sequences.iter_mut().zip([5usize, 2]).for_each(|(s, n)| s.extend(std::iter::repeat_n(11, n)));
        let new: Vec<&[u32]> = sequences.iter().zip(&cache.lengths).map(|(s, held)| &s[*held as usize..]).collect();
        let run = Tokens::pack_after(&new, &cache.lengths, device());
        let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
        close(&cached, &full(&model, &sequences), &format!("{name} continued"));
    }
}

#[test]
fn a_session_answers_as_from_the_start_whatever_it_holds() {
    let model = tiny();
    let settings = Settings::greedy(8, &[]);
    let mut session = Session::new(&model);
    let mut on = |_| ControlFlow::Continue(());
    let first: Vec<u32> = (5..25).collect();
    let answer = session.answer(&first, &settings, &mut on).unwrap();
    let longer = [&first[..], &answer.tokens, &[7, 8, 9]].concat();
    let other = [&first[..10], &[99, 98]].concat();
    for prompt in [&longer, &longer, &other, &first, &vec![400]] {
        let fresh = complete(&model, std::slice::from_ref(prompt), &settings, &mut ignore).unwrap();
        assert_eq!(session.answer(prompt, &settings, &mut on).unwrap(), fresh[0]);
        assert!(session.held() < prompt.len() + 8 && session.held() >= prompt.len());
    }
    let mut left = 3;
    let mut until = |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let cut = session.answer(&first, &settings, &mut until).unwrap();
    assert_eq!((cut.tokens.len(), cut.stopped), (3, Stop::Interrupted));
}

#[test]
fn sampled_rows_do_not_depend_on_their_batch() {
    let (model, expected) = (tiny(), json("generation.json"));
    let prompts = lists(&expected["prompts"]);
    let settings = Settings { temperature: 1.0, top_p: 0.95, seed: 3, ..Settings::greedy(10, &[]) };
    let run =
        |prompts: &[Vec<u32>], settings: &Settings| tokens(&complete(&model, prompts, settings, &mut ignore).unwrap());
    let together = run(&prompts, &settings);
    assert_eq!(together, run(&prompts, &settings), "same seed, same answers");
    assert_eq!(together[..2], run(&prompts[..2], &settings)[..], "batch mates change nothing");
    assert_ne!(together, run(&prompts, &Settings { seed: 4, ..settings.clone() }));
    let twice = run(&[prompts[0].clone(), prompts[0].clone()], &settings);
    assert_ne!(twice[0], twice[1], "each row has its own stream");
    let cold = Settings { temperature: 1e-4, ..settings };
    assert_eq!(
        run(&prompts, &cold),
        lists(&expected["continuations"])[..].iter().map(|c| c[..10].to_vec()).collect::<Vec<_>>()
    );
}

#[test]
fn probabilities_equal_transformers() {
    let reference = json("sampler.json");
    let logits: Vec<f32> = serde_json::from_value(reference["logits"].clone()).unwrap();
    let logits = Tensor::from_slice(&logits).view([1, -1]);
    let cases = reference["cases"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let settings = Settings {
            temperature: case["temperature"].as_f64().unwrap(),
            top_k: case["top_k"].as_u64().unwrap() as usize,
            top_p: case["top_p"].as_f64().unwrap(),
            ..Settings::greedy(1, &[])
        };
        let p = Candidates::new(&logits, &settings).probabilities(logits.size()[1]).view([-1]);
        let expected: Vec<f64> = serde_json::from_value(case["p"].clone()).unwrap();
        let gap = (p.to_kind(Kind::Double) - Tensor::from_slice(&expected)).abs().max().double_value(&[]);
        assert!(gap < 1e-6, "{settings:?}: {gap}");
        assert_eq!(p.count_nonzero(None).int64_value(&[]), case["kept"].as_i64().unwrap(), "{settings:?}");
    }
}

#[test]
fn the_context_ends_an_answer_and_refuses_a_prompt() {
    let model = tiny(); // 256 positions
    let long: Vec<u32> = (0..250).map(|t| t % 50 + 3).collect();
    let answers = complete(&model, &[long.clone(), vec![5; 3]], &Settings::greedy(20, &[]), &mut ignore).unwrap();
    assert_eq!((answers[0].tokens.len(), answers[0].stopped), (6, Stop::Context));
    assert_eq!((answers[1].tokens.len(), answers[1].stopped), (20, Stop::Length));
    let refuse = |prompt: Vec<u32>, settings: Settings, part: &str| {
        let e = complete(&model, &[vec![5], prompt], &settings, &mut ignore).unwrap_err();
        assert!(e.to_string().contains(part), "{e}");
    };
    refuse([long, vec![5; 6]].concat(), Settings::greedy(1, &[]), "prompt 2 has 256 tokens, the model's context 256");
    refuse(vec![], Settings::greedy(1, &[]), "prompt 2 is empty");
    refuse(vec![3, 512], Settings::greedy(1, &[]), "token 512");
    refuse(vec![3], Settings::greedy(0, &[]), "max-new-tokens");
    refuse(vec![3], Settings { top_p: 0.0, ..Settings::greedy(1, &[]) }, "top-p");
    refuse(vec![3], Settings { temperature: -1.0, ..Settings::greedy(1, &[]) }, "temperature");
    assert_eq!(complete(&model, &[], &Settings::greedy(1, &[]), &mut ignore).unwrap(), []);
}
