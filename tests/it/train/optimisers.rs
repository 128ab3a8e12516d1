//! Tests every optimiser against its reference (tests/fixtures/optimisers) and the size of its state, and what
//! surrounds the update rules: parameter groups, weight averages, stochastic rounding, embedding noise.

use crate::support::*;
use ft::adapters::{LoraSpec, ModulePlan};
use ft::models::{EmbeddingNoise, Heads, LayerReplay, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, LayerKind};
use ft::recipe::optim::{AdafactorSpec, GroupSpec, LionSpec, MuonScale, MuonSpec, OptimKind, OptimSection, SgdSpec};
use ft::train::optim::{Optimiser, ParameterInfo, ParameterUpdate, StepSize, adamw8, muon, rule};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const SHAPES: [(&str, &[i64]); 3] = [("matrix", &[48, 96]), ("tall", &[40, 12]), ("vector", &[37])];
const LR: f64 = 0.01;

/// Returns pseudo-random numbers in [-0.5, 0.5), computed with the same formula as in the fixture's generator.
fn numbers(stream: u64, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let number = |i: u64| {
        let k = (i + stream * 100_003 + 1).wrapping_mul(2_654_435_761) & 0xFFFF_FFFF;
        let k = (k ^ (k >> 15)).wrapping_mul(2_246_822_519) & 0xFFFF_FFFF;
        (k >> 16) as f32 / 65536.0 - 0.5
    };
    Tensor::from_slice(&(0..count as u64).map(number).collect::<Vec<f32>>()).view(shape)
}

/// Takes ten steps with an update rule. Returns each parameter by name, together with its average (the parameter itself
/// if the rule keeps no average).
fn ten_steps(optim: &OptimSection, decay: f64, rate: impl Fn(u64) -> f64) -> BTreeMap<String, (Tensor, Tensor)> {
    let mut rule = rule(optim, Device::Cpu);
    let mut members: Vec<(&str, ParameterInfo, Tensor, Vec<Tensor>)> = Vec::new();
    for (i, (name, shape)) in SHAPES.into_iter().enumerate() {
        let form = ParameterInfo { shape: shape.to_vec(), layer: LayerKind::Linear, adapter: false, transposed: false };
        let param = numbers(i as u64, shape);
        let state = rule.initial_state(&form, &param);
        let measured: u64 = state.iter().map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum();
        assert_eq!(rule.bytes(&form), measured, "{name}: predicted and actual size of the state differ");
        members.push((name, form, param, state));
    }
    for step in 0..10u64 {
        rule.begin(rate(step));
        for (i, (_, form, param, state)) in members.iter().enumerate() {
            let grad = numbers(10 + 10 * step + i as u64, &form.shape) * 0.5f64.powi((step % 3) as i32);
            let decay = if form.shape.len() > 1 { decay } else { 0.0 };
            let slot = ParameterUpdate { form, param: param.shallow_clone(), grad, state };
            rule.update(&[slot], StepSize { lr: rate(step), decay, step: step + 1 }, None).unwrap();
        }
    }
    let end = |(name, _, param, state): &(&str, ParameterInfo, Tensor, Vec<Tensor>)| {
        let average = rule.averaged(param, state).unwrap_or_else(|| param.shallow_clone());
        (name.to_string(), (param.shallow_clone(), average))
    };
    members.iter().map(end).collect()
}

fn compare(case: &str, optim: &OptimSection, decay: f64, allowed: f64, rate: impl Fn(u64) -> f64) {
    let expected = tensors("optimisers/expected.safetensors");
    let rows = |name: &str, t: &Tensor| if name == "matrix" { every(8, t) } else { t.shallow_clone() };
    for (name, (param, average)) in ten_steps(optim, decay, rate) {
        let gap = assert_within(&name, &rows(&name, &param), &expected[&format!("{case}/{name}")], allowed);
        println!("{case} {name}: {:e} apart", gap.absolute);
        if let Some(expected) = expected.get(&format!("{case}-averaged/{name}")) {
            assert_within(&name, &rows(&name, &average), expected, allowed);
        }
    }
}

fn kind(kind: OptimKind) -> OptimSection {
    OptimSection { kind, ..OptimSection::default() }
}

