//! Before and after: the reference and the trained policy answer the same held-out prompts, and their rewards are
//! compared prompt by prompt.

use super::compare::Comparison;
use super::{Ppo, stats};
use crate::error::Result;
use crate::fsutil::{shortened, write_json};
use crate::methods::rollout::{Rollout, Sample};
use crate::models::Model;
use crate::report;
use serde::Serialize;
use std::path::Path;

/// The file in the run's folder.
pub const FILE: &str = "before_after.json";

/// Prompts whose answers are shown on the terminal.
const SHOWN: usize = 2;

/// An answer with what it earned.
#[derive(Serialize)]
struct Told {
    text: String,
    reward: f64,
    /// What each source of rewards says, unweighted.
    rewards: Vec<f64>,
    tokens: usize,
    ended: bool,
}

impl Told {
    fn of(sample: &Sample) -> Self {
        Self {
            text: sample.text.clone(),
            reward: sample.reward,
            rewards: sample.rewards.clone(),
            tokens: sample.length(),
            ended: sample.ended,
        }
    }
}

#[derive(Serialize)]
struct Line {
    prompt: String,
    before: Told,
    after: Told,
}

#[derive(Serialize)]
struct Report<'a> {
    /// Which prompts: `valid`, held out; `train`, where there are no others.
    split: &'static str,
    temperature: f64,
    reward_names: Vec<&'a str>,
    #[serde(flatten)]
    comparison: Comparison,
    /// Nats an answer between the trained policy and the reference.
    kl: f64,
    prompts_answered: Vec<Line>,
}

/// Most training prompts that are answered where none are held out.
const MOST: usize = 64;

/// Draws both policies' answers and writes the comparison into `out`.
pub fn write(ppo: &mut Ppo, model: &Model, out: &Path) -> Result<()> {
    let split = if ppo.valid.is_some() { "valid" } else { "train" };
    let reference = ppo.reference.take();
    let rollout: &mut Rollout = ppo.valid.as_mut().unwrap_or(&mut ppo.train);
    let prompts: Vec<usize> = (0..rollout.prompts().len()).collect();
    let prompts = &prompts[..if split == "valid" { prompts.len() } else { prompts.len().min(MOST) }];
    let before = match &reference {
        Some(copy) => rollout.evaluate(copy, prompts),
        None => model.with(None, |model| rollout.evaluate(model, prompts)),
    };
    let after = before.and_then(|before| Ok((before, rollout.evaluate(model, prompts)?)));
    ppo.reference = reference;
    let (before, after) = after?;
    let rewards = |samples: &[Sample]| samples.iter().map(|s| s.reward).collect::<Vec<f64>>();
    let Some(comparison) = Comparison::of(&rewards(&before), &rewards(&after), ppo.seed) else { return Ok(()) };
    let numbers = ppo.measure(model, &after)?;
    let kl: Vec<f64> = ppo.divergence(&numbers).iter().map(|d| d.iter().sum()).collect();
    let rollout = ppo.valid.as_ref().unwrap_or(&ppo.train);
    let line = |(b, a): (&Sample, &Sample)| Line {
        prompt: rollout.prompts().rows[a.prompt].text.clone(),
        before: Told::of(b),
        after: Told::of(a),
    };
    let report = Report {
        split,
        temperature: rollout.spec().eval_temperature,
        reward_names: rollout.rewards().names().collect(),
        kl: stats::mean(&kl),
        prompts_answered: before.iter().zip(&after).map(line).collect(),
        comparison,
    };
    write_json(&out.join(FILE), &report)?;
    tell(&report);
    Ok(())
}

fn tell(report: &Report) {
    let c = &report.comparison;
    let which = if report.split == "valid" { "held-out" } else { "training" };
    report::info(format!(
        "{} {which} prompts: mean reward {:.4} before, {:.4} after; {:+.4} (95 % interval {:+.4} to {:+.4}), {:.2} nats from \
         the reference",
        c.prompts, c.before, c.after, c.difference, c.interval[0], c.interval[1], report.kl
    ));
    report::info(format!(
        "after against before: {:.1} % win rate ({} better, {} alike, {} worse)",
        100.0 * c.win_rate,
        c.wins,
        c.ties,
        c.losses
    ));
    for line in report.prompts_answered.iter().take(SHOWN) {
        report::info(format!("  {}", shortened(line.prompt.trim())));
        for (name, told) in [("before", &line.before), ("after", &line.after)] {
            report::info(format!("    {name:>6} {:+.3}  {}", told.reward, shortened(told.text.trim())));
        }
    }
}
