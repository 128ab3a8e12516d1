//! Tests recipes: the report of all mistakes at once, `--set`, the plan, the reference documentation, and `ft recipe`.

use crate::support::command::ft_here;
use crate::support::snapshot::assert_snapshot;
use ft::adapters::AdapterSpec;
use ft::methods::MethodSpec;
use ft::recipe;
use ft::recipe::plan::Plan;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

const GOOD: &str = "\
model: { path: base }
method: { sft: {} }
adapter: { lora: {} }
data: { train: { path: a.jsonl }, valid: { path: b.jsonl } }
run: { out: adapters/x }
";

fn plan(text: &str, sets: &[&str]) -> Plan {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    recipe::plan::parse("x.yaml", text, &sets).unwrap_or_else(|e| panic!("{e}"))
}

/// Returns the report of a wrong recipe as the terminal shows it.
fn report(text: &str, sets: &[&str]) -> String {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    format!("error: {}\n", recipe::plan::parse("x.yaml", text, &sets).expect_err("the recipe is wrong"))
}

/// Returns the report of `GOOD` with one of its lines replaced by `line` (the one with the same key).
fn first(line: &str) -> String {
    let key = line.split(':').next().unwrap();
    let kept = GOOD.lines().filter(|l| !l.starts_with(&format!("{key}:")));
    let text: String = kept.chain([line]).map(|l| format!("{l}\n")).collect();
    report(&text, &[])
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    assert!(files.len() >= 3, "recipes/ holds {files:?}");
    files
}

