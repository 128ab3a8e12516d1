//! A finished run for tests.

use crate::runs::facts::{DataFacts, Environment, LengthHistogram, RecordedAim, RunFacts};
use crate::runs::folder::{RunFolder, RunStatus};
use crate::runs::history::{History, StepPoint, Validation};
use crate::runs::recipe_hash::tests::plan;

pub fn environment() -> Environment {
    Environment {
        ft: "0.1.0".into(),
        libtorch: "2.11.0".into(),
        device: "cpu".into(),
        device_name: "A processor".into(),
        instructions: "AVX2".into(),
        cores: 2,
        threads: 2,
        memory: 16_000_000_000,
        system: "Linux".into(),
        host: "here".into(),
    }
}

fn rows(path: &str) -> DataFacts {
    DataFacts {
        path: path.into(),
        sha256: "aa".into(),
        format: "messages".into(),
        rows: 10,
        examples: 10,
        tokens: 640,
        supervised_tokens: 160,
        dropped: 3,
        truncated: 0,
        split: 0,
        longest: 64,
        max_len: 128,
        lengths: LengthHistogram::default(),
    }
}

/// Returns a run of two steps with a validation before and after.
pub fn finished() -> RunFolder {
    let step = |step: u64| StepPoint {
        step,
        epoch: step as f64 / 2.0,
        loss: 3.0 - step as f64,
        lr: 1e-3,
        grad_norm: 1.0,
        tokens: 320 * step,
        tokens_per_s: 100.0,
        seconds: 3.2,
        memory: 1_000_000,
        more: Vec::new(),
    };
    let validation = |step, loss| Validation { step, means: vec![("loss".into(), loss)] };
    let facts = RunFacts {
        method: "sft".into(),
        adapter: None,
        base: "/home/me/models/base".into(),
        parameters: 1000,
        trained: 10,
        steps: 2,
        train: rows("/home/me/train.jsonl"),
        valid: Some(rows("/home/me/valid.jsonl")),
        environment: environment(),
        aim: RecordedAim::default(),
        sessions: Vec::new(),
        movement: None,
        origins: Vec::new(),
    };
    let validations = vec![validation(0, 3.5), validation(2, 1.25)];
    RunFolder {
        path: "/home/me/adapters/medical".into(),
        plan: plan(&[]),
        facts: Some(facts),
        history: History { steps: vec![step(1), step(2)], validations, aim: RecordedAim::default() },
        samples: Vec::new(),
        summary: None,
        export: None,
        card: None,
        held_out: None,
        lock: None,
        evaluations: Vec::new(),
        state: RunStatus::Finished,
    }
}
