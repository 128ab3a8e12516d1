//! What is asked of each row of a task, before any model: the parts of its prompts, its choices and its right answers.

use super::choice_letter::LETTERS;
use super::few_shot::Examples;
use super::prompts::PromptParts;
use super::rows::{TaskRow, at, text, texts};
use crate::data::rows::RowTemplate;
use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::recipe::suite_file::{AnswerFilter, ChoiceTask, ChoiceTexts, SuiteTask, TaskKind};
use crate::rng;
use rand::seq::SliceRandom;
use serde_json::Value;

/// The variable with the choices in the order in which the prompt shows them.
const SHOWN: &str = "shown";

/// A question that is answered with a text.
#[derive(Debug, Clone, PartialEq)]
pub struct AskedItem {
    /// The prompt.
    pub prompt: PromptParts,
    /// The right answers; empty if the task has none.
    pub expected: Vec<String>,
    /// The choices among which each filter with letters finds one; empty if the task has no such filter.
    pub choices: Vec<Vec<String>>,
}

/// A question with choices.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceItem {
    /// The choices as texts, in the file's order.
    pub choices: Vec<String>,
    /// Numbers of the right ones, from 0.
    pub right: Vec<usize>,
    /// What the choices say, where that is not their texts.
    pub texts: Option<Vec<String>>,
    /// The question that the row belongs to, if several rows are one.
    pub question: Option<String>,
    /// The question with the choices in the file's order, and in a drawn one if the task asks for it.
    pub orders: Vec<ChoicePrompts>,
}

/// A question whose prompt shows the choices in one order.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoicePrompts {
    /// The prompt; one for each choice if the choices are prompts.
    pub prompts: Vec<PromptParts>,
    /// What follows the prompt for each choice, in the file's order.
    pub continuations: Vec<String>,
}

/// Makes the questions of a task whose answers are written.
pub fn asked_items(task: &SuiteTask, rows: &[TaskRow]) -> Result<Vec<AskedItem>> {
    let (Some(prompt), answer) = (&task.prompt, &task.answer) else {
        return Err(Error::bug("a task without prompt"));
    };
    let example = |row: &TaskRow| {
        let shots = task.few_shot.as_ref();
        let prompt = shots.and_then(|shots| shots.prompt.as_ref()).unwrap_or(prompt);
        let answer = shots.and_then(|shots| shots.answer.as_ref()).or(answer.as_ref());
        let answer = answer.ok_or_else(|| Error::bug("examples without answers"))?;
        Ok((prompt.render(&row.columns)?, first(texts(&answer.value(&row.columns)?)?)?))
    };
    let examples = Examples::open(task, rows, &example)?;
    let filters = match &task.kind {
        TaskKind::Generate(generate) => generate.extract.as_slice(),
        _ => &[],
    };
    let letters: Vec<&RowTemplate> = filters
        .iter()
        .filter_map(|filter| match filter {
            AnswerFilter::Letter(letter) => Some(&letter.choices),
            _ => None,
        })
        .collect();
    let item = |(i, row): (usize, &TaskRow)| {
        let made = || {
            let expected = match answer {
                Some(answer) => texts(&answer.value(&row.columns)?)?,
                None => Vec::new(),
            };
            if answer.is_some() {
                first(expected.clone())?;
            }
            let prompt = PromptParts {
                system: system(task, &row.columns)?,
                examples: examples.of(i)?,
                question: prompt.render(&row.columns)?,
            };
            let choices = letters.iter().map(|letters| lettered(letters, &row.columns)).collect::<Result<_>>()?;
            Ok(AskedItem { prompt, expected, choices })
        };
        at(&task.data, row.line, made())
    };
    rows.iter().enumerate().map(item).collect()
}

/// Returns the choices of a row that have letters.
fn lettered(template: &RowTemplate, columns: &RowColumns) -> Result<Vec<String>> {
    let Value::Array(items) = template.value(columns)? else {
        return Err(Error::user("`letter_of` is no list")
            .hint("it is one expression `{{ … }}` whose value is the list of choices"));
    };
    match items.len() {
        1..=LETTERS => items.iter().map(text).collect(),
        n => Err(Error::user(format!("`letter_of` has {n} choices, there are {LETTERS} letters"))),
    }
}

