//! Tests new tokens (`model.new_tokens`) through the real binary: runs over bases with and without room in their tables, with tied
//! and separate heads; their results opened again; and refusals.

use crate::support::command::stdout;
use crate::support::resumed::{broken_off, train};
use crate::support::workspace::Workspace;
use crate::support::{assert_close, assert_same, device, tensors};
use ft::data::chat::ChatTokenizer;
use ft::models::{self, Model};
use ft::nn::{Tokens, weights};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const LORA: &str = "recipes/lora-medical.yaml";
const MODEL: &str = "models/smollm2-135m-instruct";
/// The tokenizer's size, which is also the size of the small tables below.
const TOKENS: i64 = 400;
const NEW: &str = "model.new_tokens={special: ['<|tool|>'], text: [doctor]}";

/// Makes a base out of the tiny model whose table has `rows` rows, with a head of its own unless `tied`.
fn base(space: &Workspace, name: &str, rows: i64, tied: bool) {
    let folder = space.path(name);
    crate::support::files::copy_folder(&space.path(MODEL), &folder);
    let mut all = tensors(folder.join("model.safetensors"));
    let embedding = all["model.embed_tokens.weight"].narrow(0, 0, rows).contiguous();
    if !tied {
        all.insert("lm_head.weight".into(), embedding.flip([1]).contiguous());
    }
    all.insert("model.embed_tokens.weight".into(), embedding);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    weights::save(&folder.join("model.safetensors"), all.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    let mut config = space.json(&format!("{name}/config.json"));
    (config["vocab_size"], config["tie_word_embeddings"]) = (json!(rows), json!(tied));
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();
}

fn logits(model: &Model, ids: &[u32]) -> Tensor {
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&Tokens::pack(&[ids], device()), |out| out.logits(&rows)).unwrap()
}

/// Runs a recipe over a base for three steps.
fn run(space: &Workspace, recipe: &str, model: &str, out: &str, sets: &[&str]) {
    let (model, out) = (format!("model.path={model}"), format!("run.out={out}"));
    let mut all = vec!["train", recipe];
    let common = [model.as_str(), &out, "run.steps=3", "run.samples=0", "run.eval_every=0", "optim.lr=0.01", NEW];
    all.extend(common.iter().chain(sets).flat_map(|set| ["--set", set]));
    space.ft(&all);
}

/// Asserts that adapter and merged model have the new tokens and compute the same.
fn assert_usable(space: &Workspace, base: &str, adapter: &str, rows: i64) {
    let merged = format!("{adapter}-merged");
    space.ft(&["merge", base, adapter, "--out", &merged]);
    assert_eq!(space.json(&format!("{merged}/config.json"))["vocab_size"], rows);
    let (folder, merged_folder) = (space.path(adapter), space.path(&merged));
    let (of_adapter, of_merged) = (
        ChatTokenizer::load_for(&space.path(base), Some(&folder), &Default::default()).unwrap(),
        ChatTokenizer::load(&merged_folder, None).unwrap(),
    );
    let ids = of_merged.encode("The <|tool|> of a doctor").unwrap();
    assert_eq!(ids, of_adapter.encode("The <|tool|> of a doctor").unwrap());
    assert!(ids.contains(&400) && ids.contains(&401), "{ids:?}");
    assert!(of_merged.is_special(400) && !of_merged.is_special(401));
    let (adapted, whole) = (
        models::open(&space.path(base), std::slice::from_ref(&folder), device(), Kind::Float).unwrap(),
        models::open(&merged_folder, &[], device(), Kind::Float).unwrap(),
    );
    let found = logits(&adapted, &ids);
    assert_eq!(found.size()[1], rows);
    assert_close(adapter, &found, &logits(&whole, &ids), 1e-5);
    // The same text by the commands, as a chat with the special token in the prompt.
    let answer = |arguments: &[&str]| {
        let more = ["--prompt", "a <|tool|> b", "--max-new-tokens", "8", "--dtype", "f32"];
        stdout(&space.ft(&[&["generate"], arguments, &more].concat()))
    };
    assert_eq!(answer(&["--model", base, "--adapter", adapter]), answer(&["--model", &merged]));
}

