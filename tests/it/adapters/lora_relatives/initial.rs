//! Initial values that depend on the base's weights or on the rows of a run.

use super::*;
use ft::adapters::lora::{self, InputRecorder, PrincipalInputs};

/// Takes the place of a LoRA of twice the rank in any program.
#[test]
fn initial_values_from_the_base_are_published_as_plain_lora() {
    for relative in relatives().into_iter().filter(|r| r.spec.init.takes_from_base()) {
        let Relative { name, base, spec } = &relative;
        let model = trained(&relative, Kind::Float);
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("adapter");
        export::save_adapter(&model, "a", &AdapterSpec::Lora(spec.clone()), &fixture(base), &folder).unwrap();
        let config: Value = ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap();
        let alpha = spec.alpha * if spec.rslora { 2f64.sqrt() } else { 2.0 };
        assert_eq!((&config["r"], &config["init_lora_weights"]), (&json!(8), &json!(true)), "{name}");
        assert!((config["lora_alpha"].as_f64().unwrap() - alpha).abs() < 1e-9, "{name}");
        let tensors = file::read(&folder).unwrap().tensors;
        assert!(!tensors.is_empty() && tensors.keys().all(|key| !key.contains("start")), "{name}");
    }
}

/// B A is the principal part of the weight: what is left has the other singular values.
#[test]
fn pissa_takes_the_largest_singular_values_and_olora_the_first_rows() {
    let of = |init: LoraInit| {
        let spec = LoraSpec { rank: 4, alpha: 6.0, init, targets: names(&["v_proj"]), ..LoraSpec::default() };
        let model = fresh(&Relative { name: "", base: "tiny-llama", spec }, Kind::Float);
        let get = |name: &str| model.params().iter().find(|p| p.name.ends_with(name)).unwrap().tensor.detach();
        let layer = "layers.1.self_attn.v_proj";
        let [a, b] = ["lora_A", "lora_B"].map(|f| get(&format!("{layer}.{f}.weight")));
        (get(&format!("{layer}.weight")), a, b)
    };
    for init in [LoraInit::Pissa, LoraInit::PissaFast] {
        let (weight, a, b) = of(init);
        let values = |t: &Tensor| t.svd(true, false).1;
        let rest = &weight - b.matmul(&a) * 1.5;
        let count = values(&weight).size()[0] - 4;
        // The fast decomposition is approximate.
        let allowed = if init == LoraInit::Pissa { 1e-5 } else { 1e-3 };
        let (left, wanted) = (values(&rest).narrow(0, 0, count), values(&weight).narrow(0, 4, count));
        assert_close(&format!("{init:?}"), &left, &wanted, allowed);
        // Both factors have the same share of each value.
        let norms = |t: &Tensor, dim: i64| t.norm_scalaropt_dim(2.0, [dim].as_slice(), false);
        assert_close(&format!("{init:?}: norms"), &norms(&a, 1), &norms(&b, 0), allowed);
    }
    let (weight, a, b) = of(LoraInit::Olora);
    let (q, r) = Tensor::linalg_qr(&weight, "reduced");
    assert_close("R", &a, &r.narrow(0, 0, 4), 1e-6);
    assert_close("Q", &b, &q.narrow(1, 0, 4), 1e-6);
}

/// Returns what PEFT's EVA found on tiny-llama: its settings and A, and what ft finds for the same tokens.
fn eva() -> (Value, BTreeMap<String, Tensor>, BTreeMap<String, PrincipalInputs>) {
    let (expected, values): (Value, _) =
        (crate::support::json("eva/expected.json"), tensors("eva/expected.safetensors"));
    let most = (expected["rank"].as_f64().unwrap() * expected["rho"].as_f64().unwrap()) as i64;
    let modules = values.keys().filter_map(|key| Some((key.strip_prefix("explained.")?.to_string(), most)));
    let recorder = InputRecorder::new(modules.collect());
    let model = adapted(&fixture("tiny-llama"), Kind::Float, &recorder);
    let rows: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
    const PASSES: usize = 12;
    for pass in 0..PASSES {
        for row in &rows {
            recorder.count_rows(Tensor::arange(row.len() as i64, (Kind::Int64, device())));
            model.hidden_states(&Tokens::pack(&[row.as_slice()], device())).unwrap();
        }
        if pass + 1 < PASSES {
            recorder.end_pass();
        }
    }
    drop(model);
    let found = recorder.directions().into_iter().map(|(module, found)| (module, found.unwrap())).collect();
    (expected, values, found)
}