fn first(texts: Vec<String>) -> Result<String> {
    texts.into_iter().next().ok_or_else(|| Error::user("the list of answers is empty"))
}

fn system(task: &SuiteTask, columns: &RowColumns) -> Result<Option<String>> {
    task.system.as_ref().map(|system| system.render(columns)).transpose()
}

/// Makes the questions of a task with choices.
pub fn choice_items(task: &SuiteTask, choice: &ChoiceTask, rows: &[TaskRow]) -> Result<Vec<ChoiceItem>> {
    let example = |row: &TaskRow| {
        let question = Question::of(choice, &row.columns)?;
        let shots = task.few_shot.as_ref();
        let order: Vec<usize> = (0..question.choices.len()).collect();
        let columns = question.columns(&row.columns, &order);
        let right = question.right[0];
        let own_prompt = shots.and_then(|shots| shots.prompt.as_ref());
        let asked = match (own_prompt.or(task.prompt.as_ref()), &choice.continuation) {
            (Some(prompt), _) => prompt.render(&columns)?,
            (None, _) => question.choices[right].clone(),
        };
        let answer = match (shots.and_then(|shots| shots.answer.as_ref()), &choice.continuation) {
            (Some(answer), _) => text(&answer.value(&columns)?)?,
            (None, Some(continuation)) => continuation.render(&columns)?,
            (None, None) if choice.letters => letter(right),
            (None, None) => question.choices[right].clone(),
        };
        Ok((asked, answer))
    };
    let examples = Examples::open(task, rows, &example)?;
    let mut alike = choice.shuffle.is_some() && !choice.letters;
    let mut items = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        let made = || {
            let question = Question::of(choice, &row.columns)?;
            let count = question.choices.len();
            let mut orders: Vec<Vec<usize>> = vec![(0..count).collect()];
            if let Some(seed) = choice.shuffle {
                orders.push(drawn_order(count, seed, i));
            }
            let prompts = orders.iter().map(|order| {
                let columns = question.columns(&row.columns, order);
                let parts = |question: String| {
                    Ok(PromptParts { system: system(task, &columns)?, examples: examples.of(i)?, question })
                };
                let (prompts, continuations) = match (&choice.continuation, &task.prompt) {
                    (Some(continuation), _) => {
                        let prompts: Result<Vec<_>> = question.choices.iter().cloned().map(parts).collect();
                        (prompts?, vec![continuation.render(&columns)?; count])
                    }
                    (None, Some(prompt)) => {
                        let of = |c: usize| match choice.letters {
                            true => letter(order.iter().position(|shown| *shown == c).unwrap_or_default()),
                            false => question.choices[c].clone(),
                        };
                        (vec![parts(prompt.render(&columns)?)?], (0..count).map(of).collect())
                    }
                    (None, None) => return Err(Error::bug("a task of choices without prompt")),
                };
                Ok(ChoicePrompts { prompts, continuations })
            });
            let orders = prompts.collect::<Result<Vec<_>>>()?;
            let texts = choice.texts.as_ref().map(|texts| said(texts, &row.columns, count)).transpose()?;
            let together = choice.question.as_ref().map(|together| together.render(&row.columns)).transpose()?;
            Ok(ChoiceItem { choices: question.choices, right: question.right, texts, question: together, orders })
        };
        let item: ChoiceItem = at(&task.data, row.line, made())?;
        alike &= item.orders.windows(2).all(|pair| pair[0] == pair[1]);
        items.push(item);
    }
    if alike && items.len() > 1 {
        return Err(Error::user(format!(
            "task `{}`: `shuffle` changes nothing: no prompt shows its choices",
            task.name
        ))
        .hint("show them from the variable `shown`: `{% for c in shown %}…{% endfor %}`, or leave out `shuffle`"));
    }
    Ok(items)
}

