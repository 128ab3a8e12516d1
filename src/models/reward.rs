//! Computes the scores of a reward model, and reads and writes reward.json next to its weights.
//!
//! A scalar head that was lost, belongs to another training run or is put on another base still returns numbers, and
//! nothing looks wrong. So a saved reward model contains its scores for fixed sequences ("probes"). If it scores them
//! differently when it is loaded, it is refused.

use super::family::Config;
use super::model::Model;
use super::quantised_base::QuantisedBase;
use crate::error::{Context, Error, Result};
use crate::fsutil::{read_json, write_json};
use crate::nn::Tokens;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Name of the file next to the weights.
pub const FILE: &str = "reward.json";

/// Number of tokens that are scored in one packed row.
const PACKED_TOKENS: usize = 4096;

/// The content of reward.json: how a reward model's scores are computed, and its scores for probes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardScorer {
    /// The score is that of the last token other than this one, as in transformers; `None`: of the last token.
    pub pad_token_id: Option<u32>,
    /// The dtype in which the model scored the probes.
    pub computed_in: String,
    /// How the weights were quantised below the adapter, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised_base: Option<QuantisedBase>,
    /// Root mean square of the scores at all tokens of the probes: the scale against which differences are judged.
    pub spread: f64,
    /// Sequences with the scores that the model gave them when it was saved.
    pub probes: Vec<RewardProbe>,
    /// The version of ft that wrote the file.
    pub ft_version: String,
}

/// A sequence and its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardProbe {
    /// The text that the ids were tokenised from, if there is one.
    pub text: Option<String>,
    /// The token ids.
    pub ids: Vec<u32>,
    /// The score of the sequence.
    pub score: f64,
}

impl RewardScorer {
    /// Computes the content of reward.json for a model, with its scores for `probes`: sequences, and the texts they
    /// come from.
    pub fn measure(model: &Model, pad: Option<u32>, probes: Vec<(Option<String>, Vec<u32>)>) -> Result<Self> {
        let mut scoring = Self {
            pad_token_id: pad,
            computed_in: name(model.kind()),
            quantised_base: QuantisedBase::of(model),
            spread: 0.0,
            probes: Vec::new(),
            ft_version: env!("CARGO_PKG_VERSION").into(),
        };
        let ids: Vec<Vec<u32>> = probes.iter().map(|(_, ids)| ids.clone()).collect();
        let everywhere = scores_at_tokens(model, &ids)?;
        scoring.spread = everywhere.square().mean(Kind::Double).sqrt().double_value(&[]);
        let found = scores(model, &ids, pad)?;
        let probe = |((text, ids), score)| RewardProbe { text, ids, score };
        scoring.probes = probes.into_iter().zip(found).map(probe).collect();
        Ok(scoring)
    }

    /// Reads the reward.json of a directory or adapter. If there is none, there are no probes, and the padding token
    /// is that of the base's config.json.
    pub fn read_or_default(folder: &Path, base: &Config) -> Result<Self> {
        if let Some(scoring) = Self::read(folder)? {
            return Ok(scoring);
        }
        let pad = base.raw.get("pad_token_id").and_then(|v| v.as_u64()).and_then(|id| u32::try_from(id).ok());
        let (computed_in, ft_version) = (String::new(), String::new());
        Ok(Self { pad_token_id: pad, computed_in, quantised_base: None, spread: 0.0, probes: Vec::new(), ft_version })
    }

