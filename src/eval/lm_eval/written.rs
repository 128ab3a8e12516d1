//! Writes a suite as YAML.

use super::TaskImport;
use serde_json::Value;

/// Longest map or list on one line, in characters.
const LINE: usize = 110;

/// Writes a suite of these tasks, each a map.
pub fn suite(settings: &TaskImport, tasks: &[Value]) -> String {
    let names: Vec<String> = settings.files.iter().map(|file| file.display().to_string()).collect();
    let mut text = format!(
        "# Imported by ft from task files of lm-evaluation-harness: {}.\n# Prompts are plain text, as there by default; without `chat: false` they are chats if the model has a template.\ntasks:\n",
        names.join(", ").replace(['\n', '\r'], " ")
    );
    for task in tasks {
        let mut first = true;
        for (key, value) in task.as_object().into_iter().flatten() {
            text += if first { "- " } else { "  " };
            first = false;
            entry(&mut text, key, value, 2);
        }
    }
    text
}

/// Writes `key: value`, where the key begins at the column `indent`.
fn entry(text: &mut String, key: &str, value: &Value, indent: usize) {
    let flow = flow(value);
    let key = scalar(&Value::from(key));
    match value {
        Value::Object(entries) if flow.chars().count() + indent + key.len() > LINE => {
            *text += &format!("{key}:\n");
            for (key, value) in entries {
                *text += &" ".repeat(indent + 2);
                entry(text, key, value, indent + 2);
            }
        }
        Value::Array(items) if flow.chars().count() + indent + key.len() > LINE => {
            *text += &format!("{key}:\n");
            for item in items {
                *text += &format!("{}- {}\n", " ".repeat(indent), self::flow(item));
            }
        }
        _ => *text += &format!("{key}: {flow}\n"),
    }
}

/// Writes a value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) if entries.is_empty() => "{}".into(),
        Value::Object(entries) => {
            let entry =
                |(key, value): (&String, &Value)| format!("{}: {}", scalar(&Value::from(key.as_str())), flow(value));
            format!("{{ {} }}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => scalar(value),
    }
}

/// Writes a scalar; text in quotes unless it is a word that has no other meaning.
fn scalar(value: &Value) -> String {
    const WORDS: [&str; 12] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "none", "nan", "inf"];
    match value {
        Value::String(text) => {
            let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-+./".contains(c))
                && !WORDS.contains(&text.to_lowercase().as_str());
            if plain { text.clone() } else { value.to_string() }
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_text_is_read_as_it_was() {
        let hostile = "a: \"b\" \\ # c\n\t- [x] {y} ' \u{7f}\u{1b} é 🙂 {{ z }}";
        let long = "x ".repeat(80);
        let task = json!({
            "name": "a", "data": hostile, "prompt": long, "answer": " no", "chat": false,
            "generate": {"stop": [hostile, "\n", long], "ignore": ["\\d+$"], "metrics": ["exact_match"]},
        });
        let text = suite(&TaskImport::default(), &[task]);
        let read = crate::recipe::suite_file::parse("suite.yaml", &text).unwrap();
        let task = &read.tasks[0];
        assert_eq!(task.data.to_str().unwrap(), hostile);
        assert_eq!(task.prompt.as_ref().unwrap().text(), long);
        assert_eq!(task.answer.as_ref().unwrap().text(), " no");
        let crate::recipe::suite_file::TaskKind::Generate(generate) = &task.kind else { panic!("{text}") };
        assert_eq!(generate.stop.as_ref().unwrap(), &[hostile.to_string(), "\n".into(), long.clone()]);
        assert_eq!(generate.ignore, ["\\d+$"]);
    }
}
