//! Answers on the way: what the model says to a few prompts before, while and after it learns, for people to look at.

use super::log::Log;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::fsutil::io_error;
use crate::generate::{self, Settings};
use crate::methods::Prompt;
use crate::models::Model;
use crate::report;
use crate::runs::{Sample, folder, terminal};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Shows and keeps samples (`samples.jsonl`, one object an answer).
pub struct Samples {
    tokenizer: Rc<ChatTokenizer>,
    path: PathBuf,
    /// The last step that has samples.
    shown: Option<u64>,
}

/// Tokens an answer may have.
const LONGEST: usize = 64;

impl Samples {
    /// Answers after `step` belong to work that is done again and are cut off.
    pub fn open(tokenizer: Rc<ChatTokenizer>, out: &Path, step: u64) -> Result<Self> {
        let path = out.join(folder::SAMPLES);
        super::log::cut_after(&path, step)?;
        Ok(Self { tokenizer, path, shown: None })
    }

    /// Answers the prompts greedily, once a step.
    pub fn show(&mut self, model: &Model, prompts: &[Prompt], step: u64, log: &Log) -> Result<()> {
        if prompts.is_empty() || self.shown == Some(step) {
            return Ok(());
        }
        self.shown = Some(step);
        let settings = Settings::greedy(LONGEST, self.tokenizer.stop_ids());
        let ids: Vec<Vec<u32>> = prompts.iter().map(|p| p.ids.clone()).collect();
        let bar = report::spinner("samples");
        let answers = generate::complete(model, &ids, &settings, &mut |_, _| bar.count(1, "tokens"))?;
        bar.finish_and_clear();
        let open = OpenOptions::new().create(true).append(true).open(&self.path);
        let mut file = open.map_err(|e| io_error("writing", &self.path, e))?;
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let text = self.tokenizer.decode(answer.answer(), true)?;
            let expected = &prompt.answer[..prompt.answer.len().min(LONGEST)];
            let expected = self.tokenizer.decode(expected, true)?;
            let asked = self.tokenizer.asked(&prompt.ids)?;
            let turns = self.tokenizer.turns(&prompt.ids)?;
            let prompt = self.tokenizer.decode(&prompt.ids, true)?;
            log.say(&format!("  sample: {} -> {}", terminal::line(&asked, 120), terminal::line(&text, 240)));
            let expected = (!expected.trim().is_empty()).then_some(expected);
            let line =
                serde_json::to_string(&Sample { step, prompt, turns, text, expected }).expect("a sample is JSON");
            writeln!(file, "{line}").map_err(|e| io_error("writing", &self.path, e))?;
        }
        Ok(())
    }
}
