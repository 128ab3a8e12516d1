//! Reads the settings of rotary embedding from config.json. transformers 5 writes them in `rope_parameters`,
//! transformers 4 in `rope_theta` and `rope_scaling`.

use super::reader::ConfigReader;
use crate::error::{Error, Result};
use crate::nn::RopeScaling;
use serde_json::{Map, Value};

/// Returns base (theta) and scaling. `context` is `max_position_embeddings`. Fails for unsupported kinds of scaling.
pub(super) fn read(r: &ConfigReader, head_dim: i64, context: Option<i64>) -> Result<(f64, RopeScaling)> {
    let none = Map::new();
    let section = |key: &str| match r.get(key) {
        Some(Value::Object(map)) if !map.is_empty() => Some(map),
        _ => None,
    };
    let (newer, older) = (section("rope_parameters"), section("rope_scaling"));
    for (holder, place) in [(r.raw, ""), (newer.unwrap_or(&none), "rope_parameters.")] {
        if let Some(f) = holder.get("partial_rotary_factor").and_then(Value::as_f64).filter(|f| *f != 1.0) {
            return Err(Error::user(format!(
                "{}: `{place}partial_rotary_factor` is {f}; only 1 is supported",
                r.file.display()
            )));
        }
    }
    let newer = ConfigReader { raw: newer.unwrap_or(&none), keys: &[], file: r.file };
    let theta = newer.float_or("rope_theta", r.float_or("rope_theta", 10000.0)?)?;
    let rope = match older {
        Some(raw) => ConfigReader { raw, keys: &[], file: r.file },
        None => newer,
    };
    let theta = rope.float_or("rope_theta", theta)?;
    Ok((theta, scaling(&rope, r, head_dim, context)?))
}

fn scaling(rope: &ConfigReader, whole: &ConfigReader, head_dim: i64, context: Option<i64>) -> Result<RopeScaling> {
    let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    let refuse = |what: String| Err(Error::user(format!("{}: rope scaling {what}", rope.file.display())));
    let context = || context.map(|n| n as f64).ok_or_else(|| whole.wrong_value("max_position_embeddings", "a number"));
    // As in transformers: a length outside the section has precedence over the section's own, and the whole context
    // is the default.
    let original =
        || match (whole.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")) {
            (Some(_), _) => whole.float("original_max_position_embeddings"),
            (_, Some(_)) => rope.float("original_max_position_embeddings"),
            _ => context(),
        };
    let positive = |key: &str, value: f64| match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(rope.wrong_value(key, "a positive number")),
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: positive("factor", rope.float("factor")?)? },
        "dynamic" => {
            if head_dim <= 2 {
                return refuse(format!("`dynamic` needs a head size above 2, found {head_dim}"));
            }
            if let Some(alpha) = rope.get("alpha") {
                return refuse(format!("`dynamic` with `alpha` {alpha} is not supported"));
            }
            RopeScaling::Dynamic { factor: positive("factor", rope.float("factor")?)?, original: context()? }
        }
        "llama3" => {
            let low = positive("low_freq_factor", rope.float("low_freq_factor")?)?;
            let high = positive("high_freq_factor", rope.float("high_freq_factor")?)?;
            if high <= low {
                return Err(rope.wrong_value("high_freq_factor", "more than `low_freq_factor`"));
            }
            RopeScaling::Llama3 { factor: positive("factor", rope.float("factor")?)?, low, high, original: original()? }
        }
        "yarn" => {
            let original = original()?;
            let factor = match rope.get("factor") {
                Some(_) => rope.float("factor")?,
                None => context()? / original,
            };
            let factor = positive("factor", factor)?;
            // As in transformers, 0 means not given.
            let given = |key: &str| Ok::<_, Error>(Some(rope.float_or(key, 0.0)?).filter(|x| *x != 0.0));
            let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let attention = match (rope.get("attention_factor"), given("mscale")?, given("mscale_all_dim")?) {
                (Some(_), _, _) => rope.float("attention_factor")?,
                (None, Some(m), Some(all)) => magnitude(m) / magnitude(all),
                _ => magnitude(1.0),
            };
            RopeScaling::Yarn {
                factor,
                original,
                attention,
                fast: given("beta_fast")?.unwrap_or(32.0),
                slow: given("beta_slow")?.unwrap_or(1.0),
                truncate: rope.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            }
        }
        other => {
            return Err(Error::user(format!("{}: rope scaling `{other}` is not supported", rope.file.display()))
                .hint("supported: default, linear, dynamic, yarn, llama3"));
        }
    })
}
