//! Distillation: divergences against their formulas, distributions from a cache against those made beside the student.

use crate::commands::Workspace;
use crate::support::{fixture, frozen, tensors, whole};
use ft::methods::distill::cache;
use ft::methods::distill::divergence::divergence;
use ft::methods::distill::spec::{Divergence, Jsd, Plain, Skew};
use ft::models::{Loss, Metrics, Model, Output, Replay};
use ft::nn::{Tokens, chunked};
use serde_json::Value;
use tch::{Kind, Tensor};

fn kinds() -> Vec<(&'static str, Divergence)> {
    vec![
        ("forward_kl", Divergence::ForwardKl(Plain {})),
        ("reverse_kl", Divergence::ReverseKl(Plain {})),
        ("jsd_0.1", Divergence::Jsd(Jsd { beta: 0.1 })),
        ("jsd_0.5", Divergence::Jsd(Jsd { beta: 0.5 })),
        ("skewed_kl_0.1", Divergence::SkewedKl(Skew { alpha: 0.1 })),
        ("skewed_reverse_kl_0.1", Divergence::SkewedReverseKl(Skew { alpha: 0.1 })),
        ("total_variation", Divergence::TotalVariation(Plain {})),
    ]
}

/// The largest difference, of the largest number.
fn apart(found: &Tensor, wanted: &Tensor) -> f64 {
    let wanted = wanted.to_kind(Kind::Double);
    ((found.to_kind(Kind::Double) - &wanted).abs().max() / wanted.abs().max()).double_value(&[])
}

