//! Reads what config.json says of single layers: the widths of their MLPs, and whose keys and values they read.

use super::reader::ConfigReader;
use crate::error::{Error, Result};
use serde_json::Value;

/// Returns the width inside the MLP of each of `layers` layers, and the largest. `listed`: the family's files may have a list
/// with one for each layer. Fails for a list of another length.
pub(super) fn widths(r: &ConfigReader, layers: i64, listed: bool) -> Result<(i64, Vec<i64>)> {
    const KEY: &str = "intermediate_size";
    let Some(list) = r.get(KEY).and_then(Value::as_array).filter(|_| listed) else {
        let width = r.int(KEY)?;
        return Ok((width, vec![width; layers as usize]));
    };
    let widths: Vec<i64> = list.iter().filter_map(Value::as_i64).filter(|n| (1..=1 << 24).contains(n)).collect();
    match widths.iter().max() {
        Some(largest) if widths.len() == list.len() && widths.len() as i64 == layers => Ok((*largest, widths)),
        _ => Err(r.wrong_value(KEY, &format!("one size, or a list with one for each of the {layers} layers"))),
    }
}

/// Returns for each of the layers with these `windows` the layer whose keys and values it reads: itself, or for the last
/// `num_kv_shared_layers` the last one before them with the same kind of window. Fails if there is none.
pub(super) fn key_value_layers(r: &ConfigReader, windows: &[Option<i64>]) -> Result<Vec<usize>> {
    const KEY: &str = "num_kv_shared_layers";
    let layers = windows.len();
    let shared = match r.get(KEY) {
        None => 0,
        Some(found) => found
            .as_u64()
            .filter(|n| (*n as usize) < layers)
            .ok_or_else(|| r.wrong_value(KEY, &format!("a number of layers, fewer than all {layers}")))?
            as usize,
    };
    let first = layers - shared;
    let source = |i: usize| {
        match i < first {
        true => Ok(i),
        false => (0..first).rev().find(|j| windows[*j].is_some() == windows[i].is_some()).ok_or_else(|| {
            Error::user(format!(
                "{}: `{KEY}` is {shared}: layer {i} reads the keys of an earlier layer with the same kind of attention, and the \
                 {first} layers with keys of their own have none",
                r.file.display()
            ))
            .hint("`layer_types` must name each kind of attention among the layers before the last ones that share keys and values")
        }),
    }
    };
    (0..layers).map(source).collect()
}
