//! Reads what config.json says about layers of experts.

use super::reader::ConfigReader;
use crate::error::{Error, Result};
use crate::models::family::ExpertSizes;
use serde_json::Value;

/// Keys that choose another way of routing, and the value that stands for the one that ft computes.
const ROUTERS: [(&str, &str); 2] = [("scoring_func", "softmax"), ("topk_method", GREEDY)];
const GREEDY: &str = "greedy";
/// A token's experts are taken from some groups of experts only.
const GROUPS: &str = "group_limited_greedy";

/// Returns the sizes of the layers of experts of a model with `layers` layers; `None` if it has none. `grouped`: its family
/// may have groups of experts, as DeepSeek has. Fails for impossible sizes and for routers that ft does not compute.
pub(super) fn read(r: &ConfigReader, layers: i64, grouped: bool) -> Result<Option<ExpertSizes>> {
    if r.get("num_experts").is_none() {
        return match r.is_null("num_experts") && !grouped {
            true => Err(r.wrong_value("num_experts", "a number of experts")),
            false => Ok(None),
        };
    }
    // Keys that only these families read.
    let own = |key: &str| r.get(key).filter(|_| grouped);
    let by_groups = grouped && r.get("topk_method").is_some_and(|v| v == GROUPS);
    for (key, known) in ROUTERS {
        if let Some(other) = r.get(key).filter(|v| *v != known && !(by_groups && key == "topk_method")) {
            let also = if grouped && key == "topk_method" { format!(" and `{GROUPS}`") } else { String::new() };
            return Err(Error::user(format!("{}: `{key}` is {other}: this router is not supported", r.file.display()))
                .hint(format!(
                    "supported: `{known}`{also}, the softmax of all experts, of which the largest are chosen"
                )));
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
    let first = match own("first_k_dense_replace") {
        None => 0,
        Some(v) => v
            .as_i64()
            .filter(|n| *n >= 0)
            .ok_or_else(|| r.wrong_value("first_k_dense_replace", "a number of layers"))?,
    };
    let sparse = (0..layers).map(|i| i >= first && !dense.contains(&i) && (i + 1) % every == 0).collect();
    let width = r.int("moe_intermediate_size")?;
    let shared_width = match (r.get("shared_expert_intermediate_size"), own("n_shared_experts")) {
        (Some(_), _) => Some(r.int("shared_expert_intermediate_size")?),
        (None, Some(_)) => Some(r.int_up_to("n_shared_experts", 65_536)? * width),
        (None, None) => None,
    };
    Ok(Some(ExpertSizes {
        count,
        chosen,
        width,
        renormalise: r.get("norm_topk_prob").and_then(Value::as_bool).unwrap_or(false),
        groups: if by_groups { Some(groups(r, count, chosen)?) } else { None },
        scale: if grouped { r.float_or("routed_scaling_factor", 1.0)? } else { 1.0 },
        shared_width,
        sparse,
        balance: r.float_or("router_aux_loss_coef", 0.001)?,
    }))
}

/// Returns the number of groups of `count` experts, and from how many of them the `chosen` experts of a token are taken.
fn groups(r: &ConfigReader, count: i64, chosen: i64) -> Result<(i64, i64)> {
    let (all, some) = (r.int_up_to("n_group", count)?, r.int("topk_group")?);
    if count % all != 0 {
        return Err(r.wrong_value("n_group", &format!("a divisor of the {count} experts")));
    }
    if some > all {
        return Err(r.wrong_value("topk_group", &format!("at most the {all} groups")));
    }
    if some * (count / all) < chosen {
        return Err(
            r.wrong_value("topk_group", &format!("so many groups that they have the {chosen} experts of a token"))
        );
    }
    Ok((all, some))
}
