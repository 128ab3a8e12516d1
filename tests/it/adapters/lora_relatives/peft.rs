//! Compares with PEFT's files (tests/fixtures/lora_relatives.py) and formulas.

use super::*;

/// The fixtures of lora_relatives.py and their bases.
const PEFTS: [(&str, &str); 10] = [
    ("dora", "tiny-llama"),
    ("dora-biased", "biased-llama"),
    ("dora-gpt2", "tiny-gpt2"),
    ("dora-embedding", "biased-llama"),
    ("lora-bias", "biased-llama"),
    ("token-rows", "biased-llama"),
    ("token-rows-tied", "tiny-llama"),
    ("target-parameters", "tiny-llama"),
    ("token-rows-head", "biased-llama"),
    ("tied-saved", "tiny-qwen2"),
];

#[test]
fn pefts_files_give_its_logits_and_merged_weights() {
    for (name, base) in PEFTS {
        let folder = fixture(format!("lora-relatives/{name}/initial"));
        let values = tensors(format!("lora-relatives/{name}/values.safetensors"));
        let model = open(&fixture(base), &[folder.clone()], device(), Kind::Float).unwrap();
        let found = logits(&model, &INPUT);
        assert_close(name, &found, &values["logits"], 1e-5);
        let effect = (&found - model.with_adapter(None, |m| logits(m, &INPUT))).abs().max().double_value(&[]);
        assert!(effect > 0.05, "{name}: the adapter changes logits by {effect} only");
        let weights = ft::models::weights(&fixture(base), model.config()).unwrap();
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merge = MergedWeights::new(&weights, &[], std::slice::from_ref(&part)).unwrap();
        let expected: Vec<(&str, &Tensor)> =
            values.iter().filter_map(|(key, t)| Some((key.strip_prefix("merged/")?, t))).collect();
        assert!(!expected.is_empty(), "{name}: nothing to compare");
        for (key, t) in expected {
            // A tied head is listed by its own name too.
            let stored = if weights.shape(key).is_some() { key } else { "model.embed_tokens.weight" };
            assert_within(&format!("{name}: {key}"), &every(4, &merge.tensor(stored).unwrap()), t, 2e-6);
        }
    }
}

#[test]
fn pefts_files_are_rewritten_unchanged() {
    for (name, _) in PEFTS {
        let folder = fixture(format!("lora-relatives/{name}/initial"));
        let read = file::read(&folder).unwrap();
        let again = tempfile::tempdir().unwrap();
        let named = read.tensors.iter().map(|(name, t)| (name.as_str(), t));
        file::write(again.path(), &read.spec, read.base.as_deref().unwrap(), named).unwrap();
        let of = |folder: &Path| Weights::open_file(&folder.join(file::TENSORS)).unwrap().all();
        let (before, after) = (of(&folder), of(again.path()));
        assert!(before.keys().eq(after.keys()), "{name}");
        before.iter().for_each(|(key, t)| assert_same(&format!("{name}: {key}"), &after[key], t));
        let config = |folder: &Path| ft::fsutil::read_json::<Value>(&folder.join(file::CONFIG)).unwrap();
        let (before, after) = (config(&folder), config(again.path()));
        for key in
            ["use_dora", "lora_bias", "trainable_token_indices", "use_rslora", "init_lora_weights", "fan_in_fan_out"]
        {
            let off = |v: &Value| if v.is_null() { json!(false) } else { v.clone() };
            assert_eq!(off(&before[key]), off(&after[key]), "{name}: {key}");
        }
    }
}

/// Computes DoRA by its formula, dropout included.
#[test]
fn dropout_reaches_dora_as_in_peft() {
    alone("adapters::lora_relatives::peft::dropout_reaches_dora_as_in_peft", || {
        use ft::nn::{AdapterSite, Dense, LayerKind, ParamRole};
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (weight, bias, x) = (random(&[5, 7]), random(&[5]), random(&[40, 7]).set_requires_grad(true));
        let spec = LoraSpec { rank: 2, alpha: 3.0, dropout: 0.4, dora: true, ..LoraSpec::default() };
        let plan = AdapterSpec::Lora(spec).plan().unwrap();
        let (held, mut leaves) = (weight.shallow_clone().into(), BTreeMap::new());
        let site = AdapterSite {
            name: "up_proj",
            layer: LayerKind::Linear,
            weight: &held,
            unquantised: None,
            bias: Some(&bias),
            tied: false,
        };
        let add = &mut |name: &str, t: Tensor, _: ParamRole| {
            let t = (&t + noise(&t.size(), name) * 0.3).detach().set_requires_grad(true);
            leaves.insert(name.to_string(), t.shallow_clone());
            t
        };
        let adapter = plan.attach(&site, add).unwrap().unwrap();
        let base = Dense { weight: weight.shallow_clone().into(), bias: Some(bias.shallow_clone()) };
        let [a, b, m] =
            ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|name| leaves[name].shallow_clone());
        let learn = |y: Tensor| {
            (&y * (&y + 1.0)).sum(Kind::Float).backward();
            let take = |t: &Tensor| {
                let g = t.grad().copy();
                t.shallow_clone().zero_grad();
                g
            };
            [y.detach(), take(&x), take(&a), take(&b), take(&m)]
        };
        tch::manual_seed(3);
        let found = learn(adapter.forward(&x, &base, true));
        tch::manual_seed(3);
        let dropped = &x * Tensor::empty_like(&x).bernoulli_float_(0.6) / 0.6;
        let norm = tch::no_grad(|| (&weight + b.matmul(&a) * 1.5).norm_scalaropt_dim(2.0, [1i64].as_slice(), false));
        let (scale, low) = (&m / norm, dropped.matmul(&a.tr()).matmul(&b.tr()) * 1.5);
        let change = (&scale - 1.0) * dropped.matmul(&weight.tr()) + &scale * low;
        let expected = learn(x.linear(&weight, Some(&bias)) + change);
        for (what, (found, expected)) in ["y", "x", "A", "B", "m"].iter().zip(found.iter().zip(&expected)) {
            assert_close(what, found, expected, 1e-5);
        }
        assert!(adapter.joint_form(true).is_none() && adapter.joint_form(false).is_some());
    });
}
