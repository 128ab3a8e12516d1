//! Reads what config.json says about layers of experts.

use super::reader::ConfigReader;
use crate::error::{Error, Result};
use crate::models::family::ExpertSizes;
use serde_json::Value;

/// Keys that choose another way of routing, and the value that stands for the one that ft computes.
const ROUTERS: [(&str, &str); 2] = [("scoring_func", "softmax"), ("topk_method", "greedy")];

/// Returns the sizes of the layers of experts of a model with `layers` layers; `None` if it has none. Fails for
/// impossible sizes and for routers that ft does not compute.
pub(super) fn read(r: &ConfigReader, layers: i64) -> Result<Option<ExpertSizes>> {
    if r.get("num_experts").is_none() {
        return Ok(None);
    }
    for (key, known) in ROUTERS {
        if let Some(other) = r.get(key).filter(|v| *v != known) {
            return Err(Error::user(format!("{}: `{key}` is {other}: this router is not supported", r.file.display()))
                .hint(format!("supported: `{known}`, the softmax of all experts, of which the largest are chosen")));
        }
    }
    let (count, chosen) = (r.int_up_to("num_experts", 65_536)?, r.int("num_experts_per_tok")?);
    if chosen > count {
        return Err(Error::user(format!(
            "{}: `num_experts_per_tok` is {chosen}, but the model has {count} experts",
            r.file.display()
        ))
        .hint("each token goes to some of the experts; is this the config.json that came with the model?"));
    }
    let every = r.int_or("decoder_sparse_step", 1)?;
    let dense: Vec<i64> = match r.get("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => serde_json::from_value(list.clone())
            .map_err(|_| r.wrong_value("mlp_only_layers", "a list of layer numbers"))?,
    };
    let sparse = (0..layers).map(|i| !dense.contains(&i) && (i + 1) % every == 0).collect();
    let shared_width = match r.get("shared_expert_intermediate_size") {
        Some(_) => Some(r.int("shared_expert_intermediate_size")?),
        None => None,
    };
    Ok(Some(ExpertSizes {
        count,
        chosen,
        width: r.int("moe_intermediate_size")?,
        renormalise: r.get("norm_topk_prob").and_then(Value::as_bool).unwrap_or(false),
        shared_width,
        sparse,
        balance: r.float_or("router_aux_loss_coef", 0.001)?,
    }))
}
