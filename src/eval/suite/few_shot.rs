//! The answered examples before a question.

use super::python_random::PythonRandom;
use super::rows::{self, RowReader, TaskRow, at};
use crate::error::{Error, Result};
use crate::recipe::suite_file::{FewShot, FewShotDraw, SuiteTask};
use crate::rng;
use rand::RngExt;
use std::cell::OnceCell;
use std::path::Path;

/// Makes the question and the answer of an example.
type WriteExample<'a> = &'a dyn Fn(&TaskRow) -> Result<(String, String)>;

/// The rows that examples are taken from.
pub struct Examples<'a> {
    settings: Option<&'a FewShot>,
    pool: Vec<TaskRow>,
    /// Whether the rows that are asked are the pool, so that none is its own example.
    from_task: bool,
    written: Vec<OnceCell<(String, String)>>,
    /// The groups of the pool's rows and of the rows that are asked, if examples are of the same group.
    groups: Option<(Vec<String>, Vec<String>)>,
    /// The examples of each row, if they depend on the rows before it.
    drawn: Vec<Vec<usize>>,
    write: WriteExample<'a>,
    path: &'a Path,
}

impl<'a> Examples<'a> {
    /// Reads the rows that examples of a task are taken from; `rows` are those that are asked.
    ///
    /// Errors: the file cannot be read, or has too few rows.
    pub fn open(task: &'a SuiteTask, rows: &[TaskRow], write: WriteExample<'a>) -> Result<Self> {
        let settings = task.few_shot.as_ref();
        let Some(shots) = settings else {
            return Ok(Self {
                settings,
                pool: Vec::new(),
                from_task: true,
                written: Vec::new(),
                groups: None,
                drawn: Vec::new(),
                write,
                path: &task.data,
            });
        };
        let from_task = shots.examples.is_none() && shots.data.as_ref().is_none_or(|data| *data == task.data);
        let path: &Path = match &shots.examples {
            Some(_) => Path::new(rows::GIVEN),
            None => shots.data.as_deref().unwrap_or(&task.data),
        };
        // All rows of the task's file may be examples, not only those that are asked.
        let pool = match &shots.examples {
            Some(examples) => RowReader::of(task).given_examples(examples)?,
            None if from_task && task.limit.is_none() => rows.to_vec(),
            None => RowReader::of(task).read(path, None)?,
        };
        let spare = shots.seed.is_some() && shots.draw == FewShotDraw::LmEvalSpare;
        let others = pool.len() - usize::from(from_task || spare);
        if others < shots.rows {
            return Err(Error::user(format!(
                "{}: {} examples are wanted, the file has {others} rows for them",
                path.display(),
                shots.rows
            ))
            .hint(format!("task `{}`: lower few_shot.rows, or name a larger file in few_shot.data", task.name)));
        }
        let written = pool.iter().map(|_| OnceCell::new()).collect();
        let drawn = match shots.seed {
            Some(seed) if shots.draw != FewShotDraw::ByRow => {
                as_lm_eval(seed, shots.rows, &pool, rows, from_task || spare)
            }
            _ => Vec::new(),
        };
        let groups = shots.group.as_ref().map(|group| {
            let of = |path: &Path, rows: &[TaskRow]| {
                rows.iter().map(|row| at(path, row.line, group.render(&row.columns))).collect::<Result<Vec<_>>>()
            };
            Ok::<_, Error>((of(path, &pool)?, of(&task.data, rows)?))
        });
        Ok(Self { settings, pool, from_task, written, groups: groups.transpose()?, drawn, write, path })
    }

    /// Returns the examples of the row with this number, from 0.
    pub fn of(&self, row: usize) -> Result<Vec<(String, String)>> {
        let Some(shots) = self.settings else { return Ok(Vec::new()) };
        if let Some(drawn) = self.drawn.get(row) {
            return drawn.iter().map(|i| self.written(*i)).collect();
        }
        let of_group = |i: usize| self.groups.as_ref().is_none_or(|(pool, asked)| pool[i] == asked[row]);
        let allowed = (0..self.pool.len()).filter(|i| (!self.from_task || *i != row) && of_group(*i));
        let mut allowed: Vec<usize> = allowed.collect();
        if let (true, Some((_, asked))) = (allowed.len() < shots.rows, &self.groups) {
            let (count, group, path) = (allowed.len(), &asked[row], self.path.display());
            return Err(Error::user(format!(
                "{} examples of the group `{group}` are wanted, {path} has {count}",
                shots.rows
            ))
            .hint("lower few_shot.rows, or leave out few_shot.group"));
        }
        if let Some(seed) = shots.seed {
            let mut chance = rng::stream(seed, "few-shot examples", row as u64);
            let count = allowed.len();
            for i in 0..shots.rows {
                allowed.swap(i, chance.random_range(i..count));
            }
        }
        allowed[..shots.rows].iter().map(|i| self.written(*i)).collect()
    }

    fn written(&self, i: usize) -> Result<(String, String)> {
        if let Some(written) = self.written[i].get() {
            return Ok(written.clone());
        }
        let row = &self.pool[i];
        let made = at(self.path, row.line, (self.write)(row))?;
        Ok(self.written[i].get_or_init(|| made).clone())
    }
}

/// Draws the examples of all rows as lm-evaluation-harness does (`ContextSampler.sample`): one generator for all rows. Where a row
/// may be its own example, and for tasks that name no split for examples, one more is drawn (`spare`), and rows with its columns are left
/// out.
fn as_lm_eval(seed: u64, count: usize, pool: &[TaskRow], rows: &[TaskRow], spare: bool) -> Vec<Vec<usize>> {
    let mut random = PythonRandom::new(seed);
    let mut draw = |row: &TaskRow| {
        if !spare {
            return random.sample(pool.len(), count);
        }
        let other = |i: &usize| pool[*i].columns != row.columns;
        let drawn: Vec<usize> = random.sample(pool.len(), count + 1).into_iter().filter(other).take(count).collect();
        if drawn.len() == count {
            return drawn;
        }
        let others: Vec<usize> = (0..pool.len()).filter(other).collect();
        let again = random.sample(others.len(), count.min(others.len()));
        again.into_iter().map(|i| others[i]).collect()
    };
    rows.iter().map(&mut draw).collect()
}
