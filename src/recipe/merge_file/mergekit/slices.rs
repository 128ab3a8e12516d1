//! Which layers of which models are merged: `models`, or `slices`.

use super::FileReader;
use crate::merging::models::BasePolicy;
use crate::recipe::merge_file::models::{OutputSlice, Settings, SliceSource};
use crate::recipe::mistakes::SourceSpan;
use crate::recipe::tree::{Node, NodeKind};

impl FileReader<'_, '_> {
    pub(super) fn slices(&mut self, root: &Node, base: Option<usize>) -> Option<Vec<OutputSlice>> {
        let given: Vec<&str> =
            ["models", "slices", "modules"].into_iter().filter(|key| root.get(key).is_some()).collect();
        match given[..] {
            ["models"] => {
                let node = root.get("models")?;
                let mut sources = Vec::new();
                for item in self.reader.list("models", node, "[{model: models/a}, {model: models/b}]")? {
                    sources.extend(self.source(item, &["model", "parameters"], &sources));
                }
                self.add_base(&mut sources, base);
                Some(vec![OutputSlice { sources, base, parameters: Settings::new() }])
            }
            ["slices"] => {
                let node = root.get("slices")?;
                let items =
                    self.reader.list("slices", node, "[{sources: [{model: models/a, layer_range: [0, 8]}]}]")?;
                items.iter().map(|item| self.slice(item, base)).collect()
            }
            [] => self.reader.wrong(
                SourceSpan::start(0),
                "`models` or `slices` is missing".into(),
                "e.g. `models: [{model: models/a}, {model: models/b}]`",
            ),
            [_] => {
                let at = root.entry("modules")?.0.at;
                self.reader.wrong(
                    at,
                    "`modules` are parts of models that ft does not have".into(),
                    "use `models` or `slices`",
                )
            }
            [_, second, ..] => {
                let at = root.entry(second)?.0.at;
                self.reader.wrong(at, format!("`{}` are given together", given.join("` and `")), "give one of them")
            }
        }
    }

    /// Adds the base to the models that are merged, as mergekit does, if it is not among them.
    fn add_base(&mut self, sources: &mut Vec<SliceSource>, base: Option<usize>) {
        let Some(base) = base.filter(|base| sources.iter().all(|source| source.model != *base)) else { return };
        sources.push(SliceSource { model: base, layers: None, parameters: Settings::new() });
        if self.method.is_some_and(|method| method.base() == BasePolicy::Ignored) {
            let name = self.models[base].display();
            self.notes.push(format!("`base_model` {name} is merged like the other models, as in mergekit"));
        }
    }

    fn slice(&mut self, node: &Node, base: Option<usize>) -> Option<OutputSlice> {
        self.reader.check_keys(node, &["sources", "base_model", "parameters", "residual_weight"], "a slice");
        if node.get("residual_weight").is_some_and(|n| !n.is_null()) {
            self.notes.push("`residual_weight` is ignored, as in mergekit".into());
        }
        let own = node.get("base_model").filter(|n| !n.is_null()).and_then(|n| self.model("base_model", n));
        let parameters = self.parameters(node);
        let list = match node.get("sources") {
            Some(list) => self.reader.list("sources", list, "[{model: models/a, layer_range: [0, 8]}]")?,
            None => {
                return self.reader.wrong(
                    node.at,
                    "a slice without `sources`".into(),
                    "e.g. `sources: [{model: models/a, layer_range: [0, 8]}]`",
                );
            }
        };
        let mut sources: Vec<SliceSource> = Vec::new();
        for item in list {
            let Some(source) = self.source(item, &["model", "layer_range", "parameters"], &sources) else { continue };
            let length = |s: &SliceSource| s.layers.map(|(from, to)| to - from);
            if let Some(first) = sources.first().filter(|first| length(first) != length(&source)) {
                let counts = [first, &source].map(|s| length(s).unwrap_or_default());
                let why = format!("`layer_range`: {} layers here and {} of the first model", counts[1], counts[0]);
                self.reader.wrong::<()>(
                    item.nearest("layer_range"),
                    why,
                    "all models of a slice give equally many layers",
                );
            }
            sources.push(source);
        }
        Some(OutputSlice { sources, base: own.or(base), parameters })
    }

    /// Reads a model of `models` or of a slice; `before`: those before it.
    fn source(&mut self, node: &Node, keys: &[&str], before: &[SliceSource]) -> Option<SliceSource> {
        self.reader.check_keys(node, keys, "a model");
        let NodeKind::Map(_) = &node.kind else { return None };
        let Some(named) = node.get("model") else {
            return self.reader.wrong(node.at, "a model without `model`".into(), "e.g. `model: models/a`");
        };
        let model = self.model("model", named);
        let parameters = self.parameters(node);
        let layers = match keys.contains(&"layer_range") {
            true => Some(self.layers(node)?),
            false => None,
        };
        let model = model?;
        if before.iter().any(|source| source.model == model) {
            let why = format!("{} is listed twice", self.models[model].display());
            return self.reader.wrong(named.at, why, "list each model once, and add up its weights");
        }
        Some(SliceSource { model, layers, parameters })
    }

    fn layers(&mut self, node: &Node) -> Option<(usize, usize)> {
        let Some(range) = node.get("layer_range") else {
            return self.reader.wrong(
                node.at,
                "a model of a slice without `layer_range`".into(),
                "e.g. `layer_range: [0, 8]`",
            );
        };
        let numbers = match &range.kind {
            NodeKind::List(items) => {
                items.iter().map(|item| self.reader.whole("layer_range", item)).collect::<Option<Vec<_>>>()?
            }
            _ => Vec::new(),
        };
        match numbers[..] {
            [from, to] if from < to => Some((from as usize, to as usize)),
            _ => {
                let what = "the first layer and the one after the last, as a list of two numbers";
                self.reader.expected("layer_range", range, what, "[0, 8]")
            }
        }
    }
}