#[test]
fn divergences_and_their_gradients_are_those_of_the_formulas() {
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
fn the_most_likely_tokens_and_the_rest_make_the_formula_too() {
    let t = tensors("distill/divergences.safetensors");
    let stored = cache::top(&t["teacher"].log_softmax(-1, Kind::Float), 4);
    let student = t["student"].copy().set_requires_grad(true);
    let own = student.log_softmax(-1, Kind::Float).gather(-1, &stored.ids, false);
    let own = Tensor::cat(&[&own, &cache::rest(&own).unsqueeze(-1)], -1);
    let said = Tensor::cat(&[stored.log_probs, stored.tail.unwrap().unsqueeze(-1)], -1);
    let value = divergence(&Divergence::default(), &said, &own);
    value.sum(Kind::Float).backward();
    assert!(apart(&value.detach(), &t["top4.value"]) < 1e-5);
    assert!(apart(&student.grad(), &t["top4.grad"]) < 1e-5);
}

/// Entropy of every row of a packed row's logits, and its gradient in the weights and by the hidden states.
fn entropies(model: &Model, chunked: bool) -> (Tensor, Vec<(String, Tensor)>) {
    let ids: Vec<u32> = (0..300).map(|i| (i * 13 + 5) % 61).collect();
    let tokens = Tokens::pack(&[&ids[..170], &ids[170..]], model.device());
    let entropy = |logits: &Tensor| {
        let p = logits.log_softmax(-1, Kind::Float);
        -(p.exp() * p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
    };
    let mut kept = None;
    let loss = |out: &Output| {
        let values = match chunked {
            true => chunked::map(out.head(), &out.hidden, move |logits, _| entropy(logits)),
            false => entropy(&out.logits(&Tensor::arange(300, (Kind::Int64, model.device())))),
        };
        kept = Some(values.detach());
        let weight = Tensor::arange(300, (Kind::Float, model.device())) / 300.0;
        Loss { sum: (values * weight).sum(Kind::Float), metrics: Metrics::default() }
    };
    model.learn(&tokens, 1.0, Replay::None, loss).unwrap();
    let gradients = model.params().trainable().map(|p| (p.name.clone(), p.tensor.grad().copy())).collect();
    ft::native::drop_gradients(model.params().trainable().map(|p| &p.tensor));
    (kept.unwrap(), gradients)
}

#[test]
fn numbers_made_in_chunks_are_those_of_whole_logits() {
    for folder in ["tiny-llama", "wide-head-llama"] {
        let trained = whole(&fixture(folder), Kind::Float);
        let ((a, ga), (b, gb)) = (entropies(&trained, true), entropies(&trained, false));
        assert!(apart(&a, &b) < 1e-6, "{folder}");
        for ((name, x), (_, y)) in ga.iter().zip(&gb) {
            assert!(apart(x, y) < 2e-5, "{folder} `{name}`: {}", apart(x, y));
        }
        let adapted = {
            let spec = ft::adapters::LoraSpec { rank: 4, ..Default::default() };
            let plan = ft::adapters::LoraPlan::new(&spec).unwrap();
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

const RECIPE: &str = "recipes/distill.yaml";

/// A workspace with a teacher, a student cut out of it, and a recipe.
fn school(more: &str) -> Workspace {
    let space = Workspace::new();
    let cut = ["student", "--from", "models/smollm2-135m-instruct", "--layers", "1", "--out", "models/student"];
    space.ft(&cut);
    let recipe = format!(
        "model: {{ path: models/student, dtype: f32 }}\n\
         method: {{ distill: {{ teachers: [{{ path: models/smollm2-135m-instruct }}]{more} }} }}\n\
         data: {{ train: {{ path: datasets/icd10/train.jsonl }}, valid: {{ path: datasets/icd10/valid.jsonl }} }}\n\
         batch: {{ tokens: 1024, max_len: 512, examples: 8 }}\n\
         optim: {{ lr: 1e-3 }}\n\
         run: {{ epochs: 2, eval_every: 3, save_every: 2, samples: 0, threads: 1, out: out }}\n"
    );
    std::fs::write(space.path(RECIPE), recipe).unwrap();
    space
}

fn losses(space: &Workspace, out: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(space.path(out).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines.filter_map(|l| l["loss"].as_f64().or(l["eval_loss"].as_f64())).collect()
}

#[test]
fn a_whole_cache_teaches_what_the_teacher_does() {
    let space = school("");
    space.ft(&["train", RECIPE, "--set", "run.out=online"]);
    let online = losses(&space, "online");
    assert!(online.last() < online.first(), "{online:?}");
    let tokenizer = ft::data::ChatTokenizer::load(&space.path("models/student"), None).unwrap();
    let all = tokenizer.vocab_size().to_string();
    space.ft(&["teach", RECIPE, "--top", &all, "--out", "teaching"]);
    space.ft(&["train", RECIPE, "--set", "run.out=cached", "--set", "method.distill.cache=teaching"]);
    for (a, b) in online.iter().zip(losses(&space, "cached")) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} online, {b} cached");
    }
    // The most likely tokens alone teach nearly the same.
    space.ft(&["teach", RECIPE, "--top", "32", "--out", "few"]);
    space.ft(&["train", RECIPE, "--set", "run.out=few-out", "--set", "method.distill.cache=few"]);
    let few = losses(&space, "few-out");
    assert!(few.last() < few.first() && (few[0] - online[0]).abs() < 0.5 * online[0], "{few:?} {online:?}");
}

fn refused(space: &Workspace, arguments: &[&str]) -> String {
    let output = space.command(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn what_does_not_fit_is_refused() {
    let space = school("");
    let teach = ["teach", RECIPE, "--out", "teaching", "--top", "8"];
    assert!(
        refused(&space, &["train", RECIPE, "--set", "method.distill.cache=nowhere"])
            .contains("no teacher distributions")
    );
    assert!(refused(&space, &["teach", RECIPE, "--out", "t", "--top", "100000"]).contains("the tokenizer has"));
    space.ft(&teach);
    // Twice changes nothing; another temperature, other rows, another mask are something else.
    let again = space.ft(&teach);
    assert!(String::from_utf8_lossy(&again.stderr).contains("2 parts were there already"));
    let with = |set: &str| refused(&space, &["train", RECIPE, "--set", "method.distill.cache=teaching", "--set", set]);
    assert!(with("method.distill.temperature=2").contains("temperature: was 1, is 2"));
    assert!(with("method.distill.supervise=all").contains("made of other train rows"));
    assert!(with("data.train.path=datasets/icd10/test.jsonl").contains("made of other train rows"));
    std::fs::remove_file(space.path("teaching/valid-00000.safetensors")).unwrap();
    assert!(with("run.seed=8").contains("is not finished"));
    space.ft(&teach);
    space.ft(&["train", RECIPE, "--set", "method.distill.cache=teaching"]);
    // Another tokenizer.
    let file = space.path("models/smollm2-135m-instruct/tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"<|im_start|>\"", "\"<|begin|>\"", 1)).unwrap();
    let said = refused(&space, &["train", RECIPE, "--set", "run.out=other"]);
    assert!(said.contains("another tokenizer") || said.contains("tokenizer"), "{said}");
}

#[test]
fn students_are_cut_as_asked() {
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
    // Neurons stay in pairs of rows and columns: what the three products give is a part of what they gave.
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
        (vec!["--mlp", "40"], "needs texts"),
        (vec!["--heads", "3", "--data", "datasets/icd10/train.jsonl"], "multiple of"),
        (vec![], "nothing is to be cut"),
    ] {
        let arguments = [vec!["student", "--from", from, "--out", "other"], arguments].concat();
        assert!(refused(&space, &arguments).contains(said), "{arguments:?}");
        assert!(!space.path("other").exists());
    }
}

#[test]
fn gpt2_loses_layers() {
    let space = Workspace::new();
    let model = fixture("tiny-gpt2");
    let from = model.to_str().unwrap();
    space.ft(&["student", "--from", from, "--layers", "1", "--out", "student"]);
    assert_eq!(frozen(&space.path("student"), Kind::Float).depth(), 1);
    let more = ["student", "--from", from, "--mlp", "8", "--out", "s", "--data", "datasets/icd10/train.jsonl"];
    refused(&space, &more);
}
