//! Chooses which of the base's weights are trained if there is no adapter: all of them or a part. The others are frozen
//! and take neither gradients nor optimiser state.

use super::checkpoint::{self, layer_number};
use super::family::Config;
use super::lisa::LayerSampling;
use super::spectrum;
use crate::error::{Error, Result};
use crate::nn::builder::SelectTrained;
use crate::nn::{LayerKind, Param};
use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Device;

/// Which of the base's weights are trained.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainedPart {
    /// Every weight.
    #[default]
    All,
    /// The last layers, this many, with the final norm and the output head; not the head if it shares the embedding's
    /// weight.
    LastLayers(#[schemars(range(min = 1))] usize),
    /// The parameters whose whole name matches one of these regular expressions, such as `.*\.mlp\..*`.
    Matching(#[schemars(length(min = 1))] Vec<String>),
    /// Of the matrices of each kind of module, this share with the highest ratio of signal to noise (Spectrum, Hartford
    /// et al. 2024, arXiv 2406.06623). The chosen names are recorded in the run's plan.
    Spectrum(#[schemars(range(min = 0.01, max = 1.0))] f64),
    /// Everything outside of the layers, and a few layers at a time, drawn anew every so many steps (LISA, Pan et al. 2024,
    /// arXiv 2403.17919).
    Lisa(LayerSampling),
}

impl TrainedPart {
    /// Returns true if every weight is trained.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Returns how layers are drawn during the run, if they are.
    pub fn layer_sampling(&self) -> Option<LayerSampling> {
        match self {
            Self::Lisa(sampling) => Some(*sampling),
            _ => None,
        }
    }

    /// Returns the function that says which parameters of a model of `depth` layers are trained at a time. With layers that
    /// are drawn, the first ones stand for them. Fails for invalid patterns.
    pub fn selector_at_a_time(&self, depth: usize) -> Result<SelectTrained> {
        match self {
            Self::Lisa(LayerSampling { layers, .. }) => {
                let count = *layers;
                Ok(Box::new(move |name, _| layer_number(name).is_none_or(|number| number < count)))
            }
            _ => self.selector(depth),
        }
    }

    /// Returns the choice with the names that it stands for, as far as it depends on the numbers of the weights in
    /// `folder`; those are read on `device`. Fails if they cannot be read.
    pub fn resolve(&self, folder: &Path, device: Device) -> Result<Self> {
        let Self::Spectrum(share) = self else { return Ok(self.clone()) };
        let config = Config::read(folder)?;
        let weights = checkpoint::weights(folder, &config)?;
        checkpoint::refuse_quantised(&weights, "they cannot be trained", "train an adapter over them")?;
        let names = spectrum::choose(&weights, *share, device)?;
        Ok(Self::Matching(names.iter().map(|name| fancy_regex::escape(name).into_owned()).collect()))
    }

    /// Returns the function that says, by the name of a parameter and the kind of its layer, whether a run trains it in a
    /// model of `depth` layers. Fails for invalid patterns.
    pub fn selector(&self, depth: usize) -> Result<SelectTrained> {
        Ok(match self {
            Self::All | Self::Lisa(_) => Box::new(|_, _| true),
            Self::LastLayers(count) => {
                let first = depth.saturating_sub(*count);
                Box::new(move |name, layer| match layer_number(name) {
                    Some(number) => number >= first,
                    None => matches!(layer, LayerKind::Norm | LayerKind::Head | LayerKind::Score),
                })
            }
            Self::Matching(patterns) => {
                let patterns = patterns.iter().map(|p| pattern(p)).collect::<Result<Vec<_>>>()?;
                Box::new(move |name, _| patterns.iter().any(|p| p.is_match(name).unwrap_or(false)))
            }
            Self::Spectrum(_) => {
                return Err(Error::bug("the weights to train were not chosen before they were loaded"));
            }
        })
    }

    /// Fails if one of the patterns matches none of a base's parameters.
    pub fn check<'a>(&self, base: impl Iterator<Item = &'a Param>) -> Result<()> {
        let Self::Matching(patterns) = self else { return Ok(()) };
        let names: Vec<&str> = base.map(|p| p.name.as_str()).collect();
        for p in patterns {
            let regex = pattern(p)?;
            if !names.iter().any(|name| regex.is_match(name).unwrap_or(false)) {
                let some = names.get(names.len() / 2).unwrap_or(&"");
                return Err(Error::user(format!("model.trained.matching: `{p}` matches no parameter of the model"))
                    .hint(format!("it must match the whole name of a parameter, such as `{some}`")));
            }
        }
        Ok(())
    }
}

fn pattern(text: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{text})$")).map_err(|e| {
        Error::user(format!("model.trained.matching: `{text}` is not a regular expression: {e}"))
            .hint(r"a dot is written `\.`, and `.*` stands for any text: `.*\.mlp\..*`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layers_take_the_final_norm_and_an_own_head_with_them() {
        let trained = TrainedPart::LastLayers(2).selector(4).unwrap();
        assert!(!trained("model.layers.1.mlp.up_proj.weight", LayerKind::Linear));
        assert!(trained("model.layers.2.mlp.up_proj.weight", LayerKind::Linear));
        assert!(trained("model.layers.3.input_layernorm.weight", LayerKind::Norm));
        assert!(!trained("transformer.h.0.ln_1.weight", LayerKind::Norm));
        assert!(trained("model.norm.weight", LayerKind::Norm));
        assert!(trained("lm_head.weight", LayerKind::Head));
        assert!(!trained("model.embed_tokens.weight", LayerKind::Embedding));
        assert!(TrainedPart::LastLayers(9).selector(4).unwrap()(
            "model.layers.0.mlp.up_proj.weight",
            LayerKind::Linear
        ));
    }

    #[test]
    fn patterns_match_whole_names_and_mistakes_in_them_are_named() {
        let part = TrainedPart::Matching(vec![r".*\.[01]\.mlp\..*".into()]);
        let trained = part.selector(4).unwrap();
        assert!(trained("model.layers.1.mlp.up_proj.weight", LayerKind::Linear));
        assert!(!trained("model.layers.11.mlp.up_proj.weight", LayerKind::Linear));
        let wrong = TrainedPart::Matching(vec!["(".into()]).selector(4).err().unwrap().to_string();
        assert!(wrong.contains("`(` is not a regular expression"), "{wrong}");
    }
}
