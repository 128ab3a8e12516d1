//! Compares with PEFT: logits, training steps and files.

use super::*;

#[test]
fn logits_equal_peft_alone_and_packed() {
    for name in CASES {
        let (case, model) = opened(name, Kind::Float);
        let expected = tensors(format!("virtual-tokens/{name}/expected.safetensors"));
        let rows = ids(&case);
        let wanted: Vec<&Tensor> = (0..rows.len()).map(|i| &expected[&format!("logits.{i}")]).collect();
        for (i, row) in rows.iter().enumerate() {
            assert_close(&format!("{name}: row {i} alone"), &logits(&model, &[row]), wanted[i], 1e-5);
        }
        let packed = logits(&model, &rows);
        assert_close(&format!("{name}: packed"), &packed, &Tensor::cat(&wanted, 0), 1e-5);
        // Without the adapter, the same model is its base.
        let base = frozen(Base::of(&case).path(), Kind::Float);
        let without = model.with_adapter(None, |m| logits(m, &rows));
        assert_same(&format!("{name}: base"), &without, &logits(&base, &rows));
        assert!((without - packed).abs().max().double_value(&[]) > 1e-2, "{name} changes nothing");
    }
}

#[test]
fn training_steps_equal_peft() {
    let mut encoders = 0;
    for name in CASES.into_iter().filter(|name| !name.ends_with("dynamic")) {
        let case = case(name);
        assert!(!case.steps.is_empty(), "{name}");
        for replay in [LayerReplay::None, LayerReplay::First(1), LayerReplay::All] {
            let model = at_start(name, &case);
            encoders += u32::from(model.params().adapter(0).count() > 1);
            let Settings { lr, betas, eps, max_norm, weight_decay } = case.optimiser;
            let betas = [betas.0, betas.1];
            let settings =
                OptimSection { lr: Some(lr), betas, eps, weight_decay, decay_norms: true, ..OptimSection::default() };
            let mut optimiser = Optimiser::new(model.params(), &settings, 0).unwrap();
            for (i, (batch, expected)) in case.batch_of_step.iter().zip(&case.steps).enumerate() {
                // Two sequences share a packed row: each has virtual tokens of its own.
                let rows: Vec<Row> = case.batches[*batch].chunks(2).map(Row::pack).collect();
                let items: f64 = rows.iter().map(|r| r.items).sum();
                assert_eq!(items, expected.items);
                let mut metrics = ft::models::Metrics::default();
                for row in &rows {
                    metrics.merge(model.learn(row, items, replay).unwrap());
                }
                let (loss, norm) = (metrics.means()["loss"], optimiser.clip(max_norm).unwrap().double_value(&[]));
                assert_number(&format!("{name} {replay:?}, step {i}: loss"), loss, expected.loss, 1e-4);
                assert_number(&format!("{name} {replay:?}, step {i}: norm"), norm, expected.grad_norm, 1e-4);
                optimiser.step(lr).unwrap();
                optimiser.zero_gradients();
            }
            let expected = tensors(format!("virtual-tokens/{name}/expected.safetensors"));
            let bound = (10.0 * case.float64_difference.final_abs).max(2e-5);
            let ours = &model.adapter_tensors(0)[PROMPT_EMBEDDINGS];
            assert_within(&format!("{name} {replay:?}: final"), ours, &expected["final"], bound);
        }
    }
    assert_eq!(encoders, 9, "P-tuning twice and a projection, with three replays each");
}

#[test]
fn peft_files_are_rewritten_unchanged() {
    for name in CASES {
        let (out, from) = (tempfile::tempdir().unwrap(), saved(name));
        let read = file::read(&from).unwrap();
        let tensors = read.tensors.iter().map(|(n, t)| (n.as_str(), t));
        file::write(out.path(), &read.spec, read.base.as_deref().unwrap(), tensors).unwrap();
        let config = |folder: &Path| -> Value { ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap() };
        let (before, after) = (config(&from), config(out.path()));
        for (key, value) in after.as_object().unwrap() {
            assert_eq!(before.get(key), Some(value), "{name}: {key}");
        }
        let weights = |folder: &Path| ft::nn::Weights::open_file(&folder.join(file::TENSORS)).unwrap().all();
        let (before, after) = (weights(&from), weights(out.path()));
        assert!(before.keys().eq(after.keys()) && before.keys().eq([PROMPT_EMBEDDINGS]), "{name}");
        assert_same(name, &after[PROMPT_EMBEDDINGS], &before[PROMPT_EMBEDDINGS]);
    }
}

#[test]
fn files_that_say_more_are_refused_by_name() {
    let refused = |name: &str, key: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(saved(name).join(file::TENSORS), folder.path().join(file::TENSORS)).unwrap();
        let mut config: Value = json(format!("virtual-tokens/{name}/initial/adapter_config.json"));
        config[key] = value;
        ft::fsutil::write_json(&folder.path().join(file::CONFIG), &config).unwrap();
        let base = fixture(case(name).model);
        let e = open(&base, &[folder.path().to_path_buf()], device(), Kind::Float).err().expect(key);
        assert!(!e.hints().is_empty() && e.exit_code() == 1, "{e}");
        e.message().to_string()
    };
    for (name, key, value) in [
        ("p_tuning", "encoder_reparameterization_type", json!("LSTM")),
        ("prompt_tuning", "modules_to_save", json!(["lm_head"])),
        ("prompt_tuning", "task_type", json!("SEQ_CLS")),
        ("prompt_tuning", "task_type", json!("SEQ_2_SEQ_LM")),
        ("prompt_tuning", "num_transformer_submodules", json!(2)),
        ("prompt_tuning", "num_virtual_tokens", json!(0)),
        ("prompt_tuning", "num_virtual_tokens", json!(1u64 << 40)),
        ("prefix_tuning", "something_new", json!(1)),
        ("prefix_tuning", "peft_type", json!("MULTITASK_PROMPT_TUNING")),
    ] {
        let message = refused(name, key, value);
        assert!(message.contains(key), "{message}");
    }
    // Another number of tokens than the file has, and a kind with tensors of another width.
    assert!(refused("prompt_tuning", "num_virtual_tokens", json!(6)).contains("[5, 64], expected [6, 64]"));
    assert!(refused("prompt_tuning", "peft_type", json!("PREFIX_TUNING")).contains("expected [5, 192]"));
    // A file without virtual tokens, or with other tensors.
    for tensors in [
        BTreeMap::new(),
        BTreeMap::from([("base_model.model.x".to_string(), Tensor::zeros([1], tch::kind::FLOAT_CPU))]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(saved("p_tuning").join(file::CONFIG), folder.path().join(file::CONFIG)).unwrap();
        save_tensors(&folder.path().join(file::TENSORS), &tensors);
        let e = open(&fixture("tiny-llama"), &[folder.path().to_path_buf()], device(), Kind::Float).err().unwrap();
        assert!(e.message().contains("`prompt_embeddings` is missing"), "{e}");
    }
}
