//! Reads the file of a merge: the arguments of `ft merge` as YAML. All mistakes are reported together, with their places.

use super::mistakes::{Mistake, SourceSpan, SourceTexts};
use super::repair::describe_value;
use super::suggest::suggest_choice;
use super::tree::{self, Node, NodeKind, Scalar, parse_scalar};
use crate::adapters::merging::plan::{METHODS, MergeDtype, MergeForm, MergePlan, MergeSettings, NamedMethod};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::merging::MajoritySign;
use std::path::{Path, PathBuf};

/// A merge as its file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeFile {
    /// Folder of the base.
    pub base: PathBuf,
    /// Folder and weight of each adapter.
    pub adapters: Vec<(PathBuf, f64)>,
    /// The folder to write; `None`: given on the command line.
    pub out: Option<PathBuf>,
    /// How the adapters are merged.
    pub plan: MergePlan,
    /// What is written.
    pub form: MergeForm,
    /// The number format of a merged model.
    pub dtype: MergeDtype,
}

const KEYS: [&str; 12] =
    ["base", "adapters", "out", "method", "density", "majority_sign", "rank", "energy", "knots", "seed", "as", "dtype"];
const ADAPTER_KEYS: [&str; 3] = ["path", "weight", "density"];
/// Maximum size of the file in bytes, so that a weights file given by mistake is not read.
const LARGEST: u64 = 1 << 20;

/// Reads the file of a merge. If there are mistakes, the error lists all of them.
pub fn read(path: &Path) -> Result<MergeFile> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LARGEST) {
        return Err(Error::user(format!("{}: larger than 1 MiB, so it cannot be the file of a merge", path.display()))
            .hint("it is a short YAML file: docs/merging.md shows one"));
    }
    parse(&path.display().to_string(), &fsutil::read_to_string(path)?)
}

/// Like [`read`], for a file given as text. Messages use `name` in place of a file name.
pub fn parse(name: &str, text: &str) -> Result<MergeFile> {
    let content = text.strip_prefix('\u{feff}').unwrap_or(text);
    let sources = SourceTexts { name, text: content, sets: &[] };
    let mut mistakes = Vec::new();
    let root =
        tree::parse(0, content, &mut mistakes).or_else(|| mistakes.is_empty().then(|| Node::map(SourceSpan::start(0))));
    let found = root.and_then(|root| MergeReader { mistakes: &mut mistakes }.file(&root));
    match found {
        Some(file) if mistakes.is_empty() => Ok(file),
        _ => Err(sources.report(mistakes)),
    }
}

struct MergeReader<'a> {
    mistakes: &'a mut Vec<Mistake>,
}

