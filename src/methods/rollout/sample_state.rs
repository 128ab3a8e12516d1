//! Saves samples as tensors and loads them again. A checkpoint in the middle of an iteration needs the samples that
//! the remaining steps train on.

use super::answer::{AnswerWithAdvantage, SampledAnswer};
use crate::error::Result;
use crate::methods::state::{self, StateTensors, damaged};
use tch::{Kind, Tensor};

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

/// Reads the samples that were saved under `name`. An error if a tensor is missing, the sizes do not match, or a text
/// is not UTF-8.
pub fn load(state: &StateTensors, name: &str) -> Result<Vec<SampledAnswer>> {
    let key = |what: &str| format!("{name}.{what}");
    let size = |what: &str| state::tensor(state, &key(what)).map(Tensor::size);
    let (count, sources) = match (size("shape")?.as_slice(), size("rewards")?.as_slice()) {
        ([n, 5], [m, columns]) if n == m && *columns > 0 => (*n as usize, *columns as usize),
        (a, b) => return Err(damaged(format_args!("`{name}.shape` is {a:?} and `{name}.rewards` {b:?}"))),
    };
    let ids: Vec<i64> = state::values(state, &key("ids"), Kind::Int64)?;
    let shape: Vec<i64> = state::values(state, &key("shape"), Kind::Int64)?;
    let log_probs: Vec<f32> = state::values(state, &key("log_probs"), Kind::Float)?;
    let rewards = state::numbers(state, &key("rewards"))?;
    let text: Vec<u8> = state::values(state, &key("text"), Kind::Uint8)?;
    let (mut ids, mut log_probs, mut text) = (ids.as_slice(), log_probs.as_slice(), text.as_slice());
    let mut samples = Vec::with_capacity(count);
    for i in 0..count {
        let [prompt, length, start, ended, bytes] = [0, 1, 2, 3, 4].map(|k| shape[i * 5 + k] as usize);
        let short = || damaged(format_args!("`{name}` ends inside sample {i}"));
        let own = cut(&mut ids, length).ok_or_else(short)?;
        let answer = length.checked_sub(start).ok_or_else(short)?;
        let text = cut(&mut text, bytes).ok_or_else(short)?.to_vec();
        let text =
            String::from_utf8(text).map_err(|_| damaged(format_args!("`{name}.text` is not UTF-8 in sample {i}")))?;
        let row = &rewards[i * sources..(i + 1) * sources];
        samples.push(SampledAnswer {
            prompt,
            ids: own.iter().map(|id| *id as u32).collect(),
            answer_start: start,
            log_probs: cut(&mut log_probs, answer).ok_or_else(short)?.to_vec(),
            ended: ended != 0,
            text,
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

/// Adds answers with their advantages. All or none of them have reference log-probabilities.
pub fn save_answers(state: &mut StateTensors, answers: &[AnswerWithAdvantage], sources: usize) {
    let samples: Vec<SampledAnswer> = answers.iter().map(|a| a.sample.clone()).collect();
    save(state, ANSWERS, &samples, sources);
    state::put(state, "advantages", &answers.iter().map(|a| a.advantage).collect::<Vec<_>>());
    let mut column =
        |name: &str, parts: Vec<&[f32]>| drop(state.insert(name.into(), Tensor::from_slice(&parts.concat())));
    column("old", answers.iter().map(|a| a.old.as_slice()).collect());
    let reference: Option<Vec<&[f32]>> = answers.iter().map(|a| a.reference.as_deref()).collect();
    reference.into_iter().for_each(|parts| column("reference", parts));
}

/// The name of samples with advantages in a checkpoint.
const ANSWERS: &str = "drawn";

/// Reads what `save_answers` added; empty if nothing was. An error if a tensor does not match its answers, or if they
/// have no reference log-probabilities although these are `referenced`.
pub fn load_answers(state: &StateTensors, referenced: bool) -> Result<Vec<AnswerWithAdvantage>> {
    if !state.contains_key("drawn.ids") {
        return Ok(Vec::new());
    }
    let samples = load(state, ANSWERS)?;
    let tokens: usize = samples.iter().map(SampledAnswer::length).sum();
    let advantages = state::numbers(state, "advantages")?;
    if advantages.len() != samples.len() {
        return Err(damaged(format_args!("{} `advantages` for {} answers", advantages.len(), samples.len())));
    }
    let old = state::column(state, "old", tokens)?;
    let reference = referenced.then(|| state::column(state, "reference", tokens)).transpose()?;
    let mut from = 0;
    let answer = |(sample, advantage): (SampledAnswer, f64)| {
        let own = from..from + sample.length();
        from = own.end;
        let reference = reference.as_ref().map(|r| r[own.clone()].to_vec());
        AnswerWithAdvantage { sample, old: old[own].to_vec(), reference, advantage }
    };
    Ok(samples.into_iter().zip(advantages).map(answer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> (Vec<SampledAnswer>, StateTensors) {
        let sample = |prompt: usize, text: &str| SampledAnswer {
            prompt,
            ids: vec![3, 1, 4, 1, 5],
            answer_start: 2,
            log_probs: vec![-0.5, -1.5, -0.25],
            ended: prompt == 0,
            text: text.into(),
            rewards: vec![0.5, f64::NAN],
            reward: -1.5,
        };
        let samples = vec![sample(0, "né"), sample(7, "")];
        let mut state = StateTensors::new();
        save(&mut state, "drawn", &samples, 2);
        (samples, state)
    }

    #[test]
    fn samples_are_stored_in_a_fixed_layout_and_read_back() {
        let (samples, state) = saved();
        let shape: Vec<i64> = state::values(&state, "drawn.shape", Kind::Int64).unwrap();
        assert_eq!(shape, [0, 5, 2, 1, 3, 7, 5, 2, 0, 0]); // prompt, ids, start of the answer, ended, bytes of text
        assert_eq!(state["drawn.rewards"].size(), [2, 3]);
        assert_eq!(format!("{:?}", load(&state, "drawn").unwrap()), format!("{samples:?}")); // NaN is not equal to NaN
    }

    #[test]
    fn damaged_samples_are_an_error() {
        let refused = |change: &dyn Fn(&mut StateTensors)| {
            let (_, mut state) = saved();
            change(&mut state);
            let error = load(&state, "drawn").unwrap_err();
            assert!(format!("{error:?}").contains("checkpoint is damaged"), "{error:?}");
            error.to_string()
        };
        let text = |bytes: &[u8]| Tensor::from_slice(bytes);
        assert!(refused(&|s| drop(s.insert("drawn.text".into(), text(&[b'n', 0xc3, b'n'])))).contains("not UTF-8"));
        assert!(refused(&|s| drop(s.insert("drawn.text".into(), text(b"n")))).contains("ends inside sample 0"));
        assert!(refused(&|s| drop(s.remove("drawn.ids"))).contains("no tensor `drawn.ids`"));
        assert!(refused(&|s| drop(s.insert("drawn.ids".into(), text(b"n")))).contains("wrong kind"));
    }

    #[test]
    fn answers_with_advantages_are_read_back_and_checked() {
        let mut answers: Vec<AnswerWithAdvantage> = saved()
            .0
            .into_iter()
            .map(|mut sample| {
                sample.rewards = vec![0.5, 1.0];
                let old = vec![-0.5, -1.0, -2.0];
                AnswerWithAdvantage { sample, reference: Some(old.clone()), old, advantage: -0.25 }
            })
            .collect();
        let mut state = StateTensors::new();
        save_answers(&mut state, &answers, 2);
        assert_eq!(load_answers(&state, true).unwrap(), answers);
        answers.iter_mut().for_each(|a| a.reference = None);
        assert_eq!(load_answers(&state, false).unwrap(), answers);
        assert_eq!(load_answers(&StateTensors::new(), true).unwrap(), []);
        for name in ["old", "reference", "advantages"] {
            let mut short = state.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect::<StateTensors>();
            short.insert(name.into(), short[name].narrow(0, 0, 1));
            let error = load_answers(&short, true).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
            assert!(format!("{error:?}").contains("checkpoint is damaged"), "{error:?}");
        }
    }
}
