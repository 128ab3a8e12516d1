//! Tests base models that do not stop at the token with which their chat template ends a turn. A result trained from
//! such a base stops there, wherever it is loaded.

use crate::support::command::stderr;
use crate::support::workspace::Workspace;
use ft::data::chat::ChatTokenizer;
use serde_json::{Value, json};

const BASE: &str = "models/medical";
const RECIPE: &str = "\
model:   { path: models/medical, dtype: f32 }
method:  { sft: {} }
adapter: { lora: { rank: 4 } }
data:    { train: { path: datasets/icd10/train.jsonl } }
batch:   { tokens: 512, max_len: 256 }
run:     { steps: 1, samples: 0, out: out }
";

/// Makes a workspace whose model stops at `<|endoftext|>` (id 0), while its template ends turns with `<|im_end|>` (id
/// 2).
fn space(generation: Option<Value>) -> Workspace {
    let space = Workspace::new();
    let file = |name: &str| space.path(BASE).join(name);
    match generation {
        Some(generation) => ft::fsutil::write_json(&file("generation_config.json"), &generation).unwrap(),
        None => std::fs::remove_file(file("generation_config.json")).unwrap(),
    }
    for (name, key, value) in
        [("tokenizer_config.json", "eos_token", json!("<|endoftext|>")), ("config.json", "eos_token_id", json!(0))]
    {
        let mut config: Value = ft::fsutil::read_json(&file(name)).unwrap();
        config[key] = value;
        ft::fsutil::write_json(&file(name), &config).unwrap();
    }
    std::fs::write(space.path("sft.yaml"), RECIPE).unwrap();
    space
}

#[test]
fn a_result_stops_at_the_token_it_was_trained_to_end_with() {
    let generation = json!({"temperature": 0.6, "eos_token_id": 0, "pad_token_id": 3});
    let space = space(Some(generation.clone()));
    let done = space.ft(&["train", "sft.yaml"]);
    let said = stderr(&done);
    assert!(said.contains("`<|im_end|>`") && said.contains("will list it (eos_token_id 2)"), "{said}");
    space.ft(&["train", "sft.yaml", "--set", "adapter=null", "--set", "run.out=full"]);
    space.ft(&["merge", BASE, "out", "--out", "merged"]);
    space.ft(&["merge", BASE, "out", "--as", "adapter", "--out", "again"]);
    for folder in ["out", "full", "merged", "again"] {
        let mut expected = generation.clone();
        expected["eos_token_id"] = json!([0, 2]);
        assert_eq!(space.json(&format!("{folder}/generation_config.json")), expected, "{folder}");
        assert_eq!(space.json(&format!("{folder}/tokenizer_config.json"))["eos_token"], "<|im_end|>", "{folder}");
        let tokenizer = ChatTokenizer::load(&space.path(folder), None).unwrap();
        assert_eq!((tokenizer.stop_ids(), tokenizer.undeclared_stop()), (&[0, 2][..], None), "{folder}");
    }
    // The base is unchanged, and further training of a result gives no warning.
    assert_eq!(space.json(&format!("{BASE}/generation_config.json")), generation);
    let again = space.ft(&["train", "sft.yaml", "--set", "model.path=merged", "--set", "run.out=more"]);
    assert!(!String::from_utf8_lossy(&again.stderr).contains("continue past it"));
    assert_eq!(space.json("more/tokenizer_config.json"), space.json("merged/tokenizer_config.json"));
}

/// Without a generation_config.json, other programs read the token ids of config.json, which the new file would hide:
/// so it repeats them. And if a template writes `eos_token`, that token is not changed.
#[test]
fn other_settings_of_a_base_are_kept() {
    let space = space(None);
    let template = space.path(BASE).join("chat_template.jinja");
    let text = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, format!("{{% if messages[0].role == 'none' %}}{{{{ eos_token }}}}{{% endif %}}{text}"))
        .unwrap();
    space.ft(&["train", "sft.yaml"]);
    let (config, written) = (space.json(&format!("{BASE}/config.json")), space.json("out/generation_config.json"));
    assert_eq!(written["eos_token_id"], json!([0, 2]));
    for key in ["bos_token_id", "pad_token_id"] {
        assert_eq!(written[key], config[key], "{key}");
    }
    assert_eq!(space.json("out/tokenizer_config.json")["eos_token"], "<|endoftext|>");
    // If a base lists the token already, its files are copied unchanged.
    let plain = Workspace::new();
    std::fs::write(plain.path("sft.yaml"), RECIPE).unwrap();
    plain.ft(&["train", "sft.yaml"]);
    assert!(!plain.path("out/generation_config.json").exists());
    assert_eq!(
        std::fs::read(plain.path("out/tokenizer_config.json")).unwrap(),
        std::fs::read(plain.path(BASE).join("tokenizer_config.json")).unwrap()
    );
}

/// A run may have a chat template of its own: the result contains it, also after the adapter is merged.
#[test]
fn a_result_contains_the_template_that_it_was_trained_with() {
    let space = space(Some(json!({"eos_token_id": 0})));
    let own = "{% for m in messages %}<|im_start|>{{ m.role }}:\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:\n{% endif %}";
    std::fs::write(space.path("own.jinja"), own).unwrap();
    std::fs::create_dir(space.path(BASE).join("additional_chat_templates")).unwrap();
    std::fs::write(space.path(BASE).join("additional_chat_templates/tool_use.jinja"), "other").unwrap();
    space.ft(&["train", "sft.yaml", "--set", "data.template=own.jinja"]);
    space.ft(&["train", "sft.yaml", "--set", "run.out=base"]);
    space.ft(&["merge", BASE, "out", "--out", "merged"]);
    space.ft(&["merge", BASE, "out", "--as", "adapter", "--out", "again"]);
    for folder in ["out", "merged", "again"] {
        assert_eq!(std::fs::read_to_string(space.path(folder).join("chat_template.jinja")).unwrap(), own, "{folder}");
        assert!(!space.path(folder).join("additional_chat_templates").exists(), "{folder}");
    }
    assert!(space.path("base/additional_chat_templates/tool_use.jinja").exists());
    // `ft generate` uses an adapter's own template, unless another one is given.
    let ask = |more: &[&str]| {
        let words = [
            "generate",
            "--model",
            BASE,
            "--adapter",
            "out",
            "--chat",
            "--prompt",
            "hi",
            "--max-new-tokens",
            "1",
            "--json",
        ];
        let done = space.ft(&[&words[..], more].concat());
        let row: Value = serde_json::from_slice(&done.stdout).unwrap();
        (row["prompt_tokens"].as_u64().unwrap(), String::from_utf8_lossy(&done.stderr).contains("own chat template"))
    };
    let (with, said) = ask(&[]);
    let (without, silent) = ask(&["--template", &format!("{BASE}/chat_template.jinja")]);
    assert!(said && !silent && with == without + 2, "{with} {without}");
}
