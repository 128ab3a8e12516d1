//! Writes the results of a suite into a folder.

use crate::error::Result;
use crate::eval::results::SuiteResults;
use crate::fsutil;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Writes `results.json`, and for each task `answers/TASK.jsonl` with a line for each item: what was asked, and what each subject
/// answered.
pub fn write_results(folder: &Path, results: &SuiteResults) -> Result<()> {
    fsutil::create_dir_all(&folder.join("answers"))?;
    for task in &results.tasks {
        fsutil::write_atomic(&folder.join("answers").join(format!("{}.jsonl", task.name)), |out| {
            for (i, item) in task.items.iter().enumerate() {
                let mut line = json!(item);
                let answers = results.subjects.iter().zip(&task.results);
                line["answers"] =
                    answers.map(|(subject, found)| (subject.name.clone(), json!(found.answers[i]))).collect();
                serde_json::to_writer(&mut *out, &line)?;
                writeln!(out)?;
            }
            Ok(())
        })?;
    }
    fsutil::write_json(&folder.join("results.json"), results)
}
