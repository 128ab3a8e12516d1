//! Settings of a run that concern recurrent layers.

use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::LayerKind;
use crate::recipe::plan::Plan;

/// Returns the number of tokens over which gradients flow back in recurrent layers; `None`: to the first. Fails if the recipe
/// has settings for recurrent layers and the model has none, or if an adapter's dropout cannot be applied to them.
pub fn truncation(plan: &Plan, model: &Model) -> Result<Option<i64>> {
    let recipe = &plan.recipe;
    if model.recurrence().is_none() {
        let asked = [("optim.truncate", recipe.optim.truncate), ("run.reach_every", recipe.run.reach_every)];
        let Some((key, _)) = asked.iter().find(|(_, asked)| asked.is_some()) else { return Ok(None) };
        return Err(Error::user(format!("{key}: a {} model has no recurrent layers", model.config().model_type))
            .hint("remove the key: it is for ft_rnn, ft_gru and ft_lstm"));
    }
    let dropout = recipe.adapter.as_ref().is_some_and(|adapter| adapter.activations().dropout);
    let of_states = |name: &str| name.split('.').any(|part| part == "recurrent");
    let mut adapted = model.params().trainable().filter(|p| p.adapter.is_some() && p.layer == LayerKind::Linear);
    if let Some(p) = adapted.find(|p| dropout && of_states(&p.name)) {
        return Err(Error::user(format!(
            "`{}`: dropout of an adapter of recurrent layers' states: their products are computed in a loop over time",
            p.name
        ))
        .hint("set the adapter's dropout to 0, or adapt the layers of tokens only: targets: [input]"));
    }
    Ok(recipe.optim.truncate.map(|tokens| tokens as i64))
}
