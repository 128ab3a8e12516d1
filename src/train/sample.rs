//! Answers on the way: what the model says to a few validation prompts, for people to look at.

use super::log::Log;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::fsutil::io_error;
use crate::generate::{self, Settings};
use crate::models::Model;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Shows and keeps samples (`samples.jsonl`, one object an answer).
pub struct Samples {
    tokenizer: ChatTokenizer,
    path: PathBuf,
}

/// Tokens an answer may have.
const LONGEST: usize = 64;

impl Samples {
    /// Answers after `step` belong to work that is done again and are cut off.
    pub fn open(tokenizer: ChatTokenizer, out: &Path, step: u64) -> Result<Self> {
        let path = out.join("samples.jsonl");
        super::log::cut_after(&path, step)?;
        Ok(Self { tokenizer, path })
    }

    /// Answers the prompts greedily.
    pub fn show(&self, model: &Model, prompts: &[Vec<u32>], step: u64, log: &Log) -> Result<()> {
        if prompts.is_empty() {
            return Ok(());
        }
        let settings = Settings::greedy(LONGEST, self.tokenizer.stop_ids());
        let answers = generate::complete(model, prompts, &settings, &mut |_, _| {})?;
        let open = OpenOptions::new().create(true).append(true).open(&self.path);
        let mut file = open.map_err(|e| io_error("writing", &self.path, e))?;
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let text = self.tokenizer.decode(answer.answer(), true)?;
            let prompt = self.tokenizer.decode(prompt, true)?;
            let line = json!({ "step": step, "prompt": prompt, "text": text });
            writeln!(file, "{line}").map_err(|e| io_error("writing", &self.path, e))?;
            let asked = prompt
                .trim()
                .lines()
                .rfind(|l| !l.trim().is_empty() && *l != "assistant")
                .unwrap_or_default()
                .to_string();
            log.say(&format!("  sample: {asked} -> {}", text.trim().replace('\n', " ")));
        }
        Ok(())
    }
}
