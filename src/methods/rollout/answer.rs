//! A sampled answer with its rewards.

/// A sampled answer with its rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledAnswer {
    /// Index of its prompt.
    pub prompt: usize,
    /// Token ids of prompt and answer, including the stop token or the tokens of the stop text that ended it.
    pub ids: Vec<u32>,
    /// Index in `ids` of the answer's first token.
    pub answer_start: usize,
    /// Log-probability of each token of the answer under the distribution it was sampled from.
    pub log_probs: Vec<f32>,
    /// True if a stop token or a stop text ended it; false if it was truncated at the maximum length.
    pub ended: bool,
    /// The answer's text, without the stop token or stop text.
    pub text: String,
    /// The reward from each source, unweighted; NaN if a source abstained.
    pub rewards: Vec<f64>,
    /// Their weighted sum, minus the penalty if the answer was truncated.
    pub reward: f64,
}

impl SampledAnswer {
    /// Returns the answer's token ids, including the stop token or stop text.
    pub fn answer_ids(&self) -> &[u32] {
        &self.ids[self.answer_start..]
    }

    /// Returns how many tokens the answer has, including the stop token or stop text.
    pub fn length(&self) -> usize {
        self.ids.len() - self.answer_start
    }
}

/// A sampled answer with what its loss needs.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerWithAdvantage {
    /// The answer.
    pub sample: SampledAnswer,
    /// Log-probability of each of its tokens before the first optimiser step on it.
    pub old: Vec<f32>,
    /// Log-probability of each of its tokens under the reference.
    pub reference: Option<Vec<f32>>,
    /// How much better it is than the others to its prompt.
    pub advantage: f64,
}