impl MergeReader<'_> {
    fn wrong<T>(&mut self, at: SourceSpan, message: String, hint: impl Into<String>) -> Option<T> {
        self.mistakes.push(Mistake::new(at, message).hint(hint));
        None
    }

    fn expected<T>(&mut self, key: &str, node: &Node, what: &str, example: &str) -> Option<T> {
        let message = format!("`{key}`: expected {what}, found {}", describe_value(node));
        self.wrong(node.at, message, format!("e.g. `{key}: {example}`"))
    }

    /// Reads the whole file; `None` if something is missing. Mistakes are noted as they are met.
    fn file(&mut self, root: &Node) -> Option<MergeFile> {
        self.check_keys(root, &KEYS, "the file of a merge");
        let base = self.required(root, "base", "models/base").and_then(|node| self.path("base", node));
        let (adapters, own) = match self.required(root, "adapters", "[adapters/a, adapters/b]") {
            Some(node) => self.adapters(node),
            None => Default::default(),
        };
        let settings = MergeSettings {
            method: root.get("method").and_then(|n| self.method(n)).unwrap_or_default(),
            densities: self.densities(root, own),
            majority_sign: self.named(root, "majority_sign", &MajoritySign::NAMES, MajoritySign::named),
            rank: root.get("rank").and_then(|n| self.whole("rank", n)),
            energy: root.get("energy").and_then(|n| self.number("energy", n)),
            knots: root.get("knots").and_then(|n| self.truth("knots", n)).unwrap_or_default(),
            seed: root.get("seed").and_then(|n| self.whole("seed", n)).and_then(|seed| u64::try_from(seed).ok()),
        };
        let form = self.named(root, "as", &["model", "adapter"], |name| match name {
            "model" => Some(MergeForm::Model),
            "adapter" => Some(MergeForm::Adapter),
            _ => None,
        });
        let dtype = self.named(root, "dtype", &["base", "bf16", "f32"], |name| match name {
            "base" => Some(MergeDtype::Base),
            "bf16" => Some(MergeDtype::Bf16),
            "f32" => Some(MergeDtype::F32),
            _ => None,
        });
        if let (Some(MergeForm::Adapter), Some(dtype)) = (form, root.get("dtype")) {
            let why = "`dtype` is that of a merged model, and an adapter is written".to_string();
            self.wrong::<()>(dtype.at, why, "leave it out: adapters are written in float32, as PEFT writes them");
        }
        let out = root.get("out").and_then(|node| self.path("out", node));
        let plan = match settings.plan(adapters.len()) {
            Ok(plan) => Some(plan),
            Err(found) => {
                for m in found {
                    let at = root.get(m.key).map_or(root.nearest("adapters"), |node| node.at);
                    self.wrong::<()>(at, format!("`{}`: {}", m.key, m.message), m.hint);
                }
                None
            }
        };
        Some(MergeFile {
            base: base?,
            adapters,
            out,
            plan: plan?,
            form: form.unwrap_or_default(),
            dtype: dtype.unwrap_or_default(),
        })
    }

    fn check_keys(&mut self, map: &Node, known: &[&str], what: &str) {
        let NodeKind::Map(entries) = &map.kind else {
            self.wrong::<()>(
                map.at,
                format!("expected keys and values, found {}", describe_value(map)),
                "see docs/merging.md",
            );
            return;
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            let hint = match suggest_choice(known, &key.text) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{what} has {}", known.join(", ")),
            };
            self.wrong::<()>(key.at, format!("unknown key `{}`", key.text), hint);
        }
    }

    fn required<'n>(&mut self, root: &'n Node, key: &str, example: &str) -> Option<&'n Node> {
        match root.get(key) {
            Some(node) => Some(node),
            None => self.wrong(SourceSpan::start(0), format!("`{key}` is missing"), format!("e.g. `{key}: {example}`")),
        }
    }

    /// Reads the list of adapters, and the densities of those that have one.
    fn adapters(&mut self, node: &Node) -> (Vec<(PathBuf, f64)>, Vec<Option<f64>>) {
        let NodeKind::List(items) = &node.kind else {
            self.expected::<()>("adapters", node, "a list", "[adapters/a, adapters/b]");
            return Default::default();
        };
        if items.is_empty() {
            self.wrong::<()>(node.at, "`adapters` is empty".into(), "name at least one folder");
        }
        let mut adapters = Vec::new();
        let mut densities = Vec::new();
        for item in items {
            let (path, weight, density) = match &item.kind {
                NodeKind::Map(_) => {
                    self.check_keys(item, &ADAPTER_KEYS, "an adapter");
                    let path = match item.get("path") {
                        Some(path) => self.path("path", path),
                        None => self.wrong(item.at, "an adapter without `path`".into(), "e.g. `path: adapters/a`"),
                    };
                    let weight = item.get("weight").and_then(|n| self.number("weight", n));
                    let density = item.get("density").and_then(|n| self.number("density", n));
                    (path, weight.unwrap_or(1.0), density)
                }
                _ => (self.path("adapters", item), 1.0, None),
            };
            adapters.push((path.unwrap_or_default(), weight));
            densities.push(density);
        }
        (adapters, densities)
    }

    /// Returns the densities of the adapters: their own, or the one for all.
    fn densities(&mut self, root: &Node, own: Vec<Option<f64>>) -> Vec<f64> {
        let all = root.get("density").and_then(|n| self.number("density", n));
        if own.iter().all(Option::is_none) {
            return all.into_iter().collect();
        }
        let found: Option<Vec<f64>> = own.into_iter().map(|density| density.or(all)).collect();
        found.unwrap_or_else(|| {
            let why = "some adapters have a `density` and others have none".to_string();
            self.wrong::<()>(root.nearest("adapters"), why, "give `density` at the top for the others");
            Vec::new()
        })
    }

    fn method(&mut self, node: &Node) -> Option<NamedMethod> {
        let names = METHODS.map(|m| m.name);
        self.choice("method", node, &names, NamedMethod::get)
    }

    fn named<T>(&mut self, root: &Node, key: &str, names: &[&str], get: impl Fn(&str) -> Option<T>) -> Option<T> {
        root.get(key).and_then(|node| self.choice(key, node, names, get))
    }

    fn choice<T>(&mut self, key: &str, node: &Node, names: &[&str], get: impl Fn(&str) -> Option<T>) -> Option<T> {
        let NodeKind::Scalar { text, .. } = &node.kind else {
            return self.expected(key, node, &format!("one of {}", names.join(", ")), names[0]);
        };
        get(text).or_else(|| {
            let hint = match suggest_choice(names, text) {
                Some(near) => format!("did you mean `{near}`? (choices: {})", names.join(", ")),
                None => format!("choices: {}", names.join(", ")),
            };
            self.wrong(node.at, format!("unknown choice `{text}` for `{key}`"), hint)
        })
    }

    fn path(&mut self, key: &str, node: &Node) -> Option<PathBuf> {
        match &node.kind {
            NodeKind::Scalar { text, .. } if !node.is_null() => Some(PathBuf::from(text)),
            _ => self.expected(key, node, "a path", "adapters/a"),
        }
    }

    fn scalar<'n>(node: &'n Node) -> Scalar<'n> {
        match &node.kind {
            NodeKind::Scalar { text, plain } => parse_scalar(text, *plain),
            _ => Scalar::Null,
        }
    }

    fn number(&mut self, key: &str, node: &Node) -> Option<f64> {
        match Self::scalar(node) {
            Scalar::Int(n) => Some(n as f64),
            Scalar::Float(x) if x.is_finite() => Some(x),
            _ => self.expected(key, node, "a number", "0.5"),
        }
    }

    fn whole(&mut self, key: &str, node: &Node) -> Option<i64> {
        match Self::scalar(node) {
            Scalar::Int(n) if (0..=i64::MAX as i128).contains(&n) => Some(n as i64),
            _ => self.expected(key, node, "a whole number", "16"),
        }
    }

    fn truth(&mut self, key: &str, node: &Node) -> Option<bool> {
        match Self::scalar(node) {
            Scalar::Bool(b) => Some(b),
            _ => self.expected(key, node, "true or false", "true"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_the_command_line_says() {
        let text = "base: models/b\nmethod: dare_ties\nadapters:\n- adapters/a\n- path: adapters/c\n  weight: -0.5\n  \
                    density: 0.7\ndensity: 0.3\nseed: 7\nrank: 8\nas: adapter\nout: adapters/out\n";
        let file = parse("merge.yaml", text).unwrap();
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