    /// Reads the reward.json of a folder; `None` if it has none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Writes reward.json into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(FILE), self)
    }

    /// Returns the scores of sequences, in their order.
    pub fn scores<S: AsRef<[u32]>>(&self, model: &Model, sequences: &[S]) -> Result<Vec<f64>> {
        scores(model, sequences, self.pad_token_id)
    }

    /// Fails if the model, under the active adapter, scores a probe differently than when it was saved. `folder` is
    /// where the head was loaded from.
    pub fn check(&self, model: &Model, folder: &Path) -> Result<()> {
        if self.probes.is_empty() {
            return Ok(());
        }
        let ids: Vec<&[u32]> = self.probes.iter().map(|p| p.ids.as_slice()).collect();
        let found = scores(model, &ids, self.pad_token_id).context(|| folder.join(FILE).display().to_string())?;
        // In float32 only the order of sums may differ. Half precision rounds every product by up to 2^-9, which
        // accumulates over layers.
        let exact = name(Kind::Float);
        let share = if self.computed_in == exact && model.kind() == Kind::Float { 1e-3 } else { 0.1 };
        let worst = self.probes.iter().zip(&found).map(|(p, now)| (p, *now, (now - p.score).abs()));
        let Some((probe, now, difference)) = worst.max_by(|a, b| a.2.total_cmp(&b.2)) else { return Ok(()) };
        if difference <= share * self.spread + 1e-6 {
            return Ok(());
        }
        let shown = probe.text.clone().map_or_else(|| format!("the ids {:?}", probe.ids), |t| format!("{t:?}"));
        Err(Error::user(format!(
            "{}: the model scores {shown} with {now:.4}; when it was saved, the score was {:.4} (allowed difference: {:.1e}). Head, adapter or base are not the trained ones",
            folder.join(FILE).display(),
            probe.score,
            share * self.spread,
        ))
        .hint("is --model the base that the adapter was trained on (adapter_config.json names it), and are all files from one training run? Copy the whole folder again"))
    }

    /// Fails if a tokenizer splits a probe's text into other tokens than the tokenizer that the model was trained with.
    pub fn check_texts(&self, folder: &Path, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<()> {
        for (text, probe) in self.probes.iter().filter_map(|p| Some((p.text.as_ref()?, p))) {
            if encode(text)? != probe.ids {
                return Err(Error::user(format!(
                    "{}: the tokenizer splits {text:?} into other tokens than the tokenizer the model was trained with",
                    folder.join(FILE).display()
                ))
                .hint("take the tokenizer files that came with the reward model"));
            }
        }
        Ok(())
    }
}

fn name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// Returns the index of the token whose score counts: the last that is not padding, or 0 if all are.
pub fn score_position(ids: &[u32], pad: Option<u32>) -> usize {
    ids.iter().rposition(|id| Some(*id) != pad).unwrap_or(0)
}

/// Returns the scores of sequences under the active adapter, in their order. They are packed in rows of up to
/// `PACKED_TOKENS` tokens.
pub fn scores<S: AsRef<[u32]>>(model: &Model, sequences: &[S], pad: Option<u32>) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(sequences.len());
    while all.len() < sequences.len() {
        let (mut held, from) = (0, all.len());
        let fits = |s: &&S| {
            held += s.as_ref().len();
            held <= PACKED_TOKENS
        };
        let row = &sequences[from..from + sequences[from..].iter().take_while(fits).count().max(1)];
        let (mut at, mut start) = (Vec::with_capacity(row.len()), 0);
        for ids in row.iter().map(AsRef::as_ref) {
            at.push((start + score_position(ids, pad)) as i64);
            start += ids.len();
        }
        let at = Tensor::from_slice(&at).to_device(model.device());
        let scores = model.infer(&Tokens::pack(row, model.device()), |out| out.scalar(&at))?;
        all.extend(Vec::<f64>::try_from(scores.to_kind(Kind::Double).to_device(Device::Cpu))?);
    }
    Ok(all)
}

/// Returns the score at every token of every sequence: (T) float32 on the CPU.
pub fn scores_at_tokens(model: &Model, sequences: &[Vec<u32>]) -> Result<Tensor> {
    let tokens = Tokens::pack(sequences, model.device());
    let rows = Tensor::arange(tokens.len() as i64, (Kind::Int64, model.device()));
    model.infer(&tokens, |out| out.scalar(&rows).to_device(Device::Cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_that_is_no_padding_bears_the_score() {
        assert_eq!(score_position(&[5, 6, 7], None), 2);
        assert_eq!(score_position(&[5, 6, 0, 0], Some(0)), 1);
        assert_eq!(score_position(&[0, 0, 5, 6], Some(0)), 3);
        assert_eq!(score_position(&[5, 0, 6], Some(0)), 2);
        assert_eq!(score_position(&[0, 0], Some(0)), 0);
    }
}
