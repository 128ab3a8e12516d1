//! Finds the chat templates of a model.

use super::template::ChatTemplate;
use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::model_files::ModelFiles;
use jiff::civil::Date;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How conversations are rendered, as far as this differs from the model's directory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateOptions {
    /// A template file, or the name of one of the model's own templates.
    pub template: Option<PathBuf>,
    /// Variables of the template for every conversation (`enable_thinking`); a row's own variables have precedence.
    pub kwargs: RowColumns,
    /// The date that templates get; `None` for today.
    pub date: Option<Date>,
}

/// The chat templates that were found, each as (place, text); the place is for errors.
pub(super) struct FoundTemplates {
    default: Option<(String, String)>,
    tool_use: Option<(String, String)>,
}

impl FoundTemplates {
    fn one(name: String, text: String) -> Option<Self> {
        Some(Self { default: Some((name, text)), tool_use: None })
    }

    pub(super) fn compile(&self, specials: &RowColumns) -> Result<ChatTemplate> {
        fn parts(found: &Option<(String, String)>) -> Option<(&str, &str)> {
            found.as_ref().map(|(place, text)| (place.as_str(), text.as_str()))
        }
        ChatTemplate::of_named(parts(&self.default), parts(&self.tool_use), specials)
    }
}

/// Finds the templates that may render a row. `chosen` is a file, or the name of one of the model's own templates.
/// Without it they are those that transformers chooses: chat_template.jinja and the files in
/// additional_chat_templates/, else those in tokenizer_config.json (one text or a list of named ones).
pub(super) fn find_template(
    files: &ModelFiles,
    config: &RowColumns,
    chosen: Option<&Path>,
) -> Result<Option<FoundTemplates>> {
    if let Some(path) = chosen.filter(|path| !is_template_name(path)) {
        return Ok(FoundTemplates::one(path.display().to_string(), fsutil::read_to_string(path)?));
    }
    let mut named = named_templates(files, config)?;
    let names: Vec<String> = named.iter().map(|(name, ..)| format!("`{name}`")).collect();
    if let Some(name) = chosen.and_then(Path::to_str) {
        let found = named.into_iter().find(|(own, ..)| own == name);
        let (_, place, text) = found.ok_or_else(|| {
            Error::user(format!("{}: no chat template named `{name}`", files.path().display())).hint(
                match names.is_empty() {
                    true => "the model has no chat template; the path of a file has a `/` or a `.` in it".to_string(),
                    false => format!("the model has {}; the path of a file has a `/` or a `.` in it", names.join(", ")),
                },
            )
        })?;
        return Ok(FoundTemplates::one(place, text));
    }
    let mut take = |name: &str| {
        let at = named.iter().position(|(own, ..)| own == name)?;
        let (_, place, text) = named.remove(at);
        Some((place, text))
    };
    let found = FoundTemplates { default: take("default"), tool_use: take("tool_use") };
    if found.default.is_none() && found.tool_use.is_none() && !named.is_empty() {
        return Err(Error::user(format!(
            "{}: several chat templates, none of them named `default`",
            files.path().display()
        ))
        .hint(format!("choose one with data.template or --template: {}", names.join(", "))));
    }
    Ok(Some(found).filter(|f| f.default.is_some() || f.tool_use.is_some()))
}

/// Returns true if this is the name of a template, not of a file: it has no `/`, `\` or `.`.
pub fn is_template_name(chosen: &Path) -> bool {
    chosen.to_str().is_some_and(|text| !text.is_empty() && !text.contains(['/', '\\', '.']))
}

/// Returns the model's own templates as (name, place, text).
fn named_templates(files: &ModelFiles, config: &RowColumns) -> Result<Vec<(String, String, String)>> {
    let mut named = Vec::new();
    let mut add = |name: &str, file: &str| -> Result<()> {
        if let Some(text) = files.text(file)? {
            named.push((name.to_string(), files.place(file).display().to_string(), text));
        }
        Ok(())
    };
    add("default", "chat_template.jinja")?;
    for file in files.more_templates()? {
        add(&Path::new(&file).file_stem().unwrap_or_default().to_string_lossy(), &file)?;
    }
    if !named.is_empty() {
        return Ok(named);
    }
    let place = files.place("tokenizer_config.json").display().to_string();
    match config.get("chat_template") {
        Some(Value::String(source)) => {
            named.push(("default".into(), format!("{place} (chat_template)"), source.clone()));
            return Ok(named);
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let part = |key: &str| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(text)) = (part("name"), part("template")) else {
                    return Err(Error::user(format!("{place}: chat_template: an entry has no `name` and `template`"))
                        .hint("fetch the file again with the model, or give a template with data.template"));
                };
                named.push((name.into(), format!("{place} (chat_template `{name}`)"), text.into()));
            }
            return Ok(named);
        }
        _ => {}
    }
    const LEGACY: &str = "chat_template.json";
    let legacy: RowColumns = files.json_or_default(LEGACY)?;
    if let Some(source) = legacy.get("chat_template").and_then(Value::as_str) {
        named.push(("default".into(), files.place(LEGACY).display().to_string(), source.to_string()));
    }
    Ok(named)
}
