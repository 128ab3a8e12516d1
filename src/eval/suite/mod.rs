//! Runs evaluation suites: every task is asked of every subject, and the answers are scored.
//!
//! From a row to a number: `rows` reads the files; `items` makes of each row what is asked (`few_shot`: the examples before it,
//! which `python_random` draws as Python does);
//! `prompts` writes it as text for a tokenizer and encodes it. `likelihood` computes log-likelihoods and `written` generates
//! answers, both for all items of a task together; `cache` keeps what was answered. `choices`, `texts` and `answers` run the kinds
//! of tasks, `pairs`, `extraction`, `membership` and `canaries` those that ask what a model prefers and remembers (`training_rows`: rows
//! as it was trained on them), `scores` has what they compute alike (`choice_letter`: letters
//! of choices in written answers); `scorers` (a folder): other ways to score written answers.
//! `subject`: a model with its tokenizer. `preview` shows what is asked without a model.
//!
//! Prompts, tokens and scores are those of lm-evaluation-harness 0.4 where it has them, so that numbers can be compared.

mod answers;
pub mod cache;
mod canaries;
mod choice_letter;
mod choices;
mod extraction;
mod few_shot;
mod items;
pub mod likelihood;
mod membership;
mod output;
mod pairs;
mod preview;
mod prompts;
mod python_random;
pub(super) mod rows;
mod scorers;
mod scores;
mod subject;
mod texts;
mod training_rows;
mod written;

pub use output::write_results;
pub use preview::preview;
pub use subject::SuiteSubject;

use super::results::{ItemAnswer, ItemInfo, SubjectResults, SuiteResults, TaskResults};
use crate::data::rows::RowTemplate;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::recipe::suite_file::{FewShot, SuiteFile, SuiteTask, TaskKind};
use answers::EncodedPrompts;
use cache::AnswerCache;
use items::{AskedItem, ChoiceItem};
use pairs::TextPair;
use prompts::PromptForm;
use rows::{RowReader, TaskRow, at};
use scorers::RowScorers;
use std::path::Path;
use training_rows::TrainedRow;

/// A task whose rows are read.
struct PreparedTask<'a> {
    task: &'a SuiteTask,
    /// The rows; empty for conversations, which each tokenizer reads.
    rows: Vec<TaskRow>,
    items: Items,
    /// What scores written answers read of the rows.
    scorers: RowScorers,
}

/// What is asked of the rows, by the kind of the task.
enum Items {
    Choices(Vec<ChoiceItem>),
    Asked(Vec<AskedItem>),
    Texts(Vec<String>),
    Conversations,
    Pairs(Vec<TextPair>),
    /// Rows as each subject was trained on them.
    Trained(Vec<Vec<TrainedRow>>),
    /// The same of rows that were trained on, and of others.
    Members(Vec<[Vec<TrainedRow>; 2]>),
    /// Canaries, each with other texts of the same form.
    Canaries(Vec<AskedItem>, Vec<Vec<String>>),
}

/// What the answers of models are compared with, where a suite compares them.
#[derive(Clone, Copy)]
pub enum SuiteBaseline<'a> {
    /// Those of the first of several models.
    First,
    /// Nothing yet: the one model is the baseline of an evaluation that follows ([`SuiteBaseline::Results`]).
    ForLater,
    /// Those of the first model of an evaluation by the same suite.
    Results(&'a SuiteResults),
}

impl SuiteBaseline<'_> {
    /// Returns the answers of the first model to the task with this number, if they are those of an earlier evaluation.
    fn answers(&self, task: usize) -> Option<&[ItemAnswer]> {
        match self {
            Self::Results(results) => results.tasks.get(task)?.results.first().map(|first| first.answers.as_slice()),
            _ => None,
        }
    }
}

