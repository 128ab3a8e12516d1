//! Compares distillation with its formulas: divergences, losses between layers, whole objectives. Also tests students
//! that are cut out of a larger model.

use crate::support::workspace::Workspace;
use crate::support::{ClosureBatch, families, fixture, frozen, tensors, whole};
use ft::methods::distill::batch::{DistillBatch, TeacherDistributions, TokenWeights};
use ft::methods::distill::divergence::divergence;
use ft::methods::distill::spec::{self, Divergence, JsdSpec, NoSettings, SkewSpec, StateDistance};
use ft::methods::distill::teacher::TeacherModels;
use ft::methods::distill::{cache, matching};
use ft::methods::sft::SupervisedBatch;
use ft::models::learning::MicroBatch;
use ft::models::{ExposedLayers, LayerReplay, Loss, Metrics, Model, Output};
use ft::nn::{Attention, QueriesAndKeys, Tokens, chunked};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn kinds() -> Vec<(&'static str, Divergence)> {
    vec![
        ("forward_kl", Divergence::ForwardKl(NoSettings {})),
        ("reverse_kl", Divergence::ReverseKl(NoSettings {})),
        ("jsd_0.1", Divergence::Jsd(JsdSpec { beta: 0.1 })),
        ("jsd_0.5", Divergence::Jsd(JsdSpec { beta: 0.5 })),
        ("skewed_kl_0.1", Divergence::SkewedKl(SkewSpec { alpha: 0.1 })),
        ("skewed_reverse_kl_0.1", Divergence::SkewedReverseKl(SkewSpec { alpha: 0.1 })),
        ("total_variation", Divergence::TotalVariation(NoSettings {})),
    ]
}

/// Returns the largest absolute difference divided by the largest absolute value.
fn apart(found: &Tensor, wanted: &Tensor) -> f64 {
    let wanted = wanted.to_kind(Kind::Double);
    ((found.to_kind(Kind::Double) - &wanted).abs().max() / wanted.abs().max()).double_value(&[])
}

#[test]
fn divergences_and_their_gradients_equal_the_formulas() {
    let t = tensors("distill/divergences.safetensors");
    for (name, kind) in kinds() {
        for temperature in ["1.0", "2.0"] {
            let of = |x: &Tensor| (x / temperature.parse::<f64>().unwrap()).log_softmax(-1, Kind::Float);
            let student = t["student"].copy().set_requires_grad(true);
            let value = divergence(&kind, &of(&t["teacher"]), &of(&student));
            value.sum(Kind::Float).backward();
            let (v, g) = (&t[&format!("{name}.{temperature}.value")], &t[&format!("{name}.{temperature}.grad")]);
            assert!(apart(&value.detach(), v) < 1e-6, "{name} at {temperature}");
            assert!(apart(&student.grad(), g) < 2e-6, "{name} at {temperature}: {}", apart(&student.grad(), g));
        }
    }
}

#[test]
fn sorted_probabilities_of_vocabularies_of_two_sizes_are_compared() {
    let t = tensors("distill/divergences.safetensors");
    let student = t["student"].copy().set_requires_grad(true);
    let teacher = t["teacher"].narrow(1, 0, 20).log_softmax(-1, Kind::Float);
    let value = divergence(&Divergence::Universal(NoSettings {}), &teacher, &student.log_softmax(-1, Kind::Float));
    value.sum(Kind::Float).backward();
    assert!(apart(&value.detach(), &t["universal.value"]) < 1e-6);
    assert!(apart(&student.grad(), &t["universal.grad"]) < 2e-6);
}

