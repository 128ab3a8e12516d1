//! Turns one task file into tasks of a suite.

use super::TaskImport;
use super::fields::Field;
use super::notes::{ImportNote, TaskNotes};
use crate::data::rows::RowTemplate;
use crate::data::source::RowColumns;
use crate::error::Result;
use crate::eval::suite::rows::RowReader;
use crate::recipe::lm_eval_file::{LmEvalTask, TaskValue};
use crate::recipe::suite_file::RowLimit;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Keys whose Python functions, if they have one, are looked at where they are used.
const FIELDS: [&str; 3] = ["doc_to_text", "doc_to_target", "doc_to_choice"];
/// Keys that change neither what is asked nor how it is scored.
const UNUSED: [&str; 8] = [
    "tag",
    "group",
    "task_alias",
    "metadata",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "task_list",
    "group_alias",
];
/// Keys that need Python or another kind of data.
const UNREADABLE: [(&str, &str); 7] = [
    ("custom_dataset", "the rows are made by Python: write them to a file and name it with --data"),
    ("class", "the task is a Python class"),
    ("doc_to_image", "images are not read"),
    ("doc_to_audio", "audio is not read"),
    ("use_prompt", "prompts of promptsource are not read: write the prompt as `--set 'doc_to_text={{ … }}'`"),
    ("unsafe_code", "the answers are programs that are run"),
    ("process_results", ""),
];
/// Keys that are read below.
const READ: [&str; 24] = [
    "task",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "fewshot_config",
    "num_fewshot",
    "process_docs",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "metric_list",
    "gen_prefix",
    "include",
];
/// Formats of local files that `dataset_path` names.
const LOCAL: [&str; 5] = ["json", "csv", "parquet", "text", "arrow"];

/// A task file on its way to a suite.
pub struct TaskConversion<'a> {
    pub(super) task: &'a LmEvalTask,
    pub(super) settings: &'a TaskImport,
    columns: &'a [(String, RowTemplate)],
    only: Option<&'a RowTemplate>,
    pub(super) name: String,
    pub(super) notes: TaskNotes<'a>,
    /// The first row that is asked.
    pub(super) row: RowColumns,
    /// The split that is asked.
    pub(super) split: String,
}

/// The parts of a task that its kinds have in common.
pub struct CommonParts {
    /// Keys of the task before its kind.
    pub draft: Map<String, Value>,
    /// What stands between a question and its answer.
    pub delimiter: String,
}

impl<'a> TaskConversion<'a> {
    /// Begins the conversion of a task. `columns` and `only` are those of the user.
    pub fn open(
        task: &'a LmEvalTask,
        settings: &'a TaskImport,
        columns: &'a [(String, RowTemplate)],
        only: Option<&'a RowTemplate>,
    ) -> Self {
        let stem = || task.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = suite_name(task.text("task").map_or_else(stem, str::to_string).as_str());
        let notes = TaskNotes::new(task, &name);
        let split = task.text("test_split").or(task.text("validation_split")).unwrap_or_default().to_string();
        Self { task, settings, columns, only, name, notes, row: RowColumns::new(), split }
    }

    /// Converts the task. Returns its name, its tasks in the suite (`None` if it cannot be imported) and what became of every key.
    ///
    /// Errors: the file of the rows cannot be read, or a template over a row fails.
    pub fn run(mut self) -> Result<(String, Option<Vec<Value>>, Vec<ImportNote>)> {
        self.check_keys();
        let data = self.data();
        if let Some(data) = &data {
            let lists: Vec<String> =
                self.settings.rows.iter().flat_map(|path| path.split('.')).map(String::from).collect();
            let reader = RowReader { lists: &lists, only: self.only, columns: self.columns };
            self.row = reader.read(data, Some(RowLimit { rows: 1, seed: None }))?.swap_remove(0).columns;
        }
        let drafts = match data {
            Some(data) if !self.notes.failed => self.convert(&data),
            // Which keys cannot be imported is told also without rows.
            _ => {
                for key in FIELDS {
                    self.optional_field(key);
                }
                None
            }
        };
        let drafts = drafts.filter(|_| !self.notes.failed);
        Ok((self.name, drafts, self.notes.into_notes()))
    }