/// Runs a suite. `name` is its file as named. All files are read before the first question is asked.
///
/// Errors: a file cannot be read or has no rows, a template fails, a row has no right answer, a model cannot answer.
pub fn run_suite(
    model: &Model,
    (suite, name): (&SuiteFile, &str),
    subjects: &[SuiteSubject],
    baseline: SuiteBaseline,
    cache: &mut AnswerCache,
) -> Result<SuiteResults> {
    for task in &suite.tasks {
        if let (TaskKind::Generate(generate), SuiteBaseline::First) = (&task.kind, baseline) {
            scorers::check_baseline(generate, subjects.len()).map_err(|e| of_task(task, e))?;
        }
    }
    let mut read = |task| PreparedTask::read(task, subjects, cache).map_err(|e| of_task(task, e));
    let prepared = suite.tasks.iter().map(&mut read).collect::<Result<Vec<_>>>()?;
    let run = |(i, task): (usize, &PreparedTask)| {
        task.run(model, subjects, baseline.answers(i), cache).map_err(|e| of_task(task.task, e))
    };
    Ok(SuiteResults {
        suite: name.into(),
        title: suite.title.clone(),
        evaluated: None,
        subjects: subjects.iter().map(|subject| subject.info.clone()).collect(),
        tasks: prepared.iter().enumerate().map(run).collect::<Result<_>>()?,
    })
}

/// Names the task in an error that does not.
fn of_task(task: &SuiteTask, error: Error) -> Error {
    let named = format!("task `{}`", task.name);
    if error.message().contains(&named) { error } else { error.context(named) }
}

/// Returns how the prompts of a task are written.
fn form_of(task: &SuiteTask, chat: bool) -> PromptForm {
    let shots = task.few_shot.as_ref();
    PromptForm {
        chat,
        examples: shots.map(|shots| shots.form).unwrap_or_default(),
        separator: task.separator.clone(),
        between: shots.map_or_else(|| FewShot::SEPARATOR.into(), |shots| shots.separator.clone()),
    }
}

impl<'a> PreparedTask<'a> {
    fn read(task: &'a SuiteTask, subjects: &[SuiteSubject], cache: &mut AnswerCache) -> Result<Self> {
        let mut scorers = RowScorers::default();
        let trained = |path: &Path, text: Option<&RowTemplate>| {
            subjects
                .iter()
                .map(|s| TrainedRow::read((path, RowReader::of(task)), task.limit, text, s.tokenizer))
                .collect::<Result<Vec<_>>>()
        };
        match &task.kind {
            TaskKind::Extraction(extraction) => {
                let items = Items::Trained(trained(&task.data, extraction.text.as_ref())?);
                return Ok(Self { task, rows: Vec::new(), items, scorers });
            }
            TaskKind::Membership(membership) => {
                let text = membership.text.as_ref();
                let others = trained(&membership.others, text)?;
                let both =
                    trained(&task.data, text)?.into_iter().zip(others).map(|(members, others)| [members, others]);
                return Ok(Self { task, rows: Vec::new(), items: Items::Members(both.collect()), scorers });
            }
            _ => {}
        }
        if matches!(task.kind, TaskKind::Generate(_)) && task.prompt.is_none() && task.category.is_none() {
            return Ok(Self { task, rows: Vec::new(), items: Items::Conversations, scorers });
        }
        let mut rows = RowReader::of(task).read(&task.data, task.limit)?;
        if let Some(terms) = &task.swap {
            rows = rows::swapped(&task.data, rows, terms, !matches!(task.kind, TaskKind::Pairs(_)))?;
        }
        let items = match &task.kind {
            TaskKind::Choice(choice) => Items::Choices(items::choice_items(task, choice, &rows)?),
            TaskKind::Generate(_) if task.prompt.is_none() => Items::Conversations,
            TaskKind::Generate(generate) => {
                let items = items::asked_items(task, &rows)?;
                scorers = RowScorers::read(task, generate, &rows, &items, cache)?;
                Items::Asked(items)
            }
            TaskKind::Cloze => Items::Asked(items::asked_items(task, &rows)?),
            TaskKind::Pairs(pairs) => Items::Pairs(pairs::text_pairs(task, pairs, &rows)?),
            TaskKind::Exposure(exposure) => {
                let asked = items::asked_items(task, &rows)?;
                let others = canaries::other_texts(task, exposure, &rows, &asked)?;
                Items::Canaries(asked, others)
            }
            TaskKind::Extraction(_) | TaskKind::Membership(_) => {
                return Err(Error::bug("rows that are read as tokens"));
            }
            TaskKind::Perplexity(perplexity) => Items::Texts(texts::texts_of(task, perplexity, &rows)?),
        };
        let prepared = Self { task, rows, items, scorers };
        prepared.categories()?;
        prepared.groups()?;
        Ok(prepared)
    }

