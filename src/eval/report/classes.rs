//! Finds the classes of a task whose answers repeat, and counts which was answered for which.

use crate::eval::baselines::is_answer;
use crate::eval::results::{SubjectResults, TaskResults};
use crate::stats::classification::Confusion;

/// With more different expected answers, a task has no table of classes.
const MOST_CLASSES: usize = 24;
/// Each class is expected at least so often on average; otherwise the answers are no classes.
const ITEMS_PER_CLASS: usize = 2;

/// The classes of a task, the most frequent first.
pub struct Classes {
    /// Their names as first written.
    pub names: Vec<String>,
    /// Class of each item.
    expected: Vec<usize>,
}

impl Classes {
    /// Returns the classes of a task; `None` if items have several expected answers, too few share one, or nothing is answered.
    pub fn of(task: &TaskResults) -> Option<Self> {
        if !matches!(task.kind.as_str(), "choice" | "generate" | "cloze") {
            return None;
        }
        let mut names: Vec<(String, usize)> = Vec::new();
        for item in &task.items {
            let [answer] = &item.expected[..] else { return None };
            match names.iter_mut().find(|(name, _)| is_answer(answer, name)) {
                Some((_, count)) => *count += 1,
                None => names.push((answer.trim().to_string(), 1)),
            }
            if names.len() > MOST_CLASSES {
                return None;
            }
        }
        if names.len() < 2 || task.items.len() < ITEMS_PER_CLASS * names.len() {
            return None;
        }
        names.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
        let place = |answer: &str| names.iter().position(|name| is_answer(answer, name));
        let expected = task.items.iter().filter_map(|item| place(&item.expected[0])).collect();
        Some(Self { expected, names })
    }

    /// Counts the answers of a model. The class after the last stands for answers that are no class.
    pub fn confusion(&self, results: &SubjectResults) -> Confusion {
        let place = |text: &str| self.names.iter().position(|name| is_answer(text, name)).unwrap_or(self.names.len());
        let pairs =
            self.expected.iter().zip(&results.answers).map(|(expected, answer)| (*expected, place(&answer.text)));
        Confusion::of(pairs, self.names.len() + 1)
    }
}
