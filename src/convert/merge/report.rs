//! What a merge does to the base, before anything is written: by tensor, by layer and as a whole.

use crate::adapters::merging::reduce::WeightReport;
use crate::adapters::merging::{MergedWeights, PartWeights};
use crate::merging::comparison::pairs;
use crate::models::layer_number;
use crate::report;
use serde::Serialize;
use std::collections::BTreeMap;

/// The report on a merge.
#[derive(Debug, Clone, Serialize)]
pub struct MergeReport {
    /// The method with its settings.
    pub method: String,
    /// What was merged, in the order of all lists below.
    #[serde(flatten)]
    pub parts: MergedParts,
    /// The model that changes are differences from, if models were merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// All tensors together.
    pub total: GroupReport,
    /// The tensors of each layer together, in order; `other`: those outside of layers.
    pub layers: Vec<GroupReport>,
    /// Every tensor that changes.
    pub weights: Vec<WeightReport>,
}

/// What was merged; in JSON a list with one of these names.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MergedParts {
    /// Adapters.
    Adapters(Vec<MergedPart>),
    /// Whole models, without the one that the others are compared with.
    Models(Vec<MergedPart>),
}

impl MergedParts {
    /// Returns the parts.
    pub fn list(&self) -> &[MergedPart] {
        match self {
            Self::Adapters(parts) | Self::Models(parts) => parts,
        }
    }

    /// Returns what one of them is called.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Adapters(_) => "adapter",
            Self::Models(_) => "model",
        }
    }
}

/// An adapter or a model in a merge.
#[derive(Debug, Clone, Serialize)]
pub struct MergedPart {
    /// Its folder.
    pub folder: String,
    /// The factor on its changes, the mean over all tensors; `null` if the method has none.
    pub weight: Option<f64>,
    /// The share of its entries that is kept, the mean over all tensors; 1 for a method that keeps all.
    pub density: f64,
}

/// What a merge does to several tensors together, as if they were one long vector.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    /// The layer's number, `other`, or `all`.
    pub name: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Norms of the weighted changes, by adapter.
    pub norms: Vec<f64>,
    /// Cosines between the weighted changes of two adapters: the upper triangle of the table, row by row.
    pub cosines: Vec<Option<f64>>,
    /// Mean over tensors of the share of entries where signs differ.
    pub sign_conflicts: Option<f64>,
    /// Norm of the merged change.
    pub merged_norm: f64,
    /// Cosines between the merged change and the weighted change of each adapter.
    pub with_merged: Vec<Option<f64>>,
    /// The share of the merged change's energy that is written.
    pub energy_kept: f64,
    /// Mean rank of the written products.
    pub rank: Option<f64>,
}

impl MergeReport {
    /// Sums up the reports on the tensors of a merge of adapters.
    pub fn new(merge: &MergedWeights, weights: Vec<WeightReport>) -> Self {
        let part = |(i, (folder, _)): (usize, &(std::path::PathBuf, PartWeights))| MergedPart {
            folder: folder.display().to_string(),
            weight: Some(merge.mean_weight(i)),
            density: merge.plan().density(i),
        };
        let parts = MergedParts::Adapters(merge.parts().iter().enumerate().map(part).collect());
        Self::of(merge.plan().describe(), parts, None, weights)
    }

    /// Sums up the reports on tensors. `method`: the method with its settings.
    pub fn of(method: String, parts: MergedParts, reference: Option<String>, weights: Vec<WeightReport>) -> Self {
        let count = parts.list().len();
        let mut layers: BTreeMap<usize, Vec<&WeightReport>> = BTreeMap::new();
        for weight in &weights {
            layers.entry(layer_number(&weight.name).unwrap_or(usize::MAX)).or_default().push(weight);
        }
        let name = |layer: usize| if layer == usize::MAX { "other".to_string() } else { layer.to_string() };
        Self {
            method,
            parts,
            reference,
            total: GroupReport::of("all".into(), count, &weights.iter().collect::<Vec<_>>()),
            layers: layers.iter().map(|(layer, list)| GroupReport::of(name(*layer), count, list)).collect(),
            weights,
        }
    }

