//! Tokenised rows: examples, pairs of answers, labelled answers and prompts.

use crate::data::chat::RowNote;

/// Token ids, and which of them are trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether each token is a target. The first one never is: nothing precedes it that could predict it.
    pub supervised: Vec<bool>,
    /// Line in its file, from 1.
    pub line: usize,
}

impl Example {
    /// Returns the number of tokens that are targets.
    pub fn target_count(&self) -> usize {
        self.supervised.iter().filter(|s| **s).count()
    }
}

/// The result of encoding a row: its examples, with counts and notes for the user.
pub struct EncodedRow<T = Example> {
    /// The examples of the row.
    pub examples: Vec<T>,
    /// Number of answers whose beginning was encoded apart from the prompt.
    pub split_boundaries: usize,
    /// What the user should know about the row.
    pub notes: Vec<RowNote>,
}

/// A tokenised prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PairExample {
    /// Token ids up to the answers, as in generation.
    pub prompt: Vec<u32>,
    /// Token ids of the answer, including its stop token.
    pub chosen: Vec<u32>,
    /// Token ids of the worse answer, including its stop token.
    pub rejected: Vec<u32>,
    /// By how much the chosen answer is better, if the row says so.
    pub margin: Option<f64>,
    /// Line in its file, from 1.
    pub line: usize,
}

impl PairExample {
    /// Returns the chosen and the rejected sequence; the tokens of the answers are supervised.
    pub fn sequences(&self) -> [Example; 2] {
        [&self.chosen, &self.rejected].map(|answer| joined(&self.prompt, answer, self.line))
    }
}

/// A tokenised prompt with an answer and its label: good or bad.
#[derive(Debug, Clone, PartialEq)]
pub struct UnpairedExample {
    /// Token ids up to the answer, as in generation.
    pub prompt: Vec<u32>,
    /// Token ids of the answer, including its stop token.
    pub completion: Vec<u32>,
    /// Whether the answer is labelled as good.
    pub good: bool,
    /// Line in its file, from 1.
    pub line: usize,
}

impl UnpairedExample {
    /// Returns prompt and completion as one sequence; the tokens of the completion are supervised.
    pub fn sequence(&self) -> Example {
        joined(&self.prompt, &self.completion, self.line)
    }
}

/// A tokenised prompt without an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptExample {
    /// Token ids of the prompt, as in generation.
    pub ids: Vec<u32>,
    /// Line in its file, from 1.
    pub line: usize,
}

fn joined(prompt: &[u32], answer: &[u32], line: usize) -> Example {
    let mark = |t: usize| t >= prompt.len().max(1);
    let ids = [prompt, answer].concat();
    Example { supervised: (0..ids.len()).map(mark).collect(), ids, line }
}
