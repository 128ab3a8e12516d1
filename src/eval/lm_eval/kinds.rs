//! Writes a task by its kind: choices, continuations, texts and written answers.

use super::fields::{Field, quoted};
use super::task::{CommonParts, TaskConversion, suite_name};
use crate::data::rows::RowTemplate;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The template of a prompt.
pub struct Prompt {
    /// All of it.
    pub text: String,
    /// Its end, if it is what an answer begins with.
    pub begun: Option<String>,
}

impl TaskConversion<'_> {
    /// Converts the task, whose rows are in the file `data`, into tasks of a suite.
    pub(super) fn convert(&mut self, data: &Path) -> Option<Vec<Value>> {
        let kind = self.task.text("output_type").unwrap_or("generate_until").to_string();
        let common = self.common(data);
        let drafts = match kind.as_str() {
            "multiple_choice" => self.choice(common).map(|draft| vec![draft]),
            "loglikelihood" => self.cloze(common).map(|draft| vec![draft]),
            "loglikelihood_rolling" => self.texts(common).map(|draft| vec![draft]),
            "generate_until" => self.written(common),
            other => {
                self.notes.refused("output_type", format!("there is no such kind `{other}`"));
                None
            }
        };
        if self.task.get("output_type").is_some() && drafts.is_some() {
            self.notes.mapped("output_type", format!("`{}`", kind_in_suite(&kind)));
        }
        drafts
    }

    fn choice(&mut self, common: CommonParts) -> Option<Value> {
        let (text, choices, target) =
            (self.field("doc_to_text"), self.field("doc_to_choice"), self.field("doc_to_target"));
        let metrics = self.choice_metrics();
        let (text, choices, target) = (text?, choices?, target?);
        let shown = match &choices {
            Field::Texts(texts) => json!(texts.iter().map(|text| quoted(text)).collect::<Vec<_>>()),
            field => match field.value(&self.row) {
                Some(Value::Array(_)) | None => self.as_template("doc_to_choice", field)?.into(),
                Some(other) => {
                    let told = format!(
                        "no list for the first row, found {other}; write one expression, --set 'doc_to_choice={{{{ [a, b] }}}}'"
                    );
                    self.notes.refused("doc_to_choice", told);
                    return None;
                }
            },
        };
        self.notes.mapped("doc_to_choice", "`choice.choices`");
        // A number in place of a prompt is that of the right choice; then the choices are prompts.
        let are_prompts = match (&text, text.value(&self.row)) {
            (Field::Template(template), Some(_)) => {
                let rendered = RowTemplate::compile(template).ok().and_then(|t| t.render(&self.row).ok());
                rendered.is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            }
            (_, Some(Value::Number(_))) => true,
            _ => false,
        };
        let CommonParts { mut draft, delimiter } = common;
        let mut kind = Map::from_iter([("choices".to_string(), shown)]);
        let mut prompt = None;
        if are_prompts {
            let (continuation, answer) =
                (self.as_template("doc_to_target", &target)?, self.as_template("doc_to_text", &text)?);
            kind.insert("continuation".into(), continuation.into());
            kind.insert("answer".into(), answer.into());
            self.notes.mapped("doc_to_text", "`choice.answer`: the choices are prompts");
            self.notes.mapped("doc_to_target", "`choice.continuation`");
        } else {
            kind.insert("answer".into(), self.right_choice(&target, &choices)?.into());
            prompt = Some(self.prompt(&text, &delimiter)?);
            self.notes.mapped("doc_to_target", "`choice.answer`");
        }
        kind.insert("metrics".into(), metrics?.into());
        self.add_prompt(&mut draft, prompt.as_ref(), &delimiter);
        self.add_examples(&mut draft, prompt.as_ref(), Some(&choices));
        draft.insert("chat".into(), false.into());
        draft.insert("choice".into(), kind.into());
        Some(draft.into())
    }

    /// Returns the template of the right choice. A column of text is looked for among the choices, also if it is a number.
    fn right_choice(&mut self, target: &Field, choices: &Field) -> Option<String> {
        let template = match (target, target.value(&self.row)) {
            (Field::Column(name), Some(Value::Bool(_))) => format!("{{{{ {name} | int }}}}"),
            (Field::Column(_), Some(Value::String(text))) if text.trim().parse::<i64>().is_ok() => {
                let (Some(of), Some(choices)) = (target.expression(), choices.expression()) else {
                    self.notes.refused("doc_to_choice", "write one expression, --set 'doc_to_choice={{ [a, b] }}'");
                    return None;
                };
                format!("{{{{ {choices}.index({of}) }}}}")
            }
            (Field::Texts(texts), _) => format!("{{{{ {} }}}}", json!(texts)),
            _ => return self.as_template("doc_to_target", target),
        };
        let row = self.row.clone();
        self.checked("doc_to_target", template, &row)
    }

    fn cloze(&mut self, common: CommonParts) -> Option<Value> {
        let (text, target) = (self.field("doc_to_text"), self.field("doc_to_target"));
        let main = self.metrics_among(&["perplexity", "acc"], &["perplexity", "acc"]);
        let (text, target) = (text?, target?);
        let CommonParts { mut draft, delimiter } = common;
        let prompt = self.prompt(&text, &delimiter)?;
        let answer = self.as_template("doc_to_target", &target)?;
        self.notes.mapped("doc_to_target", "`answer`");
        // What is asked follows the prompt directly; only in examples there is something between.
        self.add_prompt(&mut draft, Some(&prompt), "");
        draft.insert("answer".into(), answer.into());
        self.add_examples(&mut draft, Some(&prompt), None);
        if let Some(Value::Object(shots)) = draft.get_mut("few_shot")
            && !delimiter.is_empty()
        {
            let own = shots.get("prompt").and_then(Value::as_str).unwrap_or(&prompt.text).to_string();
            shots.insert("prompt".into(), (own + &quoted(&delimiter)).into());
        }
        draft.insert("chat".into(), false.into());
        draft.insert("main".into(), main?.into_iter().next()?.into());
        draft.insert("cloze".into(), json!({}));
        Some(draft.into())
    }

    fn texts(&mut self, common: CommonParts) -> Option<Value> {
        const PER: [&str; 3] = ["word_perplexity", "byte_perplexity", "bits_per_byte"];
        let target = self.field("doc_to_target");
        let metrics = self.metrics_among(&PER, &PER)?;
        let text = self.as_template("doc_to_target", &target?)?;
        self.notes.mapped("doc_to_target", "`perplexity.text`");
        if self.task.get("doc_to_text").is_some() {
            self.notes.add(super::NoteStatus::Unused, "doc_to_text", "the text of a row is evaluated alone");
        }
        let mut draft = common.draft;
        if draft.shift_remove("system").is_some() {
            self.notes.add(super::NoteStatus::Unused, "description", "the text of a row is evaluated alone");
        }
        if self.settings.shots.is_some() || self.task.get("num_fewshot").is_some() {
            self.notes.add(super::NoteStatus::Unused, "num_fewshot", "the text of a row is evaluated alone");
        }
        let mut per: Vec<&str> =
            metrics.iter().map(|name| if name == "word_perplexity" { "word" } else { "byte" }).collect();
        per.dedup();
        draft.insert("main".into(), metrics[0].clone().into());
        draft.insert("perplexity".into(), json!({ "text": text, "per": per }));
        Some(draft.into())
    }

    fn written(&mut self, common: CommonParts) -> Option<Vec<Value>> {
        let (text, target) = (self.field("doc_to_text"), self.field("doc_to_target"));
        let choices = self.optional_field("doc_to_choice");
        let scored = self.scoring();
        let (text, target) = (text?, target?);
        let CommonParts { mut draft, delimiter } = common;
        let prompt = self.prompt(&text, &delimiter)?;
        let answer = match &choices {
            None => self.as_template("doc_to_target", &target)?,
            // The target is the number of a choice.
            Some(choices) => {
                let (Some(of), Some(choices)) = (target.expression(), choices.expression()) else {
                    self.notes.refused(
                        "doc_to_choice",
                        "write the target as text, --set doc_to_choice= --set 'doc_to_target={{ … }}'",
                    );
                    return None;
                };
                self.notes.mapped("doc_to_choice", "`answer` is one of them");
                let row = self.row.clone();
                self.checked("doc_to_target", format!("{{{{ {choices}[{of}] }}}}"), &row)?
            }
        };
        self.notes.mapped("doc_to_target", "`answer`");
        self.add_prompt(&mut draft, Some(&prompt), &delimiter);
        draft.insert("answer".into(), answer.into());
        self.add_examples(&mut draft, Some(&prompt), None);
        draft.insert("chat".into(), false.into());
        let scored = scored?;
        let several = scored.len() > 1;
        let with = |(pipeline, kind): (String, Map<String, Value>)| {
            let mut draft = draft.clone();
            if several {
                draft.insert("name".into(), suite_name(&format!("{}-{pipeline}", self.name)).into());
            }
            draft.insert("generate".into(), kind.into());
            Value::from(draft)
        };
        Some(scored.into_iter().map(with).collect())
    }

    /// Returns the prompt with what answers begin with (`gen_prefix`).
    fn prompt(&mut self, text: &Field, delimiter: &str) -> Option<Prompt> {
        let prompt = self.as_template("doc_to_text", text)?;
        self.notes.mapped("doc_to_text", "`prompt`");
        let Some(field) = self.optional_field("gen_prefix").filter(|field| *field != Field::Template(String::new()))
        else {
            return Some(Prompt { text: prompt, begun: None });
        };
        let prefix = self.as_template("gen_prefix", &field)?;
        let spaced = |text: Option<char>| text.is_some_and(char::is_whitespace);
        let between = match prompt.is_empty() || spaced(prompt.chars().last()) || spaced(prefix.chars().next()) {
            true => String::new(),
            false => quoted(delimiter),
        };
        let dynamic = prompt.ends_with("}}") || prompt.ends_with("%}") || prefix.starts_with('{');
        let note = "the end of the prompt: what an answer begins with";
        match dynamic {
            true => self.notes.approximated(
                "gen_prefix",
                format!("{note}; where a prompt ends with whitespace, lm-evaluation-harness adds none"),
            ),
            false => self.notes.mapped("gen_prefix", note),
        }
        let begun = between + &prefix;
        Some(Prompt { text: prompt + &begun, begun: Some(begun) })
    }

    fn add_prompt(&mut self, draft: &mut Map<String, Value>, prompt: Option<&Prompt>, delimiter: &str) {
        let mut separator = delimiter.to_string();
        if let Some(prompt) = prompt {
            draft.insert("prompt".into(), prompt.text.as_str().into());
            if let Some(begun) = &prompt.begun {
                let own = if begun.ends_with(char::is_whitespace) { "" } else { " " };
                if own != separator && self.task.text("output_type") == Some("multiple_choice") {
                    self.notes.approximated("gen_prefix", "examples have the separator of the choices behind it");
                } else {
                    separator = own.into();
                }
            }
        }
        if separator != " " {
            draft.insert("separator".into(), separator.into());
        }
    }
}

fn kind_in_suite(kind: &str) -> &str {
    match kind {
        "multiple_choice" => "choice",
        "loglikelihood" => "cloze",
        "loglikelihood_rolling" => "perplexity",
        _ => "generate",
    }
}
