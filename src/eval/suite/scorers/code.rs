//! Programs in answers: each is run in a sandbox with its tests, and passes if it ends without an error.

use super::AnsweredTask;
use super::add_mean;
use crate::error::{Error, Result};
use crate::eval::results::SubjectResults;
use crate::eval::suite::answers::ItemTexts;
use crate::eval::suite::cache::{AnswerCache, key};
use crate::eval::suite::rows::{TaskRow, at};
use crate::fsutil::hex;
use crate::recipe::suite_file::SuiteTask;
use crate::recipe::suite_file::scorers::{CodeTests, attempts};
use crate::report;
use crate::sandbox::Sandbox;
use crate::stats::pass_at_k::pass_at_k;
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The variable with the answer.
const COMPLETION: &str = "completion";
/// The variable with a word that a program prints when its tests are over. A program that ends before, as by `exit()`, then fails.
const PASSED: &str = "passed";
/// Bytes of the hash that make this word.
const WORD_BYTES: usize = 8;
/// Programs that are run between two writes of the cache.
const BATCH: usize = 64;

/// A program made of an answer and its tests.
struct TestProgram {
    text: String,
    /// What it prints when its tests are over, if the template says so.
    word: Option<String>,
}

/// Runs the programs of a task.
pub struct CodeScorer {
    tests: CodeTests,
    rows: Vec<TaskRow>,
    sandbox: Sandbox,
}

impl CodeScorer {
    /// Opens the sandbox, renders each program without an answer, and runs the tests with the reference solutions if there are any.
    ///
    /// Errors: the sandbox cannot be had, a row lacks a column, no reference passes its tests.
    pub fn open(task: &SuiteTask, tests: &CodeTests, rows: &[TaskRow], cache: &mut AnswerCache) -> Result<Self> {
        let sandbox = Sandbox::new(tests.isolation, tests.limits, &tests.command, &tests.file)?;
        let scorer = Self { tests: tests.clone(), rows: rows.to_vec(), sandbox };
        for row in rows {
            at(&task.data, row.line, scorer.program(row, ""))?;
        }
        if let Some(reference) = &tests.reference {
            let program = |row: &TaskRow| {
                let reference = reference.render(&row.columns)?;
                scorer.program(row, &reference)
            };
            let programs: Vec<TestProgram> =
                rows.iter().map(|row| at(&task.data, row.line, program(row))).collect::<Result<_>>()?;
            scorer.check_references(task, &scorer.run(&programs, &format!("{}, references", task.name), cache)?)?;
        }
        Ok(scorer)
    }

    fn check_references(&self, task: &SuiteTask, found: &[(bool, String)]) -> Result<()> {
        let failed: Vec<usize> = (0..found.len()).filter(|i| !found[*i].0).collect();
        let Some(first) = failed.first() else { return Ok(()) };
        let what = format!("row {}: {}", self.rows[*first].line, found[*first].1);
        if failed.len() == found.len() {
            return Err(Error::user(format!("no reference solution passes its tests; {what}"))
                .hint("is `command` the right interpreter, and are `program` and the limits right?"));
        }
        report::warn(format!(
            "task `{}`: {} of {} reference solutions fail their tests, so no model can pass them; {what}",
            task.name,
            failed.len(),
            found.len()
        ));
        Ok(())
    }

    /// Writes the program of a row with an answer.
    fn program(&self, row: &TaskRow, completion: &str) -> Result<TestProgram> {
        let mut columns = row.columns.clone();
        columns.insert(COMPLETION.into(), Value::from(completion));
        columns.insert(PASSED.into(), Value::from(""));
        let without = self.tests.program.render(&columns)?;
        // The answer was written before, and cannot know the word.
        let word = hex(&Sha256::digest(&without)[..WORD_BYTES]);
        columns.insert(PASSED.into(), Value::from(word.as_str()));
        let text = self.tests.program.render(&columns)?;
        Ok(TestProgram { word: (text != without).then_some(word), text })
    }

    /// Runs a program; returns whether it passed, and how it ended.
    fn run_one(&self, program: &TestProgram) -> Result<(bool, String)> {
        let ran = self.sandbox.run(&program.text)?;
        let early = program.word.as_ref().is_some_and(|word| !ran.output.contains(word));
        Ok(match ran.succeeded() && early {
            true => (false, "ended before its tests".into()),
            false => (ran.succeeded(), ran.summary()),
        })
    }

    /// Runs programs, those that are unknown; returns whether each passed, and how it ended.
    fn run(&self, programs: &[TestProgram], what: &str, cache: &mut AnswerCache) -> Result<Vec<(bool, String)>> {
        let settings = format!("{} {:?} {:?}", self.sandbox.command_line(), self.tests.isolation, self.tests.limits);
        let keys: Vec<String> = programs.iter().map(|program| key(&settings, &program.text, &[])).collect();
        let mut known: BTreeMap<&str, (bool, String)> = BTreeMap::new();
        let mut open: BTreeMap<&str, &TestProgram> = BTreeMap::new();
        for (key, program) in keys.iter().zip(programs) {
            match cache.get::<(bool, String)>(key) {
                Some(found) => drop(known.insert(key, found)),
                None => drop(open.insert(key, program)),
            }
        }
        let bar = report::bar(open.len() as u64, what);
        for part in open.into_iter().collect::<Vec<_>>().chunks(BATCH) {
            let run = |(key, program): &(&str, &TestProgram)| {
                let ended = self.run_one(program)?;
                bar.inc(1);
                Ok((key.to_string(), ended))
            };
            let found: Vec<(String, (bool, String))> = part.par_iter().map(run).collect::<Result<_>>()?;
            known.extend(part.iter().zip(&found).map(|((key, _), (_, ended))| (*key, ended.clone())));
            cache.add(found)?;
        }
        bar.finish_and_clear();
        Ok(keys.iter().map(|key| known[key.as_str()].clone()).collect())
    }

    /// Adds pass@k: the estimate of each item from all its samples, and their mean.
    pub fn score(
        &self,
        metric: &str,
        answered: &AnsweredTask,
        answers: &[ItemTexts],
        results: &mut SubjectResults,
        cache: &mut AnswerCache,
    ) -> Result<()> {
        let k = attempts(metric).ok_or_else(|| Error::bug(format!("no metric `{metric}`")))?;
        let task = answered.task;
        let mut programs = Vec::new();
        for (row, texts) in self.rows.iter().zip(answers) {
            for text in &texts.samples {
                programs.push(at(&task.data, row.line, self.program(row, text))?);
            }
        }
        let mut found = self.run(&programs, &format!("{}, tests", task.name), cache)?.into_iter();
        let mut scores = Vec::with_capacity(answers.len());
        for (texts, answer) in answers.iter().zip(&mut results.answers) {
            let ended: Vec<(bool, String)> = found.by_ref().take(texts.samples.len()).collect();
            let passed = ended.iter().filter(|(passed, _)| *passed).count();
            let estimate = pass_at_k(ended.len(), passed, k);
            scores.push(estimate.ok_or_else(|| Error::bug(format!("{metric} of {} samples", ended.len())))?);
            answer.notes = ended.into_iter().map(|(_, how)| how).collect();
        }
        add_mean(results, metric, scores);
        Ok(())
    }
}