#[test]
fn layer_losses_and_their_gradients_equal_the_formulas() {
    let t = tensors("distill/layers.safetensors");
    let leaf = |name: &str| t[name].copy().set_requires_grad(true);
    let (ids, at) = (vec![1u32; 14], &t["at"]);
    let rows = |x: &Tensor| x.index_select(0, at);
    for (name, distance) in [("mse", StateDistance::Mse), ("cosine", StateDistance::Cosine)] {
        let (student, projection) = (leaf("hidden.student"), leaf("hidden.projection"));
        let value = matching::hidden_loss(&rows(&student), &rows(&t["hidden.teacher"]), &projection, distance);
        value.backward();
        assert!(apart(&value.detach(), &t[&format!("{name}.value")]) < 1e-6, "{name}");
        for (input, leaf) in [("hidden.student", student), ("hidden.projection", projection)] {
            let wanted = &t[&format!("{name}.grad.{input}")];
            assert!(apart(&leaf.grad(), wanted) < 2e-6, "{name} {input}");
        }
    }
    let answers = SupervisedBatch {
        tokens: Tokens::pack(&[&ids[..9], &ids[9..]], tch::Device::Cpu),
        at: at.shallow_clone(),
        targets: at.shallow_clone(),
        weights: None,
        rows: Vec::try_from(at).unwrap(),
        length: ids.len(),
    };
    let attention = Attention::causal(8f64.powf(-0.5));
    let student = QueriesAndKeys { q: leaf("q.student"), k: leaf("k.student"), attention: attention.clone() };
    let teacher = QueriesAndKeys { q: t["q.teacher"].copy(), k: t["k.teacher"].copy(), attention };
    let heads = leaf("heads");
    let value = matching::attention_loss(&student, &teacher, &heads, &answers);
    value.backward();
    assert!(apart(&value.detach(), &t["attention.value"]) < 1e-6);
    for (input, leaf) in [("q.student", student.q), ("k.student", student.k), ("heads", heads)] {
        let wanted = &t[&format!("attention.grad.{input}")];
        assert!(apart(&leaf.grad(), wanted) < 5e-6, "{input}: {}", apart(&leaf.grad(), wanted));
    }
}

/// Returns the gradients of a loss over the hidden states, queries and keys inside the layers.
fn inside(model: &Model, replay: LayerReplay) -> Vec<(String, Tensor)> {
    let ids: Vec<u32> = (0..40).map(|i| (i * 13 + 5) % 61).collect();
    let tokens = Tokens::pack(&[&ids[..17], &ids[17..]], model.device());
    let loss = |out: &Output| {
        let mut sum = (&out.hidden * 0.1).square().sum(Kind::Float);
        for i in 0..3 {
            sum = &sum + (out.activations.hidden_state(i) * (0.1 + i as f64)).sin().sum(Kind::Float);
        }
        for i in [0, 2] {
            let asked = out.activations.attention(i);
            sum = &sum
                + (&asked.q * 0.7).sin().sum(Kind::Float)
                + (&asked.k * asked.attention.scale).cos().sum(Kind::Float);
        }
        Loss { sum, metrics: Metrics::default() }
    };
    model.learn(&ClosureBatch::new(&tokens, loss), 3.0, replay).unwrap();
    let gradients = model.params().trainable().map(|p| (p.name.clone(), p.tensor.grad().copy())).collect();
    ft::native::drop_gradients(model.params().trainable().map(|p| &p.tensor));
    gradients
}

#[test]
fn activation_replay_keeps_gradients_of_losses_inside_layers() {
    let model = whole(&fixture("tiny-llama"), Kind::Float);
    model.expose(ExposedLayers { states: vec![0, 1, 2], attention: vec![0, 2] });
    let plain = inside(&model, LayerReplay::None);
    assert!(plain.iter().any(|(name, _)| name.ends_with("layers.0.self_attn.k_proj.weight")));
    for replay in [LayerReplay::First(1), LayerReplay::First(2), LayerReplay::All] {
        for ((name, x), (_, y)) in inside(&model, replay).iter().zip(&plain) {
            assert!(apart(x, y) < 1e-6, "{replay:?} `{name}`: {}", apart(x, y));
        }
    }
}