    /// Returns the category of each row.
    fn categories(&self) -> Result<Vec<Option<String>>> {
        let Some(category) = &self.task.category else { return Ok(vec![None; self.rows.len()]) };
        self.rows.iter().map(|row| at(&self.task.data, row.line, category.render(&row.columns)).map(Some)).collect()
    }

    /// Returns the group of each row.
    fn groups(&self) -> Result<Vec<Option<String>>> {
        let of = |row: &TaskRow| match (&self.task.group, &self.task.swap, &self.task.kind) {
            (Some(group), ..) => at(&self.task.data, row.line, group.render(&row.columns)).map(Some),
            (None, Some(_), kind) if !matches!(kind, TaskKind::Pairs(_)) => {
                Ok(row.columns.get(rows::GROUP).and_then(|group| group.as_str()).map(str::to_string))
            }
            _ => Ok(None),
        };
        self.rows.iter().map(of).collect()
    }

    /// Returns how prompts are written: for all subjects in the same form, that of the first by default.
    fn form(&self, subjects: &[SuiteSubject]) -> Result<PromptForm> {
        let task = self.task;
        let chat = task.chat.unwrap_or_else(|| subjects[0].tokenizer.has_template());
        if let Some(subject) = subjects.iter().find(|subject| chat && !subject.tokenizer.has_template()) {
            return Err(Error::user(format!("`chat` is true, and {} has no chat template", subject.info.name))
                .hint("set `chat: false`, or give a template with --template FILE"));
        }
        Ok(form_of(task, chat))
    }

