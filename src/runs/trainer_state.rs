//! Writes `trainer_state.json` in the format of transformers' Trainer, for programs that read curves from it.

use super::facts::RunFacts;
use super::history::History;
use super::tensorboard::{eval_tag, train_tag};
use crate::error::Result;
use crate::fsutil::write_json;
use crate::recipe::plan::Plan;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file's name in a run folder.
pub const FILE: &str = "trainer_state.json";

/// Writes the file, replacing an earlier one.
pub fn write(run: &Path, plan: &Plan, facts: &RunFacts, history: &History) -> Result<()> {
    write_json(&run.join(FILE), &state(plan, facts, history))
}

/// Returns the number of epochs that the run was planned to begin, as the Trainer counts them: with `run.steps` those of
/// that many steps, else `run.epochs`.
fn epochs(plan: &Plan, facts: &RunFacts, history: &History) -> u64 {
    let run = &plan.recipe.run;
    let last = history.steps.last().filter(|p| run.steps.is_some() && p.step > 0);
    let epochs = last.map_or(run.epochs, |p| p.epoch / p.step as f64 * facts.steps as f64);
    (epochs - 1e-6).ceil() as u64
}

fn state(plan: &Plan, facts: &RunFacts, history: &History) -> Value {
    let run = &plan.recipe.run;
    let epoch = |step: u64| history.steps.iter().rev().find(|p| p.step <= step).map_or(0.0, |p| p.epoch);
    let mut log: Vec<(u64, Value)> = Vec::new();
    for p in &history.steps {
        let mut o = Map::new();
        let own = [("loss", p.loss), ("lr", p.lr), ("grad_norm", p.grad_norm), ("tokens", p.tokens as f64)];
        for (name, v) in own.into_iter().chain(p.more.iter().map(|(k, v)| (k.as_str(), *v))) {
            o.insert(train_tag(&facts.method, name).replacen("train/", "", 1), json!(v));
        }
        o.insert("epoch".into(), json!(p.epoch));
        o.insert("step".into(), json!(p.step));
        log.push((p.step, Value::Object(o)));
    }
    for v in &history.validations {
        let mut o = Map::new();
        for (name, value) in &v.means {
            o.insert(eval_tag(&facts.method, name).replacen("eval/", "eval_", 1), json!(value));
        }
        o.insert("epoch".into(), json!(epoch(v.step)));
        o.insert("step".into(), json!(v.step));
        log.push((v.step, Value::Object(o)));
    }
    // The sort is stable, so a step stays before its validation.
    log.sort_by_key(|(step, _)| *step);
    let best = history.best();
    let kept = best.map(|b| run.out.join(format!("checkpoints/step-{}", b.step))).filter(|p| p.exists());
    json!({
        "best_global_step": best.map(|b| b.step),
        "best_metric": best.map(|b| history.aim_value(b)),
        "best_model_checkpoint": kept,
        "epoch": epoch(u64::MAX),
        "eval_steps": run.eval_every,
        "global_step": history.last_step(),
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": log.into_iter().map(|(_, v)| v).collect::<Vec<_>>(),
        "logging_steps": 1,
        "max_steps": facts.steps,
        "num_input_tokens_seen": history.steps.last().map_or(0, |p| p.tokens),
        "num_train_epochs": epochs(plan, facts, history),
        "save_steps": run.save_every,
        "stateful_callbacks": {},
        "total_flos": 0,
        "train_batch_size": plan.recipe.batch.examples,
        "trial_name": null,
        "trial_params": null,
    })
}