    fn check_keys(&mut self) {
        let task = self.task;
        if let Some(key) = task.get("process_docs") {
            let what = key.value.function().unwrap_or("process_docs").to_string();
            let own: Vec<&str> = self.settings.columns.iter().map(|(name, _)| name.as_str()).collect();
            if own.is_empty() && self.only.is_none() && self.settings.rows.is_none() {
                let note = format!(
                    "the Python function `{what}`, which changes rows, is not run: compute the columns that it adds with --column 'NAME={{{{ … }}}}', \
                     choose rows as it does with --where, or say that it is not needed with --set process_docs="
                );
                self.notes.refused("process_docs", note);
            } else {
                let note = format!("the Python function `{what}` is replaced by --column, --where and --rows as given");
                self.notes.approximated("process_docs", note);
            }
        }
        for (name, why) in UNREADABLE {
            match task.get(name).map(|key| &key.value) {
                None | Some(TaskValue::Scalar(Value::Bool(false))) => {}
                Some(value) if name == "process_results" => {
                    let what = value.function().or(value.text()).unwrap_or("process_results").to_string();
                    let note = format!(
                        "the Python function `{what}`, which scores answers, is not run: score them by metrics that ft has, with --set process_results= \
                         and, if need be, --set 'metric_list=[{{metric: acc}}]'"
                    );
                    self.notes.refused(name, note);
                }
                Some(_) => self.notes.refused(name, why),
            }
        }
        for key in &task.keys {
            let known = |names: &[&str]| names.contains(&key.name.as_str());
            if known(&UNUSED) {
                self.notes.add(super::NoteStatus::Unused, &key.name, "no effect on prompts and scores");
            } else if !known(&READ) && !UNREADABLE.iter().any(|(name, _)| *name == key.name) {
                self.notes.refused_part(&key.name, "ft does not know this key");
            }
        }
    }

    /// Returns the file of the split that is asked.
    fn data(&mut self) -> Option<PathBuf> {
        let split = self.split.clone();
        let key = if self.task.get("test_split").is_some() { "test_split" } else { "validation_split" };
        if split.is_empty() {
            self.notes.refused("test_split", "neither `test_split` nor `validation_split` names what is asked");
            return None;
        }
        let path = self.file_of(&split);
        match &path {
            Some(path) => self.notes.mapped(key, format!("`data`: {}", path.display())),
            None => {
                let note = format!(
                    "ft reads rows from files: name that of the split `{split}` of {} with --data {split}=FILE",
                    self.dataset()
                );
                self.notes.refused(key, note);
            }
        }
        path
    }

    /// Returns what a task file calls its data set.
    pub(super) fn dataset(&self) -> String {
        let name = self.task.text("dataset_name").map_or(String::new(), |name| format!(", {name}"));
        format!("{}{name}", self.task.text("dataset_path").unwrap_or("the data set"))
    }

    /// Returns the file of a split: that of --data, or a local one that the task file names.
    pub(super) fn file_of(&self, split: &str) -> Option<PathBuf> {
        let named = |file: &&super::SplitFile| file.split.as_deref().map_or(split == self.split, |name| name == split);
        let files = &self.settings.data;
        let given =
            files.iter().filter(|file| file.split.is_some()).chain(files.iter().filter(|file| file.split.is_none()));
        if let Some(file) = given.clone().find(named) {
            let with = |text: &str, name: &str, value: &str| text.replace(&format!("{{{name}}}"), value);
            let path = with(&file.path, "task", self.task.text("task").unwrap_or_default());
            let path = with(&path, "dataset_name", self.task.text("dataset_name").unwrap_or_default());
            return Some(with(&path, "split", split).into());
        }
        let local = self.task.text("dataset_path").is_some_and(|path| LOCAL.contains(&path));
        let files = self.task.get("dataset_kwargs")?.value.get("data_files")?;
        let file = files.get(split).or(Some(files).filter(|files| files.text().is_some()))?.text()?;
        local.then(|| Path::new(file).to_path_buf())
    }

