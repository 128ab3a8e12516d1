//! Files and settings that no layer can have are refused by name.

use super::*;

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let (base, source) = (fixture("tiny-llama"), fixture("lora-relatives/dora/initial"));
    let out = tempfile::tempdir().unwrap();
    let read = file::read(&source).unwrap();
    let dora = "model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    let write = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), spec: &AdapterSpec| -> PathBuf {
        let mut tensors: BTreeMap<String, Tensor> =
            read.tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        change(&mut tensors);
        file::write(out.path(), spec, "base", tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
        out.path().to_path_buf()
    };
    let as_lora = |change: fn(&mut LoraSpec)| {
        let mut spec = read.spec.as_lora().unwrap().clone();
        change(&mut spec);
        AdapterSpec::Lora(spec)
    };
    let cases: [(&dyn Fn(&mut BTreeMap<String, Tensor>), AdapterSpec, &str); 5] = [
        (&|t| drop(t.remove(dora)), read.spec.clone(), dora),
        (&|t| drop(t.insert(dora.into(), Tensor::ones([3], (Kind::Float, Device::Cpu)))), read.spec.clone(), "q_proj"),
        (&|_| (), as_lora(|spec| spec.dora = false), "lora_magnitude_vector"),
        (&|_| (), as_lora(|spec| spec.rank = 5), "_proj"),
        (
            &|t| drop(t.insert("model.embed_tokens.token_adapter.trainable_tokens_delta".into(), t[dora].ones_like())),
            read.spec.clone(),
            "trainable_tokens_delta",
        ),
    ];
    for (change, spec, named) in cases {
        let folder = write(change, &spec);
        let opened = open(&base, &[folder.clone()], Device::Cpu, Kind::Float).err().unwrap();
        let weights = Weights::open(&base).unwrap();
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merging = MergedWeights::new(&weights, &[], std::slice::from_ref(&part)).err().unwrap();
        for e in [opened, merging] {
            assert!(e.message().contains(named) && !e.hints().is_empty() && e.exit_code() == 1, "{named}: {e}");
        }
    }
}

#[test]
fn settings_that_layers_cannot_have_are_refused() {
    let refused = |base: &str, spec: LoraSpec| {
        let plan = AdapterSpec::Lora(spec).plan().unwrap();
        let load = ft::models::LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: ft::models::Storage::Auto,
            train_base: None,
            adapters: vec![("a".into(), &*plan)],
            vocabulary: None,
            heads: ft::models::Heads::Tokens,
        };
        Model::load(&fixture(base), load).err().expect("it was accepted")
    };
    let plain = || LoraSpec { rank: 4, ..LoraSpec::default() };
    let cases = [
        ("tiny-llama", LoraSpec { token_rows: tokens(&[512]), ..plain() }, "512"),
        ("tiny-llama", LoraSpec { token_rows: tokens(&[-1]), ..plain() }, "-1"),
        ("tiny-llama", LoraSpec { token_rows: tokens(&[4, 7, 4]), ..plain() }, "token 4 is trained twice"),
        (
            "tiny-llama",
            LoraSpec { token_rows: tokens(&[4]), targets: names(&["embed_tokens"]), ..plain() },
            "embed_tokens",
        ),
        ("tiny-llama", LoraSpec { token_rows: tokens(&[4]), targets: names(&["lm_head"]), ..plain() }, "lm_head"),
        (
            "biased-llama",
            LoraSpec { token_rows: tokens(&[4]), modules_to_save: vec!["embed_tokens".into()], ..plain() },
            "token_rows",
        ),
        (
            "biased-llama",
            LoraSpec { head_rows: tokens(&[4]), modules_to_save: vec!["lm_head".into()], ..plain() },
            "output head is trained in full",
        ),
        ("tiny-llama", LoraSpec { head_rows: tokens(&[4]), ..plain() }, "share one weight"),
        ("biased-llama", LoraSpec { tie: true, ..plain() }, "weights of their own"),
        ("tiny-llama", LoraSpec { tie: true, ..plain() }, "neither embedding nor output head"),
        (
            "tiny-llama",
            LoraSpec { tie: true, dora: true, targets: names(&["embed_tokens"]), ..plain() },
            "cannot be tied",
        ),
        ("tiny-llama", LoraSpec { init: LoraInit::Pissa, rank: 40, ..plain() }, "rank 40"),
        ("tiny-llama", LoraSpec { init: LoraInit::Orthogonal, rank: 3, ..plain() }, "even rank"),
        ("tiny-llama", LoraSpec { bias: true, targets: names(&["embed_tokens"]), ..plain() }, "`bias`"),
        ("tiny-llama", LoraSpec { dora: true, targets: names(&["norm"]), ..plain() }, "norm"),
    ];
    for (base, spec, named) in cases {
        let e = refused(base, spec);
        assert!(e.message().contains(named) && !e.hints().is_empty() && e.exit_code() == 1, "{named}: {e}");
    }
}
