//! Records how long each forward pass of a generation takes, for `ft generate --timings`.
//!
//! Passes over prompts and passes for next tokens are counted separately: the first are limited by matrix products, the
//! second by reading the weights. A pass includes the choice of its tokens; start-up and loading are not measured.

use ft::error::Result;
use ft::generate::engine::DecodingStep;
use ft::{fsutil, report};
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// One pass of the model, as a line of the file.
#[derive(Debug, Serialize)]
struct PassTiming {
    kind: PassKind,
    /// Number of answers that got a token from this pass.
    rows: usize,
    /// Number of tokens that the model read in this pass.
    tokens: usize,
    seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum PassKind {
    Prompt,
    Decode,
}

/// The passes so far, in order.
#[derive(Debug, Default)]
pub struct PassTimings(Vec<PassTiming>);

impl PassTimings {
    /// Adds a pass of the engine; passes that gave no token are left out.
    pub fn add(&mut self, step: &DecodingStep, time: Duration) {
        let rows = step.tokens.len();
        if rows == 0 {
            return;
        }
        let (kind, tokens) = match step.prompt_tokens {
            0 => (PassKind::Decode, rows),
            n => (PassKind::Prompt, n),
        };
        self.0.push(PassTiming { kind, rows, tokens, seconds: time.as_secs_f64() });
    }

    /// Writes the passes to `path`, one JSON object per line, and the totals to stderr.
    pub fn finish(&self, path: &Path) -> Result<()> {
        fsutil::write_atomic(path, |file| {
            for pass in &self.0 {
                serde_json::to_writer(&mut *file, pass)?;
                writeln!(file)?;
            }
            Ok(())
        })?;
        report::info(format!("prompts: {}", self.sum(PassKind::Prompt)));
        report::info(format!("next tokens: {}", self.sum(PassKind::Decode)));
        Ok(())
    }

    fn sum(&self, kind: PassKind) -> String {
        let of_kind = || self.0.iter().filter(|p| p.kind == kind);
        let (tokens, seconds) = (of_kind().map(|p| p.tokens).sum::<usize>(), of_kind().map(|p| p.seconds).sum::<f64>());
        let time = report::duration(Duration::from_secs_f64(seconds));
        let mut text = format!("{} in {time}, {} passes", report::count(tokens as u64), of_kind().count());
        if seconds > 0.0 {
            text += &format!(" ({:.1} tokens/s)", tokens as f64 / seconds);
        }
        text
    }
}
