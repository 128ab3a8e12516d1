//! Tests distillation with the real binary: teacher caches, answers by teachers and students, resumed runs, refused
//! settings.

use crate::support::resumed::resumed_equals_straight;
use crate::support::workspace::Workspace;
use serde_json::Value;
use std::process::Stdio;

const RECIPE: &str = "recipes/distill.yaml";

/// Creates a workspace with a teacher, a student cut out of it, and a recipe; `more` is added to the `distill` section.
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
fn a_full_cache_gives_the_losses_of_the_online_teacher() {
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
    // A cache of only the most likely tokens gives nearly the same losses.
    space.ft(&["teach", RECIPE, "--top", "32", "--out", "few"]);
    space.ft(&["train", RECIPE, "--set", "run.out=few-out", "--set", "method.distill.cache=few"]);
    let few = losses(&space, "few-out");
    assert!(few.last() < few.first() && (few[0] - online[0]).abs() < 0.5 * online[0], "{few:?} {online:?}");
}

#[test]
fn a_cache_of_other_settings_or_models_is_refused() {
    let space = school("");
    let teach = ["teach", RECIPE, "--out", "teaching", "--top", "8"];
    assert!(
        space.refused(&["train", RECIPE, "--set", "method.distill.cache=nowhere"]).contains("no teacher distributions")
    );
    assert!(space.refused(&["teach", RECIPE, "--out", "t", "--top", "100000"]).contains("the tokenizer has"));
    assert!(!space.path("t").exists());
    space.ft(&teach);
    // The same call again reuses the cache; another temperature, other rows or another mask are refused.
    let again = space.ft(&teach);
    assert!(String::from_utf8_lossy(&again.stderr).contains("2 parts were already stored"));
    let with = |set: &str| space.refused(&["train", RECIPE, "--set", "method.distill.cache=teaching", "--set", set]);
    assert!(with("method.distill.temperature=2").contains("temperature: was 1, is 2"));
    assert!(with("method.distill.supervise=all").contains("made from other train rows"));
    assert!(with("data.train.path=datasets/icd10/test.jsonl").contains("made from other train rows"));
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}";
    std::fs::write(space.path("other.jinja"), template).unwrap();
    assert!(with("data.template=other.jinja").contains("tokenizer and template: was "));
    // A teacher whose weights have changed since.
    let teacher = space.path("models/smollm2-135m-instruct/model.safetensors");
    let bytes = std::fs::read(&teacher).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&teacher, other).unwrap();
    assert!(with("run.seed=9").contains("teachers: was "));
    std::fs::write(&teacher, bytes).unwrap();
    std::fs::remove_file(space.path("teaching/valid-00000.safetensors")).unwrap();
    assert!(with("run.seed=8").contains("is not finished"));
    space.ft(&teach);
    space.ft(&["train", RECIPE, "--set", "method.distill.cache=teaching"]);
    // A teacher with another tokenizer than the student.
    let file = space.path("models/smollm2-135m-instruct/tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"<|im_start|>\"", "\"<|begin|>\"", 1)).unwrap();
    let said = space.refused(&["train", RECIPE, "--set", "run.out=other"]);
    assert!(said.contains("another tokenizer than the student's") && said.contains("--generate"), "{said}");
}

#[test]
fn contradictory_settings_are_refused() {
    let space = school("");
    let with = |set: &str| {
        let set = format!("method.distill.{set}");
        space.refused(&["check", RECIPE, "--set", &set, "--set", "run.out=none"])
    };
    let cached = |set: &str| {
        let set = format!("method.distill.{set}");
        space.refused(&["check", RECIPE, "--set", &set, "--set", "method.distill.cache=teaching"])
    };
    let two = "[{path: models/medical}, {path: models/medical}]";
    assert!(cached("on_policy={}").contains("a cache has no distributions for what the student writes"));
    assert!(cached("match={hidden: {}}").contains("a cache contains distributions, not layers"));
    assert!(cached("loss={universal: {}}").contains("over the student's own tokens"));
    assert!(with("match={}").contains("matches nothing"));
    assert!(with("cross_entropy={from: 0.5, epochs: 1}").contains("`to` is not given"));
    assert!(with("generate={answers: 4}").contains("needs `rewards`"));
    assert!(with("generate={rewards: [{}]}").contains("has no kind of reward"));
    assert!(with("on_policy={share: 1.5}").contains("from 0 to 1"));
    let several = ["check", RECIPE, "--set", "method.distill.match={hidden: {}}", "--set"];
    let two = format!("method.distill.teachers={two}");
    assert!(space.refused(&[&several[..], &[&two]].concat()).contains("takes one teacher, found 2"));
    // Layer numbers out of range are detected once the models are read.
    let said = space.refused(&["train", RECIPE, "--set", "method.distill.match={hidden: {layers: [[0, 3]]}}"]);
    assert!(said.contains("[0, 3]: the teacher has layers 0 to 2"), "{said}");
    let said = space.refused(&["train", RECIPE, "--set", "method.distill.match={attention: {layers: [[1, 0]]}}"]);
    assert!(said.contains("[1, 0]: the student has layers 0 to 0"), "{said}");
    let text =
        ["train", RECIPE, "--set", "data.train.path=datasets/text.jsonl", "--set", "method.distill.on_policy={}"];
    assert!(space.refused(&text).contains("no row has a prompt"));
}

