//! Reads the file of a merge of adapters: the arguments of `ft merge` as YAML.

use super::node_reader::NodeReader;
use super::sweep::{SweepBy, SweepSettings};
use crate::adapters::merging::plan::{METHODS, MergeDtype, MergeForm, MergePlan, MergeSettings, NamedMethod};
use crate::merging::MajoritySign;
use crate::recipe::tree::{Node, NodeKind};
use std::path::PathBuf;

/// A merge of adapters as its file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterMergeFile {
    /// Folder of the base.
    pub base: PathBuf,
    /// Folder and weight of each adapter.
    pub adapters: Vec<(PathBuf, f64)>,
    /// The folder to write; `None`: given on the command line.
    pub out: Option<PathBuf>,
    /// How the adapters are merged.
    pub plan: MergePlan,
    /// The search for their weights, if there is one.
    pub sweep: Option<SweepSettings>,
    /// What is written.
    pub form: MergeForm,
    /// The number format of a merged model.
    pub dtype: MergeDtype,
}

const KEYS: [&str; 16] = [
    "base",
    "adapters",
    "out",
    "method",
    "density",
    "majority_sign",
    "rank",
    "energy",
    "knots",
    "seed",
    "sweep",
    "sweep_by",
    "sweep_rows",
    "sweep_steps",
    "as",
    "dtype",
];
const ADAPTER_KEYS: [&str; 3] = ["path", "weight", "density"];

/// Reads the whole file; `None` if something is missing. Mistakes are noted as they are met.
pub(super) fn file(reader: &mut NodeReader, root: &Node) -> Option<AdapterMergeFile> {
    reader.check_keys(root, &KEYS, "the file of a merge");
    let base = reader.required(root, "base", "models/base").and_then(|node| reader.path("base", node, "models/base"));
    let (adapters, own) = match reader.required(root, "adapters", "[adapters/a, adapters/b]") {
        Some(node) => adapters(reader, node, root.get("sweep").is_some()),
        None => Default::default(),
    };
    let seed = root.get("seed").and_then(|n| reader.whole("seed", n)).and_then(|seed| u64::try_from(seed).ok());
    let sweep = sweep(reader, root, seed);
    let settings = MergeSettings {
        method: root.get("method").and_then(|n| method(reader, n)).unwrap_or_default(),
        densities: densities(reader, root, own),
        majority_sign: reader.named(root, "majority_sign", &MajoritySign::NAMES, MajoritySign::named),
        rank: root.get("rank").and_then(|n| reader.whole("rank", n)),
        energy: root.get("energy").and_then(|n| reader.number("energy", n)),
        knots: root.get("knots").and_then(|n| reader.truth("knots", n)).unwrap_or_default(),
        // Of weights that are trained it determines the order of rows.
        seed: seed.filter(|_| !sweep.as_ref().is_some_and(|sweep| sweep.by.is_trained())),
    };
    let form = reader.named(root, "as", &["model", "adapter"], |name| match name {
        "model" => Some(MergeForm::Model),
        "adapter" => Some(MergeForm::Adapter),
        _ => None,
    });
    let dtype = reader.named(root, "dtype", &["base", "bf16", "f32"], |name| match name {
        "base" => Some(MergeDtype::Base),
        "bf16" => Some(MergeDtype::Bf16),
        "f32" => Some(MergeDtype::F32),
        _ => None,
    });
    if let (Some(MergeForm::Adapter), Some(dtype)) = (form, root.get("dtype")) {
        let why = "`dtype` is that of a merged model, and an adapter is written".to_string();
        reader.wrong::<()>(dtype.at, why, "leave it out: adapters are written in float32, as PEFT writes them");
    }
    let out = root.get("out").and_then(|node| reader.path("out", node, "models/merged"));
    let plan = settings.plan(adapters.len());
    let of_sweep = plan.as_ref().ok().and_then(|plan| sweep.as_ref()?.mistake(plan));
    for m in plan.as_ref().err().into_iter().flatten().chain(&of_sweep) {
        let at = root.get(m.key).map_or(root.nearest("adapters"), |node| node.at);
        reader.wrong::<()>(at, format!("`{}`: {}", m.key, m.message), m.hint);
    }
    Some(AdapterMergeFile {
        base: base?,
        adapters,
        out,
        plan: plan.ok()?,
        sweep,
        form: form.unwrap_or_default(),
        dtype: dtype.unwrap_or_default(),
    })
}

/// Reads the search for weights.
fn sweep(reader: &mut NodeReader, root: &Node, seed: Option<u64>) -> Option<SweepSettings> {
    let mut whole = |key: &str| root.get(key).and_then(|n| reader.whole(key, n)).map(|n| n as usize);
    let (limit, steps) = (whole("sweep_rows"), whole("sweep_steps"));
    let by = reader.named(root, "sweep_by", &SweepBy::NAMES, SweepBy::named);
    if limit == Some(0) {
        reader.wrong::<()>(root.nearest("sweep_rows"), "`sweep_rows`: a search needs rows".into(), "at least 1");
    }
    let Some(rows) = root.get("sweep") else {
        for key in ["sweep_by", "sweep_rows", "sweep_steps"] {
            if let Some(node) = root.get(key) {
                reader.wrong::<()>(node.at, format!("`{key}` without `sweep`"), "e.g. `sweep: datasets/valid.jsonl`");
            }
        }
        return None;
    };
    let rows = reader.path("sweep", rows, "datasets/valid.jsonl")?;
    Some(SweepSettings { rows, limit, by: by.unwrap_or_default(), steps, seed: seed.unwrap_or_default() })
}

