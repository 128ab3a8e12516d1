//! Saves samples as tensors and loads them again. A checkpoint in the middle of an iteration needs the samples that
//! the remaining steps train on.

use super::SampledAnswer;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The tensors of a checkpoint, by name.
pub type StateTensors = BTreeMap<String, Tensor>;

/// Adds samples to `state` as tensors `name.ids`, `name.log_probs` and so on. `sources` is the number of rewards of
/// each sample.
pub fn save(state: &mut StateTensors, name: &str, samples: &[SampledAnswer], sources: usize) {
    let mut insert = |what: &str, tensor: Tensor| drop(state.insert(format!("{name}.{what}"), tensor));
    let ids: Vec<i64> = samples.iter().flat_map(|s| s.ids.iter().map(|id| i64::from(*id))).collect();
    let shape: Vec<i64> = samples
        .iter()
        .flat_map(|s| {
            [s.prompt as i64, s.ids.len() as i64, s.answer_start as i64, i64::from(s.ended), s.text.len() as i64]
        })
        .collect();
    let log_probs: Vec<f32> = samples.iter().flat_map(|s| s.log_probs.iter().copied()).collect();
    let rewards: Vec<f64> =
        samples.iter().flat_map(|s| s.rewards.iter().copied().chain(std::iter::once(s.reward))).collect();
    let text: Vec<u8> = samples.iter().flat_map(|s| s.text.bytes()).collect();
    let count = samples.len() as i64;
    insert("ids", Tensor::from_slice(&ids));
    insert("shape", Tensor::from_slice(&shape).view([count, 5]));
    insert("log_probs", Tensor::from_slice(&log_probs));
    insert("rewards", Tensor::from_slice(&rewards).view([count, sources as i64 + 1]));
    insert("text", Tensor::from_slice(&text));
}

/// Reads the samples that were saved under `name`. An error if a tensor is missing or the sizes do not match.
pub fn load(state: &StateTensors, name: &str) -> Result<Vec<SampledAnswer>> {
    let get = |what: &str| {
        let key = format!("{name}.{what}");
        state.get(&key).ok_or_else(|| broken(&format!("has no tensor `{key}`")))
    };
    let ids = Vec::<i64>::try_from(get("ids")?)?;
    let shape = get("shape")?;
    let log_probs = Vec::<f32>::try_from(get("log_probs")?)?;
    let rewards = get("rewards")?;
    let text = Vec::<u8>::try_from(get("text")?)?;
    let (count, sources) = match (shape.size().as_slice(), rewards.size().as_slice()) {
        ([n, 5], [m, columns]) if n == m && *columns > 0 => (*n as usize, *columns as usize),
        (a, b) => return Err(broken(&format!("`{name}.shape` is {a:?} and `{name}.rewards` {b:?}"))),
    };
    let shape = Vec::<i64>::try_from(shape.to_kind(Kind::Int64).view([-1]))?;
    let rewards = Vec::<f64>::try_from(rewards.view([-1]))?;
    let (mut ids, mut log_probs, mut text) = (ids.as_slice(), log_probs.as_slice(), text.as_slice());
    let mut samples = Vec::with_capacity(count);
    for i in 0..count {
        let [prompt, length, start, ended, bytes] = [0, 1, 2, 3, 4].map(|k| shape[i * 5 + k] as usize);
        let short = || broken(&format!("`{name}` ends inside sample {i}"));
        let own = cut(&mut ids, length).ok_or_else(short)?;
        let answer = length.checked_sub(start).ok_or_else(short)?;
        let row = &rewards[i * sources..(i + 1) * sources];
        samples.push(SampledAnswer {
            prompt,
            ids: own.iter().map(|id| *id as u32).collect(),
            answer_start: start,
            log_probs: cut(&mut log_probs, answer).ok_or_else(short)?.to_vec(),
            ended: ended != 0,
            text: String::from_utf8_lossy(cut(&mut text, bytes).ok_or_else(short)?).into_owned(),
            rewards: row[..sources - 1].to_vec(),
            reward: row[sources - 1],
        });
    }
    Ok(samples)
}

/// Removes the first `n` elements from the slice and returns them; `None` if there are fewer.
fn cut<'a, T>(from: &mut &'a [T], n: usize) -> Option<&'a [T]> {
    let (first, rest) = from.split_at_checked(n)?;
    *from = rest;
    Some(first)
}

fn broken(what: &str) -> Error {
    Error::user(format!("method.safetensors {what}"))
        .hint("the checkpoint is damaged: go back to an earlier one, or start anew with --overwrite")
}
