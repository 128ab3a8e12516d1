//! Scores of a reward model, and reward.json beside its weights: which token bears the score, and probes.
//!
//! A head that was lost, taken from another training or put on another base still gives numbers. So a saved reward
//! model carries what it said to fixed probes when it was trained, and one that now says something else is not used.

use super::{Config, Model};
use crate::error::{Context, Error, Result};
use crate::fsutil::{read_json, write_json};
use crate::nn::Tokens;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The file's name beside the weights.
pub const FILE: &str = "reward.json";

/// Tokens that are scored in one packed row.
const PACK: usize = 4096;

/// How a reward model is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// The last token that is not this one bears the score, as in transformers; `None`: the last token.
    pub pad_token_id: Option<u32>,
    /// The dtype in which the model scored the probes.
    pub computed_in: String,
    /// Root mean square of the scores at all tokens of the probes: what a difference is large or small against.
    pub spread: f64,
    pub probes: Vec<Probe>,
    pub ft_version: String,
}

/// A sequence and its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The text, where the ids come from one.
    pub text: Option<String>,
    pub ids: Vec<u32>,
    pub score: f64,
}

impl Scoring {
    /// What the model says now to sequences (with the text they come from).
    pub fn measure(model: &Model, pad: Option<u32>, probes: Vec<(Option<String>, Vec<u32>)>) -> Result<Self> {
        let mut scoring = Self {
            pad_token_id: pad,
            computed_in: name(model.kind()),
            spread: 0.0,
            probes: Vec::new(),
            ft_version: env!("CARGO_PKG_VERSION").into(),
        };
        let ids: Vec<Vec<u32>> = probes.iter().map(|(_, ids)| ids.clone()).collect();
        let everywhere = everywhere(model, &ids)?;
        scoring.spread = everywhere.square().mean(Kind::Double).sqrt().double_value(&[]);
        let found = scores(model, &ids, pad)?;
        let probe = |((text, ids), score)| Probe { text, ids, score };
        scoring.probes = probes.into_iter().zip(found).map(probe).collect();
        Ok(scoring)
    }

    /// Of a directory or adapter: its reward.json, else the padding token that config.json of the base names.
    pub fn of(folder: &Path, base: &Config) -> Result<Self> {
        if let Some(scoring) = Self::read(folder)? {
            return Ok(scoring);
        }
        let pad = base.raw.get("pad_token_id").and_then(|v| v.as_u64()).and_then(|id| u32::try_from(id).ok());
        let (computed_in, ft_version) = (String::new(), String::new());
        Ok(Self { pad_token_id: pad, computed_in, spread: 0.0, probes: Vec::new(), ft_version })
    }

    /// The reward.json of a folder, if it has one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        path.exists().then(|| read_json(&path)).transpose()
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(FILE), self)
    }

    /// The scores of sequences, in their order.
    pub fn scores<S: AsRef<[u32]>>(&self, model: &Model, sequences: &[S]) -> Result<Vec<f64>> {
        scores(model, sequences, self.pad_token_id)
    }

    /// An error where the model, under the adapter that is switched on, scores a probe otherwise than when it was
    /// saved. `folder` is where the head comes from.
    pub fn check(&self, model: &Model, folder: &Path) -> Result<()> {
        if self.probes.is_empty() {
            return Ok(());
        }
        let ids: Vec<&[u32]> = self.probes.iter().map(|p| p.ids.as_slice()).collect();
        let found = scores(model, &ids, self.pad_token_id).context(|| folder.join(FILE).display().to_string())?;
        // float32: sums in another order. Half precision rounds every product by up to 2^-9, and layers add that up.
        let exact = name(Kind::Float);
        let share = if self.computed_in == exact && model.kind() == Kind::Float { 1e-3 } else { 0.1 };
        let worst = self.probes.iter().zip(&found).map(|(p, now)| (p, *now, (now - p.score).abs()));
        let Some((probe, now, difference)) = worst.max_by(|a, b| a.2.total_cmp(&b.2)) else { return Ok(()) };
        if difference <= share * self.spread + 1e-6 {
            return Ok(());
        }
        let shown = probe.text.clone().map_or_else(|| format!("the ids {:?}", probe.ids), |t| format!("{t:?}"));
        Err(Error::user(format!(
            "{}: the model scores {shown} with {now:.4}; when it was saved it was {:.4} (allowed: {:.1e} more or less). Head, adapter or base are not those that were trained",
            folder.join(FILE).display(),
            probe.score,
            share * self.spread,
        ))
        .hint("is --model the base that the adapter was trained on (adapter_config.json names it), and are all files of one training? Copy the folder anew"))
    }

    /// An error where a tokenizer reads a probe's text otherwise than the one the model was trained with.
    pub fn check_texts(&self, folder: &Path, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<()> {
        for (text, probe) in self.probes.iter().filter_map(|p| Some((p.text.as_ref()?, p))) {
            if encode(text)? != probe.ids {
                return Err(Error::user(format!(
                    "{}: the tokenizer reads {text:?} as other tokens than the one the model was trained with",
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

/// The token that bears the score: the last that is not padding; the first where all are.
pub fn place(ids: &[u32], pad: Option<u32>) -> usize {
    ids.iter().rposition(|id| Some(*id) != pad).unwrap_or(0)
}

/// The scores of sequences under the adapter that is switched on, in their order; packed in that order.
pub fn scores<S: AsRef<[u32]>>(model: &Model, sequences: &[S], pad: Option<u32>) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(sequences.len());
    while all.len() < sequences.len() {
        let (mut held, from) = (0, all.len());
        let fits = |s: &&S| {
            held += s.as_ref().len();
            held <= PACK
        };
        let row = &sequences[from..from + sequences[from..].iter().take_while(fits).count().max(1)];
        let (mut at, mut start) = (Vec::with_capacity(row.len()), 0);
        for ids in row.iter().map(AsRef::as_ref) {
            at.push((start + place(ids, pad)) as i64);
            start += ids.len();
        }
        let at = Tensor::from_slice(&at).to_device(model.device());
        let scores = model.infer(&Tokens::pack(row, model.device()), |out| out.scalar(&at))?;
        all.extend(Vec::<f64>::try_from(scores.to_kind(Kind::Double).to_device(Device::Cpu))?);
    }
    Ok(all)
}

/// (T) float32 on the CPU: the score at every token of every sequence.
pub fn everywhere(model: &Model, sequences: &[Vec<u32>]) -> Result<Tensor> {
    let tokens = Tokens::pack(sequences, model.device());
    let rows = Tensor::arange(tokens.len() as i64, (Kind::Int64, model.device()));
    model.infer(&tokens, |out| out.scalar(&rows).to_device(Device::Cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_that_is_no_padding_bears_the_score() {
        assert_eq!(place(&[5, 6, 7], None), 2);
        assert_eq!(place(&[5, 6, 0, 0], Some(0)), 1);
        assert_eq!(place(&[0, 0, 5, 6], Some(0)), 3);
        assert_eq!(place(&[5, 0, 6], Some(0)), 2);
        assert_eq!(place(&[0, 0], Some(0)), 0);
    }
}