/// Reads the list of adapters, and the densities of those that have one. If weights are searched, adapters may have none.
fn adapters(reader: &mut NodeReader, node: &Node, searched: bool) -> (Vec<(PathBuf, f64)>, Vec<Option<f64>>) {
    let NodeKind::List(items) = &node.kind else {
        reader.expected::<()>("adapters", node, "a list", "[adapters/a, adapters/b]");
        return Default::default();
    };
    if items.is_empty() {
        reader.wrong::<()>(node.at, "`adapters` is empty".into(), "name at least one folder");
    }
    let mut adapters = Vec::new();
    let mut densities = Vec::new();
    for item in items {
        let (path, weight, density) = match &item.kind {
            NodeKind::Map(_) => {
                reader.check_keys(item, &ADAPTER_KEYS, "an adapter");
                let path = match item.get("path") {
                    Some(path) => reader.path("path", path, "adapters/a"),
                    None => reader.wrong(item.at, "an adapter without `path`".into(), "e.g. `path: adapters/a`"),
                };
                let weight = item.get("weight").and_then(|n| reader.number("weight", n));
                if let Some(node) = item.get("weight").filter(|_| searched) {
                    let hint = "leave out `weight`, or `sweep`";
                    reader.wrong::<()>(node.at, "`weight` beside `sweep`, which searches the weights".into(), hint);
                }
                let density = item.get("density").and_then(|n| reader.number("density", n));
                (path, weight.unwrap_or(1.0), density)
            }
            _ => (reader.path("adapters", item, "adapters/a"), 1.0, None),
        };
        adapters.push((path.unwrap_or_default(), weight));
        densities.push(density);
    }
    (adapters, densities)
}

/// Returns the densities of the adapters: their own, or the one for all.
fn densities(reader: &mut NodeReader, root: &Node, own: Vec<Option<f64>>) -> Vec<f64> {
    let all = root.get("density").and_then(|n| reader.number("density", n));
    if own.iter().all(Option::is_none) {
        return all.into_iter().collect();
    }
    let found: Option<Vec<f64>> = own.into_iter().map(|density| density.or(all)).collect();
    found.unwrap_or_else(|| {
        let why = "some adapters have a `density` and others have none".to_string();
        reader.wrong::<()>(root.nearest("adapters"), why, "give `density` at the top for the others");
        Vec::new()
    })
}

fn method(reader: &mut NodeReader, node: &Node) -> Option<NamedMethod> {
    let names = METHODS.map(|m| m.name);
    reader.choice("method", node, &names, NamedMethod::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::merge_file::{MergeFile, parse};

    #[test]
    fn a_file_says_what_the_command_line_says() {
        let text = "base: models/b\nmethod: dare_ties\nadapters:\n- adapters/a\n- path: adapters/c\n  weight: -0.5\n  \
                    density: 0.7\ndensity: 0.3\nseed: 7\nrank: 8\nas: adapter\nout: adapters/out\n";
        let MergeFile::Adapters(file) = parse("merge.yaml", text).unwrap() else { panic!("a merge of adapters") };
        assert_eq!(file.adapters, [("adapters/a".into(), 1.0), ("adapters/c".into(), -0.5)]);
        assert_eq!(file.plan.describe(), "dare_ties, density 0.3 0.7, seed 7, rank 8");
        assert_eq!((file.form, file.out), (MergeForm::Adapter, Some("adapters/out".into())));
    }

    #[test]
    fn all_mistakes_are_reported_with_their_places() {
        let text = "base: models/b\nmetod: ties\nmethod: tie\nadapters:\n- adapters/a\n- wieght: 2\nrank: many\n\
                    energy: 3\nas: adapter\ndtype: bf16\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        for part in [
            "merge.yaml:2:1: unknown key `metod`",
            "did you mean `method`?",
            "merge.yaml:3:9: unknown choice `tie` for `method`",
            "did you mean `ties`?",
            "merge.yaml:6:3: unknown key `wieght`",
            "an adapter without `path`",
            "merge.yaml:7:7: `rank`: expected a whole number, found the text `many`",
            "merge.yaml:8:9: `energy`: 3 is no share of the energy",
            "merge.yaml:10:8: `dtype` is that of a merged model",
        ] {
            assert!(told.contains(part), "{part}\n\n{told}");
        }
        let empty = parse("merge.yaml", "").unwrap_err().to_string();
        assert!(empty.contains("`base` is missing") && empty.contains("`adapters` is missing"), "{empty}");
    }
}