/// Compares a whole distillation objective (temperature, mixture of two teachers, cross-entropy, padded vocabulary)
/// with its formula.
#[test]
fn the_whole_objective_equals_the_formula_over_full_logits() {
    let student = whole(&fixture("tiny-llama"), Kind::Float);
    let _no_grad = tch::no_grad_guard();
    for p in student.params().trainable() {
        p.tensor.shallow_clone().copy_(&(&p.tensor + Tensor::randn_like(&p.tensor) * 0.05));
    }
    let tokenizer = ft::data::chat::ChatTokenizer::load(&fixture("tiny-tokenizer"), None).unwrap();
    let vocabulary = tokenizer.vocab_size() as i64;
    assert!(vocabulary < student.config().vocab_size, "the model's vocabulary is padded");
    let teacher = |weight: f64, dtype: Option<ft::models::Dtype>| spec::TeacherSpec {
        path: fixture("tiny-llama"),
        adapter: None,
        dtype,
        weight,
    };
    let text = r#"{ teachers: [], loss: { jsd: { beta: 0.3 } }, temperature: 2.0 }"#;
    let mut spec: spec::DistillSpec = serde_yaml::from_str(text).unwrap();
    spec.teachers = vec![teacher(1.0, None), teacher(3.0, Some(ft::models::Dtype::Bf16))];
    let teachers = TeacherModels::load(&spec, &tokenizer, student.device(), Kind::Float).unwrap();
    let ids: Vec<u32> = (0..30).map(|i| (i * 17 + 3) % vocabulary as u32).collect();
    let example = ft::data::encode::Example { supervised: (0..30).map(|i| i % 4 != 1).collect(), ids, line: 1 };
    let answers = SupervisedBatch::new(&[&example], student.device());
    let (at, targets) = (answers.at.shallow_clone(), answers.targets.shallow_clone());
    let n = at.size()[0];
    let cross_entropy = Tensor::full([n], 0.25, (Kind::Float, student.device()));
    let lesson = DistillBatch {
        source: std::rc::Rc::new(TeacherDistributions::Online(teachers.outputs(&answers).unwrap())),
        answers,
        weights: std::rc::Rc::new(TokenWeights { divergence: 1.0 - &cross_entropy, cross_entropy }),
        spec: std::rc::Rc::new(spec),
        vocabulary,
        matching: None,
        written: None,
    };
    let found = student.infer(lesson.tokens(), |out| lesson.loss(out)).unwrap();
    let logits = |model: &Model| {
        let logits = model.infer(lesson.tokens(), |out| out.logits(&at)).unwrap();
        logits.narrow(1, 0, vocabulary).to_kind(Kind::Double)
    };
    let said = |kind: Kind| (logits(&frozen(&fixture("tiny-llama"), kind)) / 2.0).softmax(-1, Kind::Double);
    let p = said(Kind::Float) * 0.25 + said(Kind::BFloat16) * 0.75;
    let own = logits(&student);
    let q = (&own / 2.0).softmax(-1, Kind::Double);
    let m = &p * 0.3 + &q * 0.7;
    let kl = |a: &Tensor, b: &Tensor| (a * (a.log() - b.log())).sum(Kind::Double);
    let jsd = kl(&p, &m) * 0.3 + kl(&q, &m) * 0.7;
    let entropy = -own.log_softmax(-1, Kind::Double).gather(-1, &targets.unsqueeze(-1), false).sum(Kind::Double);
    let wanted = jsd * (0.75 * 4.0) + entropy * 0.25;
    assert!(apart(&found.sum, &wanted) < 2e-6, "{} {}", found.sum, wanted);
    let means = found.metrics.means();
    assert!((means["loss"] - wanted.double_value(&[]) / n as f64).abs() < 1e-5, "{means:?}");
}

#[test]
fn the_top_tokens_and_the_remaining_probability_follow_the_formula() {
    let t = tensors("distill/divergences.safetensors");
    let stored = cache::top_tokens(&t["teacher"].log_softmax(-1, Kind::Float), 4);
    let student = t["student"].copy().set_requires_grad(true);
    let own = student.log_softmax(-1, Kind::Float).gather(-1, &stored.ids, false);
    let own = Tensor::cat(&[&own, &cache::log_remainder(&own).unsqueeze(-1)], -1);
    let said = Tensor::cat(&[stored.log_probs, stored.tail.unwrap().unsqueeze(-1)], -1);
    let value = divergence(&Divergence::default(), &said, &own);
    value.sum(Kind::Float).backward();
    assert!(apart(&value.detach(), &t["top4.value"]) < 1e-5);
    assert!(apart(&student.grad(), &t["top4.grad"]) < 1e-5);
}