#[test]
fn steps_of_exact_rules_equal_their_references() {
    let adamw = OptimSection { betas: [0.9, 0.95], eps: 1e-6, ..OptimSection::default() };
    let sgd = |momentum, nesterov| kind(OptimKind::Sgd(SgdSpec { momentum, nesterov }));
    let whole = AdafactorSpec { momentum: Some(0.9), scale_parameter: true, ..AdafactorSpec::default() };
    for (case, optim) in [
        ("adamw", adamw),
        ("lion", kind(OptimKind::Lion(LionSpec::default()))),
        ("sgd", sgd(0.9, false)),
        ("sgd-nesterov", sgd(0.9, true)),
        ("sgd-plain", sgd(0.0, false)),
        ("adafactor", kind(OptimKind::Adafactor(AdafactorSpec::default()))),
        ("adafactor-full", kind(OptimKind::Adafactor(whole))),
    ] {
        compare(case, &optim, 0.1, 5e-7, |_| LR);
    }
    // Three steps of warm-up.
    compare("schedule-free", &kind(OptimKind::ScheduleFree), 0.1, 5e-7, |t| LR * ((t + 1) as f64 / 3.0).min(1.0));
}

/// Newton-Schulz runs in bfloat16 in both implementations, so results may differ by its rounding errors times lr and
/// scale.
#[test]
fn steps_of_muon_equal_torch() {
    let spec = |nesterov, scale| kind(OptimKind::Muon(MuonSpec { momentum: 0.95, nesterov, scale }));
    compare("muon", &spec(true, MuonScale::MatchRms), 0.1, 2e-4, |_| LR);
    compare("muon-original", &spec(false, MuonScale::Original), 0.1, 2e-4, |_| LR);
    let (_, singular, _) = muon::orthogonalised(&numbers(5, &[40, 12])).to_kind(Kind::Double).svd(true, false);
    let (least, most) = (singular.min().double_value(&[]), singular.max().double_value(&[]));
    assert!(least > 0.6 && most < 1.3, "singular values from {least} to {most}");
}

/// If a moment is on the border between two codes, the two implementations may choose different ones: hence the
/// tolerance.
#[test]
fn steps_of_eight_bit_adamw_equal_bitsandbytes() {
    let expected = tensors("optimisers/expected.safetensors");
    // Tolerance: one unit in the last place of a float32 just below 1, because bitsandbytes rounds intermediate
    // results.
    for (signed, name) in [(true, "map-signed"), (false, "map-unsigned")] {
        assert_within(name, &adamw8::DynamicMap::dynamic(signed, Device::Cpu).values, &expected[name], 2f64.powi(-24));
    }
    let optim = kind(OptimKind::Adamw8(Default::default()));
    compare("adamw8", &optim, 0.1, 2e-5, |_| LR);
    // The state has two bytes per number and two float32 scales per block; a small tensor keeps float32 moments.
    let rule = rule(&optim, Device::Cpu);
    let form = |shape: &[i64]| ParameterInfo {
        shape: shape.to_vec(),
        layer: LayerKind::Linear,
        adapter: false,
        transposed: false,
    };
    assert_eq!(rule.bytes(&form(&[1024, 1024])), 2 * (1 << 20) + 8 * (1 << 12));
    assert_eq!(rule.bytes(&form(&[10, 10])), 800);
    // Rounding the moments costs little: the parameters stay close to those of exact AdamW.
    let exact = ten_steps(&OptimSection::default(), 0.0, |_| LR);
    for (name, (rough, _)) in ten_steps(&optim, 0.0, |_| LR) {
        assert_within(&name, &rough, &exact[&name].0, 0.2 * 10.0 * LR);
    }
}

/// Covers a last block that is not full, and more numbers than are expanded to float32 at a time.
#[test]
fn eight_bit_moments_of_any_length_follow_the_exact_ones() {
    let n = (1 << 20) + 777;
    let form = ParameterInfo { shape: vec![n], layer: LayerKind::Linear, adapter: false, transposed: false };
    let run = |optim: &OptimSection| {
        let rule = rule(optim, Device::Cpu);
        let param = numbers(1, &[n]);
        let state = rule.initial_state(&form, &param);
        for step in 1..=3 {
            let slot = ParameterUpdate {
                form: &form,
                param: param.shallow_clone(),
                grad: numbers(step + 1, &[n]),
                state: &state,
            };
            rule.update(&[slot], StepSize { lr: LR, decay: 0.1, step }, None).unwrap();
        }
        param
    };
    let (rough, exact) = (run(&kind(OptimKind::Adamw8(Default::default()))), run(&OptimSection::default()));
    assert_within("tail", &rough.narrow(0, n - 777, 777), &exact.narrow(0, n - 777, 777), 0.3 * LR);
    assert!(Gap::between(&rough, &exact).norm < 1e-3);
}

