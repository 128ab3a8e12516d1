//! Decoding with a cache equals full passes, alone, in a batch and in a conversation.

use super::*;
use ft::generate::prefill::prefill;

#[test]
fn cached_steps_equal_the_full_forward() {
    for name in CASES.into_iter().filter(|name| !name.ends_with("dynamic")) {
        let (_, model) = opened(name, Kind::Float);
        let full = |sequences: &[Vec<u32>]| {
            let tokens = Tokens::pack(sequences, device());
            model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows())).unwrap()
        };
        let mut sequences: Vec<Vec<u32>> =
            [9u32, 21, 14].iter().map(|n| (0..*n).map(|t| (t * 7 + n) % 60 + 3).collect()).collect();
        let mut cache = model.cache(sequences.len());
        let mut run = Tokens::pack(&sequences, device());
        for step in 0..6u32 {
            let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            assert_close(&format!("{name} step {step}"), &cached, &full(&sequences), 2e-5);
            if step == 3 {
                cache.retain_slots(&[2, 1]);
                sequences.swap_remove(0);
                // A sequence that begins beside others that go on gets virtual tokens of its own.
                cache.add_slots(1);
                sequences.push(vec![5, 9, 4]);
            }
            let held: Vec<i64> = cache.lengths.clone();
            sequences.iter_mut().zip(&held).filter(|(_, n)| **n > 0).for_each(|(s, _)| s.push(3 + step * 5));
            let new = sequences.iter().zip(&held).map(|(s, n)| if *n > 0 { &s[s.len() - 1..] } else { &s[..] });
            run = Tokens::pack_after(&new.collect::<Vec<_>>(), &held, device());
        }
        // Several tokens at once after the cached ones, another number for each sequence.
        let before: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let _ = model.extend(&run, &mut cache, |_| ()).unwrap();
        sequences.iter_mut().zip([5usize, 2, 3]).for_each(|(s, n)| s.extend(std::iter::repeat_n(11, n)));
        let new: Vec<&[u32]> = sequences.iter().zip(&before).map(|(s, n)| &s[*n..]).collect();
        let run = Tokens::pack_after(&new, &cache.lengths, device());
        let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
        assert_close(&format!("{name} continued"), &cached, &full(&sequences), 2e-5);
    }
}

#[test]
fn answers_are_the_same_in_a_batch_alone_and_in_a_session() {
    for name in ["prompt_tuning", "p_tuning", "prefix_tuning", "prefix_tuning-gpt2"] {
        let (_, model) = opened(name, Kind::Float);
        let prompts: Vec<Vec<u32>> =
            [7u32, 19, 2, 12].iter().map(|n| (0..*n).map(|t| (t * 5 + n) % 60).collect()).collect();
        let settings = GenerationSettings::greedy(6, &[]);
        let answers = complete(&model, &prompts, &settings, &mut |_, _| ()).unwrap();
        // Greedy decoding by full forward passes.
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let mut sequence = prompt.clone();
            for id in &answer.tokens {
                let best = logits(&model, &[&sequence]).get(-1).argmax(0, false).int64_value(&[]);
                assert_eq!(best, i64::from(*id), "{name}");
                sequence.push(*id);
            }
        }
        // Two rows at a time: prompts begin while others go on, in their places in the cache.
        let mut engine = Engine::new(&model, settings.clone(), BatchLimits { rows: 2, tokens: 4096 }).unwrap();
        prompts.iter().for_each(|p| _ = engine.add(GenerationRequest::new(p, 0)).unwrap());
        let (mut found, mut prompt_tokens) = (BTreeMap::new(), 0);
        while !engine.is_idle() {
            let step = engine.step().unwrap();
            prompt_tokens += step.prompt_tokens;
            found.extend(step.finished.into_iter().map(|done| (done.request, done.completion.tokens)));
        }
        assert!(found.values().eq(answers.iter().map(|a| &a.tokens)), "{name}: {found:?}");
        assert_eq!(prompt_tokens, prompts.iter().map(Vec::len).sum::<usize>(), "virtual tokens are no text");
        let mut session = ChatSession::new(&model);
        let longer = [&prompts[1][..], &answers[1].tokens, &[3, 4]].concat();
        for prompt in [&prompts[1], &longer, &prompts[0], &prompts[2]] {
            let fresh = complete(&model, std::slice::from_ref(prompt), &settings, &mut |_, _| ()).unwrap();
            let again = session.answer(prompt, &settings, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(again, fresh[0], "{name}");
        }
    }
}

/// A prompt that is run in parts gets its virtual tokens once, before the first part.
#[test]
fn prompts_in_parts_equal_prompts_in_one_piece() {
    for name in CASES {
        let (_, model) = opened(name, Kind::Float);
        let prompts: Vec<Vec<u32>> =
            [23u32, 2, 9].iter().map(|n| (0..*n).map(|t| (t * 5 + n) % 60).collect()).collect();
        let [whole, parts] = [4096, 4].map(|most| {
            let mut cache = model.cache(3);
            let first = prefill(&model, &prompts, &mut cache, most).unwrap();
            let ids = Tensor::from_slice(&[5i64, 6, 7]).to_device(device());
            Tensor::cat(&[first, model.next_logits(&ids, &mut cache).unwrap()], 0)
        });
        assert_close(name, &parts, &whole, 2e-5);
    }
}

/// Virtual tokens are tokens like others to a window, which leaves them behind.
#[test]
fn windows_leave_virtual_tokens_behind() {
    for kind in ["prompt_tuning", "prefix_tuning"] {
        for (config, weights) in [("mistral-window", "wide-head-llama"), ("dense/cohere2", "dense/cohere2")] {
            let spec: AdapterSpec = serde_json::from_value(json!({ kind: { "virtual_tokens": 5 } })).unwrap();
            let folder = with_weights(config, weights);
            let model = adapted(folder.path(), Kind::Float, &*spec.plan().unwrap());
            fill_adapter(&model, 0.5);
            let mut sequences: Vec<Vec<u32>> =
                [1u32, 12, 30].iter().map(|n| (0..*n).map(|t| t % 60).collect()).collect();
            let mut cache = model.cache(3);
            let mut found = prefill(&model, &sequences, &mut cache, 7).unwrap();
            for step in 0..20 {
                let row = Tokens::pack(&sequences, device());
                let full = model.infer(&row, |out| out.logits(&row.segments.last_rows())).unwrap();
                assert_close(&format!("{kind} on {config}, step {step}"), &found, &full, 2e-5);
                sequences.iter_mut().for_each(|s| s.push(step * 3 % 60));
                let last: Vec<&[u32]> = sequences.iter().map(|s| &s[s.len() - 1..]).collect();
                found = prefill(&model, &last, &mut cache, 7).unwrap();
            }
        }
    }
}
