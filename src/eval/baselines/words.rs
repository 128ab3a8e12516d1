//! An n-gram model of the words of training rows, as a baseline for choices and texts.

use super::kneser_ney::{KneserNey, Token};
use super::{RuleResult, right_choices, share_of_best};
use crate::eval::results::{ItemInfo, TaskResults};
use crate::stats::moments::mean;
use std::collections::{BTreeSet, HashMap};

/// Number of a word that is in no training row.
const UNKNOWN: Token = Token::MAX - 2;
/// With more different expected answers, they are not tried one by one.
const MOST_ANSWERS: usize = 100;

/// An n-gram model over words.
pub struct WordModel {
    numbers: HashMap<String, Token>,
    model: KneserNey,
}

/// Splits a text into lower-case words: runs of letters and digits, and every other character that is no white space.
pub fn words(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut joins = false;
    for c in text.chars().flat_map(char::to_lowercase) {
        let is_word = c.is_alphanumeric();
        match found.last_mut() {
            Some(last) if is_word && joins => last.push(c),
            _ if !c.is_whitespace() => found.push(c.to_string()),
            _ => (),
        }
        joins = is_word;
    }
    found
}

impl WordModel {
    /// Counts the n-grams of texts, each a whole row, of `order` words.
    pub fn train<'a>(texts: impl IntoIterator<Item = &'a str>, order: usize) -> Self {
        let mut numbers: HashMap<String, Token> = HashMap::new();
        let mut number = |word: String| {
            let next = numbers.len() as Token;
            *numbers.entry(word).or_insert(next)
        };
        let sequences: Vec<Vec<Token>> =
            texts.into_iter().map(|text| words(text).into_iter().map(&mut number).collect()).collect();
        let model = KneserNey::train(sequences.iter().map(Vec::as_slice), order, None);
        Self { numbers, model }
    }

    fn tokens(&self, text: &str) -> Vec<Token> {
        words(text).iter().map(|word| self.numbers.get(word).copied().unwrap_or(UNKNOWN)).collect()
    }

    /// Returns the log-likelihood of a text after a prompt, and its number of words.
    pub fn log_likelihood(&self, prompt: &str, text: &str) -> (f64, usize) {
        let tokens = self.tokens(text);
        (self.model.log_likelihood(&self.tokens(prompt), &tokens), tokens.len())
    }

    /// Returns the perplexity of texts by word; `None` if there are none.
    pub fn perplexity<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Option<f64> {
        let sequences: Vec<Vec<Token>> = texts.into_iter().map(|text| self.tokens(text)).collect();
        self.model.perplexity(sequences.iter().map(Vec::as_slice))
    }

    /// Computes how often the most likely choice is right. A task without choices has its different expected answers as choices, if
    /// they are few. `None` if there are none.
    pub fn rule(&self, task: &TaskResults) -> Option<RuleResult> {
        let items = with_choices(task)?;
        let name = match self.model.order() {
            2 => "a bigram model".to_string(),
            3 => "a trigram model".to_string(),
            n => format!("a model of {n}-grams"),
        };
        // Longer choices are less likely: the mean over words is compared.
        let score = |item: &ItemInfo| {
            share_of_best(item, |choice| {
                let (sum, count) = self.log_likelihood(&item.prompt, choice);
                sum / count.max(1) as f64
            })
        };
        let value = mean(&items.iter().map(score).collect::<Vec<f64>>());
        Some(RuleResult { rule: format!("{name} of the training rows"), metric: "right answers".into(), value })
    }
}

/// Returns the items of a task with choices, one of which is right.
fn with_choices(task: &TaskResults) -> Option<Vec<ItemInfo>> {
    let mut items = task.items.clone();
    if task.kind == "generate" {
        let answers: BTreeSet<&str> =
            task.items.iter().filter_map(|item| item.expected.first()).map(|a| a.trim()).collect();
        let few = answers.len() <= MOST_ANSWERS && 2 * answers.len() <= items.len();
        let choices: Vec<String> = answers.into_iter().filter(|_| few).map(String::from).collect();
        items.iter_mut().for_each(|item| item.choices.clone_from(&choices));
    }
    let all = !items.is_empty() && items.iter().all(|item| !right_choices(item).is_empty());
    all.then_some(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, task};

    #[test]
    fn words_are_runs_of_letters_and_single_marks() {
        assert_eq!(words("Fever, of the 2nd Day?!"), ["fever", ",", "of", "the", "2nd", "day", "?", "!"]);
        assert_eq!(words("Grüße 北京"), ["grüße", "北京"]);
        assert!(words(" \n").is_empty());
    }

    #[test]
    fn what_training_rows_say_is_chosen() {
        let rows: Vec<String> = (0..20).map(|i| format!("case {i}: fever is treated with aspirin")).collect();
        for order in [2, 3] {
            let model = WordModel::train(rows.iter().map(String::as_str), order);
            let mut made = task("t", metric("acc"), &[vec![1.0; 4]]);
            made.kind = "choice".into();
            for item in &mut made.items {
                item.prompt = "Fever is treated with".into();
                item.choices = ["surgery", "aspirin", "rest in bed"].map(String::from).to_vec();
                item.expected = vec!["aspirin".into()];
            }
            let found = model.rule(&made).unwrap();
            assert_eq!(found.value, 1.0);
            assert!(found.rule.contains(if order == 2 { "bigram" } else { "trigram" }));
            let likely = model.perplexity(["case 3: fever is treated with aspirin"]).unwrap();
            assert!(likely < model.perplexity(["aspirin with treated is fever"]).unwrap() / 3.0);
        }
    }

    #[test]
    fn expected_answers_that_repeat_are_choices() {
        let model = WordModel::train(["the answer is yes", "the answer is yes", "so no"], 2);
        let mut made = task("t", metric("exact_match"), &[vec![1.0; 4]]);
        for (i, item) in made.items.iter_mut().enumerate() {
            item.prompt = "the answer is".into();
            item.expected = vec![if i < 3 { "yes" } else { "no" }.into()];
        }
        assert_eq!(model.rule(&made).unwrap().value, 0.75);
        made.items.iter_mut().enumerate().for_each(|(i, item)| item.expected = vec![i.to_string()]);
        assert!(model.rule(&made).is_none(), "every answer is another one");
    }
}