fn lora_model() -> Model {
    let plan = ModulePlan::new(&LoraSpec::default()).unwrap();
    adapted(&fixture("tiny-llama"), Kind::Float, &plan)
}

fn learn(model: &Model, optimiser: &mut Optimiser, lr: f64) {
    let row = Row::pack(&[Sequence::random(20, 64, 1)]);
    model.learn(&row, row.items, LayerReplay::None).unwrap();
    let _ = optimiser.clip(1.0).unwrap();
    optimiser.step(lr).unwrap();
    optimiser.zero_gradients();
}

fn values(model: &Model) -> BTreeMap<String, Tensor> {
    model.params().trainable().map(|p| (p.name.clone(), p.tensor.detach().copy())).collect()
}

fn group(pattern: &str, lr: Option<f64>) -> GroupSpec {
    GroupSpec { r#match: pattern.into(), lr, weight_decay: None }
}

/// SGD without momentum moves a parameter by lr times gradient, so the ratio of two runs' updates is the group's
/// factor.
#[test]
fn groups_scale_the_rate_of_what_they_match() {
    let run = |groups: Vec<GroupSpec>| {
        let model = lora_model();
        fill_adapter(&model, 0.05);
        let before = values(&model);
        let sgd = OptimKind::Sgd(SgdSpec { momentum: 0.0, nesterov: false });
        let optim = OptimSection { kind: sgd, lr: Some(0.5), groups, ..OptimSection::default() };
        learn(&model, &mut Optimiser::new(model.params(), &optim, 0).unwrap(), 0.25);
        let moved = |(name, t): (String, Tensor)| (name.clone(), (t - &before[&name]).to_kind(Kind::Double));
        values(&model).into_iter().map(moved).collect::<BTreeMap<_, _>>()
    };
    let (plain, scaled) =
        (run(vec![]), run(vec![group("layers\\.0\\..*lora_B", Some(0.0)), group("lora_B", Some(2.0))]));
    for (name, t) in &plain {
        let factor = match (name.contains("lora_B"), name.contains("layers.0.")) {
            (true, true) => 0.0,
            (true, false) => 4.0,
            _ => 1.0,
        };
        assert!(factor == 0.0 || t.abs().max().double_value(&[]) > 1e-6, "{name} did not move");
        assert_within(name, &scaled[name], &(t * factor), 1e-6);
    }
}

#[test]
fn a_group_that_matches_nothing_names_similar_parameters() {
    let model = lora_model();
    let error = |groups: Vec<GroupSpec>| {
        let optim = OptimSection { lr: Some(1e-3), groups, ..OptimSection::default() };
        Optimiser::new(model.params(), &optim, 0).err().unwrap().to_string()
    };
    let said = error(vec![group("lora_C", Some(1e-3))]);
    assert!(said.contains("optim.groups.0.match: `lora_C` matches none") && said.contains(".lora_A.weight"), "{said}");
    let said = error(vec![group("lora_", Some(1e-3)), group("lora_B", Some(1e-2))]);
    assert!(said.contains("optim.groups.1.match") && said.contains("earlier group"), "{said}");
}

#[test]
fn averages_replace_the_trained_weights_only_while_their_guard_lives() {
    let average = OptimSection { ema: Some(0.5), ..OptimSection::default() };
    for optim in [average, kind(OptimKind::ScheduleFree)] {
        let model = lora_model();
        let mut optimiser = Optimiser::new(model.params(), &optim, 0).unwrap();
        let mut ours: Option<BTreeMap<String, Tensor>> = optim.ema.map(|_| values(&model));
        for t in 1..=4 {
            learn(&model, &mut optimiser, 1e-2);
            let decay = 0.5f64.min((1.0 + f64::from(t)) / (10.0 + f64::from(t)));
            if let Some(ours) = &mut ours {
                let now = values(&model);
                ours.iter_mut().for_each(|(name, a)| *a = &*a * decay + &now[name] * (1.0 - decay));
            }
        }
        let learning = values(&model);
        let averaged = optimiser.use_averages().map(|_guard| values(&model)).unwrap();
        let back = values(&model);
        let name = learning.keys().find(|n| n.contains("lora_B")).unwrap();
        assert!(
            Gap::between(&averaged[name], &learning[name]).norm > 1e-3,
            "the average does not differ from the trained weights"
        );
        for (name, t) in &learning {
            assert_same(name, &back[name], t);
            if let Some(ours) = &ours {
                assert_within(name, &averaged[name], &ours[name], 1e-6);
            }
        }
    }
}

/// At a learning rate of 2e-5, most updates of plain bfloat16 weights are rounded away; with stochastic rounding the
/// weights follow float32 masters.
#[test]
fn stochastic_rounding_keeps_the_updates_that_bfloat16_loses() {
    let folder = fixture("tiny-llama");
    let optim = OptimSection { lr: Some(2e-5), ..OptimSection::default() };
    let (exact, ours, plain) =
        (whole(&folder, Kind::BFloat16), whole(&folder, Kind::BFloat16), whole(&folder, Kind::BFloat16));
    ours.use_bf16_masters();
    plain.use_bf16_masters();
    assert!(ours.params().trainable().all(|p| p.tensor.kind() == Kind::BFloat16));
    let name = "model.layers.1.mlp.down_proj.weight";
    let weight = |m: &Model| m.params().iter().find(|p| p.name == name).unwrap().tensor.detach();
    // Larger weights than those of the tiny model, which are near zero: in trained models, the weights are large
    // compared with an update.
    let start = (noise(&weight(&exact).size(), "start").to_device(device()) * 0.5).to_kind(Kind::BFloat16);
    let _no_grad = tch::no_grad_guard();
    for m in [&exact, &ours, &plain] {
        weight(m).copy_(&start);
    }
    let mut optimisers = [&exact, &ours].map(|m| Optimiser::new(m.params(), &optim, 7).unwrap());
    let mut by_hand =
        [weight(&plain).to_kind(Kind::Float).zeros_like(), weight(&plain).to_kind(Kind::Float).zeros_like()];
    const STEPS: i32 = 50;
    for step in 1..=STEPS {
        // The same gradient in every step, so that lost updates add up.
        let gradient = noise(&start.size(), "gradient").to_device(device());
        for (m, o) in [&exact, &ours].into_iter().zip(&mut optimisers) {
            let mut grad = m.params().iter().find(|p| p.name == name).unwrap().tensor.shallow_clone();
            tch::with_grad(|| (&grad * gradient.to_kind(grad.kind())).sum(Kind::Float).backward());
            let _ = o.clip(0.0).unwrap();
            o.step(2e-5).unwrap();
            grad.zero_grad();
            o.zero_gradients();
        }
        let [m, v] = &mut by_hand;
        *m = &*m * 0.9 + &gradient * 0.1;
        *v = &*v * 0.999 + gradient.square() * 0.001;
        let (m, v) = (&*m / (1.0 - 0.9f64.powi(step)), &*v / (1.0 - 0.999f64.powi(step)));
        let moved = weight(&plain).to_kind(Kind::Float) - m / (v.sqrt() + 1e-8) * 2e-5;
        weight(&plain).copy_(&moved.to_kind(Kind::BFloat16));
    }
    let start = start.to_kind(Kind::Float);
    let travel = |m: &Model| {
        let moved = weight(m).to_kind(Kind::Float) - &start;
        // Along the direction of the exact updates.
        (moved * -noise(&start.size(), "gradient").to_device(device()).sign()).mean(Kind::Double).double_value(&[])
    };
    let (exact, ours, plain) = (travel(&exact), travel(&ours), travel(&plain));
    println!(
        "mean travel in {STEPS} steps: float32 {exact:.3e}, stochastic rounding {ours:.3e}, plain bf16 {plain:.3e}"
    );
    assert!((exact / (2e-5 * f64::from(STEPS)) - 1.0).abs() < 0.02, "{exact}");
    assert!(plain < 0.2 * exact, "plain bfloat16 kept {plain} of {exact}");
    assert!((ours / exact - 1.0).abs() < 0.1, "{ours} of {exact}");
}

#[test]
fn neftune_noise_depends_on_the_seed_and_is_added_only_in_training() {
    alone("train::optimisers::neftune_noise_depends_on_the_seed_and_is_added_only_in_training", || {
        let model = frozen(&fixture("tiny-llama"), Kind::Float);
        let whole = whole(&fixture("tiny-llama"), Kind::Float);
        let rows = Row::pack(&[Sequence::random(20, 64, 1), Sequence::random(5, 64, 2)]);
        let loss = |noise| {
            whole.set_embedding_noise(noise);
            let found = whole.learn(&rows, rows.items, LayerReplay::None).unwrap();
            (found.means()["loss"], take_gradients(&whole))
        };
        let noise = |seed| Some(EmbeddingNoise { alpha: 5.0, seed });
        let (quiet, (one, gradients), (two, _)) = (loss(None).0, loss(noise(1)), loss(noise(2)));
        assert!(quiet != one && one != two, "{quiet}, {one}, {two}");
        let again = loss(noise(1));
        assert_eq!(one, again.0, "the same seed must give the same noise");
        // Replay samples the same noise when it recomputes the forward pass.
        whole.set_embedding_noise(noise(1));
        let replayed = whole.learn(&rows, rows.items, LayerReplay::All).unwrap();
        assert_eq!(replayed.means()["loss"], one);
        assert_all_close(&take_gradients(&whole), &gradients, 1e-5);
        // Inference adds no noise.
        let silent = |m: &Model| m.infer(&rows.tokens, |out| rows.loss(out).sum.double_value(&[])).unwrap();
        assert_eq!(silent(&whole), silent(&model));
        whole.set_embedding_noise(None);
    });
}

/// torch skips a parameter without a gradient: no decay, no momentum, no step counted.
#[test]
fn a_parameter_without_a_gradient_is_not_changed() {
    for kind in [
        OptimKind::Adamw,
        OptimKind::Lion(LionSpec::default()),
        OptimKind::Sgd(SgdSpec { momentum: 0.9, nesterov: false }),
        OptimKind::ScheduleFree,
    ] {
        let optim = OptimSection { kind, lr: Some(1e-2), weight_decay: 0.1, ..OptimSection::default() };
        // Two adapters: `a` is trained in the first and the last step; with `idle_steps`, `b` is trained in a step
        // between them.
        let plans = [ModulePlan::new(&LoraSpec::default()).unwrap(), ModulePlan::new(&LoraSpec::default()).unwrap()];
        let run = |idle_steps: bool| {
            let load = LoadOptions {
                device: device(),
                kind: Kind::Float,
                storage: Storage::Auto,
                train_base: None,
                adapters: vec![
                    ("a".into(), &plans[0] as &dyn AdapterPlan),
                    ("b".into(), &plans[1] as &dyn AdapterPlan),
                ],
                vocabulary: None,
                heads: Heads::Tokens,
            };
            let model = Model::load(&fixture("tiny-llama"), load).unwrap();
            fill_adapter(&model, 0.1);
            let mut optimiser = Optimiser::new(model.params(), &optim, 0).unwrap();
            let mine = |model: &Model| -> Vec<Tensor> {
                model.params().adapter(0).map(|p| p.tensor.detach().copy()).collect()
            };
            model.with_adapter(Some("a"), |m| learn(m, &mut optimiser, 1e-2));
            let before = mine(&model);
            if idle_steps {
                model.with_adapter(Some("b"), |m| learn(m, &mut optimiser, 1e-2));
                before.iter().zip(mine(&model)).for_each(|(a, b)| assert_same("an idle adapter", &b, a));
                // A checkpoint stores how many steps each parameter took part in.
                let state = optimiser.state();
                optimiser = Optimiser::new(model.params(), &optim, 0).unwrap();
                optimiser.restore(&state).unwrap();
            }
            model.with_adapter(Some("a"), |m| learn(m, &mut optimiser, 1e-2));
            mine(&model)
        };
        for (a, b) in run(false).iter().zip(run(true)) {
            // The idle step counts in the schedule of schedule-free; with every other rule it changes nothing.
            if optim.kind != OptimKind::ScheduleFree {
                assert_same("after an idle step", &b, a);
            }
        }
    }
}

/// The step of a layer does not depend on whether its model family stores the weight as (out, in) or (in, out).
#[test]
fn muon_takes_the_same_step_for_a_transposed_weight() {
    let spec = kind(OptimKind::Muon(MuonSpec { momentum: 0.95, nesterov: true, scale: MuonScale::Original }));
    let rule = rule(&spec, Device::Cpu);
    let step = |transposed: bool| {
        let turn = |t: Tensor| if transposed { t.tr().contiguous() } else { t };
        let (param, grad) = (turn(numbers(1, &[40, 12])), turn(numbers(2, &[40, 12])));
        let form = ParameterInfo { shape: param.size(), layer: LayerKind::Linear, adapter: false, transposed };
        let state = rule.initial_state(&form, &param);
        let slot = ParameterUpdate { form: &form, param: param.shallow_clone(), grad, state: &state };
        rule.update(&[slot], StepSize { lr: LR, decay: 0.1, step: 1 }, None).unwrap();
        turn(param)
    };
    assert_within("(in, out)", &step(true), &step(false), 1e-6);
}

/// A GPU runs the update of a step before the host knows that the step is finite. If it is not, nothing changes bit for
/// bit, whatever the rule, and the next step is the one that would have followed.
#[test]
fn a_skipped_step_changes_nothing() {
    // Stochastic rounding draws from the generator of the process.
    alone("train::optimisers::a_skipped_step_changes_nothing", || {
        let whole_adafactor = AdafactorSpec { momentum: Some(0.9), scale_parameter: true, ..AdafactorSpec::default() };
        for kind in [
            OptimKind::Adamw,
            OptimKind::Adamw8(Default::default()),
            OptimKind::Adafactor(AdafactorSpec::default()),
            OptimKind::Adafactor(whole_adafactor),
            OptimKind::Lion(LionSpec::default()),
            OptimKind::Muon(MuonSpec { momentum: 0.95, nesterov: true, scale: MuonScale::MatchRms }),
            OptimKind::ScheduleFree,
            OptimKind::Sgd(SgdSpec { momentum: 0.9, nesterov: true }),
            OptimKind::Sgd(SgdSpec { momentum: 0.0, nesterov: false }),
        ] {
            let ema = (kind != OptimKind::ScheduleFree).then_some(0.9);
            let optim = OptimSection { kind, ema, weight_decay: 0.1, ..OptimSection::default() };
            for rounded in [false, true] {
                let (plain, skipped) = (three_steps(&optim, rounded, false), three_steps(&optim, rounded, true));
                for (name, t) in &plain {
                    assert_same(&format!("{:?}, rounded {rounded}: {name}", optim.kind), &skipped[name], t);
                }
            }
        }
    });
}

/// Takes three steps and returns parameters and state. With `skip`, a further step with an infinite gradient is between
/// the second and the third, and all steps are told by a tensor whether they count. `rounded`: parameters in bfloat16,
/// rounded stochastically.
fn three_steps(optim: &OptimSection, rounded: bool, skip: bool) -> BTreeMap<String, Tensor> {
    let model = whole(&fixture("tiny-llama"), Kind::BFloat16);
    if rounded {
        model.use_bf16_masters();
    }
    let mut optimiser = Optimiser::new(model.params(), optim, 3).unwrap();
    let everything = |optimiser: &Optimiser| -> BTreeMap<String, Tensor> {
        let state = optimiser.state().into_iter().map(|(name, t)| (format!("state of {name}"), t.copy()));
        values(&model).into_iter().chain(state).collect()
    };
    let step = |optimiser: &mut Optimiser, lr: f64, finite: bool| {
        let row = Row::pack(&[Sequence::random(20, 64, 1)]);
        model.learn(&row, row.items, LayerReplay::None).unwrap();
        if !finite {
            let first = model.params().trainable().next().unwrap();
            let _ = first.tensor.grad().fill_(f64::INFINITY);
        }
        let norm = optimiser.clip(1.0).unwrap();
        assert_eq!(norm.double_value(&[]).is_finite(), finite);
        let unless = Tensor::full([], f64::from(u8::from(!finite)), (Kind::Float, device()));
        optimiser.step_unless(lr, skip.then_some(&unless)).unwrap();
        optimiser.zero_gradients();
    };
    for (i, lr) in [3e-3, 2e-3, 4e-3].into_iter().enumerate() {
        if skip && i == 2 {
            let before = everything(&optimiser);
            step(&mut optimiser, 9e-3, false);
            optimiser.uncount_step();
            for (name, t) in everything(&optimiser) {
                assert_same(&format!("{:?}, rounded {rounded}: {name}", optim.kind), &t, &before[&name]);
            }
        }
        step(&mut optimiser, lr, true);
    }
    everything(&optimiser)
}
