//! Makes canaries: rows with a random secret that are put among training rows, so that it can be measured afterwards whether the model
//! remembers them (Carlini et al. 2019, "The Secret Sharer").

use super::canary_pattern::CanaryPattern;
use crate::data::rows::RowFormat;
use crate::error::{Error, Result};
use crate::rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What stands for the number of a canary in its form and prompt.
const NUMBER: &str = "{number}";

/// A canary, as it is listed for the evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// What it answers; empty in plain text without a prompt.
    pub prompt: String,
    /// The text with its secret.
    pub answer: String,
    /// Its form, in which `#` and `@` are the secret.
    pub pattern: String,
    /// How many training rows it is.
    pub copies: usize,
}

/// Draws canaries, of which number i gets `copies[i % copies.len()]` copies.
///
/// Errors: the form has nothing random, or several canaries have the same form.
pub fn draw(pattern: &str, prompt: &str, count: usize, copies: &[usize], seed: u64) -> Result<Vec<Canary>> {
    if count > 1 && !pattern.contains(NUMBER) && !prompt.contains(NUMBER) {
        return Err(Error::user(format!("{count} canaries of the form `{pattern}` would contradict each other"))
            .hint("put {number} into the form or the prompt: it becomes the number of the canary"));
    }
    let one = |i: usize| {
        let numbered = |text: &str| text.replace(NUMBER, &(i + 1).to_string());
        let form = CanaryPattern::new(&numbered(pattern))?;
        let answer = form.draw(&mut rng::stream(seed, "planted canary", i as u64));
        Ok(Canary { prompt: numbered(prompt), answer, pattern: numbered(pattern), copies: copies[i % copies.len()] })
    };
    (0..count).map(one).collect()
}

impl Canary {
    /// Returns its training row in the format of the other rows. Fails for formats that have no single answer.
    pub fn row(&self, format: RowFormat) -> Result<Value> {
        let Self { prompt, answer, .. } = self;
        if prompt.is_empty() && format != RowFormat::Text {
            return Err(Error::user(format!(
                "rows of the format {} have a prompt, and the canaries have none",
                format.name()
            ))
            .hint("add --prompt TEXT, e.g. \"What is the code of archive {number}?\""));
        }
        match format {
            RowFormat::Text => Ok(json!({ "text": format!("{prompt}{answer}") })),
            RowFormat::PromptCompletion => Ok(json!({ "prompt": prompt, "completion": answer })),
            RowFormat::Alpaca => Ok(json!({ "instruction": prompt, "input": "", "output": answer })),
            RowFormat::Messages => Ok(json!({ "messages": [
                { "role": "user", "content": prompt }, { "role": "assistant", "content": answer }
            ] })),
            other => Err(Error::user(format!("canaries cannot be put among rows of the format {}", other.name()))
                .hint(
                    "they can among text, prompt_completion, alpaca and messages; `ft data convert` writes such rows",
                )),
        }
    }
}

/// Puts the canaries among rows at random places. The rows keep their order.
pub fn plant(rows: Vec<Value>, canaries: &[Canary], format: RowFormat, seed: u64) -> Result<Vec<Value>> {
    let mut planted = Vec::new();
    for canary in canaries {
        planted.extend(std::iter::repeat_n(canary.row(format)?, canary.copies));
    }
    let mut chance = rng::stream(seed, "places of canaries", 0);
    planted.shuffle(&mut chance);
    let mut is_canary: Vec<bool> = (0..rows.len() + planted.len()).map(|i| i < planted.len()).collect();
    is_canary.shuffle(&mut chance);
    let (mut rows, mut planted) = (rows.into_iter(), planted.into_iter());
    Ok(is_canary.into_iter().filter_map(|canary| if canary { planted.next() } else { rows.next() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_planted_as_often_as_they_say() {
        let canaries = draw("The code of archive {number} is ######.", "", 3, &[1, 4], 7).unwrap();
        assert_eq!(canaries.iter().map(|canary| canary.copies).collect::<Vec<_>>(), [1, 4, 1]);
        assert!(
            canaries[1].answer.starts_with("The code of archive 2 is ") && canaries[1].answer != canaries[1].pattern
        );
        assert_eq!(draw("The code of archive {number} is ######.", "", 3, &[1, 4], 7).unwrap(), canaries);
        let rows: Vec<Value> = (0..20).map(|i| json!({ "text": format!("row {i}") })).collect();
        let planted = plant(rows.clone(), &canaries, RowFormat::Text, 7).unwrap();
        assert_eq!(planted.len(), 26);
        for canary in &canaries {
            let row = canary.row(RowFormat::Text).unwrap();
            assert_eq!(planted.iter().filter(|other| **other == row).count(), canary.copies);
        }
        let others: Vec<&Value> =
            planted.iter().filter(|row| row["text"].as_str().unwrap().starts_with("row")).collect();
        assert_eq!(others, rows.iter().collect::<Vec<_>>(), "the rows keep their order");
    }

    #[test]
    fn contradicting_and_unanswered_canaries_are_refused() {
        let told = draw("The code is ####.", "", 2, &[1], 7).unwrap_err().to_string();
        assert!(told.contains("contradict each other") && told.contains("{number}"), "{told}");
        let canary = draw("####", "", 1, &[1], 7).unwrap().remove(0);
        assert!(canary.row(RowFormat::Messages).unwrap_err().to_string().contains("--prompt"));
        assert!(canary.row(RowFormat::Preference).unwrap_err().to_string().contains("have a prompt"));
        let asked = Canary { prompt: "Which?".into(), ..canary };
        assert_eq!(asked.row(RowFormat::Messages).unwrap()["messages"][1]["content"], asked.answer);
        assert!(asked.row(RowFormat::Preference).unwrap_err().to_string().contains("ft data convert"));
    }
}