    pub(super) fn common(&mut self, data: &Path) -> CommonParts {
        let mut draft = Map::new();
        draft.insert("name".into(), self.name.clone().into());
        draft.insert("data".into(), data.display().to_string().into());
        if let Some(rows) = &self.settings.rows {
            draft.insert("rows".into(), rows.clone().into());
        }
        if let Some(only) = &self.settings.only {
            draft.insert("where".into(), only.clone().into());
        }
        if !self.settings.columns.is_empty() {
            let columns = self.settings.columns.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
            draft.insert("columns".into(), columns.collect());
        }
        if let Some(field) = self.optional_field("description").filter(|field| *field != Field::Template(String::new()))
            && let Some(system) = self.as_template("description", &field)
        {
            self.notes.mapped("description", "`system`");
            draft.insert("system".into(), system.into());
        }
        let delimiter = match self.task.get("target_delimiter").map(|key| &key.value) {
            None => " ".to_string(),
            Some(TaskValue::Scalar(Value::String(text))) => {
                self.notes.mapped("target_delimiter", "`separator`");
                text.clone()
            }
            Some(_) => {
                self.notes.refused("target_delimiter", "expected text");
                " ".to_string()
            }
        };
        CommonParts { draft, delimiter }
    }

    /// Returns what a key names; `None` if it is not there or cannot be imported, which is noted.
    pub(super) fn optional_field(&mut self, key: &str) -> Option<Field> {
        let found = self.task.get(key)?;
        self.readable(key, Field::of(&found.value, &self.row))
    }

    /// Notes a field that cannot be imported.
    pub(super) fn readable(&mut self, key: &str, field: Field) -> Option<Field> {
        match field {
            Field::Function(name) => {
                let note = format!(
                    "the Python function `{name}` is not run: write what it makes of a row as a template over its columns, --set '{key}={{{{ … }}}}'"
                );
                self.notes.refused(key, note);
                None
            }
            Field::Other => {
                self.notes.refused(key, "expected a column, a template, a number or texts");
                None
            }
            field => Some(field),
        }
    }

    /// Returns what a key names that a task must have.
    pub(super) fn field(&mut self, key: &str) -> Option<Field> {
        if self.task.get(key).is_none() {
            self.notes.refused(key, format!("`{key}` is missing"));
            return None;
        }
        self.optional_field(key)
    }

    /// Returns a field as a template that the first row has everything for.
    pub(super) fn as_template(&mut self, key: &str, field: &Field) -> Option<String> {
        let Some(text) = field.template() else {
            self.notes.refused(key, "a template can name columns by words only: rename the column in the file");
            return None;
        };
        let row = self.row.clone();
        self.checked(key, text, &row)
    }

    /// Returns a template after it was rendered for a row.
    pub(super) fn checked(&mut self, key: &str, text: String, row: &RowColumns) -> Option<String> {
        let rendered = match RowTemplate::compile(&text) {
            Ok(template) => template.render(row).map(|_| ()).map_err(|error| error.to_string()),
            Err(fault) => Err(format!("the template `{text}`: {fault}")),
        };
        match rendered {
            Ok(()) => Some(text),
            Err(mut told) => {
                if self.task.get("process_docs").is_some() || told.contains("undefined") {
                    told += "; a column that is computed is given with --column";
                }
                self.notes.refused(key, told);
                None
            }
        }
    }
}

/// Returns a name that a suite allows.
pub(super) fn suite_name(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || matches!(c, '_' | '-' | '+') { c } else { '_' }).collect()
}
