//! Ratio of signal to noise of weight matrices, to choose which of them are worth training (Spectrum, Hartford et al.
//! 2024, arXiv 2406.06623).

use super::checkpoint::layer_number;
use crate::error::{Error, Result};
use crate::nn::Weights;
use crate::report;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Returns the names of the matrices to train: of the layers' matrices, by kind of module, the `share` with the highest
/// ratio, at least one of each kind. Sorted by name. Fails if there are none.
pub(super) fn choose(weights: &Weights, share: f64, device: Device) -> Result<Vec<String>> {
    let matrix = |name: &&str| layer_number(name).is_some() && weights.shape(name).is_some_and(|s| s.len() == 2);
    let names: Vec<&str> = weights.names().filter(matrix).collect();
    if names.is_empty() {
        return Err(Error::user(format!("{}: no matrices in numbered layers", weights.origin().display()))
            .hint("choose the weights by name instead: model.trained.matching"));
    }
    let bar = report::bar(names.len() as u64, "signal-to-noise ratios");
    let mut kinds: BTreeMap<String, Vec<(f64, &str)>> = BTreeMap::new();
    for name in names {
        let weight = weights.get(name).ok_or_else(|| Error::bug(format!("`{name}` was listed and is missing")))?;
        let ratio = signal_to_noise(&weight.to_device(device));
        kinds.entry(module_kind(name)).or_default().push((ratio, name));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut chosen = Vec::new();
    for list in kinds.values_mut() {
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let count = ((list.len() as f64 * share).round() as usize).max(1);
        chosen.extend(list.iter().take(count).map(|(_, name)| name.to_string()));
    }
    chosen.sort();
    Ok(chosen)
}

/// Returns the name without the numbers of the layer and of an expert, such as `model.layers.*.mlp.up_proj.weight`.
fn module_kind(name: &str) -> String {
    let (mut numbered, mut parts) = (false, Vec::new());
    for part in name.split('.') {
        let number = part.parse::<usize>().is_ok() && (!numbered || parts.last() == Some(&"experts"));
        numbered |= number;
        parts.push(if number { "*" } else { part });
    }
    parts.join(".")
}

/// Computes the sum of a matrix's singular values above the largest that noise would give, divided by the sum of the
/// others and by the largest singular value. The noise's standard deviation is estimated from the quartiles of the
/// singular values, and its largest singular value is that of the Marchenko-Pastur law.
fn signal_to_noise(weight: &Tensor) -> f64 {
    let _no_grad = tch::no_grad_guard();
    let values = weight.to_kind(Kind::Float).svd(true, false).1;
    let quartile = |q: f64| values.quantile_scalar(q, None::<i64>, false, "linear").double_value(&[]);
    let sigma = (quartile(0.75) - quartile(0.25)) / 1.349;
    let (rows, columns) = (weight.size()[0] as f64, weight.size()[1] as f64);
    let largest_noise = sigma * (1.0 + (rows.min(columns) / rows.max(columns)).sqrt());
    let is_signal = values.gt(largest_noise).to_kind(Kind::Float);
    let sum = |t: Tensor| t.sum(Kind::Double).double_value(&[]);
    let (signal, all) = (sum(&values * is_signal), sum(values.shallow_clone()));
    signal / (all - signal) / values.max().double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Singular values 1 to 8: quartiles 2.75 and 6.25, so sigma is 2.594. In a square matrix noise reaches 5.19, and 6,
    /// 7 and 8 are signal; in one four times as wide it reaches 3.89.
    #[test]
    fn the_ratio_is_that_of_the_published_formula() {
        let square = Tensor::arange_start(1, 9, (Kind::Float, Device::Cpu)).diag(0);
        let wide = Tensor::cat(&[&square, &Tensor::zeros([8, 24], (Kind::Float, Device::Cpu))], 1);
        assert!((signal_to_noise(&square) - 21.0 / 15.0 / 8.0).abs() < 1e-6);
        assert!((signal_to_noise(&wide) - 30.0 / 6.0 / 8.0).abs() < 1e-6);
        assert!((signal_to_noise(&wide.tr()) - 30.0 / 6.0 / 8.0).abs() < 1e-6);
    }

    #[test]
    fn kinds_of_modules_differ_by_the_numbers_of_layers_and_experts_alone() {
        assert_eq!(
            module_kind("model.layers.1.mlp.experts.12.up_proj.weight"),
            "model.layers.*.mlp.experts.*.up_proj.weight"
        );
        assert_eq!(module_kind("model.layers.12.mlp.up_proj.weight"), "model.layers.*.mlp.up_proj.weight");
        assert_eq!(module_kind("transformer.h.3.attn.c_attn.weight"), "transformer.h.*.attn.c_attn.weight");
    }
}
