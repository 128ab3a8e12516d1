//! Packed rows, replayed layers and half precision compute the same; how virtual tokens start and what they take.

use super::*;

#[test]
fn half_precision_is_near_float32_and_not_equal() {
    for name in CASES {
        let (case, model) = opened(name, Kind::Float);
        let (_, half) = opened(name, Kind::BFloat16);
        let (wide, narrow) = (logits(&model, &ids(&case)), logits(&half, &ids(&case)));
        let gap = (&narrow - &wide).norm().double_value(&[]) / wide.norm().double_value(&[]);
        assert!(gap > 1e-4 && gap < 0.05, "{name}: {gap}");
    }
}

#[test]
fn gradients_of_a_packed_row_are_those_of_its_sequences() {
    for name in ["prompt_tuning-gpt2", "p_tuning", "prefix_tuning", "prefix_tuning-projection"] {
        let case = case(name);
        let model = at_start(name, &case);
        let gradients = |parts: Vec<&[Sequence]>, replay| {
            for part in parts {
                let _ = model.learn(&Row::pack(part), 10.0, replay).unwrap();
            }
            take_gradients(&model)
        };
        let alone = gradients(case.rows.chunks(1).collect(), LayerReplay::None);
        assert!(!alone.is_empty() && alone.values().all(|g| g.abs().max().double_value(&[]) > 0.0), "{name}");
        for replay in [LayerReplay::None, LayerReplay::All] {
            assert_all_close(&gradients(vec![&case.rows], replay), &alone, 1e-5);
        }
    }
}

#[test]
fn a_loss_on_activations_sees_real_tokens_whether_layers_are_replayed_or_not() {
    for name in ["prompt_tuning", "prefix_tuning", "p_tuning-gpt2"] {
        let case = case(name);
        let model = at_start(name, &case);
        model.expose(ExposedLayers { states: vec![0, 1], attention: vec![1] });
        let row = Row::pack(&case.rows);
        let count = row.tokens.len() as i64;
        let batch = row.with(|row, out| {
            let seen = &out.activations;
            let (states, attention) = (seen.hidden_state(0) * seen.hidden_state(1), seen.attention(1));
            assert_eq!([states.size()[0], attention.q.size()[0], attention.k.size()[0]], [count; 3], "{name}");
            let more =
                states.sum(Kind::Float) + attention.q.square().sum(Kind::Float) + attention.k.sin().sum(Kind::Float);
            let Loss { sum, metrics } = row.loss(out);
            Loss { sum: sum + more * 0.01, metrics }
        });
        let gradients = |replay| {
            let _ = model.learn(&batch, 7.0, replay).unwrap();
            take_gradients(&model)
        };
        let plain = gradients(LayerReplay::None);
        for replay in [LayerReplay::First(1), LayerReplay::All] {
            assert_all_close(&gradients(replay), &plain, 1e-5);
        }
        model.expose(ExposedLayers::default());
        let _ = model.learn(&row, 7.0, LayerReplay::None).unwrap();
        let without = take_gradients(&model);
        assert!(without.iter().any(|(n, g)| Gap::between(g, &plain[n]).norm > 1e-3), "{name}");
    }
}

#[test]
fn virtual_tokens_take_positions_of_a_model_that_has_few() {
    let (_, model) = opened("prompt_tuning-gpt2", Kind::Float); // 64 positions, 3 virtual tokens
    assert_eq!((model.context_limit(), model.virtual_tokens()), (Some(61), 3));
    assert_eq!(model.with_adapter(None, |m| m.context_limit()), Some(64));
    let fits: Vec<u32> = vec![7; 61];
    let _ = logits(&model, &[&fits]);
    let long: Vec<u32> = vec![7; 62];
    let e = model.infer(&Tokens::pack(&[&long], device()), |_| ()).unwrap_err();
    assert!(e.message().contains("65 tokens, virtual ones included") && e.hints()[0].contains("within 61"), "{e}");
}

#[test]
fn virtual_tokens_start_as_their_settings_say() {
    let base = fixture("tiny-llama");
    let table = tensors("tiny-llama/model.safetensors").remove("model.embed_tokens.weight").unwrap();
    let start = |settings: Value| {
        let mut spec: AdapterSpec = serde_json::from_value(settings).unwrap();
        spec.start_from_text(&|text| Ok(text.bytes().map(u32::from).collect())).unwrap();
        let model = adapted(&base, Kind::Float, &*spec.plan().unwrap());
        model.adapter_tensors(0).remove(PROMPT_EMBEDDINGS).unwrap().to_device(tch::Device::Cpu)
    };
    for (count, tokens) in [(7, "abcabca"), (2, "ab")] {
        let ids: Vec<i64> = tokens.bytes().map(i64::from).collect();
        let found = start(json!({ "prompt_tuning": { "virtual_tokens": count, "text": "abc" } }));
        assert_same(tokens, &found, &table.index_select(0, &Tensor::from_slice(&ids)));
    }
    let sampled = start(json!({ "prompt_tuning": { "virtual_tokens": 9, "init": "vocabulary" } }));
    for row in 0..9 {
        let nearest = (&table - sampled.get(row)).abs().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).min();
        assert_eq!(nearest.double_value(&[]), 0.0, "row {row} is no row of the table");
    }
    assert_eq!(start(json!({ "prefix_tuning": { "init": "zero" } })).abs().max().double_value(&[]), 0.0);
    let projected = json!({ "prefix_tuning": { "init": "zero", "projection": true } });
    assert_eq!(start(projected).abs().max().double_value(&[]), 0.0);
    let random = start(json!({ "prefix_tuning": { "virtual_tokens": 50 } }));
    assert_eq!(random.size(), [50, 192]);
    let std = random.std(true).double_value(&[]);
    assert!((std - 1.0).abs() < 0.05, "{std}");
}
