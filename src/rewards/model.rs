//! A reward model as a source of rewards: the score at the end of each answer.
//!
//! An adapter over the base that is trained stands beside the trained one and costs no second base; anything else is
//! loaded once, when the first answers come. Either way the stored probes are scored before the first answer is.

use super::spec::RewardModelSpec;
use super::{Reward, Scored};
use crate::adapters::file;
use crate::data::ChatTokenizer;
use crate::error::{Error, Result};
use crate::models::{Model, Scoring, open_scorer};
use crate::report;

/// Names of reward adapters beside the trained one, in the order of the recipe's list.
const NAMES: [&str; 4] = ["reward", "reward-2", "reward-3", "reward-4"];

/// The name of the adapter of the reward model that stands at `place` among those of a recipe.
pub fn adapter_name(place: usize) -> Result<&'static str> {
    NAMES.get(place).copied().ok_or_else(|| {
        Error::user(format!("more than {} reward models", NAMES.len()))
            .hint("join their pairs into one data set and train one model of them")
    })
}

impl RewardModelSpec {
    /// Whether it is an adapter, which needs a base.
    pub fn is_adapter(&self) -> bool {
        self.path.join(file::CONFIG).exists()
    }

    /// Whether it can stand beside the adapter that is trained, on the same base.
    pub fn beside(&self) -> bool {
        self.is_adapter() && self.base.is_none()
    }
}

/// The source.
pub struct Judge {
    spec: RewardModelSpec,
    name: &'static str,
    /// Known once the probes were scored.
    scoring: Option<Scoring>,
    /// A model of its own, where it is not an adapter beside the trained one.
    own: Option<Model>,
}

impl Judge {
    /// `place` among the reward models of the recipe.
    pub fn new(spec: RewardModelSpec, place: usize) -> Result<Self> {
        let path = spec.path.display();
        if spec.base.is_some() && !spec.is_adapter() {
            return Err(
                Error::user(format!("base: {path} is no adapter, so it has its base in itself")).hint("remove `base`")
            );
        }
        if !spec.is_adapter() && !spec.path.join("config.json").exists() {
            return Err(Error::user(format!("{path}: neither a reward model's directory nor an adapter"))
                .hint("train one first, with method: reward; `ft train recipes/reward-helpful.yaml` makes one"));
        }
        Ok(Self { name: adapter_name(place)?, spec, scoring: None, own: None })
    }

    /// The model whose head scores, its probes checked.
    fn ready(&mut self, model: &Model) -> Result<()> {
        if self.scoring.is_some() {
            return Ok(());
        }
        let folder = &self.spec.path;
        self.scoring = Some(match model.adapter_id(self.name) {
            Some(_) => {
                let scoring = Scoring::of(folder, model.config())?;
                model.with(Some(self.name), |model| scoring.check(model, folder))?;
                scoring
            }
            None => {
                let (base, adapter) = match self.spec.is_adapter() {
                    true => (self.spec.base.as_deref().unwrap_or(model.folder()), Some(folder.as_path())),
                    false => (folder.as_path(), None),
                };
                let (own, scoring) = open_scorer(base, adapter, model.device(), model.kind())?;
                report::info(format!("reward model {} with a base of its own in memory", folder.display()));
                self.own = Some(own);
                scoring
            }
        });
        Ok(())
    }
}

impl Reward for Judge {
    /// Its tokens must be those of the policy: answers are scored as they were drawn.
    fn check_tokenizer(&self, tokenizer: &ChatTokenizer) -> Result<()> {
        let folder = &self.spec.path;
        if let Some(scoring) = Scoring::read(folder)? {
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
                "{}: its tokenizer is not that of the model that is trained: answers would be other tokens to it",
                base.display()
            ))
            .hint("train a reward model on the same base, or ask this one through a `command` or `http` reward")),
        }
    }

    fn score(&mut self, model: &Model, answers: &[Scored]) -> Result<Vec<f64>> {
        self.ready(model)?;
        let scoring = self.scoring.as_ref().ok_or_else(|| Error::bug("a reward model that is not ready"))?;
        // Like lengths together: attention pads within a packed row.
        let mut order: Vec<usize> = (0..answers.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(answers[i].ids.len()));
        let ids: Vec<&[u32]> = order.iter().map(|&i| answers[i].ids).collect();
        let found = match &self.own {
            Some(own) => scoring.scores(own, &ids)?,
            None => model.with(Some(self.name), |model| scoring.scores(model, &ids))?,
        };
        let mut scores = vec![0.0; answers.len()];
        order.into_iter().zip(found).for_each(|(i, score)| scores[i] = score);
        Ok(scores)
    }
}