#[test]
fn new_tokens_beside_a_lora_are_published_and_merged() {
    let space = Workspace::new();
    for (name, rows, tied, after) in [
        ("room", 512, true, 512),
        ("grows", TOKENS, true, 402),
        ("room-untied", 412, false, 412),
        ("grows-untied", TOKENS, false, 402),
    ] {
        base(&space, name, rows, tied);
        let out = format!("runs/{name}");
        run(&space, LORA, name, &out, &[]);
        let tensors = tensors(space.path(&format!("{out}/adapter_model.safetensors")));
        let saved: Vec<&String> = tensors.keys().filter(|n| n.ends_with("trainable_tokens_delta")).collect();
        assert_eq!(saved.len(), if tied { 1 } else { 2 }, "{saved:?}");
        assert!(saved.iter().all(|n| tensors[*n].size()[0] == 2), "{saved:?}");
        let config = space.json(&format!("{out}/adapter_config.json"));
        let ids = &config["trainable_token_indices"];
        let expected =
            if tied { json!([400, 401]) } else { json!({ "embed_tokens": [400, 401], "lm_head": [400, 401] }) };
        assert_eq!(*ids, expected);
        assert_usable(&space, name, &out, after);
        // The same tokens are found by reopened runs.
        let plan = space.json(&format!("{out}/plan.json"));
        assert_eq!(plan["recipe"]["model"]["new_tokens"]["text"], json!(["doctor"]));
    }
    let check = stdout(&space.ft(&["check", LORA, "--set", "model.path=grows", "--set", NEW]));
    let expected = "2 new tokens (`<|tool|>`, `doctor`), ids 400 to 401: the embedding grows from 400 to 402 rows";
    assert!(check.contains(expected), "{check}");
    let check = stdout(&space.ft(&["check", LORA, "--set", "model.path=room", "--set", NEW]));
    assert!(check.contains("the embedding's 512 rows have room"), "{check}");
}

#[test]
fn every_other_way_to_train_them_works() {
    let space = Workspace::new();
    base(&space, "grows", TOKENS, true);
    base(&space, "untied", TOKENS, false);
    let ways: [(&str, &str, &[&str], i64); 6] = [
        ("grows", "saved", &["adapter.lora.modules_to_save=[embed_tokens]", "adapter.lora.tie=true"], 402),
        ("untied", "both-saved", &["adapter.lora.modules_to_save=[embed_tokens, lm_head]"], 402),
        ("grows", "adapted", &["adapter.lora.targets=[q_proj, embed_tokens]", "adapter.lora.tie=true"], 402),
        ("untied", "half", &["adapter.lora.targets=[q_proj, embed_tokens]"], 402),
        ("grows", "tokens", &["adapter={trainable_tokens: {}}"], 402),
        (
            "untied",
            "padded",
            &["adapter={trainable_tokens: {tokens: ['<|im_end|>', 7]}}", "model.new_tokens.multiple_of=16"],
            416,
        ),
    ];
    for (model, name, sets, rows) in ways {
        let out = format!("runs/{name}");
        run(&space, LORA, model, &out, sets);
        assert_usable(&space, model, &out, rows);
    }
    // The whole model: nothing is left of the old size, and the tokenizer is complete.
    for (model, out) in [("grows", "runs/full"), ("untied", "runs/full-untied")] {
        run(&space, "recipes/full-medical.yaml", model, out, &["optim.lr=1e-3"]);
        assert_eq!(space.json(&format!("{out}/config.json"))["vocab_size"], 402);
        let tokenizer = ChatTokenizer::load(&space.path(out), None).unwrap();
        assert_eq!(tokenizer.encode("<|tool|>doctor").unwrap(), [400, 401]);
        assert_eq!(
            tensors(space.path(&format!("{out}/model.safetensors")))["model.embed_tokens.weight"].size()[0],
            402
        );
    }
    // An adapter that would not train the rows is refused before the run.
    let refused =
        space.refused(&["train", LORA, "--set", "model.path=grows", "--set", "adapter={ia3: {}}", "--set", NEW]);
    assert!(refused.contains("IA3 would not train the rows of new tokens"), "{refused}");
    let half = ["--set", "adapter.lora.targets=[embed_tokens]"];
    let refused = space.refused(&[&["train", LORA, "--set", "model.path=grows", "--set", NEW][..], &half].concat());
    assert!(refused.contains("trains only half"), "{refused}");
}

