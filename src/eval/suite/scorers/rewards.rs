//! Rewards of answers: by a reward model, a program or a server.

use super::{AnsweredTask, add_mean};
use crate::data::chat::{ChatTokenizer, TemplateOptions};
use crate::data::dataset::PromptRow;
use crate::data::rows::RowFormat;
use crate::data::source::RowColumns;
use crate::error::{Context, Error, Result};
use crate::eval::results::SubjectResults;
use crate::eval::suite::answers::ItemTexts;
use crate::eval::suite::cache::{AnswerCache, key};
use crate::eval::suite::items::AskedItem;
use crate::eval::suite::rows::TaskRow;
use crate::label::machines::reward::reward_scores;
use crate::label::record::answer::{Candidate, StoredPrompt};
use crate::model_files::is_model;
use crate::models::{Model, content_hash, open_scorer};
use crate::recipe::suite_file::SuiteTask;
use crate::recipe::suite_file::scorers::{REWARD, RewardBy};
use crate::report;
use crate::rewards::RewardSources;
use crate::rewards::source::RewardInput;
use crate::rewards::spec::{RewardModelSpec, RewardSourceSpec};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Answers that are scored together.
const BATCH: usize = 64;

/// What gives rewards, and the rows that were asked.
pub struct Rewards {
    by: RewardBy,
    file: PathBuf,
    lines: Vec<usize>,
    columns: Vec<RowColumns>,
    prompts: Vec<StoredPrompt>,
}

/// Makes the prompts of rows as a judge sees them: the system prompt and the question.
pub fn judged_prompts(rows: &[TaskRow], items: &[AskedItem]) -> Vec<StoredPrompt> {
    let prompt = |(i, (row, item)): (usize, (&TaskRow, &AskedItem))| {
        let turn = |role: &str, text: &str| json!({ "role": role, "content": text });
        let system = item.prompt.system.iter().map(|text| turn("system", text));
        let messages: Vec<Value> = system.chain([turn("user", &item.prompt.question)]).collect();
        StoredPrompt {
            id: i as i64,
            key: format!("of row {}", row.line),
            messages: messages.into(),
            columns: Map::new(),
        }
    };
    rows.iter().zip(items).enumerate().map(prompt).collect()
}

/// Makes an answer as a judge sees it.
pub fn candidate(id: usize, prompt: &StoredPrompt, text: &str) -> Candidate {
    Candidate { id: id as i64, prompt: prompt.id, source: "the model".into(), text: text.into(), tokens: None }
}

impl Rewards {
    /// Prepares rewards; loads nothing. Fails if there is no such model.
    pub fn open(by: &RewardBy, task: &SuiteTask, rows: &[TaskRow], items: &[AskedItem]) -> Result<Self> {
        if let RewardBy::Model(spec) = by
            && !spec.is_adapter()
            && !is_model(&spec.path)
        {
            return Err(Error::user(format!(
                "{}: neither a reward model's directory nor an adapter",
                spec.path.display()
            ))
            .hint("`reward` is a directory that `method: reward` made, or { command: […] } or { url: … }"));
        }
        Ok(Self {
            by: by.clone(),
            file: task.data.clone(),
            lines: rows.iter().map(|row| row.line).collect(),
            columns: rows.iter().map(|row| row.columns.clone()).collect(),
            prompts: judged_prompts(rows, items),
        })
    }

    /// Adds the mean reward of each item's answers.
    pub fn score(
        &self,
        answered: &AnsweredTask,
        answers: &[ItemTexts],
        results: &mut SubjectResults,
        cache: &mut AnswerCache,
    ) -> Result<()> {
        let asked: Vec<(usize, &str)> = answers
            .iter()
            .enumerate()
            .flat_map(|(i, texts)| texts.scored.iter().map(move |text| (i, text.as_str())))
            .collect();
        let mut found = self.of(answered, &asked, cache)?.into_iter();
        let mean = |texts: &ItemTexts| {
            let n = texts.scored.len();
            found.by_ref().take(n).sum::<f64>() / n as f64
        };
        let means: Vec<f64> = answers.iter().map(mean).collect();
        add_mean(results, REWARD, means);
        Ok(())
    }

    /// Returns the reward of each (item, answer).
    pub fn of(&self, answered: &AnsweredTask, asked: &[(usize, &str)], cache: &mut AnswerCache) -> Result<Vec<f64>> {
        match &self.by {
            RewardBy::Model(spec) => self.by_model(spec, answered, asked, cache),
            RewardBy::Command(spec) => {
                let spec = RewardSourceSpec { command: Some(spec.clone()), ..RewardSourceSpec::empty() };
                self.by_source(spec, answered, asked)
            }
            RewardBy::Server(spec) => {
                let spec = RewardSourceSpec { http: Some(spec.clone()), ..RewardSourceSpec::empty() };
                self.by_source(spec, answered, asked)
            }
        }
    }

