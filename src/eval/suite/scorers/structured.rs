//! Answers that are JSON or tool calls.

use super::{add_mean, each};
use crate::error::{Error, Result};
use crate::eval::results::SubjectResults;
use crate::eval::suite::answers::ItemTexts;
use crate::eval::suite::rows::{TaskRow, at};
use crate::fsutil::{excerpt, read_json};
use crate::recipe::suite_file::SuiteTask;
use crate::recipe::suite_file::scorers::SchemaSource;
use crate::rewards::json::{AnswerSchema, SchemaFit};
use crate::text_metrics::json_answer::{self, without_fence};
use crate::text_metrics::tool_calls::{ToolCall, ToolCallScore, calls};
use serde_json::Value;

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// The schemas of a task: none, one for all rows, or one for each.
pub struct JsonAnswers(Vec<AnswerSchema>);

impl JsonAnswers {
    /// Reads the schemas.
    pub fn read(task: &SuiteTask, source: Option<&SchemaSource>, rows: &[TaskRow]) -> Result<Self> {
        let of_row = |row: &TaskRow, template: &crate::data::rows::RowTemplate| {
            let schema = match template.value(&row.columns)? {
                Value::String(text) => crate::json::parse(&text)
                    .map_err(|e| Error::user(format!("the schema is no JSON ({e}): {}", excerpt(&text))))?,
                value => value,
            };
            AnswerSchema::of(&schema, "`schema`")
        };
        Ok(Self(match source {
            None => Vec::new(),
            Some(SchemaSource::File(path)) => vec![AnswerSchema::of(&read_json(path)?, &path.display().to_string())?],
            Some(SchemaSource::Column(template)) => {
                rows.iter().map(|row| at(&task.data, row.line, of_row(row, template))).collect::<Result<_>>()?
            }
        }))
    }

    /// Adds whether answers are JSON, and whether it fits the schema.
    pub fn score(&self, answers: &[ItemTexts], results: &mut SubjectResults) {
        if !self.0.is_empty() {
            let fits = |i: usize, text: &str| {
                let schema = self.0.get(i).filter(|_| self.0.len() > 1).unwrap_or(&self.0[0]);
                truth(schema.fit(without_fence(text)) == SchemaFit::Fits)
            };
            add_mean(results, "json_schema", each(answers, fits));
        }
        add_mean(results, "json", each(answers, |_, text| truth(json_answer::read(text).is_some())));
    }
}

/// Reads expected answers as JSON.
pub fn expected_json(task: &SuiteTask, lines: &[usize], expected: &[Vec<String>]) -> Result<Vec<Vec<Value>>> {
    let one = |text: &String| {
        json_answer::read(text).ok_or_else(|| {
            Error::user(format!("the metric `json_equal` compares JSON, and the expected answer is {}", excerpt(text)))
                .hint("`answer: \"{{ column | tojson }}\"` writes a column as JSON")
        })
    };
    let of = |(line, expected): (&usize, &Vec<String>)| at(&task.data, *line, expected.iter().map(one).collect());
    lines.iter().zip(expected).map(of).collect()
}

/// Returns 1 if the answer is JSON that equals an expected value, else 0.
pub fn equals(answer: &str, expected: &[Value]) -> f64 {
    let found = json_answer::read(answer);
    truth(found.is_some_and(|found| expected.iter().any(|one| json_answer::equal(&found, one))))
}

/// The expected calls of each row, of which any list is right.
pub struct ExpectedCalls(Vec<Vec<Vec<ToolCall>>>);

/// Reads expected answers as tool calls.
pub fn expected_calls(task: &SuiteTask, lines: &[usize], expected: &[Vec<String>]) -> Result<ExpectedCalls> {
    let one = |text: &String| {
        calls(text).ok_or_else(|| {
            Error::user(format!("the metric `tool_calls` cannot read the expected calls {}", excerpt(text)))
                .hint("e.g. `answer: \"{{ tool_calls | tojson }}\"`, for a column [{\"name\": …, \"arguments\": {…}}]")
        })
    };
    let of = |(line, expected): (&usize, &Vec<String>)| at(&task.data, *line, expected.iter().map(one).collect());
    lines.iter().zip(expected).map(of).collect::<Result<_>>().map(ExpectedCalls)
}

impl ExpectedCalls {
    /// Adds whether all calls are right, whether their tools are, and F1 of calls. Of several right answers the nearest counts.
    pub fn score(&self, answers: &[ItemTexts], results: &mut SubjectResults) {
        let best = |of: &dyn Fn(&ToolCallScore) -> f64| {
            each(answers, |i, text| {
                let scores = self.0[i].iter().map(|expected| of(&ToolCallScore::of_answer(text, expected)));
                scores.fold(0.0, f64::max)
            })
        };
        add_mean(results, "tool_calls", best(&|score| truth(score.exact)));
        add_mean(results, "tool_names", best(&|score| truth(score.same_tools)));
        add_mean(results, "tool_calls_f1", best(&|score| score.calls.f1));
    }
}