/// Returns the entropy at every position of a packed row, and its gradients with respect to weights and hidden states.
fn entropies(model: &Model, chunked: bool) -> (Tensor, Vec<(String, Tensor)>) {
    let ids: Vec<u32> = (0..300).map(|i| (i * 13 + 5) % 61).collect();
    let tokens = Tokens::pack(&[&ids[..170], &ids[170..]], model.device());
    let entropy = |logits: &Tensor| {
        let p = logits.log_softmax(-1, Kind::Float);
        -(p.exp() * p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
    };
    let mut kept = None;
    let weight = Tensor::arange(300, (Kind::Float, model.device())) / 300.0;
    let loss = |out: &Output| {
        let (sum, values) = match chunked {
            true => {
                let weight = weight.shallow_clone();
                let numbers = move |logits: &Tensor, (start, n): chunked::RowRange| {
                    let values = entropy(logits);
                    [&values * weight.narrow(0, start, n), values]
                };
                let chunked::ChunkedSum { total, rows: [_, values] } =
                    chunked::sum_over_logits(out.head(), &out.hidden, numbers);
                (total, values)
            }
            false => {
                let values = entropy(&out.logits(&Tensor::arange(300, (Kind::Int64, model.device()))));
                ((&values * &weight).sum(Kind::Float), values)
            }
        };
        kept = Some(values.detach());
        Loss { sum, metrics: Metrics::default() }
    };
    model.learn(&ClosureBatch::new(&tokens, loss), 1.0, LayerReplay::None).unwrap();
    let gradients = model.params().trainable().map(|p| (p.name.clone(), p.tensor.grad().copy())).collect();
    ft::native::drop_gradients(model.params().trainable().map(|p| &p.tensor));
    (kept.unwrap(), gradients)
}

#[test]
fn chunked_losses_equal_those_of_whole_logits() {
    for folder in ["tiny-llama", "wide-head-llama"] {
        let trained = whole(&fixture(folder), Kind::Float);
        let ((a, ga), (b, gb)) = (entropies(&trained, true), entropies(&trained, false));
        assert!(apart(&a, &b) < 1e-6, "{folder}");
        for ((name, x), (_, y)) in ga.iter().zip(&gb) {
            assert!(apart(x, y) < 2e-5, "{folder} `{name}`: {}", apart(x, y));
        }
        let adapted = {
            let spec = ft::adapters::LoraSpec { rank: 4, ..Default::default() };
            let plan = ft::adapters::ModulePlan::new(&spec).unwrap();
            let model = crate::support::adapted(&fixture(folder), Kind::Float, &plan);
            crate::support::fill_adapter(&model, 0.05);
            model
        };
        let ((a, ga), (b, gb)) = (entropies(&adapted, true), entropies(&adapted, false));
        assert!(apart(&a, &b) < 1e-6, "{folder}, frozen head");
        for ((name, x), (_, y)) in ga.iter().zip(&gb) {
            assert!(apart(x, y) < 2e-5, "{folder} `{name}`, frozen head: {}", apart(x, y));
        }
    }
}

#[test]
fn students_have_the_requested_layers_and_width() {
    let space = Workspace::new();
    let from = "models/smollm2-135m-instruct";
    let made = space.ft(&[
        "student",
        "--from",
        from,
        "--layers",
        "1",
        "--choose",
        "angular",
        "--mlp",
        "40",
        "--heads",
        "2",
        "--data",
        "datasets/icd10/train.jsonl",
        "--out",
        "student",
        "--json",
    ]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&made["kept_layers"].as_array().unwrap().len(), &made["mlp"]), (&1, &40.into()), "{made}");
    let student = frozen(&space.path("student"), Kind::Float);
    let (old, new) = (frozen(&space.path(from), Kind::Float), student.config());
    assert_eq!((new.intermediate_size, new.num_attention_heads, new.head_dim), (40, 2, old.config().head_dim));
    // A kept MLP neuron is one row of gate and up and one column of down. All three must come from the same old neuron.
    let get = |m: &Model, name: &str| m.params().base().find(|p| p.name == name).unwrap().tensor.shallow_clone();
    let kept = made["kept_layers"][0].as_u64().unwrap();
    let (gate, down) = ("mlp.gate_proj.weight", "mlp.down_proj.weight");
    let (g, d) = (get(&student, &format!("model.layers.0.{gate}")), get(&student, &format!("model.layers.0.{down}")));
    let (og, od) =
        (get(&old, &format!("model.layers.{kept}.{gate}")), get(&old, &format!("model.layers.{kept}.{down}")));
    for i in 0..40 {
        let row = g.get(i);
        let same = (0..og.size()[0]).find(|&j| og.get(j).equal(&row)).expect("a row of the old gate");
        assert!(d.select(1, i).equal(&od.select(1, same)), "neuron {i}");
    }
    for (arguments, said) in [
        (vec!["--layers", "9"], "the model has"),
        (vec!["--layers", "1,0"], "each once, in order"),
        (vec!["--layers", "7,9"], "the model has layers 0 to"),
        (vec!["--mlp", "40"], "needs calibration texts"),
        (vec!["--heads", "3", "--data", "datasets/icd10/train.jsonl"], "multiple of"),
        (vec![], "nothing to remove"),
    ] {
        let arguments = [vec!["student", "--from", from, "--out", "other"], arguments].concat();
        assert!(space.refused(&arguments).contains(said), "{arguments:?}");
        assert!(!space.path("other").exists());
    }
    // Only a model is replaced, and only if asked for; a recipe's student replaces nothing.
    let cut = ["student", "--from", from, "--layers", "1", "--out"];
    assert!(space.refused(&[&cut[..], &["student"]].concat()).contains("exists and is not empty"));
    space.ft(&[&cut[..], &["student", "--force"]].concat());
    assert!(space.refused(&[&cut[..], &["datasets", "--force"]].concat()).contains("has no config.json"));
    let cut = ["--set", "model.path=datasets", "--set", &format!("model.cut={{from: {from}, layers: 1}}")];
    let said = space.refused(&[&["train", "recipes/full-medical.yaml"], &cut[..]].concat());
    assert!(said.contains("exists and is not empty"), "{said}");
    assert!(space.path("datasets/icd10/train.jsonl").exists());
}