    /// Asks a program or a server. What it says is not kept: it may be another one next time.
    fn by_source(&self, spec: RewardSourceSpec, answered: &AnsweredTask, asked: &[(usize, &str)]) -> Result<Vec<f64>> {
        let mut sources = RewardSources::open(&[spec], REWARD)?;
        let path = Arc::new(self.file.clone());
        let bar = report::bar(asked.len() as u64, &format!("{}, rewards", answered.task.name));
        let mut rewards = Vec::with_capacity(asked.len());
        for part in asked.chunks(BATCH) {
            let prompt = |(i, _): &(usize, &str)| PromptRow {
                ids: Vec::new(),
                text: answered.prompts[*i].clone(),
                columns: self.columns[*i].clone(),
                format: RowFormat::Prompt,
                path: path.clone(),
                line: self.lines[*i],
            };
            let prompts: Vec<PromptRow> = part.iter().map(prompt).collect();
            let input = |(prompt, (_, answer))| RewardInput { prompt, answer, ids: &[], tokens: 0 };
            let inputs: Vec<RewardInput> = prompts.iter().zip(part.iter().copied()).map(input).collect();
            for (numbers, prompt) in sources.score(answered.model, &inputs)?.into_iter().zip(&prompts) {
                match numbers[..] {
                    [reward] if reward.is_finite() => rewards.push(reward),
                    _ => {
                        return Err(Error::user(format!("no reward was given to an answer to {}", prompt.place()))
                            .hint("a mean over the others would be that of other rows: each answer needs a number"));
                    }
                }
            }
            bar.inc(part.len() as u64);
        }
        bar.finish_and_clear();
        Ok(rewards)
    }

    /// Asks a reward model for the answers that are unknown; it is loaded if there are any.
    fn by_model(
        &self,
        spec: &RewardModelSpec,
        answered: &AnsweredTask,
        asked: &[(usize, &str)],
        cache: &mut AnswerCache,
    ) -> Result<Vec<f64>> {
        let model: &Model = answered.model;
        let (base, adapter): (&Path, Option<&Path>) = match spec.is_adapter() {
            true => (spec.base.as_deref().unwrap_or(model.folder()), Some(&spec.path)),
            false => (&spec.path, None),
        };
        let folders: Vec<&Path> = std::iter::once(base).chain(adapter).collect();
        let identity = format!("{} {:?} {:?}", content_hash::hash(&folders)?, model.kind(), model.device());
        let keys: Vec<String> = asked
            .iter()
            .map(|(i, text)| key(&identity, &json!([self.prompts[*i].messages, text]).to_string(), &[]))
            .collect();
        let mut known: BTreeMap<&str, f64> = BTreeMap::new();
        let mut open: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (key, asked) in keys.iter().zip(asked) {
            match cache.get::<f64>(key) {
                Some(reward) => drop(known.insert(key, reward)),
                None => drop(open.insert(key, *asked)),
            }
        }
        if !open.is_empty() {
            let tokenizer = ChatTokenizer::load_for(base, adapter, &TemplateOptions::default())?;
            let (scorer, scoring) = open_scorer(base, adapter, model.device(), model.kind())?;
            scoring.check_texts(&spec.path, |text| tokenizer.encode_plain(text))?;
            let open: Vec<(&str, (usize, &str))> = open.into_iter().collect();
            let bar = report::bar(open.len() as u64, &format!("{}, rewards", answered.task.name));
            for part in open.chunks(BATCH) {
                let candidates: Vec<Candidate> = part
                    .iter()
                    .enumerate()
                    .map(|(number, (_, (i, text)))| candidate(number, &self.prompts[*i], text))
                    .collect();
                let answers = part.iter().zip(&candidates).map(|((_, (i, _)), answer)| (&self.prompts[*i], answer));
                let found = reward_scores(&scorer, &scoring, &tokenizer, answers)
                    .context(|| format!("the reward model {}", spec.path.display()))?;
                let found: Vec<(String, f64)> =
                    part.iter().enumerate().map(|(n, (key, _))| (key.to_string(), found[&(n as i64)])).collect();
                known.extend(part.iter().zip(&found).map(|((key, _), (_, reward))| (*key, *reward)));
                cache.add(found)?;
                bar.inc(part.len() as u64);
            }
            bar.finish_and_clear();
        }
        Ok(keys.iter().map(|key| known[key.as_str()]).collect())
    }
}
