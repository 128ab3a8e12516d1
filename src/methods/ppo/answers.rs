//! The answers of an iteration, and all that their update needs: what the policy, the reference and the value function
//! said of each token when the iteration began. Packed into rows for the trunk; kept in a checkpoint as plain tensors.

use crate::data::pack;
use crate::error::{Error, Result};
use crate::models::{Model, Output};
use crate::nn::Tokens;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// An answer with its prompt. One number a token of the answer everywhere.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Prompt, then answer with the stop token that ended it.
    pub ids: Vec<u32>,
    /// Where the answer begins.
    pub start: usize,
    /// ln p of the policy that sampled it, as learning computes it.
    pub log_probs: Vec<f32>,
    /// ln p of the reference.
    pub reference: Vec<f32>,
    /// V of the state in which the token was chosen.
    pub values: Vec<f32>,
    pub advantages: Vec<f32>,
    pub returns: Vec<f32>,
}

impl Answer {
    /// Tokens of the answer.
    pub fn len(&self) -> usize {
        self.ids.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// ln p - ln r of each token.
    pub fn log_ratios(&self) -> impl Iterator<Item = f64> + Clone {
        self.log_probs.iter().zip(&self.reference).map(|(p, r)| f64::from(*p) - f64::from(*r))
    }

    fn numbers(&self) -> [&Vec<f32>; 5] {
        [&self.log_probs, &self.reference, &self.values, &self.advantages, &self.returns]
    }

    fn numbers_mut(&mut self) -> [&mut Vec<f32>; 5] {
        [&mut self.log_probs, &mut self.reference, &mut self.values, &mut self.advantages, &mut self.returns]
    }
}

/// The names of an answer's numbers in a checkpoint, in the order of `Answer::numbers`.
const NAMES: [&str; 5] = ["log_probs", "reference", "values", "advantages", "returns"];

/// Answers laid end to end.
pub struct Row {
    pub tokens: Tokens,
    /// (N) rows of the trunk's output that choose a token of an answer.
    pub at: Tensor,
    /// (N) the tokens chosen.
    pub targets: Tensor,
}

impl Row {
    pub fn pack(answers: &[&Answer], device: Device) -> Self {
        let (mut at, mut targets, mut begin) = (Vec::new(), Vec::new(), 0i64);
        for a in answers {
            at.extend((a.start..a.ids.len()).map(|t| begin + t as i64 - 1));
            targets.extend(a.ids[a.start..].iter().map(|id| i64::from(*id)));
            begin += a.ids.len() as i64;
        }
        let ids: Vec<&[u32]> = answers.iter().map(|a| a.ids.as_slice()).collect();
        Self {
            tokens: Tokens::pack(&ids, device),
            at: Tensor::from_slice(&at).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
        }
    }
}

/// Which answers go together into rows of at most `budget` tokens.
pub fn rows(answers: &[Answer], which: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let lengths: Vec<u32> = answers.iter().map(|a| a.ids.len() as u32).collect();
    let order: Vec<u32> = which.iter().map(|i| *i as u32).collect();
    pack(&lengths, &order, budget)
}

/// Runs all answers in packed rows without gradient and gives each what `f` says of its tokens: K numbers a token.
pub fn measure<const K: usize>(
    model: &Model,
    answers: &[Answer],
    budget: usize,
    f: impl Fn(&Output, &Row) -> [Tensor; K],
) -> Result<Vec<[Vec<f32>; K]>> {
    let mut found: Vec<[Vec<f32>; K]> = answers.iter().map(|_| std::array::from_fn(|_| Vec::new())).collect();
    let all: Vec<usize> = (0..answers.len()).collect();
    for row in rows(answers, &all, budget) {
        let members: Vec<&Answer> = row.iter().map(|&i| &answers[i]).collect();
        let packed = Row::pack(&members, model.device());
        for (k, numbers) in model.infer(&packed.tokens, |out| f(out, &packed))?.into_iter().enumerate() {
            let numbers = Vec::<f32>::try_from(numbers.to_device(Device::Cpu).to_kind(Kind::Float).contiguous())?;
            let mut from = 0;
            for &i in &row {
                let to = from + answers[i].len();
                found[i][k] = numbers[from..to].to_vec();
                from = to;
            }
        }
    }
    Ok(found)
}

/// (N) of one of the numbers, answers in the order of a row.
pub fn column(answers: &[&Answer], device: Device, of: impl Fn(&Answer) -> &Vec<f32>) -> Tensor {
    let numbers: Vec<f32> = answers.iter().flat_map(|a| of(a).iter().copied()).collect();
    Tensor::from_slice(&numbers).to_device(device)
}

/// Adds answers to what a checkpoint holds.
pub fn save(answers: &[Answer], into: &mut BTreeMap<String, Tensor>) {
    let ids: Vec<i64> = answers.iter().flat_map(|a| a.ids.iter().map(|id| i64::from(*id))).collect();
    let bounds: Vec<i64> = answers.iter().flat_map(|a| [a.start as i64, a.ids.len() as i64]).collect();
    into.insert("ids".into(), Tensor::from_slice(&ids));
    into.insert("bounds".into(), Tensor::from_slice(&bounds));
    for (k, name) in NAMES.iter().enumerate() {
        let numbers: Vec<f32> = answers.iter().flat_map(|a| a.numbers()[k].iter().copied()).collect();
        into.insert(name.to_string(), Tensor::from_slice(&numbers));
    }
}

/// Takes back what `save` gave; `None` where it saved none.
pub fn load(saved: &BTreeMap<String, Tensor>) -> Result<Option<Vec<Answer>>> {
    let Some(bounds) = saved.get("bounds") else { return Ok(None) };
    let wrong = |what: &str| Error::user(format!("the checkpoint's rollouts: {what}")).hint("start a new run");
    let whole = |name: &str| -> Result<Vec<i64>> {
        let t = saved.get(name).ok_or_else(|| wrong(&format!("no `{name}`")))?;
        Ok(Vec::<i64>::try_from(t.to_kind(Kind::Int64))?)
    };
    let mut ids = whole("ids")?.into_iter();
    let bounds = Vec::<i64>::try_from(bounds.to_kind(Kind::Int64))?;
    let mut answers = Vec::with_capacity(bounds.len() / 2);
    for pair in bounds.as_chunks::<2>().0 {
        let [start, length] = pair.map(|n| n as usize);
        let ids: Vec<u32> = ids.by_ref().take(length).map(|id| id as u32).collect();
        if ids.len() != length || start == 0 || start > length {
            return Err(wrong("their bounds do not fit their tokens"));
        }
        answers.push(Answer { ids, start, ..Answer::default() });
    }
    let tokens: usize = answers.iter().map(Answer::len).sum();
    for (k, name) in NAMES.iter().enumerate() {
        let t = saved.get(*name).ok_or_else(|| wrong(&format!("no `{name}`")))?;
        let numbers = Vec::<f32>::try_from(t.to_kind(Kind::Float))?;
        if numbers.len() != tokens {
            return Err(wrong(&format!("`{name}` has {} numbers for {tokens} tokens", numbers.len())));
        }
        let mut from = 0;
        for a in &mut answers {
            let to = from + a.len();
            *a.numbers_mut()[k] = numbers[from..to].to_vec();
            from = to;
        }
    }
    Ok(Some(answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(prompt: usize, tokens: usize, first: f32) -> Answer {
        let numbers = |by: f32| (0..tokens).map(|t| first + by * t as f32).collect::<Vec<f32>>();
        Answer {
            ids: (0..(prompt + tokens) as u32).collect(),
            start: prompt,
            log_probs: numbers(-0.5),
            reference: numbers(-0.25),
            values: numbers(0.125),
            advantages: numbers(1.5),
            returns: numbers(2.0),
        }
    }

    #[test]
    fn a_row_chooses_each_token_from_the_state_before_it() {
        let (a, b) = (answer(2, 3, 0.0), answer(1, 1, 0.0));
        let row = Row::pack(&[&a, &b], Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(&row.at).unwrap(), [1, 2, 3, 5]);
        assert_eq!(Vec::<i64>::try_from(&row.targets).unwrap(), [2, 3, 4, 1]);
        assert_eq!(row.tokens.len(), 7);
    }

    #[test]
    fn what_a_checkpoint_holds_comes_back_bit_for_bit() {
        let answers = vec![answer(3, 5, 0.1), answer(1, 1, -7.3), answer(4, 2, 1e-8)];
        let mut saved = BTreeMap::new();
        save(&answers, &mut saved);
        assert_eq!(load(&saved).unwrap(), Some(answers));
        assert_eq!(load(&BTreeMap::new()).unwrap(), None);
        saved.remove("values");
        assert!(load(&saved).unwrap_err().to_string().contains("values"));
    }
}
