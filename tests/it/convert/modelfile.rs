//! Writes Modelfiles for models with every chat template in tests/fixtures.

use crate::support::command::{ft_binary, stderr};
use crate::support::families;
use crate::support::fixture;
use crate::support::snapshot::assert_snapshot;
use ft::convert::gguf_export::modelfile;
use ft::data::chat::{ChatTokenizer, TemplateOptions};
use ft::model_files::ModelFiles;
use serde_json::json;
use std::path::Path;
use std::process::{Command, Output};
use tch::Kind;

#[test]
fn every_template_is_written_as_turns_or_refused() {
    let mut names: Vec<String> = std::fs::read_dir(fixture("templates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".jinja"))
        .collect();
    names.sort();
    assert!(names.len() > 20);
    let files = ModelFiles::open(&fixture("tiny-tokenizer")).unwrap();
    let mut found = String::new();
    for name in names {
        let template = Some(fixture("templates").join(&name));
        let options = TemplateOptions { template, date: "2026-01-15".parse().ok(), ..TemplateOptions::default() };
        let made = ChatTokenizer::load_with(&fixture("tiny-tokenizer"), &options)
            .and_then(|tokenizer| modelfile::text("model.gguf", &tokenizer, true, 4096, &files));
        let text = made.unwrap_or_else(|e| format!("{e}\n"));
        found += &format!("== {name}\n{text}");
    }
    assert_snapshot("modelfiles", &found);
}

fn export(model: &Path, more: &[&str]) -> Output {
    let out = format!("{}/out/", model.parent().unwrap().display());
    let mut command = Command::new(ft_binary());
    command.args(["export", &model.display().to_string(), "--to", "gguf", "--out", &out]).args(more);
    command.output().unwrap()
}

#[test]
fn a_modelfile_lies_beside_its_file_and_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    families::write("llama", json!({}), Kind::Float, &model);
    std::fs::create_dir(&out).unwrap();
    std::fs::write(model.join("generation_config.json"), r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9}"#)
        .unwrap();
    let done = export(&model, &["--modelfile"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stderr(&done).contains("ollama create NAME -f "), "{}", stderr(&done));
    let text = std::fs::read_to_string(out.join("Modelfile")).unwrap();
    let from = text.lines().next().unwrap().strip_prefix("FROM ./").unwrap();
    assert!(out.join(from).is_file(), "{from}");
    assert!(text.contains("PARAMETER temperature 0.6\nPARAMETER top_p 0.9\n"), "{text}");
    assert!(text.contains("PARAMETER num_ctx 256\n"), "{text}");

    std::fs::remove_file(out.join(from)).unwrap();
    let again = export(&model, &["--modelfile"]);
    assert!(!again.status.success() && stderr(&again).contains("Modelfile: the file exists"), "{}", stderr(&again));
    assert!(!out.join(from).exists());
    assert!(export(&model, &["--modelfile", "--force"]).status.success());

    let numbered = "{% for m in messages %}[{{ loop.index }}] {{ m['content'] }}\n{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), numbered).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    let refused = export(&model, &["--modelfile"]);
    assert!(stderr(&refused).contains("no sequence of turns"), "{}", stderr(&refused));
    assert!(!out.exists());
    assert!(export(&model, &[]).status.success());
}