fn stdout(args: &[&str]) -> String {
    let out = ft_here(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn many_mistakes_make_one_report_with_every_position() {
    let text = "\
# many mistakes
model: { path: base, dtype: bfloat16 }
method:
  sft:   { supervise: answer }
adapter:
  lora:  { rnk: 16, alpha: \"32\", dropout: 1.5 }
data:
  train: { path: a.jsonl, rows: ten }
batch:   { accumulate: 2, examples: 8, accumulate: 4 }
learning_rate: 1e-4
run:     { eval_every: 50, shuffle: true }
";
    let wanted = r#"error: x.yaml:2:29: unknown choice `bfloat16` for `model.dtype`
  2 | model: { path: base, dtype: bfloat16 }
    |                             ^^^^^^^^
hint: did you mean `bf16`? (choices: auto, bf16, f16, f32)
error: x.yaml:4:23: unknown choice `answer` for `method.sft.supervise`
  4 |   sft:   { supervise: answer }
    |                       ^^^^^^
hint: choices: assistant, last, all
error: x.yaml:6:12: unknown key `rnk`
  6 |   lora:  { rnk: 16, alpha: "32", dropout: 1.5 }
    |            ^^^
hint: did you mean `rank`?
error: x.yaml:6:28: `adapter.lora.alpha`: expected a number (at least 0), found the text `32`
  6 |   lora:  { rnk: 16, alpha: "32", dropout: 1.5 }
    |                            ^^^^
hint: remove the quotes: `32`
error: x.yaml:6:43: `adapter.lora.dropout` must be from 0 to 0.99, found 1.5
  6 |   lora:  { rnk: 16, alpha: "32", dropout: 1.5 }
    |                                           ^^^
hint: adapter.lora.dropout: Dropout on the input of A, while training.
error: x.yaml:8:33: `data.train.rows`: expected an integer (at least 1), found the text `ten`
  8 |   train: { path: a.jsonl, rows: ten }
    |                                 ^^^
hint: data.train.rows: Use only this many rows, from the beginning.
error: x.yaml:9:12: `batch.accumulate` and `batch.examples` both say how long a step is
  9 | batch:   { accumulate: 2, examples: 8, accumulate: 4 }
    |            ^^^^^^^^^^
hint: keep `examples` (examples a step) or `accumulate` (packed rows a step)
error: x.yaml:9:40: `accumulate` is given twice
  9 | batch:   { accumulate: 2, examples: 8, accumulate: 4 }
    |                                        ^^^^^^^^^^
hint: the first is on line 9; keep one
error: x.yaml:10:1: unknown key `learning_rate`
  10 | learning_rate: 1e-4
     | ^^^^^^^^^^^^^
hint: `learning_rate` is `optim.lr` here
error: x.yaml:11:1: `run.out` is missing
  11 | run:     { eval_every: 50, shuffle: true }
     | ^^^
hint: The folder for the result, its checkpoints and its metrics.
error: x.yaml:11:12: `run.eval_every` has no effect: there are no validation rows to measure
  11 | run:     { eval_every: 50, shuffle: true }
     |            ^^^^^^^^^^
hint: give `data.valid: { path: FILE }`, or remove it
error: x.yaml:11:28: unknown key `shuffle`
  11 | run:     { eval_every: 50, shuffle: true }
     |                            ^^^^^^^
hint: `shuffle` belongs under `data`
"#;
    assert_eq!(report(text, &[]), wanted);
}

#[test]
fn each_mistake_says_what_to_write() {
    let cases = [
        ("method: sft", "`method`: expected a map with one key", "write `method: { sft: {} }`"),
        ("method: { stf: {} }", "unknown choice `stf` for `method`", "did you mean `sft`?"),
        ("method: { lora: {} }", "unknown choice `lora` for `method`", "`lora` belongs under `adapter`"),
        ("method: {}", "`method` names no choice", "choices: sft"),
        ("method: { sft: }", "`method.sft` is empty", "write `sft: {}`"),
        ("method: !sft {}", "the YAML tag `!sft`", "a choice is a key"),
        ("method: dpo", "expected a map with one key", "write `method: { dpo: {} }`"),
        ("method: { dpo: { bta: 0.1 } }", "unknown key `bta`", "did you mean `beta`?"),
        ("method: { dpo: { beta: 0 } }", "`method.dpo.beta` must be from 0.000001 to 100, found 0", ""),
        ("method: { dpo: { loss: exo_pair } }", "unknown choice `exo_pair`", "`exo`"),
        ("method: { dpo: { label_smoothing: 0.5 } }", "must be from 0 to 0.499, found 0.5", ""),
        ("method: { dpo: { loss: ipo, label_smoothing: 0.1 } }", "has no effect: `loss: ipo`", "remove it"),
        ("method: { dpo: { loss: exo, label_smoothing: 0 } }", "must be above 0 with `loss: exo`", "0.001"),
        ("method: { dpo: { precompute_ref_log_probs: true } }", "unknown key", "`method.dpo.reference`"),
        ("method: { kto: { beta: -1 } }", "`method.kto.beta` must be from", ""),
        ("adapter: lora", "expected a map with one key", "write `adapter: { lora: {} }`"),
        ("adapter: none", "unknown choice `none`", "leave `adapter` out"),
        ("adapter: { rank: 8 }", "unknown choice `rank`", "`rank` belongs under `adapter.lora`"),
        ("adapter: { lora: { targets: [1] } }", "expected text, found `1`", ""),
        ("adapter: { lora: { targets: 'q_(proj' } }", "is not a regular expression", ""),
        ("adapter: { lora: { rank_pattern: { q_proj: 0 } } }", "must be at least 1, found 0", ""),
        ("adapter: { lora: { rank: 8.0 } }", "expected an integer (from 1 to 65536), found `8.0`", "write `8`"),
        ("adapter: { lora: { rslora: yes } }", "expected true or false, found the text `yes`", "write `true`"),
        ("optim: { lr:2e-4 }", "unknown key `lr:2e-4`", "put a space after the colon: `lr: 2e-4`"),
        ("optim: lr:2e-4", "`optim`: expected a section", "put a space after the colon: `lr: 2e-4`"),
        ("optim: { lr: 2e4 }", "`optim.lr` must be from 0 to 1, found 2e4", ""),
        ("optim: { lr: .nan }", "expected a number", "a finite number is needed"),
        ("optim: { warmup: 5% }", "expected a number", "write `0.05`"),
        ("optim: { betas: 0.9, 0.95 }", "expected a list of 2", "write `betas: [0.9]`"),
        ("optim: { betas: [0.9] }", "takes 2 values, found 1", ""),
        ("optim: { betas: [0.9, 1.0] }", "must be at least 0 and below 1, found 1", ""),
        ("optim: { decay: 0.5 }", "`optim.decay` has no effect", "schedule: wsd"),
        ("optim: { schedule: constant, floor: 0.1 }", "`optim.floor` has no effect", ""),
        ("optim: { schedule: wsd, warmup: 0.5, decay: 0.6 }", "more than the whole run", ""),
        ("optim: { warmup: 2.5 }", "neither a share nor a number of steps", ""),
        ("optim: { kind: lion }", "expected a map with one key", "write `kind: { lion: {} }`"),
        ("optim: { kind: { adamw: {} } }", "`optim.kind.adamw` takes no settings", "write `kind: adamw`"),
        (
            "optim: { kind: { lion: {} }, betas: [0.8, 0.9] }",
            "`optim.betas` has no effect",
            "lion has betas of its own",
        ),
        ("optim: { kind: { lion: { betas: [0.9, 1] } } }", "`optim.kind.lion.betas` must be at least 0", ""),
        ("optim: { kind: { sgd: {} } }", "`optim.lr` is missing: `kind: sgd` has no usual rate", ""),
        ("optim: { kind: { adamw8: { block: 300 } } }", "must be a power of two, found 300", "256 or 2048"),
        ("optim: { kind: schedule_free, schedule: linear }", "a schedule contradicts it", "remove `schedule`"),
        ("optim: { kind: schedule_free, ema: 0.9 }", "both average the weights", ""),
        ("optim: { ema: 0 }", "`optim.ema` 0 averages nothing", ""),
        ("optim: { groups: [{ match: lora_B }] }", "`optim.groups.0` has no effect", ""),
        ("optim: { groups: [{ match: 'lora_(', lr: 1e-3 }] }", "is not a regular expression", ""),
        ("optim: { groups: [{ lr: 1e-3 }] }", "`optim.groups.0.match` is missing", ""),
        ("optim: { groups: [{ match: a, learning_rate: 1e-3 }] }", "unknown key `learning_rate`", ""),
        ("optim: { groups: { match: a } }", "expected a list", ""),
        ("optim: { lr: 0, groups: [{ match: a, lr: 1e-3 }] }", "is scaled from `optim.lr`, which is 0", ""),
        ("optim: { master: stochastic_rounding }\nadapter: { lora: {} }", "adapters are small and stay float32", ""),
        ("adapter: { lora: { dora: true, bias: true } }", "`adapter.lora.bias` and `dora` exclude each other", ""),
        (
            "adapter: { lora: { init: pissa, from: a } }",
            "`adapter.lora.init: pissa` contradicts `from`",
            "twice as large",
        ),
        ("adapter: { lora: { init: eva, from: a } }", "`adapter.lora.init: eva` contradicts `from`", ""),
        ("adapter: { lora: { init: olora, alpha: 0 } }", "divides by the scale, which is 0", ""),
        ("adapter: { lora: { init: orthogonal, rank: 3 } }", "needs an even `rank`", ""),
        (
            "adapter: { lora: { freeze_a: true, b_lr_ratio: 4 } }",
            "`adapter.lora.b_lr_ratio` has no effect",
            "`optim.lr`",
        ),
        ("adapter: { lora: { b_lr_ratio: 0 } }", "B would never learn", ""),
        ("adapter: { lora: { use_dora: true } }", "unknown key `use_dora`", "is `adapter.lora.dora` here"),
        ("optim: { optimizer: lion }", "unknown key `optimizer`", "is `optim.kind` here"),
        ("optim: adamw", "`optim`: expected a section, found the text `adamw`", ""),
        ("batch: { tokens: 1_024 }", "expected an integer (at least 1), found the text `1_024`", "write `1024`"),
        ("batch: { max_len: 8192 }", "does not fit into a row of `batch.tokens` 4096", ""),
        ("batch: { tokens: 99999999999999999999 }", "is too large", ""),
        ("batch: { per-device-train-batch-size: 4 }", "unknown key", "is `batch.examples` here"),
        ("batch: { <<: *a }", "not YAML", ""),
        ("data: { train: a.jsonl }", "`data.train`: expected a section", "write `train: { path: a.jsonl }`"),
        ("data: [ { train: x } ]", "expected a section, found a list", "remove the dashes"),
        ("data: { train: { path: a }, on_overflow: drop, overflow_tolerance: 0.5 }", "has no effect", ""),
        ("run: { out: x, epochs: 0 }", "`run.epochs` 0 trains nothing", ""),
        ("run: { out: x, patience: 3 }", "`run.patience` has no effect", "set `eval_every`"),
        ("run: { out: base }", "`run.out` is the folder of the base model", ""),
        ("run: { out: x, packing: true }", "unknown key `packing`", "remove `packing`: rows are always packed"),
        ("run: { out: x, threads: 0 }", "must be at least 1, found 0", ""),
        ("run: { out: 7 }", "expected a path, found `7`", "put it in quotes: `out: \"7\"`"),
        ("run: { out: '' }", "`run.out` is empty", ""),
        ("run: { [a]: b, out: x }", "a list or map as a key", ""),
        ("optim.lr: 1e-4", "unknown key `optim.lr`", "write `lr` under `optim`"),
        ("method: { grpo: { rewards: [] } }", "`method.grpo.rewards` is empty", "write one"),
        ("method: { grpo: { rewards: [{ weight: 2 }] } }", "has no kind of reward", "give one of exact"),
        ("method: { grpo: { rewards: [{ exact: {}, length: { max: 1 } }] } }", "of several kinds: exact, length", ""),
        ("method: { grpo: { rewards: [{ exakt: {} }] } }", "unknown key `exakt`", "did you mean `exact`?"),
        ("method: { rloo: { rewards: [{ exact: {} }] } }\nbatch: { examples: 4 }", "samples its own answers", ""),
        ("method: { rloo: { rewards: [{ exact: {} }] } }\noptim: { neftune: 5 }", "noise on the embeddings", ""),
        ("method: { grpo: { rewards: [{ exact: {} }], sampling: { top_p: 0.9 } } }", "unknown key `top_p`", ""),
        (
            "method: { grpo: { rewards: [{ exact: {} }], sampling: { max_new_tokens: 1024 } } }",
            "leave no room for a prompt in `batch.max_len` 1024",
            "",
        ),
        ("model: { path: base, device: gpu }", "`model.device` cannot be `gpu`", "`cuda:N`"),
    ];
    let mut recorded = String::new();
    for (line, message, hint) in cases {
        let shown = first(line);
        recorded += &format!("{line}\n\n{shown}\n--------\n");
        assert!(shown.contains(message), "{line}: {shown}");
        assert!(
            shown.contains(&format!("hint: {hint}")) || shown.contains(hint) && !hint.is_empty(),
            "{line}: {shown}"
        );
        assert!(shown.contains("x.yaml:"), "{line}: {shown}");
    }
    assert_snapshot("recipe-mistakes", &recorded);
}

#[test]
fn a_misspelt_key_is_one_mistake() {
    let shown = report(&GOOD.replace("model:", "mdoel:"), &[]);
    assert_eq!(shown.matches("error:").count(), 1, "{shown}");
    // The contents of a misspelt section are still checked.
    let shown = report(&GOOD.replace("model: { path", "mdoel: { pth"), &[]);
    assert_eq!(shown.matches("error:").count(), 2, "{shown}");
    let shown = report(&GOOD.replace("model: { path: base }", "model_name_or_path: base"), &[]);
    assert_eq!(shown.matches("error:").count(), 1, "{shown}");
}

#[test]
fn files_that_are_no_recipe_say_so() {
    let mut recorded = String::new();
    for (text, message) in [
        ("", "the recipe is empty"),
        ("# nothing\n", "the recipe is empty"),
        ("- a\n- b\n", "a recipe is a map of sections, found a list"),
        ("hello\n", "a recipe is a map of sections, found the text `hello`"),
        ("model:\n\tpath: x\n", "a tab in the indentation"),
        ("model:\n  path: x\n\tdtype: bf16\n", "a tab in the indentation"),
        ("model: { path: x\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "a second YAML document"),
    ] {
        let shown = report(text, &[]);
        assert!(shown.contains(message), "{text:?}: {shown}");
        assert!(shown.contains("x.yaml:") && shown.contains("hint: "), "{text:?}: {shown}");
        recorded += &format!("{text:?}\n\n{shown}\n--------\n");
    }
    assert_snapshot("recipe-no-recipe", &recorded);
}

#[test]
fn load_refuses_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.yaml");
    let error = |path: &Path| recipe::plan::load(path, &[]).unwrap_err().to_string();
    std::fs::write(&file, b"model: \xff\xfe").unwrap();
    assert!(error(&file).contains("not UTF-8 (first bad byte at offset 7)"), "{}", error(&file));
    std::fs::write(&file, vec![b' '; 2 << 20]).unwrap();
    assert!(error(&file).contains("larger than 1 MiB"));
    assert!(error(&folder.path().join("none.yaml")).contains("none.yaml"));
    assert!(error(folder.path()).contains("reading"));
    // A byte-order mark and Windows line ends are no mistake, and do not shift positions.
    std::fs::write(&file, format!("\u{feff}{}", GOOD.replace('\n', "\r\n"))).unwrap();
    assert!(recipe::plan::load(&file, &[]).is_ok());
    std::fs::write(&file, format!("\u{feff}{}", GOOD.replace("model", "mdoel").replace('\n', "\r\n"))).unwrap();
    assert!(error(&file).contains(":1:1: unknown key `mdoel`\n  1 | mdoel: { path: base }\n    | ^^^^^\n"));
}

#[test]
fn a_damaged_recipe_never_panics() {
    let text = std::fs::read_to_string(&shipped()[0]).unwrap();
    let chars: Vec<char> = text.chars().collect();
    let puts = ["", "\t", "\n", "{", "]", "'", ":", "&a ", "*a", "é", "\u{0}", "- "];
    for at in 0..chars.len() {
        for put in puts.iter().cycle().skip(at).step_by(5).take(3) {
            let damaged: String =
                chars[..at].iter().collect::<String>() + put + &chars[at + 1..].iter().collect::<String>();
            if let Err(e) = recipe::plan::parse("x.yaml", &damaged, &[]) {
                assert!(e.exit_code() == 1 && !e.message().is_empty());
            }
        }
    }
}

#[test]
fn numbers_are_read_as_people_write_them() {
    for (written, value) in [("1e-4", 1e-4), ("2E-4", 2e-4), (".5", 0.5), ("0.001", 0.001), ("1", 1.0), ("+1e-3", 1e-3)]
    {
        assert_eq!(plan(&format!("{GOOD}optim: {{ lr: {written} }}\n"), &[]).lr(), value, "{written}");
    }
}

#[test]
fn defaults_that_depend_on_other_keys_are_filled_in() {
    let plus = plan(GOOD, &["adapter.lora.b_lr_ratio=16"]);
    let groups: Vec<(String, Option<f64>)> = plus.optim().groups.into_iter().map(|g| (g.r#match, g.lr)).collect();
    assert_eq!(groups, [(r"\.lora_B\.".to_string(), Some(16.0 * 2e-4))]);
    assert!(plus.recipe.optim.groups.is_empty());
    let lora = plan(GOOD, &[]);
    assert_eq!((lora.lr(), lora.recipe.batch.accumulate, lora.recipe.batch.examples), (2e-4, Some(1), None));
    let full = plan(GOOD, &["adapter=", "batch.examples=8"]);
    assert_eq!((full.lr(), full.recipe.batch.accumulate, full.recipe.batch.examples), (2e-5, None, Some(8)));
    for (set, lora, full) in [("method={dpo: {}}", 1e-5, 1e-6), ("method={simpo: {}}", 1e-5, 1e-6)] {
        for (expected, rate) in [(lora, plan(GOOD, &[set]).lr()), (full, plan(GOOD, &[set, "adapter="]).lr())] {
            assert!((rate / expected - 1.0).abs() < 1e-12, "{set}: {rate}");
        }
    }
    let here = std::env::current_dir().unwrap();
    let r = &lora.recipe;
    let valid = &r.data.valid.as_ref().unwrap().0[0].path;
    for (path, name) in
        [(&r.model.path, "base"), (&r.data.train.0[0].path, "a.jsonl"), (valid, "b.jsonl"), (&r.run.out, "adapters/x")]
    {
        assert_eq!(path, &here.join(name));
    }
}

#[test]
fn every_key_for_a_path_is_marked_as_a_path() {
    // The plan makes only the paths of marked keys absolute. Keys that should be marked are recognised by their name.
    let text = GOOD.replace("data: {", "data: { template: t.jinja,");
    let value = serde_json::to_value(plan(&text, &[]).recipe).unwrap();
    assert!(Path::new(value["data"]["template"].as_str().unwrap()).is_absolute());
    for key in recipe::schema::keys().iter().filter(|k| matches!(k.name(), "path" | "out" | "template")) {
        assert_eq!(key.kind, "path", "{}", key.path);
    }
}

#[test]
fn values_of_set_are_checked_like_the_recipe() {
    let p = plan(GOOD, &["optim.lr=1e-4", "method.sft.supervise=last", "optim.betas=[0.8, 0.9]", "optim.lr=3e-4"]);
    assert_eq!((p.lr(), p.recipe.optim.betas), (3e-4, [0.8, 0.9]));
    assert_eq!(serde_json::to_value(&p.recipe).unwrap()["method"]["sft"]["supervise"], "last");
    assert_eq!(p.sets.len(), 4);
    assert_eq!(p.text, GOOD);
    // `--set` may complete an incomplete recipe, and replace a choice or an invalid value.
    let p = plan("method: gone\n", &["model.path=m", "method.sft={}", "data={train: {path: t}}", "run.out=o"]);
    assert!(p.recipe.adapter.is_none());
    assert_eq!(plan(&format!("{GOOD}optim: {{ lr: no }}\n"), &["optim.lr="]).lr(), 2e-4);
    assert_eq!(
        report(GOOD, &["optim.lr=fast", "run.epoch=2", "optim.betas.1=0.9", "lr", "model.dtype=fp32"]),
        "error: --set optim.lr=fast: `optim.lr`: expected a number (from 0 to 1), found the text `fast`\n\
         hint: optim.lr: Peak learning rate. Left out: 2e-4 for LoRA, more for adapters with fewer parameters (docs/adapters.md, docs/virtual-tokens.md), 2e-5 for full fine-tuning, 6e-4 from random weights; a twentieth of that for preference methods (1e-5 and 1e-6), 3e-5 and 3e-6 for `ppo`; a fifth of that for `lion`. `sgd` has no default.\n\
         error: --set run.epoch=2: unknown key `epoch`\n\
         hint: did you mean `epochs`?\n\
         error: --set optim.betas.1=0.9: `optim.betas` is a list\n\
         hint: set the whole list, such as --set optim.betas=[A,B]\n\
         error: --set lr: expected KEY=VALUE\n\
         hint: such as --set optim.lr=1e-4\n\
         error: --set model.dtype=fp32: unknown choice `fp32` for `model.dtype`\n\
         hint: did you mean `f32`? (choices: auto, bf16, f16, f32)\n"
    );
    let mut recorded = String::new();
    for set in ["lrn=", "run.epoch=", "=1", "a..b=2", "optim.lr=[", "optim.lr=!x 1", "model.path.x=1", "optim.lr.x=1"] {
        assert!(report(GOOD, &[set]).starts_with(&format!("error: --set {set}: ")), "{set}: {}", report(GOOD, &[set]));
        recorded += &report(GOOD, &[set]);
    }
    assert_snapshot("recipe-set", &recorded);
}

#[test]
fn a_plan_survives_writing_and_reading() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run/plan.json");
    for path in shipped() {
        let plan =
            recipe::plan::load(&path, &["optim.lr=0.1234567890123".into(), "run.seed=18446744073709551615".into()])
                .unwrap();
        plan.write(&file).unwrap();
        assert_eq!(Plan::read(&file).unwrap(), plan);
        // The plan as YAML, with every default written out, is a recipe that gives the same plan.
        let again = recipe::plan::parse("y.yaml", &plan.to_yaml().unwrap(), &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(again.recipe, plan.recipe);
    }
    std::fs::write(&file, "{}").unwrap();
    assert!(Plan::read(&file).unwrap_err().message().contains("plan.json:1:2: missing field `recipe`"));
}

#[test]
fn shipped_recipes_are_valid_and_read_alike_by_serde_yaml() {
    for file in shipped() {
        let plan = recipe::plan::load(&file, &[]).unwrap_or_else(|e| panic!("{e}"));
        let name = file.file_name().unwrap().to_str().unwrap();
        let header = plan.text.lines().next().unwrap();
        assert!(header.starts_with(&format!("# ft train recipes/{name}   expect: ")), "{name}: {header}");
        let mut other: recipe::sections::Recipe = serde_yaml::from_str(&plan.text).unwrap();
        let sources = [Some(&mut other.data.train), other.data.valid.as_mut()];
        for source in sources.into_iter().flatten().flat_map(|s| &mut s.0) {
            source.path = ft::fsutil::absolute(&source.path);
        }
        other.model.tokenizer = other.model.tokenizer.map(|t| ft::fsutil::absolute(&t));
        // A model that starts from random weights has the path of its tokenizer.
        other.model.path = other.model.tokenizer.clone().unwrap_or(ft::fsutil::absolute(&other.model.path));
        other.run.out = ft::fsutil::absolute(&other.run.out);
        // Paths in a list of rewards are made absolute as all others are.
        if let MethodSpec::Ppo(ppo) = &mut other.method {
            for model in ppo.rewards.iter_mut().filter_map(|r| r.model.as_mut()) {
                model.path = ft::fsutil::absolute(&model.path);
            }
        }
        if let MethodSpec::Distill(distill) = &mut other.method {
            distill.teachers.iter_mut().for_each(|t| t.path = ft::fsutil::absolute(&t.path));
        }
        if let Some(cut) = &mut other.model.cut {
            cut.from = ft::fsutil::absolute(&cut.from);
        }
        // The scales of 4-bit weights are quantised unless the recipe says otherwise.
        if other.model.quantize.is_some() {
            other.model.double_quantize = Some(true);
        }
        // A reward model's head is saved with its adapter.
        if let (MethodSpec::Reward(_), Some(AdapterSpec::Lora(lora))) = (&other.method, &mut other.adapter) {
            lora.modules_to_save.push("score".into());
        }
        if let MethodSpec::Ppo(ppo) = &mut other.method {
            for model in ppo.rewards.iter_mut().filter_map(|r| r.model.as_mut()) {
                model.path = ft::fsutil::absolute(&model.path);
            }
        }
        assert_eq!(other, plan.recipe, "{name}");
    }
}

#[test]
fn synonyms_lead_to_keys_that_exist() {
    let mut seen = HashSet::new();
    for synonym in recipe::synonyms::SYNONYMS {
        if let Some(ours) = synonym.ours {
            assert!(recipe::schema::key(ours).is_some(), "{ours} is no key");
        }
        assert!(
            synonym.ours.is_some() || !synonym.note.is_empty(),
            "{:?} has neither a key nor a note",
            synonym.theirs
        );
        for theirs in synonym.theirs {
            assert!(seen.insert(*theirs), "{theirs} is listed twice");
            assert!(recipe::schema::keys().iter().all(|k| k.name() != *theirs), "{theirs} is a key of its own");
            assert_eq!(theirs.to_lowercase().replace('-', "_"), *theirs, "would never be found");
            assert_eq!(recipe::suggest::suggest_key("", theirs).path.as_deref(), synonym.ours);
        }
    }
    for (theirs, ours) in recipe::synonyms::VALUE_SYNONYMS {
        let holders = recipe::schema::keys().iter().filter(|k| k.choices.iter().any(|(c, _)| c == ours));
        assert!(holders.count() > 0, "{theirs}: `{ours}` is no choice");
    }
}

#[test]
fn the_reference_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipe.md");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(written == recipe::reference::markdown(), "docs/recipe.md is stale: ft recipe reference > docs/recipe.md");
}

#[test]
fn the_subcommands_of_ft_recipe_print_what_they_promise() {
    let schema: serde_json::Value = serde_json::from_str(&stdout(&["recipe", "schema"])).unwrap();
    assert_eq!(schema["title"], "ft recipe");
    assert_eq!(schema["$defs"]["MethodSpec"]["oneOf"][0]["required"][0], "sft");

    let listed = stdout(&["recipe", "list"]);
    let row = listed.lines().find(|l| l.starts_with("recipes/lora-medical.yaml ")).expect("listed");
    assert!(row.contains("  ft train recipes/lora-medical.yaml"), "{row}");
    let list: serde_json::Value = serde_json::from_str(&stdout(&["recipe", "list", "--json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), shipped().len());

    let show = ["recipe", "show", "recipes/lora-medical.yaml", "--set", "optim.lr=1e-3"];
    assert!(stdout(&show).contains("\n  lr: 0.001\n"));
    let json: serde_json::Value = serde_json::from_str(&stdout(&[&show[..], &["--json"]].concat())).unwrap();
    assert_eq!(json["optim"]["lr"], 0.001);

    assert_eq!(stdout(&["recipe", "explain", "lr"]), stdout(&["recipe", "explain", "optim.lr"]));
    assert!(stdout(&["recipe", "explain", "optim"]).contains("optim.schedule"));
    assert!(stdout(&["recipe", "explain"]).lines().count() >= recipe::schema::keys().len());
    assert_eq!(stdout(&["recipe", "reference"]), recipe::reference::markdown());

    let wrong = ft_here(&["recipe", "explain", "lora_r"]);
    assert_eq!(wrong.status.code(), Some(1));
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(said, "error: unknown key `lora_r`\nhint: `lora_r` is `adapter.lora.rank` here\n");
    let wrong = ft_here(&["recipe", "show", "recipes/lora-medical.yaml", "--set", "optim.lr=x"]);
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(1), 0));
}

/// Keys that few recipes need, or that belong to other methods and update rules. A new key is either in
/// recipes/annotated.yaml or here.
const UNCOMMON: &[&str] = &[
    "model.cut",
    "model.init",
    "model.config",
    "model.tokenizer",
    "model.new_tokens.",         // in the comment of model.new_tokens
    "model.double_quantize",     // needs model.quantize
    "model.quantize_embeddings", // needs model.quantize
    "adapter.lora.bias",
    "adapter.lora.head_rows",
    "adapter.lora.tie", // for models whose head shares the embedding's weight
    "adapter.lora.layers_pattern",
    "adapter.lora.rank_pattern",
    "adapter.lora.alpha_pattern",
    "adapter.lora.eva_rho", // needs init: eva
    "data.date",
    "data.train.weight", // needs a list of sources
    "data.valid.format",
    "data.valid.columns",
    "data.valid.rows",
    "data.valid.weight",
    "model.trained",      // contradicts the adapter
    "run.replay.layers",  // in the comment of run.replay
    "run.result.average", // in the comment of run.result
    "optim.kind.",
    "optim.decay_norms",
    "optim.eps",
    "optim.groups",
    "optim.decay",
    "optim.master",
    "run.deterministic",
    "run.tf32",
];

#[test]
fn the_annotated_recipe_names_every_common_key_with_a_valid_value() {
    let text = std::fs::read_to_string("recipes/annotated.yaml").unwrap();
    let plan = recipe::plan::parse("annotated.yaml", &text, &[]).unwrap_or_else(|e| panic!("{e}"));
    let values = serde_json::to_value(&plan.recipe).unwrap();
    let line_of_key = fancy_regex::Regex::new("^( *)(# )?([a-z_]+):( .*)?$").unwrap();
    let (mut named, mut parents) = (BTreeSet::new(), Vec::<(usize, String)>::new());
    for (i, line) in text.lines().enumerate() {
        let Some(found) = line_of_key.captures(line).unwrap() else { continue };
        let (indent, off, key) = (found[1].len(), found.get(2).is_some(), &found[3]);
        parents.retain(|(above, _)| *above < indent);
        parents.push((indent, key.to_string()));
        let path = parents.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
        let known = recipe::schema::key(&path).unwrap_or_else(|| panic!("line {}: `{path}` is no key", i + 1));
        if off {
            // With the comment sign removed, the key must be valid at its place.
            let on = |(j, other): (usize, &str)| match (j == i, key, other.trim_start().split(':').next()) {
                (true, ..) => other.replacen("# ", "", 1),
                (_, "accumulate", Some("examples")) => String::new(),
                (_, "offload", Some("replay")) => "  replay: all".into(),
                _ => other.to_string(),
            };
            let changed: Vec<String> = text.lines().enumerate().map(on).collect();
            recipe::plan::parse("annotated.yaml", &changed.join("\n"), &[]).unwrap_or_else(|e| panic!("{e}"));
        } else if let (Some(default), false) = (&known.default, line.contains("(default ")) {
            let value = path.split('.').fold(&values, |value, key| &value[key]);
            assert_eq!(value, default, "line {}: {path}", i + 1);
        }
        named.insert(path);
    }
    let sections = ["model", "method.sft", "adapter.lora", "data", "batch", "optim", "run"];
    let within = |path: &str, whole: &str| path.strip_prefix(whole).is_some_and(|rest| rest.starts_with('.'));
    let uncommon = |path: &str| {
        UNCOMMON.iter().any(|u| path == *u || within(path, u) || (u.ends_with('.') && path.starts_with(u)))
    };
    let missing: Vec<&str> = recipe::schema::keys()
        .iter()
        .map(|key| key.path.as_str())
        .filter(|path| sections.iter().any(|s| within(path, s)) && !uncommon(path) && !named.contains(*path))
        .collect();
    assert!(missing.is_empty(), "recipes/annotated.yaml lacks {missing:?}: add them, or list them as uncommon");
}