/// Families whose layers have other names, join matrices, or have norms of all heads.
#[test]
fn students_of_other_families_are_cut_whole() {
    let space = Workspace::new();
    let narrower = &["--mlp", "40", "--heads", "2", "--data", "datasets/icd10/train.jsonl"];
    for (family, more, arguments) in [
        ("mpt", json!({}), &["--layers", "2"][..]),
        ("phi3", json!({}), narrower),
        ("olmo2", json!({}), narrower),
        ("olmo3", json!({}), narrower),
        ("cohere", json!({"use_qk_norm": true}), narrower),
    ] {
        families::write(family, more, Kind::Float, &space.path(family));
        let out = format!("student-{family}");
        space.ft(&[&["student", "--from", family, "--out", &out], arguments].concat());
        let student = frozen(&space.path(&out), Kind::Float);
        let config = student.config();
        match arguments[0] {
            "--layers" => assert_eq!(student.depth(), 2, "{family}"),
            _ => assert_eq!((config.intermediate_size, config.num_attention_heads), (40, 2), "{family}"),
        }
    }
    let angular = ["student", "--from", "mpt", "--layers", "0,1", "--choose", "angular", "--out", "x"];
    assert!(space.refused(&angular).contains("names the layers"));
}

#[test]
fn a_gpt2_student_has_fewer_layers() {
    let space = Workspace::new();
    let model = fixture("tiny-gpt2");
    let from = model.to_str().unwrap();
    space.ft(&["student", "--from", from, "--layers", "1", "--out", "student"]);
    assert_eq!(frozen(&space.path("student"), Kind::Float).depth(), 1);
    let more = ["student", "--from", from, "--mlp", "8", "--out", "s", "--data", "datasets/icd10/train.jsonl"];
    space.refused(&more);
}
