//! The recipe that `ft init` writes: its values, and its text with comments.

use ft::data::dataset::DatasetSummary;
use ft::data::rows::RowFormat;
use ft::error::{Error, Result};
use ft::models::family::Config;
use ft::recipe;
use ft::recipe::plan::Plan;
use ft::recipe::sections::ReplayChoice;
use ft::report::{bytes, count};
use ft::train::check::PlanCheck;
use std::path::{Path, PathBuf};

/// The values of a first recipe.
#[derive(Clone)]
pub struct RecipeDraft {
    /// The recipe's own file, for messages and its first line.
    pub file: PathBuf,
    pub model: PathBuf,
    pub method: FirstMethod,
    pub train: PathBuf,
    pub valid: Option<PathBuf>,
    /// Chat template instead of the model's own.
    pub template: Option<PathBuf>,
    pub run_out: PathBuf,
    pub max_len: usize,
    pub tokens: usize,
    /// Examples per optimiser step.
    pub examples: usize,
    pub epochs: usize,
    /// Number of steps between validations; 0 without validation rows.
    pub eval_every: usize,
    /// Peak learning rate; `None`: the method's default, not yet known.
    pub lr: Option<f64>,
    pub replay: ReplayChoice,
    /// Length of the longest example in tokens; `None` before the rows were measured.
    pub longest: Option<usize>,
    /// Train every weight, without an adapter.
    pub full: bool,
}

/// A method to begin with, for one kind of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FirstMethod {
    /// The section below `method:`.
    section: &'static str,
    /// What it trains on, and what to try next.
    comment: &'static str,
}

/// Values of the fields that are set after the rows were measured.
impl Default for RecipeDraft {
    fn default() -> Self {
        Self {
            file: "recipe.yaml".into(),
            model: PathBuf::new(),
            method: SFT,
            train: PathBuf::new(),
            valid: None,
            template: None,
            run_out: PathBuf::new(),
            max_len: 1024,
            tokens: 2048,
            examples: 8,
            epochs: 1,
            eval_every: 0,
            lr: None,
            replay: ReplayChoice::None,
            longest: None,
            full: false,
        }
    }
}

const SFT: FirstMethod = FirstMethod {
    section: "sft: { supervise: assistant }",
    comment: "Cross-entropy on the assistant's turns; `last` trains on the last turn only, `all` on every token.",
};
const TEXT: FirstMethod = FirstMethod { section: "sft: { supervise: all }", comment: "Cross-entropy on every token." };
const PAIRS: FirstMethod = FirstMethod {
    section: "dpo: { beta: 0.1 }",
    comment: "Makes the chosen answers more likely than the rejected ones; a larger beta stays closer to the model.\n\
              Also for such pairs: orpo and simpo (without a reference model), reward (a reward model).",
};
const LABELLED: FirstMethod = FirstMethod {
    section: "kto: { beta: 0.1 }",
    comment: "Makes good answers more likely and bad ones less; a larger beta stays closer to the model.",
};

/// Returns the method to begin with for rows of a format. Fails for prompts without answers.
pub fn method(format: RowFormat) -> Result<FirstMethod> {
    Ok(match format {
        RowFormat::Text => TEXT,
        RowFormat::Preference | RowFormat::Hh => PAIRS,
        RowFormat::Unpaired => LABELLED,
        RowFormat::Prompt => {
            return Err(Error::user("the rows are prompts without answers, which need a teacher or a reward")
                .hint("start from recipes/distill-chat.yaml or recipes/grpo-icd10.yaml, or add answers to the rows"));
        }
        _ => SFT,
    })
}

/// What a check predicts for one way to train, with the learning rate that the plan uses for it.
pub struct SizedRun {
    needs: u64,
    free: Option<u64>,
    trained: u64,
    lr: f64,
}

impl SizedRun {
    /// Returns the numbers of a plan and its check.
    pub fn of(plan: &Plan, check: &PlanCheck) -> Self {
        Self {
            needs: check.needs.memory,
            free: check.memory_free,
            trained: check.trained,
            lr: plan.recipe.optim.lr.unwrap_or_default(),
        }
    }
}

/// Returns a comment on how much memory LoRA and full fine-tuning need, and how to choose the other one.
pub fn memory_comment(adapter: &SizedRun, full: &SizedRun) -> String {
    let fits = |run: &SizedRun| match run.free {
        Some(free) if run.needs <= free => "fits",
        Some(_) => "does not fit",
        None => "may fit",
    };
    let free = adapter.free.map_or("an unknown amount".into(), bytes);
    format!(
        "LoRA trains {} parameters and needs about {} of memory ({}); {free} is free.\n\
         Full fine-tuning trains {} and needs about {} ({}): remove this section and set optim.lr to {}.",
        count(adapter.trained),
        bytes(adapter.needs),
        fits(adapter),
        count(full.trained),
        bytes(full.needs),
        fits(full),
        rate(full.lr),
    )
}

impl RecipeDraft {
    /// Returns the plan of the draft's values, without comments.
    pub fn plan(&self) -> Result<Plan> {
        recipe::plan::parse(&self.file.display().to_string(), &self.text(&[String::new(), String::new()]), &[])
    }