/// Returns true if the model sees the choices of every question in their order: by letters, or as texts that the question names one
/// after the other. Choices that are only scored, each by itself, have no order.
pub fn show_their_order(choice: &ChoiceTask, items: &[ChoiceItem]) -> bool {
    let named = |item: &ChoiceItem| {
        let [prompt] = &item.orders[0].prompts[..] else { return false };
        // From the last choice backwards, because its text may also stand in what is asked.
        let before = item
            .choices
            .iter()
            .rev()
            .try_fold(prompt.question.as_str(), |text, choice| text.rfind(choice.trim()).map(|at| &text[..at]));
        before.is_some()
    };
    choice.letters || (choice.continuation.is_none() && !items.is_empty() && items.iter().all(named))
}

/// Draws another order than the file's.
fn drawn_order(count: usize, seed: u64, row: usize) -> Vec<usize> {
    let same: Vec<usize> = (0..count).collect();
    let mut chance = rng::stream(seed, "order of choices", row as u64);
    let mut order = same.clone();
    while order == same && count > 1 {
        order.shuffle(&mut chance);
    }
    order
}

/// Returns what the choices of a row say: a list of as many texts.
fn said(template: &RowTemplate, columns: &RowColumns, choices: usize) -> Result<Vec<String>> {
    let found = texts(&template.value(columns)?)?;
    match found.len() == choices {
        true => Ok(found),
        false => Err(Error::user(format!("`texts` has {} texts, and there are {choices} choices", found.len()))
            .hint("`texts` is one expression `{{ … }}` whose value is a list, in the order of the choices")),
    }
}

/// Returns the letter of a choice, from A.
fn letter(number: usize) -> String {
    char::from(b'A' + number as u8).to_string()
}

/// The choices of a row, and which are right.
struct Question {
    choices: Vec<String>,
    right: Vec<usize>,
}

impl Question {
    fn of(choice: &ChoiceTask, columns: &RowColumns) -> Result<Self> {
        let choices = match &choice.choices {
            ChoiceTexts::Each(each) => each.iter().map(|one| one.render(columns)).collect::<Result<Vec<_>>>()?,
            ChoiceTexts::List(list) => match list.value(columns)? {
                Value::Array(items) => items.iter().map(text).collect::<Result<Vec<_>>>()?,
                // A CSV file has lists as text.
                Value::String(text) if text.trim_start().starts_with('[') => {
                    let items: Vec<String> = serde_json::from_str(&text).map_err(|e| {
                        Error::user(format!("the choices are text that is no list of texts in JSON: {e}"))
                    })?;
                    items
                }
                other => {
                    return Err(Error::user(format!("the choices are no list, found {other}"))
                        .hint("`choices` is a list of templates, or one expression `{{ … }}` whose value is a list"));
                }
            },
        };
        if choices.len() < 2 {
            return Err(Error::user(format!("{} choices, a question needs two or more", choices.len())));
        }
        if choice.letters && choices.len() > LETTERS {
            return Err(Error::user(format!("{} choices, there are {LETTERS} letters", choices.len())));
        }
        if let Some(number) = choices.iter().position(String::is_empty) {
            return Err(Error::user(format!("choice {number} is empty")).hint("a model cannot be asked for no text"));
        }
        let right = match choice.answer.value(columns)? {
            Value::Array(items) => items.iter().map(|item| right_choice(item, &choices)).collect::<Result<Vec<_>>>()?,
            one => vec![right_choice(&one, &choices)?],
        };
        match right.is_empty() {
            true => Err(Error::user("the list of right choices is empty")),
            false => Ok(Self { choices, right }),
        }
    }

    /// Returns the columns with the choices in the order shown.
    fn columns(&self, columns: &RowColumns, order: &[usize]) -> RowColumns {
        let mut columns = columns.clone();
        columns.insert(SHOWN.into(), order.iter().map(|i| Value::from(self.choices[*i].clone())).collect());
        columns
    }
}

