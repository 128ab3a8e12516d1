//! Reads the settings of rotary embedding from config.json. transformers 5 writes them in `rope_parameters`,
//! transformers 4 in `rope_theta` and `rope_scaling`.

use super::reader::ConfigReader;
use crate::error::{Error, Result};
use crate::nn::RopeScaling;
use serde_json::{Map, Value};

/// A rotary embedding: base and scaling.
pub(super) struct RopeSettings {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// The rotary embeddings of a model.
pub(super) struct Ropes {
    /// How many numbers of each head are rotated.
    pub size: i64,
    /// That of all layers, or of those without a window if `local` differs.
    pub global: RopeSettings,
    /// That of layers with a window, if it is another one.
    pub local: Option<RopeSettings>,
}

/// Reads the rotary embeddings of a model. `rotated`: how many numbers of a head are rotated if that is a size of its own;
/// `context` is `max_position_embeddings`. Fails for unsupported kinds of scaling.
pub(super) fn read(r: &ConfigReader, head_dim: i64, rotated: Option<i64>, context: Option<i64>) -> Result<Ropes> {
    let newer = section(r, "rope_parameters");
    let of_kind = |kind: &str| newer.and_then(|map| map.get(kind)).and_then(Value::as_object);
    // transformers 5 writes a section for each kind of layer where they differ.
    if let Some(global) = of_kind("full_attention") {
        let size = rotated.map_or_else(|| rotary_size(r, Some(global), head_dim), Ok)?;
        let local = of_kind("sliding_attention").map(|local| one(r, Some(local), None, size, context));
        return Ok(Ropes { size, global: one(r, Some(global), None, size, context)?, local: local.transpose()? });
    }
    let size = rotated.map_or_else(|| rotary_size(r, newer, head_dim), Ok)?;
    let global = one(r, newer, section(r, "rope_scaling"), size, context)?;
    let local = match r.get("rope_local_base_freq") {
        Some(_) => Some(RopeSettings { theta: r.float("rope_local_base_freq")?, scaling: RopeScaling::None }),
        None => None,
    };
    Ok(Ropes { size, global, local })
}

fn section<'a>(r: &ConfigReader<'a>, key: &str) -> Option<&'a Map<String, Value>> {
    r.get(key).and_then(Value::as_object).filter(|map| !map.is_empty())
}

/// Returns how many numbers of each head are rotated: an even one, at least 2.
fn rotary_size(r: &ConfigReader, newer: Option<&Map<String, Value>>, head_dim: i64) -> Result<i64> {
    const KEY: &str = "partial_rotary_factor";
    let section = newer.and_then(|map| map.get(KEY)).filter(|v| !v.is_null());
    let Some(given) = section.or(r.get(KEY)) else { return Ok(head_dim) };
    let factor = given.as_f64().filter(|f| *f > 0.0 && *f <= 1.0);
    let size = factor.map_or(0, |factor| (head_dim as f64 * factor) as i64);
    match size >= 2 && size % 2 == 0 {
        true => Ok(size),
        false => Err(Error::user(format!(
            "{}: `{KEY}` is {given}: of heads of {head_dim} numbers it rotates {size}",
            r.file.display()
        ))
        .hint("it must rotate an even number of at least 2, and at most the whole head")),
    }
}

/// Reads one rotary embedding from transformers 5's section and from transformers 4's.
fn one(
    r: &ConfigReader,
    newer: Option<&Map<String, Value>>,
    older: Option<&Map<String, Value>>,
    size: i64,
    context: Option<i64>,
) -> Result<RopeSettings> {
    let none = Map::new();
    let newer = ConfigReader { raw: newer.unwrap_or(&none), keys: &[], file: r.file };
    let theta = newer.float_or("rope_theta", r.float_or("rope_theta", 10000.0)?)?;
    let rope = match older {
        Some(raw) => ConfigReader { raw, keys: &[], file: r.file },
        None => newer,
    };
    let theta = rope.float_or("rope_theta", theta)?;
    Ok(RopeSettings { theta, scaling: scaling(&rope, r, size, context)? })
}

fn scaling(rope: &ConfigReader, whole: &ConfigReader, size: i64, context: Option<i64>) -> Result<RopeScaling> {
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
            if size <= 2 {
                return refuse(format!("`dynamic` needs a head size above 2, found {size}"));
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
        // Phi-3's first files call it by another name.
        "longrope" | "su" => {
            let original = original()?;
            let factor = match rope.get("factor") {
                Some(_) => positive("factor", rope.float("factor")?)?,
                None => context()? / original,
            };
            let attention = match rope.get("attention_factor") {
                Some(_) => rope.float("attention_factor")?,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / original.ln()).sqrt(),
            };
            let divisors = |key: &str| {
                let list = rope.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let numbers: Vec<f64> =
                    list.iter().filter_map(Value::as_f64).filter(|x| *x > 0.0 && x.is_finite()).collect();
                match numbers.len() == list.len() && numbers.len() as i64 == size / 2 {
                    true => Ok(numbers),
                    false => Err(rope.wrong_value(key, &format!("a list of {} numbers above 0", size / 2))),
                }
            };
            RopeScaling::Long { short: divisors("short_factor")?, long: divisors("long_factor")?, original, attention }
        }
        other => {
            return Err(Error::user(format!("{}: rope scaling `{other}` is not supported", rope.file.display()))
                .hint("supported: default, linear, dynamic, yarn, llama3, longrope"));
        }
    })
}