/// Shares of variance equal those of a full decomposition, and ranks and directions those that PEFT computes from batches.
#[test]
fn ranks_and_directions_of_eva_equal_peft() {
    let (expected, values, found) = eva();
    for (module, own) in &found {
        let shares: Vec<f64> = Vec::<f64>::try_from(&values[&format!("explained.{module}")]).unwrap();
        let gap = own.explained.iter().zip(&shares).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(own.explained.len() == shares.len() && gap < 1e-4, "{module}: {gap}");
    }
    let budget = expected["rank"].as_u64().unwrap() as usize * found.len();
    let explained = found.iter().map(|(module, own)| (module.clone(), own.explained.clone())).collect();
    let ranks = lora::distribute(&explained, budget);
    assert_eq!(ranks.values().sum::<i64>() as usize, budget);
    let (rank, alpha) = (expected["rank"].as_i64().unwrap(), expected["alpha"].as_f64().unwrap());
    let before =
        LoraSpec { rank, alpha, targets: names(&["q_proj", "v_proj", "up_proj", "down_proj"]), ..LoraSpec::default() };
    let after = lora::LoraModules::new(&before.with_ranks(&ranks).unwrap()).unwrap();
    let mut left_out = 0;
    for (module, rank) in &ranks {
        let Some(a) = values.get(module) else {
            assert_eq!(*rank, 0, "{module}: PEFT no longer adapts it");
            left_out += 1;
            continue;
        };
        assert_eq!((*rank, after.rank(module)), (a.size()[0], a.size()[0]), "{module}");
        let theirs = expected["alpha_pattern"][module].as_f64().unwrap_or(alpha);
        assert!((after.alpha(module) - theirs).abs() < 1e-9, "{module}");
        // PEFT's components are those of a randomised decomposition.
        let ours = found[module].directions.narrow(0, 0, *rank).to_device(Device::Cpu);
        let cosines = (&ours * a).sum_dim_intlist([1i64].as_slice(), false, Kind::Float).abs();
        assert!(cosines.min().double_value(&[]) > 0.99, "{module}: {cosines:?}");
    }
    assert!(left_out > 0 && left_out < ranks.len());
}

/// A run with `eva_rho` has as many directions as one without, distributed over its modules, and its plan has the ranks.
#[test]
fn eva_distributes_the_ranks_of_a_run() {
    let space = Workspace::new();
    let adapter = "adapter.lora={init: eva, rank: 4, eva_rho: 2, targets: [q_proj, o_proj, up_proj, down_proj]}";
    let sets = ["run.steps=2", "run.out=spread", adapter].into_iter().flat_map(|set| ["--set", set]);
    space.ft(&["train", "recipes/lora-medical.yaml"].into_iter().chain(sets).collect::<Vec<_>>());
    let lora = &space.json("spread/plan.json")["recipe"]["adapter"]["lora"];
    assert!(
        lora["eva_rho"].is_null() && lora["rank_pattern"].as_object().is_some_and(|ranks| !ranks.is_empty()),
        "{lora}"
    );
    let file = file::read(&space.path("spread")).unwrap();
    let ranks: Vec<i64> =
        file.tensors.iter().filter(|(n, _)| n.ends_with("lora_A.weight")).map(|(_, t)| t.size()[0]).collect();
    let base = Weights::open(&space.path("models/smollm2-135m-instruct")).unwrap();
    let targeted = |name: &&str| {
        ["q_proj", "o_proj", "up_proj", "down_proj"].iter().any(|t| name.ends_with(&format!("{t}.weight")))
    };
    assert_eq!(ranks.iter().sum::<i64>(), 4 * base.names().filter(targeted).count() as i64);
    assert!(ranks.iter().any(|rank| *rank != 4) && ranks.iter().all(|rank| (1..=8).contains(rank)), "{ranks:?}");
    let spec = file.spec.as_lora().unwrap();
    let modules = lora::LoraModules::new(spec).unwrap();
    let scales = file.tensors.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")).map(|m| modules.scale(m));
    assert!(scales.map(|scale| (scale - 8.0).abs()).fold(0.0, f64::max) < 1e-9, "alpha 32 of rank 4 in every module");
    // A run that is resumed by its recipe keeps the recorded ranks.
    let (before, sets) = (space.weights("spread"), ["run.steps=2", "run.out=spread", adapter]);
    let sets = sets.into_iter().flat_map(|set| ["--set", set]);
    space.ft(&["train", "recipes/lora-medical.yaml", "--resume"].into_iter().chain(sets).collect::<Vec<_>>());
    assert_eq!(space.weights("spread"), before);
    let said = space.refused(&["check", "recipes/lora-medical.yaml", "--set", "adapter.lora={eva_rho: 2}"]);
    assert!(said.contains("`adapter.lora.eva_rho` has no effect without `init: eva`"), "{said}");
}

/// The directions of EVA are orthonormal, depend on the rows, and are the same when the run is repeated.
#[test]
fn eva_starts_with_directions_of_the_runs_own_rows() {
    let space = Workspace::new();
    let run = |out: &str, data: &str| {
        let (out, data) = (format!("run.out={out}"), format!("data.train.path={data}"));
        let sets = [
            &out,
            &data,
            "adapter.lora={init: eva, rank: 6, freeze_a: true, targets: [q_proj, down_proj]}",
            "run.steps=1",
        ];
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        space.ft(&["train", "recipes/lora-medical.yaml"].into_iter().chain(sets).collect::<Vec<_>>());
    };
    let get = |out: &str| {
        let file = Weights::open_file(&space.path(out).join(file::TENSORS)).unwrap();
        file.get("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight").unwrap()
    };
    run("one", "datasets/icd10/train.jsonl");
    run("two", "datasets/icd10/train.jsonl");
    run("other", "datasets/icd10/taught.jsonl");
    let a = get("one");
    assert_close("A Aᵀ", &a.matmul(&a.tr()), &Tensor::eye(6, (Kind::Float, Device::Cpu)), 1e-4);
    assert_same("repeated", &get("two"), &a);
    assert!(Gap::between(&get("other"), &a).norm > 1e-2);
}
