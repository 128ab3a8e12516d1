//! Rewards from a reward model: the score at the last token of each answer.
//!
//! If the reward model is an adapter over the base that is trained, it is attached to that base next to the trained
//! adapter and needs no second base in memory. Any other reward model is loaded once, with the first answers. Either
//! way, the probes stored with the reward model (texts with their scores) are scored first, to detect a wrong base or
//! format.

use super::source::{RewardInput, RewardSource};
use super::spec::RewardModelSpec;
use crate::adapters::file;
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::model_files::is_model;
use crate::models::{Model, RewardScorer, open_scorer};
use crate::report;

/// Names of the reward adapters attached to the trained base, in the order of the recipe's list.
const ADAPTER_NAMES: [&str; 4] = ["reward", "reward-2", "reward-3", "reward-4"];

/// Returns the adapter name of the reward model at index `place` among those of a recipe. Fails if there are too many.
pub fn adapter_name(place: usize) -> Result<&'static str> {
    ADAPTER_NAMES.get(place).copied().ok_or_else(|| {
        Error::user(format!("more than {} reward models", ADAPTER_NAMES.len()))
            .hint("train one reward model on their pairs together")
    })
}

impl RewardModelSpec {
    /// Returns true if it is an adapter, which needs a base.
    pub fn is_adapter(&self) -> bool {
        self.path.join(file::CONFIG).exists()
    }

    /// Returns true if it can be attached to the base that is trained: an adapter without a base of its own.
    pub fn shares_base(&self) -> bool {
        self.is_adapter() && self.base.is_none()
    }
}

/// Reward by a reward model.
pub struct ModelReward {
    spec: RewardModelSpec,
    name: &'static str,
    /// Set after the probes were checked.
    scoring: Option<RewardScorer>,
    /// The loaded reward model, unless it is an adapter on the trained base.
    own_model: Option<Model>,
}

impl ModelReward {
    /// Checks the settings; loads nothing yet. `place` is the index among the reward models of the recipe.
    pub fn new(spec: RewardModelSpec, place: usize) -> Result<Self> {
        let path = spec.path.display();
        if spec.base.is_some() && !spec.is_adapter() {
            return Err(Error::user(format!("base: {path} is a whole model and needs no base")).hint("remove `base`"));
        }
        if !spec.is_adapter() && !is_model(&spec.path) {
            return Err(Error::user(format!("{path}: neither a reward model's directory nor an adapter"))
                .hint("train one first, with method: reward; `ft train recipes/reward-helpful.yaml` makes one"));
        }
        Ok(Self { name: adapter_name(place)?, spec, scoring: None, own_model: None })
    }

    /// Loads the reward model where needed and checks its probes. Does nothing after the first call.
    fn prepare(&mut self, model: &Model) -> Result<()> {
        if self.scoring.is_some() {
            return Ok(());
        }
        let folder = &self.spec.path;
        self.scoring = Some(match model.adapter_id(self.name) {
            Some(_) => {
                let scoring = RewardScorer::read_or_default(folder, model.config())?;
                model.with_adapter(Some(self.name), |model| scoring.check(model, folder))?;
                scoring
            }
            None => {
                let (base, adapter) = match self.spec.is_adapter() {
                    true => (self.spec.base.as_deref().unwrap_or(model.folder()), Some(folder.as_path())),
                    false => (folder.as_path(), None),
                };
                let (own, scoring) = open_scorer(base, adapter, model.device(), model.kind())?;
                report::info(format!("reward model {}: loaded with a base of its own in memory", folder.display()));
                self.own_model = Some(own);
                scoring
            }
        });
        Ok(())
    }
}

impl RewardSource for ModelReward {
    /// Fails if the reward model has another tokenizer than the policy: answers are scored by their sampled token ids.
    fn check_tokenizer(&self, tokenizer: &ChatTokenizer) -> Result<()> {
        let folder = &self.spec.path;
        if let Some(scoring) = RewardScorer::read(folder)? {
            return scoring.check_texts(folder, |text| tokenizer.encode_plain(text));
        }
        let base = self.spec.base.as_deref().unwrap_or(folder);
        if !ChatTokenizer::in_directory(base) {
            return Ok(());
        }
        let text = "Which of the two answers is better? 3.14 – naïve café\n";
        match ChatTokenizer::load(base, None)?.encode_plain(text)? == tokenizer.encode_plain(text)? {
            true => Ok(()),
            false => Err(Error::user(format!(
                "{}: its tokenizer differs from that of the trained model, so token ids mean other text to it",
                base.display()
            ))
            .hint("train a reward model on the same base, or use this one through a `command` or `http` reward")),
        }
    }

    fn score(&mut self, model: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        self.prepare(model)?;
        let scoring = self.scoring.as_ref().ok_or_else(|| Error::bug("a reward model that is not ready"))?;
        // Sequences of similar length are scored together, because attention pads within a packed row.
        let mut order: Vec<usize> = (0..answers.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(answers[i].ids.len()));
        let ids: Vec<&[u32]> = order.iter().map(|&i| answers[i].ids).collect();
        let found = match &self.own_model {
            Some(own) => scoring.scores(own, &ids)?,
            None => model.with_adapter(Some(self.name), |model| scoring.scores(model, &ids))?,
        };
        let mut scores = vec![0.0; answers.len()];
        order.into_iter().zip(found).for_each(|(i, score)| scores[i] = score);
        Ok(scores)
    }
}
