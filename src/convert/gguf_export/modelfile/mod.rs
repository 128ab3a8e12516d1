//! Writes a Modelfile, from which Ollama makes a model of a GGUF file: chat template, stop words, settings of generation.
//!
//! Ollama's templates are Go's. turns: what the model's own template writes around each turn.

mod turns;

use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::model_files::ModelFiles;
use serde_json::{Map, Value};
use std::fmt::Write;
use turns::{ChatTurns, SystemText, TurnText};

/// The file's name.
pub const FILE: &str = "Modelfile";
/// Most tokens of context that are asked for: memory is taken for all of them.
const CONTEXT: u64 = 8192;

/// Keys of generation_config.json with Ollama's names.
const SETTINGS: [(&str, &str); 4] =
    [("temperature", "temperature"), ("top_k", "top_k"), ("top_p", "top_p"), ("repetition_penalty", "repeat_penalty")];

/// Returns the text of the Modelfile of a GGUF file that lies beside it.
///
/// `adds_bos`: the tokenizer in the file puts the beginning token before each prompt. Fails for a template that is not a sequence of turns.
pub fn text(gguf: &str, tokenizer: &ChatTokenizer, adds_bos: bool, context: u64, files: &ModelFiles) -> Result<String> {
    let mut text = format!("FROM {}\n", word(&format!("./{gguf}"))?);
    if tokenizer.has_template() {
        let bos = tokenizer.bos().filter(|_| adds_bos).and_then(|id| tokenizer.token(id));
        let turns = turns::find(&|talk, prompt| tokenizer.render(talk, prompt), bos.as_deref())?;
        let _ = writeln!(text, "TEMPLATE {}", quoted(&template(&turns))?);
        if let Some(system) = &turns.default_system {
            let _ = writeln!(text, "SYSTEM {}", quoted(system)?);
        }
    } else {
        let _ = writeln!(text, "TEMPLATE {}", quoted("{{ .Prompt }}")?);
    }
    for id in tokenizer.stop_ids() {
        if let Some(token) = tokenizer.token(*id) {
            let _ = writeln!(text, "PARAMETER stop \"{}\"", word(&token)?);
        }
    }
    let _ = writeln!(text, "PARAMETER num_ctx {}", context.min(CONTEXT));
    let settings: Map<String, Value> = files.json_or_default("generation_config.json")?;
    if settings.get("do_sample").and_then(Value::as_bool) == Some(true) {
        for (key, name) in SETTINGS {
            if let Some(value) = settings.get(key).filter(|value| value.is_number()) {
                let _ = writeln!(text, "PARAMETER {name} {value}");
            }
        }
    } else {
        text += "PARAMETER temperature 0\n";
    }
    Ok(text)
}

/// Writes the turns as a Go template. `.System` is the system message, which is also the first of `.Messages`.
fn template(turns: &ChatTurns) -> String {
    let around = |t: &TurnText, content: &str| format!("{}{content}{}", literal(&t.before), literal(&t.after));
    let mut text = literal(&turns.opening);
    if !turns.without_system.is_empty() {
        text += &format!("{{{{ if not .System }}}}{}{{{{ end }}}}", literal(&turns.without_system));
    }
    let user = match &turns.system {
        Some(SystemText::InQuestion(inside)) => format!(
            "{{{{ if and $.System (eq $i 1) }}}}{}{{{{ else }}}}{}{{{{ end }}}}{{{{ .Content }}}}{}",
            around(inside, "{{ $.System }}"),
            literal(&turns.user.before),
            literal(&turns.user.after)
        ),
        _ => around(&turns.user, "{{ .Content }}"),
    };
    text += "{{ range $i, $message := .Messages }}";
    let _ = write!(text, "{{{{ if eq .Role \"user\" }}}}{user}");
    let _ = write!(text, "{{{{ else if eq .Role \"assistant\" }}}}{}", around(&turns.assistant, "{{ .Content }}"));
    if let Some(SystemText::Turn(system)) = &turns.system {
        let _ = write!(text, "{{{{ else if eq .Role \"system\" }}}}{}", around(system, "{{ .Content }}"));
    }
    text += "{{ end }}{{ end }}";
    text + &literal(&turns.prompt)
}

/// Writes text so that a Go template prints it as it is.
fn literal(text: &str) -> String {
    text.replace("{{", "{{ \"{{\" }}")
}

/// Returns a value of one line. Fails if it has a quotation mark or a line end.
fn word(text: &str) -> Result<&str> {
    match text.contains(['"', '\n']) {
        true => Err(cannot_hold(text)),
        false => Ok(text),
    }
}

fn cannot_hold(text: &str) -> Error {
    Error::user(format!("{text:?}: a Modelfile cannot hold this text")).hint("leave out --modelfile")
}

/// Quotes a value of any number of lines.
fn quoted(text: &str) -> Result<String> {
    match text.contains("\"\"\"") || text.ends_with('"') {
        true => Err(cannot_hold(text)),
        false => Ok(format!("\"\"\"{text}\"\"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_of_turns_in_go() {
        let around = |before: &str, after: &str| TurnText { before: before.into(), after: after.into() };
        let turns = ChatTurns {
            opening: "{{".into(),
            without_system: String::new(),
            system: Some(SystemText::Turn(around("<S>", "\n"))),
            default_system: None,
            user: around("<U>", "\n"),
            assistant: around("<A>", "\n"),
            prompt: "<A>".into(),
        };
        let expected = "{{ \"{{\" }}{{ range $i, $message := .Messages }}{{ if eq .Role \"user\" }}<U>{{ .Content }}\n\
            {{ else if eq .Role \"assistant\" }}<A>{{ .Content }}\n{{ else if eq .Role \"system\" }}<S>{{ .Content }}\n\
            {{ end }}{{ end }}<A>";
        assert_eq!(template(&turns), expected);
        let inside = SystemText::InQuestion(around("<U><S>", "</S>"));
        let text = template(&ChatTurns { system: Some(inside), ..turns });
        let expected = "{{ if and $.System (eq $i 1) }}<U><S>{{ $.System }}</S>{{ else }}<U>{{ end }}{{ .Content }}\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_would_end_a_quotation_is_refused() {
        assert_eq!(quoted("a \"word\" more").unwrap(), "\"\"\"a \"word\" more\"\"\"");
        assert!(quoted("a \"\"\" b").is_err() && quoted("a \"word\"").is_err());
        assert!(word("a\nb").is_err() && word("\"").is_err());
    }
}
