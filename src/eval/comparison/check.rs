//! Checks that results fit together before anything is computed from them.

use crate::error::{Error, Result};
use crate::eval::results::{SuiteResults, TaskResults};

/// Fails if results have no model or task, or if a task lacks its main metric, an answer to an item, or a score of an answer.
pub fn check(results: &SuiteResults) -> Result<()> {
    if results.subjects.is_empty() || results.tasks.is_empty() {
        return Err(damaged("there are no models or no tasks in it".to_string()));
    }
    results.tasks.iter().try_for_each(|task| check_task(task, results.subjects.len()))
}

fn check_task(task: &TaskResults, subjects: usize) -> Result<()> {
    let fail = |what: String| Err(damaged(format!("task {}: {what}", task.name)));
    let Some(main) = task.metrics.iter().find(|m| m.name == task.main_metric) else {
        return fail(format!("its main metric {} is not among its metrics", task.main_metric));
    };
    if task.results.len() != subjects {
        return fail(format!("{} results of {subjects} models", task.results.len()));
    }
    for result in &task.results {
        if result.answers.len() != task.items.len() {
            return fail(format!("{} answers to {} items", result.answers.len(), task.items.len()));
        }
        let places = result.answers.iter().zip(&task.items);
        let scored = places.map(|(answer, item)| (item.line, answer.scores.get(&main.name)));
        for (line, score) in scored {
            if main.is_mean && score.is_none_or(|score| !score.is_finite()) {
                return fail(format!("the answer to line {line} has no finite score {}", main.name));
            }
        }
        let counts = |item: usize| [task.items[item].choices.len(), result.answers[item].log_likelihoods.len()];
        if let Some(i) = (0..task.items.len()).find(|i| counts(*i)[1] > 0 && counts(*i)[0] != counts(*i)[1]) {
            let [choices, found] = counts(i);
            return fail(format!("line {} has {choices} choices and {found} log-likelihoods", task.items[i].line));
        }
    }
    Ok(())
}

fn damaged(what: String) -> Error {
    Error::user(format!("the results do not fit together: {what}")).hint("evaluate again, or restore the file")
}
