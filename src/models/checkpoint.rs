//! Opens a checkpoint's weights under the names that its family gives them.

use super::config::tied_head;
use super::family::{Config, Family};
use super::{gguf_weights, stacks, stored};
use crate::error::{Error, Result};
use crate::model_files::is_gguf;
use crate::nn::{ParamMapping, Weights};
use std::path::Path;

/// Opens the weights of a model, a directory or a GGUF file, under the names that its family gives them.
pub fn weights(model: &Path, config: &Config) -> Result<Weights> {
    let mut weights = if is_gguf(model) { gguf_weights::open(model)? } else { Weights::open(model)? };
    stored::collect(&mut weights, config.stored, config.file())?;
    stacks::split(&mut weights, config)?;
    let Family { map_param, embedding, .. } = *config.family();
    let holds = |wanted: &str| weights.names().any(|n| map_param(n).is_some_and(|p| p.name == wanted));
    let (tied, embedded) = (config.tie_word_embeddings, holds(embedding));
    weights.map_names(|name| {
        let place = map_param(name).filter(|place| !config.leaves_out(&place.name))?;
        match tied && place.name == tied_head::HEAD {
            // Of the checkpoints with a tied head, some contain a redundant copy, others only the head's name for the
            // weight.
            true if embedded => None,
            true => Some(ParamMapping { name: embedding.into(), ..place }),
            false => Some(place),
        }
    })?;
    Ok(weights)
}

/// Fails if some matrices of a checkpoint are stored quantised; `why` says what cannot be done then, `hint` what can.
pub fn refuse_quantised(weights: &Weights, why: &str, hint: &str) -> Result<()> {
    if weights.has_quantised() {
        let origin = weights.origin().display();
        return Err(Error::user(format!("{origin}: the weights are stored quantised: {why}")).hint(hint));
    }
    Ok(())
}

/// Unties embedding and output head of a `config` that ties them: each gets its own weight, with equal values.
pub fn untie_head(config: &mut Config, weights: &mut Weights) -> Result<()> {
    config.untie()?;
    weights.alias(tied_head::HEAD, config.family().embedding);
    Ok(())
}

/// Name of the scalar head's weight, in every family.
pub const SCORE: &str = "score.weight";

/// Returns the number of the expert that a parameter or module belongs to: the part of its name after `experts`. `None` for
/// those of no expert, or of one that computes every token.
pub fn expert_number(name: &str) -> Option<usize> {
    let mut parts = name.split('.').skip_while(|part| *part != "experts");
    parts.nth(1)?.parse().ok()
}

/// Lists of modules that are not layers.
const OTHER_LISTS: [&str; 2] = ["altup_projections", "altup_unembed_projections"];

/// Returns the place of the part of a name that is the layer's number.
fn layer_part(parts: &[&str]) -> Option<usize> {
    let listed = |i: usize| i == 0 || !OTHER_LISTS.contains(&parts[i - 1]);
    (0..parts.len()).find(|&i| parts[i].parse::<usize>().is_ok() && listed(i))
}

/// Returns the number of the layer that a parameter or module belongs to: the first whole number among the parts of its
/// name that is not one of another list. `None` for those outside of layers.
pub fn layer_number(name: &str) -> Option<usize> {
    let parts: Vec<&str> = name.split('.').collect();
    parts[layer_part(&parts)?].parse().ok()
}

/// Returns the name with another layer number; a name outside of layers is returned as it is.
pub fn with_layer_number(name: &str, number: usize) -> String {
    let (mut parts, new): (Vec<&str>, String) = (name.split('.').collect(), number.to_string());
    if let Some(i) = layer_part(&parts) {
        parts[i] = &new;
    }
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_number_in_a_name_is_found_and_replaced() {
        let name = "model.layers.11.mlp.up_proj.weight";
        assert_eq!((layer_number(name), layer_number("model.norm.weight")), (Some(11), None));
        assert_eq!(with_layer_number(name, 3), "model.layers.3.mlp.up_proj.weight");
        assert_eq!(with_layer_number("model.norm.weight", 3), "model.norm.weight");
        let list = "model.altup_projections.1.weight";
        assert_eq!((layer_number(list), with_layer_number(list, 3).as_str()), (None, list));
    }
}
