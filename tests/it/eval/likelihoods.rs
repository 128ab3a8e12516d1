//! Log-likelihoods of continuations that share a cache equal those of plain passes one by one.

use crate::support::{device, fixture, with_weights};
use ft::eval::suite::likelihood::{Likelihood, PairGroup, TokenPair, likelihoods};
use ft::generate::engine::BatchLimits;
use ft::models::{Model, open};
use ft::nn::Tokens;
use ft::rng;
use rand::RngExt;
use tch::{Kind, Tensor};

/// Computes the same by a plain pass over one sequence. The last token is not seen.
fn one_by_one(model: &Model, pair: &TokenPair) -> Likelihood {
    let count = pair.continuation.len();
    let all: Vec<u32> = pair.context.iter().chain(&pair.continuation).copied().collect();
    let tokens = Tokens::pack(&[&all[..all.len() - 1]], model.device());
    let first = pair.context.len() as i64 - 1;
    let list = |numbers: Vec<i64>| Tensor::from_slice(&numbers).to_device(model.device());
    let at = list((first..first + count as i64).collect());
    let targets = list(pair.continuation.iter().map(|id| i64::from(*id)).collect());
    let of_output = |out: &ft::models::Output| {
        let scores = out.log_probs(&at, &targets);
        let greedy = scores.hits.min().double_value(&[]) == 1.0;
        Likelihood { log_prob: scores.log_probs.sum(Kind::Double).double_value(&[]), greedy }
    };
    model.infer(&tokens, of_output).unwrap()
}

/// Makes questions with examples in common, prompts of many lengths, and choices of which some begin alike or are equal.
fn questions(vocabulary: u32, shared: usize, longest: usize) -> Vec<PairGroup> {
    let mut chance = rng::stream(3, "questions", shared as u64);
    let mut draw = |n: usize| (0..n).map(|_| chance.random_range(0..vocabulary)).collect::<Vec<u32>>();
    let examples = draw(shared);
    (0..9)
        .map(|i| {
            let context = [&examples[..], &draw(1 + i * i % longest)].concat();
            let begin = draw(2);
            let mut pairs: PairGroup = (0..1 + i % 4)
                .map(|c| TokenPair { context: context.clone(), continuation: [&begin[..], &draw(c)].concat() })
                .collect();
            // Single tokens after one prompt: the model sees the same for all of them.
            pairs.extend(draw(i % 3).iter().map(|id| TokenPair { context: context.clone(), continuation: vec![*id] }));
            if i == 4 {
                pairs.push(pairs[0].clone());
                pairs.push(TokenPair { context: draw(3), continuation: draw(4) });
            }
            pairs
        })
        .collect()
}

fn compute(model: &Model, groups: &[PairGroup], limits: BatchLimits) -> Vec<Vec<Likelihood>> {
    compute_in(model, groups, model.longest_sequence().unwrap_or(1 << 20) as usize, limits)
}

fn compute_in(model: &Model, groups: &[PairGroup], window: usize, limits: BatchLimits) -> Vec<Vec<Likelihood>> {
    let mut found = vec![Vec::new(); groups.len()];
    likelihoods(model, groups, window, limits, &mut |i, of_group| {
        assert!(found[i].is_empty(), "group {i} twice");
        found[i] = of_group;
        Ok(())
    })
    .unwrap();
    found
}

fn compare(name: &str) {
    compare_model(name, &open(&fixture(name), &[], device(), Kind::Float).unwrap());
}

fn compare_model(name: &str, model: &Model) {
    let vocabulary = model.config().vocab_size as u32;
    for (shared, longest) in [(0, 20), (11, 30)] {
        let groups = questions(vocabulary, shared, longest);
        let all = BatchLimits { rows: 64, tokens: 1 << 15 };
        for limits in [all, BatchLimits { tokens: 130, ..all }, BatchLimits { tokens: 1, ..all }] {
            let found = compute(model, &groups, limits);
            for (pairs, found) in groups.iter().zip(&found) {
                assert_eq!(pairs.len(), found.len());
                for (pair, found) in pairs.iter().zip(found) {
                    let alone = one_by_one(model, pair);
                    let difference = (alone.log_prob - found.log_prob).abs();
                    assert!(difference < 1e-4, "{name}: {} and {}", alone.log_prob, found.log_prob);
                    assert_eq!(alone.greedy, found.greedy, "{name}");
                }
            }
        }
    }
}

#[test]
fn choices_that_share_a_cache_have_the_likelihoods_of_plain_passes() {
    for name in ["tiny-llama", "tiny-gpt2", "tiny-qwen3", "tiny-mixtral", "tiny-gpt-oss", "tiny-deepseek-v2"] {
        compare(name);
    }
}

#[test]
fn virtual_tokens_and_states_are_shared_too() {
    for (base, adapter) in
        [("tiny-llama", "prompt_tuning"), ("tiny-llama", "prefix_tuning"), ("tiny-qwen3", "prefix_tuning-qwen3")]
    {
        let folder = fixture(format!("virtual-tokens/{adapter}/initial"));
        compare_model(adapter, &open(&fixture(base), &[folder], device(), Kind::Float).unwrap());
    }
    for name in ["gru", "lstm"] {
        compare(&format!("own/{name}"));
    }
}

#[test]
fn windows_and_rotations_by_length_change_nothing() {
    for name in ["mistral-window", "dynamic-rope"] {
        let folder = with_weights(name, "wide-head-llama");
        let model = open(folder.path(), &[], device(), Kind::Float).unwrap();
        let groups = questions(model.config().vocab_size as u32, 20, 40);
        for (pairs, found) in
            groups.iter().zip(compute_in(&model, &groups, 1 << 20, BatchLimits { rows: 64, tokens: 1 << 15 }))
        {
            for (pair, found) in pairs.iter().zip(found) {
                let alone = one_by_one(&model, pair);
                assert!((alone.log_prob - found.log_prob).abs() < 1e-4, "{name}: {alone:?} and {found:?}");
            }
        }
    }
}

#[test]
fn a_long_context_loses_its_beginning() {
    let model = open(&fixture("tiny-gpt2"), &[], device(), Kind::Float).unwrap();
    let mut chance = rng::stream(4, "questions", 0);
    let mut draw = |n: usize| (0..n).map(|_| chance.random_range(0..60)).collect::<Vec<u32>>();
    let (context, continuation) = (draw(90), draw(7));
    // The model has 64 positions, and the last token is not seen.
    let kept = TokenPair { context: context[90 - 58..].to_vec(), continuation: continuation.clone() };
    let found = compute(&model, &[vec![TokenPair { context, continuation }]], BatchLimits::of(&model).unwrap());
    let all: Vec<u32> = kept.context.iter().chain(&kept.continuation).copied().take(64).collect();
    let expected = (58..65).map(|t| {
        let pair = TokenPair { context: all[..t].to_vec(), continuation: vec![kept.continuation[t - 58]] };
        // Each token alone: the last one is not seen by the model, so that 64 positions suffice.
        compute(&model, &[vec![pair]], BatchLimits::of(&model).unwrap())[0][0].log_prob
    });
    assert!((found[0][0].log_prob - expected.sum::<f64>()).abs() < 1e-4);
    let long = TokenPair { context: vec![1], continuation: draw(65) };
    let told =
        likelihoods(&model, &[vec![long]], 64, BatchLimits::of(&model).unwrap(), &mut |_, _| Ok(())).unwrap_err();
    assert!(told.to_string().contains("65 tokens, the model sees 64"), "{told}");
}