    /// Chooses lengths, batch and epochs for the measured rows. `limit` is the longest sequence that the model can
    /// read.
    pub fn fit_to_rows(&mut self, rows: &DatasetSummary, limit: usize, tokens: usize) {
        let longest = rows.lengths.max.max(2);
        self.longest = Some(longest);
        self.max_len = longest.next_multiple_of(64).min(limit);
        self.tokens = tokens.max(self.max_len);
        // At least four steps per epoch, so that a small data set still moves the weights.
        self.examples = (rows.examples / 4).clamp(1, 8);
        self.epochs = if rows.examples < 1000 { 3 } else { 1 };
        let steps = self.epochs * rows.examples.div_ceil(self.examples);
        self.eval_every = if self.valid.is_some() { steps.div_ceil(4) } else { 0 };
    }

    /// Returns a comment on what was detected about the model and its rows.
    pub fn header(&self, config: &Config, rows: &DatasetSummary) -> String {
        let lengths = &rows.lengths;
        format!(
            "Written by ft init for a {} model and {} rows of the format {}: {} examples of {} to {} tokens\n\
             (half of them at most {}), of which {:.0} % are trained on.",
            config.model_type,
            count(rows.rows as u64),
            rows.format.name(),
            count(rows.examples as u64),
            lengths.min,
            lengths.max,
            lengths.p50,
            100.0 * rows.supervised_share()
        )
    }

    /// Returns the text of the recipe. `notes` are the comments at the beginning and before the adapter; they may be
    /// empty.
    pub fn text(&self, notes: &[String; 2]) -> String {
        let [header, memory] = notes;
        let mut out = format!("# ft train {}\n{}\n", quoted(&self.file), comment(header));
        out += &format!("model:\n  path: {}\n\n", quoted(&self.model));
        out += &format!("{}method:\n  {}\n\n", comment(self.method.comment), self.method.section);
        if !self.full {
            out += &comment(memory);
            out += "adapter:\n  lora: { rank: 16, alpha: 32, targets: all-linear }\n\n";
        }
        out += &format!("data:\n  train: {{ path: {} }}\n", quoted(&self.train));
        out += &match &self.valid {
            Some(valid) => format!("  valid: {{ path: {} }}\n", quoted(valid)),
            None => comment_at(
                "  ",
                "Without validation rows nothing shows when training becomes too long. Make some with\n\
                 ft data split FILE --valid 0.1 --train-out TRAIN --valid-out VALID, and add: valid: { path: VALID }",
            ),
        };
        if let Some(template) = &self.template {
            out += &format!("  template: {}\n", quoted(template));
        }
        out += &self.overflow();
        out += &format!(
            "\nbatch:\n  max_len: {}{}\n  tokens: {}   # length of a packed row, which contains several examples; less \
             needs less memory\n  examples: {}   # per optimiser step\n\n",
            self.max_len,
            self.longest.map_or(String::new(), |n| format!("   # the longest example has {} tokens", count(n as u64))),
            self.tokens,
            self.examples
        );
        if let Some(lr) = self.lr {
            out += &format!(
                "optim:\n  lr: {}   # the default of this method; half or double it first when tuning\n",
                rate(lr)
            );
            out += "  schedule: cosine\n\n";
        }
        out += &format!("run:\n  epochs: {}\n", self.epochs);
        if self.eval_every > 0 {
            out += &format!("  eval_every: {}   # steps between validations\n", self.eval_every);
        }
        out += &match self.replay {
            ReplayChoice::None => String::new(),
            ReplayChoice::Layers(n) => format!("  replay: {{ layers: {n} }}   # recomputed, to fit into memory\n"),
            ReplayChoice::All => "  replay: all   # every layer is recomputed, to fit into memory\n".into(),
        };
        out + &format!("  out: {}\n", quoted(&self.run_out))
    }

    /// Returns a comment on what happens to examples that the model cannot read whole.
    fn overflow(&self) -> String {
        match self.longest {
            Some(longest) if longest <= self.max_len => String::new(),
            Some(_) => {
                comment_at("  ", "Some examples are longer than the model can read; `truncate` and `split` keep parts.")
                    + "  on_overflow: drop\n"
            }
            None => "  on_overflow: drop\n".into(),
        }
    }
}

/// Formats a learning rate with at most two digits, such as `2e-4`.
fn rate(lr: f64) -> String {
    format!("{lr:.1e}").replace(".0e", "e")
}

/// Returns `text` as comment lines.
fn comment(text: &str) -> String {
    comment_at("", text)
}

fn comment_at(indent: &str, text: &str) -> String {
    text.lines().map(|line| format!("{indent}# {line}\n")).collect()
}

/// Returns a path as YAML: as it is if nothing in it can be read as something else (a number, `null`, a comment), else
/// in double quotes. The result never contains a line break.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let is_path = text.contains(['/', '.']) && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    if is_path && text.chars().all(plain) { text } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_a_recipe_whatever_the_paths_are() {
        for name in ["data/rows.jsonl", "null", "1e5", "a b", "x: y", "# x", "line\nbreak", "quote\"", "./here", "-"] {
            let mut draft = RecipeDraft {
                model: name.into(),
                train: name.into(),
                run_out: Path::new("out").join(name),
                ..Default::default()
            };
            draft.file = name.into();
            draft.valid = Some(name.into());
            for (full, replay) in
                [(false, ReplayChoice::None), (true, ReplayChoice::Layers(3)), (false, ReplayChoice::All)]
            {
                (draft.full, draft.replay) = (full, replay);
                let plan = draft.plan().unwrap();
                assert_eq!(plan.recipe.model.path, ft::fsutil::absolute(Path::new(name)));
                assert_eq!((plan.recipe.adapter.is_none(), plan.recipe.run.replay), (full, replay));
            }
        }
    }
}