#[test]
fn a_student_larger_than_its_teacher_gives_a_warning_and_memory_includes_the_teacher() {
    let space = school("");
    let swapped = ["--set", "model.path=models/medical", "--set", "method.distill.teachers=[{path: models/student}]"];
    let steps = ["train", RECIPE, "--set", "run.steps=1", "--set", "run.out=large"];
    let said = space.ft(&[&steps[..], &swapped].concat()).stderr;
    assert!(String::from_utf8_lossy(&said).contains("the largest teacher"));
    let needs = |more: &[&str]| {
        let found = space.ft(&[&["check", RECIPE, "--json"], more].concat()).stdout;
        serde_json::from_slice::<Value>(&found).unwrap()["needs"]["weights"].as_u64().unwrap()
    };
    let teacher = ft::models::weights(
        &space.path("models/medical"),
        &ft::models::Config::read(&space.path("models/medical")).unwrap(),
    )
    .unwrap();
    let numbers: i64 = teacher.names().map(|n| teacher.shape(n).unwrap().iter().product::<i64>()).sum();
    let cached = needs(&["--set", "method.distill.cache=teaching"]);
    assert_eq!(needs(&[]) - cached, 4 * numbers as u64);
    let narrow = "method.distill.teachers=[{path: models/medical, dtype: bf16}, {path: models/medical}]";
    assert_eq!(needs(&["--set", narrow]) - cached, 6 * numbers as u64);
}

const PATH: &str = "recipes/distill-medical.yaml";
const CUT: &str = "model.cut.layers=2";
/// Rows for three steps an epoch, as in the other tests that interrupt a run.
const ROWS: &str = "data.train=[{path: datasets/icd10/train.jsonl}]";
const ALL: &str = "run.steps=";

#[test]
fn on_policy_runs_with_matched_layers_resume_bit_for_bit() {
    let sets = [
        CUT,
        ROWS,
        ALL,
        "method.distill.on_policy={share: 0.5, max_new_tokens: 12}",
        "method.distill.match={hidden: {}, attention: {weight: 0.5}}",
        "method.distill.cross_entropy={from: 0.4, to: 0.1, epochs: 2}",
        "run.replay={layers: 1}",
    ];
    let space = Workspace::new();
    resumed_equals_straight(&space, PATH, &sets);
    let steps = space.steps("straight");
    let first = &steps[1];
    for name in ["match_hidden", "match_attention", "on_policy", "divergence", "teacher_agreement"] {
        assert!(first[name].as_f64().is_some_and(|x| x > 0.0), "{name}: {first}");
    }
    // Projections between the layers' widths are trained together with the student but are not part of the saved model.
    let tensors = |file: &str| ft::nn::Weights::open_file(&space.path(file)).unwrap();
    let (begun, done) = (
        tensors("straight/checkpoints/step-1/method.safetensors"),
        tensors("straight/checkpoints/step-9/method.safetensors"),
    );
    assert!(!begun.get("match.hidden.0-1").unwrap().equal(&done.get("match.hidden.0-1").unwrap()));
    assert!(tensors("straight/model.safetensors").names().all(|name| !name.starts_with("match.")));
}

#[test]
fn online_and_cached_runs_resume_bit_for_bit() {
    let space = Workspace::new();
    resumed_equals_straight(&space, PATH, &[CUT, ROWS, ALL]);
    space.ft(&["teach", PATH, "--set", CUT, "--set", ROWS, "--top", "16", "--out", "teaching"]);
    resumed_equals_straight(&space, PATH, &[CUT, ROWS, ALL, "method.distill.cache=teaching"]);
}