/// A reward model has no output head, whose rows would be trained.
#[test]
fn reward_models_and_preferences_learn_new_tokens() {
    let space = Workspace::new();
    base(&space, "untied", TOKENS, false);
    run(&space, "recipes/reward-helpful.yaml", "untied", "runs/reward", &["adapter.lora.targets=[q_proj]"]);
    let saved = tensors(space.path("runs/reward/adapter_model.safetensors"));
    assert!(saved.keys().all(|name| !name.contains("lm_head")), "{:?}", saved.keys());
    let input = ["--input", "datasets/helpful/valid.jsonl", "--out", "scores.jsonl"];
    space.ft(&[&["score", "--model", "untied", "--adapter", "runs/reward"], &input[..]].concat());
    // The reference has the first values of the rows: the divergence of the first step is 0, so the loss is log 2.
    for (sets, out) in [(&["adapter.lora.targets=[q_proj]"][..], "runs/dpo"), (&["adapter="], "runs/dpo-full")] {
        run(&space, "recipes/dpo-medical.yaml", "untied", out, sets);
        let first = space.steps(out).into_iter().find(|line| line["step"] == 1).unwrap();
        assert!((first["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{out}: {first}");
    }
}

#[test]
fn a_teacher_must_know_the_new_tokens() {
    let space = Workspace::new();
    let refused = space.refused(&[
        "train",
        LORA,
        "--set",
        &format!("method={{distill: {{teachers: [{{path: {MODEL}}}]}}}}"),
        "--set",
        NEW,
    ]);
    assert!(refused.contains("id 400 is nothing there and \"<|tool|>\" here"), "{refused}");
}

/// With a rate of 0 the result has the first values.
#[test]
fn rows_start_as_the_mean_of_their_pieces_or_of_all_rows() {
    let space = Workspace::new();
    base(&space, "untied", TOKENS, false);
    let base = tensors(space.path("untied/model.safetensors"));
    let tokenizer = ChatTokenizer::load(&space.path("untied"), None).unwrap();
    for (init, out) in [("pieces", "runs/pieces"), ("mean", "runs/mean")] {
        let init = format!("model.new_tokens.init={init}");
        run(&space, LORA, "untied", out, &["optim.lr=0", &init]);
        let found = tensors(space.path(&format!("{out}/adapter_model.safetensors")));
        for (module, of_base) in [("model.embed_tokens", "model.embed_tokens.weight"), ("lm_head", "lm_head.weight")] {
            let rows = &found[&format!("base_model.model.{module}.token_adapter.trainable_tokens_delta")];
            for (i, text) in ["<|tool|>", "doctor"].iter().enumerate() {
                let pieces: Vec<i64> = tokenizer.encode_after(text).unwrap().iter().map(|id| i64::from(*id)).collect();
                assert!(pieces.len() > 1, "{pieces:?}");
                let table = base[of_base].to_kind(Kind::Double);
                let some = if out == "runs/mean" { table } else { table.index_select(0, &Tensor::from_slice(&pieces)) };
                let mean = some.mean_dim([0i64].as_slice(), false, Kind::Double).to_kind(base[of_base].kind());
                assert_same(&format!("{out} {module} {text}"), &rows.get(i as i64), &mean.to_kind(Kind::Float));
            }
        }
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bits_and_refuses_other_tokens() {
    let space = Workspace::new();
    base(&space, "grows", TOKENS, true);
    let lines = "doctor\npatient\n";
    std::fs::write(space.path("tokens.txt"), lines).unwrap();
    let tokens = "model.new_tokens={special: ['<|tool|>'], file: tokens.txt, multiple_of: 8}";
    for (recipe, name) in [(LORA, "lora"), ("recipes/full-medical.yaml", "full")] {
        let (straight, broken) = (format!("{name}-straight"), format!("{name}-broken"));
        train(&space, recipe, &straight, &["model.path=grows", tokens]);
        broken_off(&space, &straight, &broken, 5);
        // The plan has the tokens: the file is no longer needed.
        std::fs::remove_file(space.path("tokens.txt")).unwrap();
        space.ft(&["resume", &broken]);
        crate::support::resumed::assert_same_end(&space, &straight, &broken, name);
        std::fs::write(space.path("tokens.txt"), lines).unwrap();
    }
    broken_off(&space, "lora-straight", "changed", 5);
    std::fs::write(space.path("tokens.txt"), "doctor\nnurse\n").unwrap();
    let mut arguments =
        vec!["train", LORA, "--resume", "--set", "run.out=changed", "--set", "model.path=grows", "--set", tokens];
    arguments.extend(crate::support::resumed::STEPS.iter().flat_map(|set| ["--set", set]));
    let refused = space.refused(&arguments);
    assert!(refused.contains("model.new_tokens.text: was [\"doctor\",\"patient\"]"), "{refused}");
}

#[test]
fn training_continues_from_an_adapter_with_new_tokens() {
    let space = Workspace::new();
    base(&space, "grows", TOKENS, true);
    run(&space, LORA, "grows", "runs/first", &[]);
    let more =
        ["--set", "model.path=grows", "--set", "run.out=runs/second", "--set", "run.steps=2", "--set", "run.samples=0"];
    let rows = ["--set", "adapter.lora.token_rows=['<|tool|>', doctor]", "--set", "adapter.lora.from=runs/first"];
    space.ft(&[&["train", LORA], &more[..], &rows].concat());
    assert_usable(&space, "grows", "runs/second", 402);
    let refused = space.refused(&[&["train", LORA, "--set", NEW], &more[..], &rows].concat());
    assert!(refused.contains("keeps the vocabulary that it was trained with"), "{refused}");
}

#[test]
fn tokens_that_cannot_be_added_are_refused_and_known_ones_left_out() {
    let space = Workspace::new();
    let refused = |new: &str| space.refused(&["train", LORA, "--set", &format!("model.new_tokens={new}")]);
    for (new, reason) in [
        ("{text: ['']}", "is empty"),
        ("{text: ['  ']}", "model.new_tokens.text[0]: an empty token"),
        (
            "{special: ['<|a|>', '<|b|> ']}",
            "model.new_tokens.special[1]: the token \"<|b|> \" begins or ends with a space",
        ),
        ("{special: ['<|a|>'], text: ['<|a|>']}", "model.new_tokens.text[0]: the token `<|a|>` is listed twice"),
        ("{file: nowhere.txt}", "nowhere.txt"),
        ("{init: mean}", "names no token"),
    ] {
        let error = refused(new);
        assert!(error.contains(reason), "{new}: {error}");
    }
    std::fs::write(space.path("tokens.txt"), "one\n\ntwo words\none\n").unwrap();
    let error = refused("{file: tokens.txt}");
    assert!(error.contains("tokens.txt:4: the token `one` is listed twice"), "{error}");
    let rows = space.refused(&["train", LORA, "--set", "adapter.lora.token_rows=['<|nothing|>']"]);
    assert!(rows.contains("adapter.lora.token_rows: the tokenizer has no token `<|nothing|>`"), "{rows}");
    let known = space.ft(&["check", LORA, "--set", "model.new_tokens={special: ['<|im_end|>']}"]);
    let text = String::from_utf8_lossy(&known.stderr);
    assert!(text.contains("`<|im_end|>` is a token already and not added"), "{text}");
}

#[test]
fn an_adapter_whose_tokenizer_does_not_fit_the_base_is_refused() {
    let space = Workspace::new();
    run(&space, LORA, MODEL, "runs/adapter", &[]);
    let file = space.path("runs/adapter/tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut content: Value = serde_json::from_str(&text).unwrap();
    let vocabulary = content["model"]["vocab"].as_object_mut().unwrap();
    let names: Vec<String> =
        [250, 251].iter().map(|id| vocabulary.iter().find(|(_, v)| **v == json!(id)).unwrap().0.clone()).collect();
    (vocabulary[&names[0]], vocabulary[&names[1]]) = (json!(251), json!(250));
    std::fs::write(&file, content.to_string()).unwrap();
    for command in [["generate", "--prompt", "a"], ["eval", "--data", "datasets/icd10/test.jsonl"]] {
        let arguments = [&command[..], &["--model", MODEL, "--adapter", "runs/adapter"]].concat();
        let error = space.refused(&arguments);
        assert!(error.contains("its tokenizer does not belong to the base: id 250"), "{error}");
    }
}
