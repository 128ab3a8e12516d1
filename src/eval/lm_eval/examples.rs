//! The answered examples of a task: `num_fewshot`, `fewshot_split`, `fewshot_config`.

use super::fields::Field;
use super::kinds::Prompt;
use super::task::TaskConversion;
use crate::data::source::RowColumns;
use crate::recipe::lm_eval_file::TaskValue;
use serde_json::{Map, Value};

/// The seed of lm-evaluation-harness.
const SEED: u64 = 1234;

impl TaskConversion<'_> {
    /// Adds `few_shot` to a task, if it has examples. `prompt`: its own; `choices`: what a number of an example's
    /// target names.
    pub(super) fn add_examples(
        &mut self,
        draft: &mut Map<String, Value>,
        prompt: Option<&Prompt>,
        choices: Option<&Field>,
    ) {
        let task = self.task;
        let number = |key: &str| task.get(key).and_then(|key| key.value.to_json()).and_then(|value| value.as_u64());
        let count = self.settings.shots.map_or_else(|| number("num_fewshot"), |shots| Some(shots as u64)).unwrap_or(0);
        if task.get("num_fewshot").is_some() && self.settings.shots.is_none() {
            self.notes.mapped("num_fewshot", "`few_shot.rows`");
        }
        if count == 0 {
            if task.get("fewshot_config").is_some() || task.get("fewshot_split").is_some() {
                let key = if task.get("fewshot_config").is_some() { "fewshot_config" } else { "fewshot_split" };
                self.notes.add(super::NoteStatus::Unused, key, "no examples are asked for; --few-shot N asks for them");
            }
            return;
        }
        let config = task.get("fewshot_config").map(|key| key.value.clone());
        let of_config = |key: &str| config.as_ref().and_then(|config| config.get(key)).filter(|value| !value.is_null());
        let text_of = |key: &str| of_config(key).and_then(TaskValue::text);
        let mut shots = Map::from_iter([("rows".to_string(), Value::from(count))]);
        let test = task.text("test_split");
        let mut row = self.row.clone();
        let named = text_of("split").or(task.text("fewshot_split"));
        // Where a row is not its own example, one more is drawn there.
        let (mut spare, mut own) = (false, false);
        match (named, of_config("samples")) {
            (Some(split), _) => own = self.examples_of(split, "fewshot_split", &mut shots),
            (None, Some(samples)) => match samples.to_json() {
                Some(Value::Array(rows)) if rows.iter().all(Value::is_object) && !rows.is_empty() => {
                    if (rows.len() as u64) < count {
                        self.notes.refused(
                            "fewshot_config.samples",
                            format!("{count} examples are wanted, there are {}", rows.len()),
                        );
                        return;
                    }
                    row = rows[0].as_object().cloned().unwrap_or_default();
                    shots.insert("examples".into(), rows.into());
                    spare = test.is_none();
                }
                _ => {
                    let what = samples
                        .function()
                        .map_or("no list of rows".to_string(), |name| format!("the Python function `{name}`"));
                    let note = format!(
                        "{what} is not run: give the rows in a file of a split, --set fewshot_split=train --data train=FILE"
                    );
                    self.notes.refused("fewshot_config.samples", note);
                    return;
                }
            },
            (None, None) => {
                let split = task
                    .text("training_split")
                    .or(task.text("validation_split"))
                    .or(test)
                    .unwrap_or_default()
                    .to_string();
                own = self.examples_of(&split, "training_split", &mut shots);
                spare = test.is_none() && !own;
            }
        }
        if own && (named.is_some() && named != test || named.is_none() && test.is_some()) {
            let key = if named.is_some() { "fewshot_split" } else { "training_split" };
            self.notes.approximated(key, "a row is never its own example here; in lm-evaluation-harness it may be");
        }
        match text_of("sampler").unwrap_or("default") {
            "first_n" => {}
            "default" => {
                shots.insert("seed".into(), SEED.into());
                shots.insert("draw".into(), if spare { "lm_eval_spare" } else { "lm_eval" }.into());
            }
            other => {
                let (other, note) = (other.to_string(), "is not there: `first_n` and `default` are");
                self.notes.refused("fewshot_config.sampler", format!("the sampler `{other}` {note}"));
            }
        }
        if let Some(delimiter) =
            text_of("fewshot_delimiter").or(task.text("fewshot_delimiter")).filter(|text| *text != "\n\n")
        {
            shots.insert("separator".into(), delimiter.into());
        }
        if text_of("target_delimiter").is_some_and(|text| text != task.text("target_delimiter").unwrap_or(" ")) {
            self.notes.approximated("fewshot_config.target_delimiter", "examples have the separator of the task");
        }
        let field = |key: &str| of_config(key).map(|value| Field::of(value, &row));
        let (own_text, own_target, own_choices) =
            (field("doc_to_text"), field("doc_to_target"), field("doc_to_choice"));
        self.override_template(&mut shots, "prompt", own_text, &row, prompt);
        let target = own_target.map(|target| match own_choices.as_ref().or(choices) {
            Some(choices) if target.value(&row).is_some_and(|value| value.is_u64()) => indexed(choices, target),
            _ => target,
        });
        self.override_template(&mut shots, "answer", target, &row, None);
        if config.is_some() {
            self.notes.mapped("fewshot_config", "`few_shot`");
        }
        draft.insert("few_shot".into(), shots.into());
    }

    /// Adds the file of a split; none if it is that of the task. Returns whether it is.
    fn examples_of(&mut self, split: &str, key: &str, shots: &mut Map<String, Value>) -> bool {
        let key = if self.task.get(key).is_some() { key } else { "num_fewshot" };
        if split == self.split {
            self.notes.mapped(key, "examples are other rows of the task");
            return true;
        }
        match self.file_of(split) {
            Some(file) => {
                self.notes.mapped(key, format!("`few_shot.data`: {}", file.display()));
                shots.insert("data".into(), file.display().to_string().into());
            }
            None => {
                let note = format!(
                    "examples come from the split `{split}` of {}: name its file with --data {split}=FILE",
                    self.dataset()
                );
                self.notes.refused(key, format!("{note}, or leave them out with --few-shot 0"));
            }
        }
        false
    }

    /// Adds a template of examples that is not the task's.
    fn override_template(
        &mut self,
        shots: &mut Map<String, Value>,
        name: &str,
        field: Option<Field>,
        row: &RowColumns,
        task_prompt: Option<&Prompt>,
    ) {
        let key = if name == "prompt" { "fewshot_config.doc_to_text" } else { "fewshot_config.doc_to_target" };
        let Some(field) = field.and_then(|field| self.readable(key, field)) else { return };
        let Some(template) = field.template() else {
            self.notes.refused(key, "a template can name columns by words only: rename the column in the file");
            return;
        };
        // Rows of a file are checked when they are read.
        let checked = if shots.contains_key("examples") { self.checked(key, template, row) } else { Some(template) };
        let begun = task_prompt.and_then(|prompt| prompt.begun.as_deref()).unwrap_or_default();
        let template = checked.map(|template| template + begun);
        if let Some(template) = template.filter(|text| task_prompt.is_none_or(|prompt| prompt.text != *text)) {
            shots.insert(name.into(), template.into());
        }
    }
}

/// Returns the choice that a number names, as a template.
fn indexed(choices: &Field, target: Field) -> Field {
    match (choices.expression(), target.expression()) {
        (Some(choices), Some(target)) => Field::Template(format!("{{{{ {choices}[{target}] }}}}")),
        _ => target,
    }
}