#[test]
fn a_teacher_with_another_tokenizer_is_compared_by_sorted_probabilities() {
    let space = school(", loss: { universal: {} }");
    let folder = space.path("models/smollm2-135m-instruct");
    let text = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    // Without its merges the tokenizer splits the same text into more tokens.
    tokenizer["model"]["merges"] = serde_json::json!([]);
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    space.ft(&["train", RECIPE, "--set", "batch.tokens=2048", "--set", "batch.max_len=2048"]);
    let losses = losses(&space, "out");
    assert!(losses.last() < losses.first(), "{losses:?}");
    assert!(space.steps("out")[1].get("teacher_agreement").is_none());
}

/// Vowels are stop texts because a random model rarely generates an end token.
const GENERATE: &str = "method.distill.generate={answers: 3, max_new_tokens: 24, temperature: 1.5, \
                        stop: [a, e, i, o, u], rewards: [{length: {max: 5, falloff: 5}}], least: 0.5}";

#[test]
fn teacher_answers_become_a_data_set_and_an_interrupted_call_continues() {
    let space = school("");
    let write = |out: &str| {
        let made = space.ft(&["teach", RECIPE, "--generate", "--out", out, "--set", GENERATE, "--json"]).stdout;
        serde_json::from_slice::<Value>(&made).unwrap()
    };
    let lines = |file: &str| {
        let text = std::fs::read_to_string(space.path(file)).unwrap();
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect::<Vec<_>>()
    };
    let made = write("answers.jsonl");
    let rows = lines("answers.jsonl");
    assert_eq!((made["prompts"].as_u64(), made["kept"].as_u64()), (Some(24), Some(rows.len() as u64)));
    assert!(!rows.is_empty() && rows.iter().all(|r| r["reward"].as_f64().unwrap() >= 0.5), "{rows:?}");
    assert!(rows[0]["source"].as_str().unwrap().contains("train.jsonl"), "{}", rows[0]);
    let origin = space.json("answers.origin.json");
    assert!(origin["teacher_sha256"].is_string() && origin["kept"] == made["kept"], "{origin}");
    // An interrupted call leaves the answers of the first prompts and an incomplete last line.
    let mut partial = serde_json::json!({ "ft answers": origin.clone() });
    for key in ["kept", "ft"] {
        partial["ft answers"].as_object_mut().unwrap().remove(key);
    }
    let first: usize = rows[0]["source"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let begun = format!("{partial}\n{}{}\n{{\"half", "null\n".repeat(first - 1), rows[0]);
    std::fs::write(space.path("again.jsonl.partial"), begun).unwrap();
    let said = space.ft(&["teach", RECIPE, "--generate", "--out", "again.jsonl", "--set", GENERATE]).stderr;
    assert!(
        String::from_utf8_lossy(&said).contains(&format!("{first} of 24 prompts are answered already; continuing"))
    );
    assert_eq!(lines("again.jsonl"), rows);
    // The file can be trained on like any other.
    let learn = ["--set", "data.train.path=answers.jsonl", "--set", "method={sft: {}}", "--set", "run.steps=1"];
    space.ft(&[&["train", RECIPE][..], &learn].concat());
    // No answer reaches the required reward.
    let never = GENERATE.replace("least: 0.5", "least: 2");
    let said = space.refused(&["teach", RECIPE, "--generate", "--out", "none.jsonl", "--set", &never]);
    assert!(said.contains("none of the answers to 24 prompts can be used"), "{said}");
}

/// A killed process leaves complete parts only, and the same command continues after them.
#[test]
fn a_killed_teach_command_continues() {
    let space = school("");
    let rows = std::fs::read_to_string("datasets/chat.jsonl").unwrap();
    let mut many = String::new();
    for round in 0..20 {
        rows.lines().for_each(|l| {
            many += &format!("{}\n", l.replacen("\"content\": \"", &format!("\"content\": \"{round} "), 1))
        });
    }
    std::fs::write(space.path("datasets/icd10/train.jsonl"), many).unwrap();
    let teach = |out: &str| ["teach", RECIPE, "--top", "8", "--out", out].map(String::from);
    let arguments = teach("killed");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = space.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
    let part = space.path("killed/train-00001.safetensors");
    let began = std::time::Instant::now();
    while !part.exists() && began.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let said = space.ft(&arguments).stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("parts were already stored") && !said.contains("; 0 parts"), "{said}");
    let whole = teach("whole");
    space.ft(&whole.iter().map(String::as_str).collect::<Vec<_>>());
    for entry in std::fs::read_dir(space.path("whole")).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |folder: &str| std::fs::read(space.path(folder).join(&name)).unwrap();
        assert!(read("killed") == read("whole"), "{name:?}");
    }
}