/// Returns the number of the right choice, given as a number from 0, as text, or as a letter from A.
fn right_choice(answer: &Value, choices: &[String]) -> Result<usize> {
    let written = text(answer)?;
    let digits = written.trim();
    let number = match digits.parse::<usize>() {
        Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(number),
        _ => choices.iter().position(|choice| *choice == written).or_else(|| match written.trim().as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
            _ => None,
        }),
    };
    number.filter(|number| *number < choices.len()).ok_or_else(|| {
        Error::user(format!("the right answer is `{written}`, and there are {} choices", choices.len())).hint(
            "`answer` is the number of a choice from 0, its text, or its letter; `{{ label | int - 1 }}` counts from 1",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::suite_file::{SuiteFile, parse};
    use serde_json::json;

    fn items(task: &str, rows: &[Value]) -> Result<Vec<ChoiceItem>> {
        let SuiteFile { tasks, .. } = parse("suite.yaml", &format!("tasks:\n- name: a\n  data: rows.jsonl\n{task}"))?;
        let row = |(i, row): (usize, &Value)| TaskRow { line: i + 1, columns: row.as_object().unwrap().clone() };
        let rows: Vec<TaskRow> = rows.iter().enumerate().map(row).collect();
        let TaskKind::Choice(choice) = &tasks[0].kind else { panic!("a choice") };
        choice_items(&tasks[0], choice, &rows)
    }

    #[test]
    fn the_right_choice_is_a_number_a_text_or_a_letter() {
        let choices = ["no".to_string(), "yes".to_string(), "B".to_string()];
        let right = |answer: Value| right_choice(&answer, &choices);
        assert_eq!([json!(1), json!("1"), json!("yes"), json!("b")].map(|a| right(a).unwrap()), [1; 4]);
        assert_eq!(right(json!("B")).unwrap(), 2, "a text is looked for before a letter");
        for answer in [json!(3), json!("-1"), json!("maybe"), json!("D")] {
            assert!(right(answer).unwrap_err().to_string().contains("3 choices"));
        }
    }

    #[test]
    fn letters_follow_the_order_shown() {
        let task = "  prompt: \"{{ q }}{% for c in shown %} {{ c }}{% endfor %}\"\n  \
                    choice: { choices: \"{{ o }}\", answer: \"{{ l }}\", by: letter, shuffle: 3 }\n";
        let found = items(task, &[json!({"q": "?", "o": ["x", "y", "z"], "l": "y"})]).unwrap();
        let [plain, shuffled] = &found[0].orders[..] else { panic!("two orders") };
        assert_eq!(plain.prompts[0].question, "? x y z");
        assert_eq!(plain.continuations, ["A", "B", "C"]);
        let shown: Vec<&str> = shuffled.prompts[0].question[2..].split(' ').collect();
        assert_ne!(shown, ["x", "y", "z"]);
        for (choice, letter) in ["x", "y", "z"].iter().zip(&shuffled.continuations) {
            assert_eq!(shown[usize::from(letter.as_bytes()[0] - b'A')], *choice);
        }
        assert_eq!(found[0].right, [1]);
    }

    #[test]
    fn an_order_that_no_prompt_shows_is_refused() {
        let task = "  prompt: \"{{ q }}\"\n  choice: { choices: [\"{{ a }}\", \"{{ b }}\"], answer: 0, shuffle: 3 }\n";
        let row = json!({"q": "?", "a": "x", "b": "y"});
        let told = items(task, &[row.clone(), row]).unwrap_err().to_string();
        assert!(told.contains("`shuffle` changes nothing"), "{told}");
    }

    #[test]
    fn an_order_is_shown_by_letters_or_by_texts_of_the_question() {
        let row = |q: &str| json!({"q": q, "a": "a cat", "b": "the cat"});
        let shown = |task: &str, rows: &[Value]| {
            let SuiteFile { tasks, .. } =
                parse("suite.yaml", &format!("tasks:\n- name: a\n  data: rows.jsonl\n{task}")).unwrap();
            let TaskKind::Choice(choice) = &tasks[0].kind else { panic!("a choice") };
            show_their_order(choice, &items(task, rows).unwrap())
        };
        let plain = "  prompt: \"{{ q }}\"\n  choice: { choices: [\"{{ a }}\", \"{{ b }}\"], answer: 0 }\n";
        assert!(!shown(plain, &[row("Which?"), row("Which?")]), "each choice is scored by itself");
        assert!(shown(plain, &[row("A cat: a cat or the cat?"), row("a cat, the cat?")]));
        assert!(!shown(plain, &[row("a cat or the cat?"), row("the cat or a cat?")]), "in another order");
        assert!(!shown(plain, &[row("a cat or the cat?"), row("Which?")]), "not in every question");
        let letters = plain.replace("answer: 0", "answer: 0, by: letter");
        assert!(shown(&letters, &[row("Which?")]));
        // Choices that are prompts stand in them, and still have no order.
        let prompts = "  choice: { choices: [\"{{ a }}\", \"{{ b }}\"], answer: 0, continuation: \"{{ q }}\" }\n";
        assert!(!shown(prompts, &[row("sat")]));
    }

    #[test]
    fn examples_are_other_rows_with_their_answers() {
        let task = "  prompt: \"{{ q }}\"\n  few_shot: { rows: 2, seed: 5 }\n  \
                    choice: { choices: [\"no\", \"yes\"], answer: \"{{ l }}\" }\n";
        let rows: Vec<Value> = (0..6).map(|i| json!({"q": format!("q{i}"), "l": i % 2})).collect();
        let found = items(task, &rows).unwrap();
        for (i, item) in found.iter().enumerate() {
            let examples = &item.orders[0].prompts[0].examples;
            assert!(examples.len() == 2 && examples[0] != examples[1], "{examples:?}");
            assert!(examples.iter().all(|(question, _)| *question != format!("q{i}")), "{examples:?}");
            let answer = |q: &str| if q.as_bytes()[1] % 2 == 0 { "no" } else { "yes" };
            assert!(examples.iter().all(|(q, a)| a == answer(q)), "{examples:?}");
        }
        assert_eq!(found, items(task, &rows).unwrap());
        assert!(found.windows(2).any(|w| w[0].orders[0].prompts[0].examples != w[1].orders[0].prompts[0].examples));
        let told = items(task, &rows[..2]).unwrap_err().to_string();
        assert!(told.contains("2 examples"), "{told}");
    }

    #[test]
    fn rows_have_the_question_and_the_texts_of_their_choices() {
        let task = "  prompt: \"{{ q }}\"\n  choice: { choices: \"{{ o }}\", answer: 0, question: \"{{ n }}\", texts: \"{{ t }}\", \
                    metrics: [question_em, text_f1] }\n";
        let row = json!({"q": "?", "o": ["It is A.", "It is B."], "n": 7, "t": ["A", "B"]});
        let found = items(task, &[row]).unwrap();
        assert_eq!(found[0].question.as_deref(), Some("7"));
        assert_eq!(found[0].texts.as_deref(), Some(&["A".to_string(), "B".to_string()][..]));
        let told = items(task, &[json!({"q": "?", "o": ["a", "b"], "n": 7, "t": ["A"]})]).unwrap_err().to_string();
        assert!(told.contains("rows.jsonl:1: `texts` has 1 texts, and there are 2 choices"), "{told}");
    }

    #[test]
    fn mistakes_in_rows_have_places() {
        let task = "  prompt: \"{{ q }}\"\n  choice: { choices: \"{{ o }}\", answer: \"{{ l }}\" }\n";
        let told =
            |row: Value| items(task, &[json!({"q": "?", "o": ["a", "b"], "l": 0}), row]).unwrap_err().to_string();
        assert!(
            told(json!({"o": ["a", "b"], "l": 0}))
                .starts_with("rows.jsonl:2: the template `{{ q }}`: 'q' is undefined")
        );
        assert!(told(json!({"q": "?", "o": "a", "l": 0})).contains("rows.jsonl:2: the choices are no list"));
        assert!(told(json!({"q": "?", "o": ["a"], "l": 0})).contains("rows.jsonl:2: 1 choices"));
        assert!(told(json!({"q": "?", "o": ["a", ""], "l": 0})).contains("rows.jsonl:2: choice 1 is empty"));
        assert!(told(json!({"q": "?", "o": ["a", "b"], "l": []})).contains("right choices is empty"));
    }
}