    /// Asks all subjects. `earlier`: the answers of the first model, if it was asked before.
    fn run(
        &self,
        model: &Model,
        subjects: &[SuiteSubject],
        earlier: Option<&[ItemAnswer]>,
        cache: &mut AnswerCache,
    ) -> Result<TaskResults> {
        let (task, rows) = (self.task, &self.rows);
        let mut infos: Vec<ItemInfo> = Vec::new();
        let mut results: Vec<SubjectResults> = Vec::new();
        let lines: Vec<usize> = rows.iter().map(|row| row.line).collect();
        let (categories, groups) = (self.categories()?, self.groups()?);
        let mut tell =
            |lines: &[usize], prompts: Vec<String>, expected: &dyn Fn(usize) -> (Vec<String>, Vec<String>)| {
                if infos.is_empty() {
                    infos = lines
                        .iter()
                        .zip(prompts)
                        .enumerate()
                        .map(|(i, (line, prompt))| {
                            let (expected, choices) = expected(i);
                            ItemInfo {
                                line: *line,
                                prompt,
                                expected,
                                category: categories.get(i).cloned().flatten(),
                                group: groups.get(i).cloned().flatten(),
                                choices,
                            }
                        })
                        .collect();
                }
            };
        let metrics = match (&task.kind, &self.items) {
            (TaskKind::Choice(choice), Items::Choices(items)) => {
                let form = self.form(subjects)?;
                for subject in subjects {
                    let (found, prompts) =
                        choices::run_choice(model, (task, choice, &form), rows, items, subject, cache)?;
                    tell(&lines, prompts, &|i| {
                        let right = items[i].right.iter().map(|right| items[i].choices[*right].clone());
                        (right.collect(), items[i].choices.clone())
                    });
                    results.push(found);
                }
                choices::choice_metrics(choice)
            }
            (TaskKind::Cloze, Items::Asked(items)) => {
                let form = self.form(subjects)?;
                for subject in subjects {
                    let (found, prompts) = choices::run_cloze(model, (task, &form), rows, items, subject, cache)?;
                    tell(&lines, prompts, &|i| (items[i].expected.clone(), Vec::new()));
                    results.push(found);
                }
                choices::cloze_metrics()
            }
            (TaskKind::Perplexity(perplexity), Items::Texts(texts)) => {
                for subject in subjects {
                    results.push(texts::run_perplexity(model, (task, perplexity), rows, texts, subject, cache)?);
                }
                tell(&lines, texts.clone(), &|_| Default::default());
                texts::text_metrics(perplexity)
            }
            (TaskKind::Pairs(pairs), Items::Pairs(items)) => {
                for subject in subjects {
                    results.push(pairs::run_pairs(model, (task, pairs), rows, items, subject, cache)?);
                }
                let contexts = items.iter().map(|item| item.context.clone()).collect();
                tell(&lines, contexts, &|i| (Vec::new(), items[i].texts.clone()));
                pairs::pair_metrics(pairs)
            }
            (TaskKind::Exposure(_), Items::Canaries(items, others)) => {
                let form = self.form(subjects)?;
                for subject in subjects {
                    let asked = (&items[..], &others[..]);
                    let (found, prompts) = canaries::run_exposure(model, (task, &form), rows, asked, subject, cache)?;
                    tell(&lines, prompts, &|i| (items[i].expected.clone(), Vec::new()));
                    results.push(found);
                }
                canaries::exposure_metrics()
            }
            (TaskKind::Extraction(extraction), Items::Trained(rows)) => {
                for (subject, rows) in subjects.iter().zip(rows) {
                    let (found, items) = extraction::run_extraction(model, (task, extraction), rows, subject, cache)?;
                    own_items(&mut infos, items)?;
                    results.push(found);
                }
                extraction::extraction_metrics(extraction)
            }
            (TaskKind::Membership(_), Items::Members(rows)) => {
                for (subject, [members, others]) in subjects.iter().zip(rows) {
                    let rows = [&members[..], &others[..]];
                    let earlier = earlier.filter(|earlier| earlier.len() == members.len() + others.len());
                    let first = earlier.or(results.first().map(|found: &SubjectResults| found.answers.as_slice()));
                    let (found, items) = membership::run_membership(model, task, rows, subject, first, cache)?;
                    own_items(&mut infos, items)?;
                    results.push(found);
                }
                membership::membership_metrics()
            }
            (TaskKind::Generate(generate), items) => {
                let (mut encoded, mut own_lines, mut form) = (Vec::<EncodedPrompts>::new(), lines, None);
                for subject in subjects {
                    encoded.push(match items {
                        Items::Asked(items) => {
                            let form = form.insert(self.form(subjects)?);
                            answers::encode_prompts(model, (task, generate, form), rows, items, subject)?
                        }
                        _ => {
                            let (prompts, lines) = answers::encode_conversations(task, generate, subject)?;
                            own_lines = lines;
                            prompts
                        }
                    });
                }
                let of_conversations;
                let scorers = match items {
                    Items::Conversations => {
                        let expected = &encoded[0].expected;
                        of_conversations = RowScorers::of_conversations(task, generate, &own_lines, expected)?;
                        &of_conversations
                    }
                    _ => &self.scorers,
                };
                let of_task = (task, generate, form.as_ref());
                results = answers::run_generate(model, of_task, (&encoded, scorers), (subjects, earlier), cache)?;
                let first = encoded.swap_remove(0);
                tell(&own_lines, first.texts, &|i| (first.expected[i].clone(), Vec::new()));
                answers::written_metrics(generate)
            }
            _ => return Err(Error::bug("items of another kind than their task")),
        };
        let main = task.main.clone().or_else(|| metrics.first().map(|metric| metric.name.clone()));
        Ok(TaskResults {
            name: task.name.clone(),
            kind: task.kind.name().into(),
            forgetting: task.forgetting,
            positive: task.positive.clone(),
            order_shown: match (&task.kind, &self.items) {
                (TaskKind::Choice(choice), Items::Choices(items)) => items::show_their_order(choice, items),
                _ => false,
            },
            main_metric: main.unwrap_or_default(),
            metrics,
            data: task.data.display().to_string(),
            items: infos,
            results,
        })
    }
}

/// Keeps the items of the first subject, and fails unless the others have the same.
fn own_items(infos: &mut Vec<ItemInfo>, items: Vec<ItemInfo>) -> Result<()> {
    if infos.is_empty() {
        *infos = items;
        return Ok(());
    }
    let lines = |items: &[ItemInfo]| items.iter().map(|item| item.line).collect::<Vec<_>>();
    training_rows::check_same(&lines(&items), &lines(infos))
}