    /// Returns the table by layer for a terminal.
    pub fn table(&self) -> String {
        let two = |x: &Option<f64>| x.map_or("-".into(), |x| format!("{x:+.2}"));
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let join = |list: Vec<String>| list.join("  ");
        let mut rows = vec![
            [
                "layer",
                "norms",
                "cosines",
                "sign conflicts",
                "merged norm",
                "cosines with merged",
                "rank",
                "energy kept",
            ]
            .map(String::from)
            .to_vec(),
        ];
        rows.extend(self.layers.iter().chain([&self.total]).map(|g| {
            vec![
                g.name.clone(),
                join(g.norms.iter().map(|n| report_number(*n)).collect()),
                join(g.cosines.iter().map(two).collect()),
                g.sign_conflicts.map_or("-".into(), percent),
                report_number(g.merged_norm),
                join(g.with_merged.iter().map(two).collect()),
                g.rank.map_or("-".into(), |rank| format!("{rank:.1}")),
                match self.parts {
                    MergedParts::Adapters(_) => percent(g.energy_kept),
                    MergedParts::Models(_) => "-".into(),
                },
            ]
        }));
        // A column that says nothing is left out: cosines of a single adapter, ranks if no product is written.
        let speaks = |column: usize| rows[1..].iter().any(|row| !["", "-"].contains(&row[column].as_str()));
        let columns: Vec<usize> = (0..rows[0].len()).filter(|c| *c == 0 || speaks(*c)).collect();
        let rows: Vec<Vec<String>> = rows.iter().map(|row| columns.iter().map(|c| row[*c].clone()).collect()).collect();
        report::table(&rows)
    }
}

impl GroupReport {
    fn of(name: String, parts: usize, weights: &[&WeightReport]) -> Self {
        let mut squares = vec![0.0; parts];
        let mut dots = vec![0.0; pairs(parts).count()];
        let (mut merged_square, mut kept, mut merged_dots) = (0.0, 0.0, vec![0.0; parts]);
        for w in weights {
            let c = &w.comparison;
            let square = c.merged_norm * c.merged_norm;
            merged_square += square;
            kept += w.energy_kept * square;
            for (k, (i, j)) in pairs(parts).enumerate() {
                dots[k] += c.cosines[k].unwrap_or(0.0) * c.norms[i] * c.norms[j];
            }
            for i in 0..parts {
                squares[i] += c.norms[i] * c.norms[i];
                merged_dots[i] += c.with_merged[i].unwrap_or(0.0) * c.norms[i] * c.merged_norm;
            }
        }
        let norms: Vec<f64> = squares.iter().map(|s| s.sqrt()).collect();
        let merged_norm = merged_square.sqrt();
        let cosine = |dot: f64, one: f64, two: f64| (one > 0.0 && two > 0.0).then(|| dot / (one * two));
        let conflicts: Vec<f64> = weights.iter().filter_map(|w| w.comparison.sign_conflicts).collect();
        let ranks: Vec<f64> = weights.iter().filter_map(|w| w.rank).map(|rank| rank as f64).collect();
        let mean = |list: &[f64]| (!list.is_empty()).then(|| list.iter().sum::<f64>() / list.len() as f64);
        Self {
            name,
            tensors: weights.len(),
            cosines: pairs(parts).zip(&dots).map(|((i, j), dot)| cosine(*dot, norms[i], norms[j])).collect(),
            sign_conflicts: mean(&conflicts),
            merged_norm,
            with_merged: (0..parts).map(|i| cosine(merged_dots[i], norms[i], merged_norm)).collect(),
            energy_kept: if merged_square > 0.0 { kept / merged_square } else { 1.0 },
            rank: mean(&ranks),
            norms,
        }
    }
}

/// Formats a norm.
pub fn report_number(x: f64) -> String {
    crate::runs::page::short(x)
}
