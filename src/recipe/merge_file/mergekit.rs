//! Reads the file of a merge of whole models, which is mergekit's configuration.
//!
//! mergekit ignores keys and parameters that it does not know. Here unknown keys are mistakes; parameters that another method has
//! are noted, because such files are often copied from one method to another.

use super::models::{
    ChatTemplateChoice, MergeFormat, ModelMergeFile, OutputSlice, Settings, SliceSource, TokenChoice, TokenRowSource,
    TokenizerSource, VocabularyPlan,
};
use super::node_reader::NodeReader;
use crate::merging::models::{BasePolicy, Case, ModelMethod, ParameterKind, ParameterScope, ParameterSpec, Setting};
use crate::model_files::is_gguf;
use crate::recipe::mistakes::SourceSpan;
use crate::recipe::repair::describe_value;
use crate::recipe::suggest::suggest_choice;
use crate::recipe::tree::{Node, NodeKind, Scalar, parse_scalar};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const KEYS: [&str; 12] = [
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
];
/// Methods of mergekit that ft does not have.
const OTHER_METHODS: [&str; 4] = ["nearswap", "arcee_fusion", "ram", "ramplus_tl"];

struct FileReader<'r, 'm> {
    reader: &'r mut NodeReader<'m>,
    models: Vec<PathBuf>,
    notes: Vec<String>,
    method: Option<ModelMethod>,
}

/// Reads the whole file; `None` if something is missing. Mistakes are noted as they are met.
pub(super) fn file(reader: &mut NodeReader, root: &Node) -> Option<ModelMergeFile> {
    let mut file = FileReader { reader, models: Vec::new(), notes: Vec::new(), method: None };
    file.read(root)
}

impl FileReader<'_, '_> {
    fn read(&mut self, root: &Node) -> Option<ModelMergeFile> {
        self.reader.check_keys(root, &KEYS, "mergekit's configuration");
        let method = self.reader.required(root, "merge_method", "linear").and_then(|node| self.method(node));
        self.method = method;
        let base_node = root.get("base_model").filter(|node| !node.is_null());
        let base = base_node.and_then(|node| self.model("base_model", node));
        let parameters = self.parameters(root);
        let before = self.reader.mistakes.len();
        let slices = self.slices(root, base);
        let complete = self.reader.mistakes.len() == before;
        let format = self.format(root);
        let vocabulary = self.vocabulary(root, base);
        let chat_template = root.get("chat_template").filter(|n| !n.is_null()).and_then(|n| self.chat_template(n));
        if root.get("name").is_some() {
            self.notes.push("`name` is ignored, as in mergekit".into());
        }
        let (method, slices) = (method?, slices?);
        let at = |key: &str| root.entry(key).map_or(SourceSpan::start(0), |(key, _)| key.at);
        let key = if root.get("models").is_some() { "models" } else { "slices" };
        for slice in &slices {
            self.check_slice(method, slice, &parameters, at(key));
            // Models that could not be read would be counted as missing.
            if complete {
                self.check_count(method, slice, at(key));
            }
        }
        let models = std::mem::take(&mut self.models);
        let notes = std::mem::take(&mut self.notes);
        Some(ModelMergeFile { method, models, base, slices, parameters, format, vocabulary, chat_template, notes })
    }

    fn method(&mut self, node: &Node) -> Option<ModelMethod> {
        let names = ModelMethod::ALL.map(ModelMethod::name);
        if let NodeKind::Scalar { text, .. } = &node.kind
            && OTHER_METHODS.contains(&text.as_str())
        {
            let hint = format!("choices: {}", names.join(", "));
            return self.reader.wrong(node.at, format!("`{text}` of mergekit is not supported"), hint);
        }
        self.reader.choice("merge_method", node, &names, ModelMethod::named)
    }

    /// Reads the folder of a model and returns the model's position.
    fn model(&mut self, key: &str, node: &Node) -> Option<usize> {
        let path = self.folder(key, node)?;
        let found = self.models.iter().position(|known| *known == path);
        Some(found.unwrap_or_else(|| {
            self.models.push(path);
            self.models.len() - 1
        }))
    }

    /// Reads the folder of a model, which may be written as `{path: FOLDER}`. Notes a mistake for one that does not exist.
    fn folder(&mut self, key: &str, node: &Node) -> Option<PathBuf> {
        let node = match &node.kind {
            NodeKind::Map(_) => {
                self.reader.check_keys(node, &["model", "path"], "a model");
                return match node.get("path").or(node.get("model")) {
                    Some(inner) => self.folder(key, inner),
                    None => self.reader.expected(key, node, "a folder", "models/a"),
                };
            }
            _ => node,
        };
        let path = self.reader.path(key, node, "models/a")?;
        if path.is_dir() || is_gguf(&path) {
            return Some(path);
        }
        let text = path.display().to_string();
        if let Some((model, adapter)) = text.split_once('+').filter(|(model, _)| Path::new(model).is_dir()) {
            let hint = format!("merge it first: ft merge {model} {adapter} --out DIR, and name DIR here");
            return self.reader.wrong(node.at, format!("`{text}`: a model with an adapter is not read"), hint);
        }
        let hint = "ft reads local folders; a model on a hub has to be fetched first";
        self.reader.wrong(node.at, format!("`{text}`: no such folder"), hint)
    }

    fn slices(&mut self, root: &Node, base: Option<usize>) -> Option<Vec<OutputSlice>> {
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

    /// Reads `parameters` of a map.
    fn parameters(&mut self, holder: &Node) -> Settings {
        let Some(node) = holder.get("parameters").filter(|node| !node.is_null()) else { return Settings::new() };
        let NodeKind::Map(entries) = &node.kind else {
            self.reader.expected::<()>("parameters", node, "names and values", "{weight: 0.5}");
            return Settings::new();
        };
        let mut settings = Settings::new();
        for (key, value) in entries {
            let Some(method) = self.method else { continue };
            let name = key.text.as_str();
            match method.parameter(name) {
                Some(parameter) => {
                    settings.extend(self.setting(parameter, value).map(|setting| (name.to_string(), setting)));
                    if name == "int8_mask" {
                        self.notes.push("`int8_mask` is ignored: it changes no result".into());
                    }
                }
                None if ModelMethod::ALL.iter().any(|other| other.parameter(name).is_some()) => {
                    self.notes.push(format!("`{name}` is ignored: {} has no such parameter", method.name()));
                }
                None => {
                    let known: Vec<&str> = method.parameters().iter().map(|p| p.name).collect();
                    let hint = match suggest_choice(&known, name) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("{} has {}", method.name(), known.join(", ")),
                    };
                    self.reader.wrong::<()>(key.at, format!("unknown parameter `{name}`"), hint);
                }
            }
        }
        settings
    }

    /// Reads a value, a gradient or a list of cases.
    fn setting(&mut self, parameter: &ParameterSpec, node: &Node) -> Option<Setting> {
        match &node.kind {
            NodeKind::Scalar { .. } => self.value(parameter, node).map(Setting::Value),
            NodeKind::Map(_) => Some(Setting::Cases(vec![self.case(parameter, node)?])),
            NodeKind::List(items) if items.is_empty() => {
                self.reader.wrong(node.at, format!("`{}` is an empty list", parameter.name), "give at least one number")
            }
            NodeKind::List(items) if items.iter().all(|item| matches!(item.kind, NodeKind::Scalar { .. })) => {
                let values: Option<Vec<f64>> = items.iter().map(|item| self.value(parameter, item)).collect();
                if parameter.kind == ParameterKind::Whole && items.len() > 1 {
                    return self.reader.expected(parameter.name, node, "one whole number", "10");
                }
                values.map(Setting::Gradient)
            }
            NodeKind::List(items) => {
                let cases: Vec<Option<Case>> = items.iter().map(|item| self.case(parameter, item)).collect();
                Some(Setting::Cases(cases.into_iter().collect::<Option<_>>()?))
            }
        }
    }

    fn case(&mut self, parameter: &ParameterSpec, node: &Node) -> Option<Case> {
        let example = "[{filter: mlp, value: 0.3}, {value: 0.5}]";
        let NodeKind::Map(_) = &node.kind else {
            return self.reader.expected(parameter.name, node, "numbers, or a value for each filter", example);
        };
        self.reader.check_keys(node, &["filter", "value"], "a value for some tensors");
        let filter = match node.get("filter").filter(|filter| !filter.is_null()) {
            Some(filter) => Some(self.reader.text("filter", filter, "part of a tensor's name", "mlp")?),
            None => None,
        };
        let Some(value) = node.get("value") else {
            return self.reader.wrong(
                node.at,
                "a filter without `value`".into(),
                format!("e.g. `{}: {example}`", parameter.name),
            );
        };
        if matches!(&value.kind, NodeKind::Map(_)) {
            return self.reader.expected("value", value, "a number or a list of numbers", "0.5");
        }
        Some(Case { filter, value: self.setting(parameter, value)? })
    }

    /// Reads one value. Quoted numbers are numbers, as in mergekit.
    fn value(&mut self, parameter: &ParameterSpec, node: &Node) -> Option<f64> {
        let NodeKind::Scalar { text, .. } = &node.kind else { return None };
        let found = parse_scalar(text, true);
        let number = match found {
            Scalar::Int(n) => Some(n as f64),
            Scalar::Float(x) => Some(x).filter(|x| x.is_finite()),
            _ => None,
        };
        let (value, what, example) = match parameter.kind {
            ParameterKind::Truth => {
                let truth = match found {
                    Scalar::Bool(truth) => Some(f64::from(u8::from(truth))),
                    _ => number.filter(|n| *n == 0.0 || *n == 1.0),
                };
                (truth, "true or false", "true")
            }
            ParameterKind::Whole => (number.filter(|n| *n >= 1.0 && n.fract() == 0.0), "a whole number from 1", "10"),
            ParameterKind::Share => (number.filter(|n| (0.0..=1.0).contains(n)), "a number from 0 to 1", "0.5"),
            ParameterKind::Number => (number, "a number", "0.5"),
        };
        match value {
            Some(value) => Some(value),
            None => {
                let message = format!("`{}`: expected {what}, found {}", parameter.name, describe_value(node));
                self.reader.wrong(node.at, message, format!("e.g. `{}: {example}`", parameter.name))
            }
        }
    }

    /// Notes that a slice has too few or too many models for a method.
    fn check_count(&mut self, method: ModelMethod, slice: &OutputSlice, at: SourceSpan) {
        let name = method.name();
        let (least, most) = method.models();
        // A base that is optional does not count.
        let counted = match method.base() {
            BasePolicy::Optional => slice.sources.iter().filter(|s| Some(s.model) != slice.base).count(),
            _ => slice.sources.len(),
        };
        if counted < least || counted > most {
            let wanted = match (least, most) {
                (least, most) if least == most => format!("{least}"),
                (least, _) => format!("at least {least}"),
            };
            let included = if method.base() == BasePolicy::Required { ", the base included" } else { "" };
            let why = format!("`{name}` merges {wanted} models{included}, found {counted}");
            let hint = match method {
                ModelMethod::Passthrough => "leave out `base_model`, and list one model for each slice",
                ModelMethod::Slerp | ModelMethod::Nuslerp => "multislerp and karcher take more than two",
                _ => "list more models",
            };
            self.reader.wrong::<()>(at, why, hint);
        }
    }

    /// Notes what a method cannot do with a slice: no base, a parameter that is not given.
    fn check_slice(&mut self, method: ModelMethod, slice: &OutputSlice, all: &Settings, at: SourceSpan) {
        let name = method.name();
        let base_is_there = slice.base.is_some_and(|base| slice.sources.iter().any(|s| s.model == base));
        match (method.base(), slice.base) {
            (BasePolicy::Required, None) => {
                self.reader.wrong::<()>(at, format!("`{name}` needs `base_model`"), "e.g. `base_model: models/base`");
            }
            (BasePolicy::Required | BasePolicy::Optional, Some(base)) if !base_is_there => {
                let why = format!("the base {} is not among the `sources` of a slice", self.models[base].display());
                self.reader.wrong::<()>(
                    at,
                    why,
                    "list it there with its layers, or give the slice a `base_model` of its own",
                );
            }
            _ => {}
        }
        for parameter in method.parameters().iter().filter(|parameter| parameter.required) {
            let above = [&slice.parameters, all].iter().any(|settings| settings.contains_key(parameter.name));
            let missing: Vec<String> = match parameter.scope {
                _ if above => Vec::new(),
                ParameterScope::Shared => vec![String::new()],
                scope => slice
                    .sources
                    .iter()
                    .filter(|s| scope == ParameterScope::Input || Some(s.model) != slice.base)
                    .filter(|s| !s.parameters.contains_key(parameter.name))
                    .map(|s| format!(" of {}", self.models[s.model].display()))
                    .collect(),
            };
            for whose in missing {
                let hint = format!("e.g. `parameters: {{{}: 0.5}}`, there or at the top", parameter.name);
                self.reader.wrong::<()>(at, format!("`{name}` needs `{}`{whose}", parameter.name), hint);
            }
        }
    }

    /// Reads the number format of the result, and notes that merging itself is done in float32.
    fn format(&mut self, root: &Node) -> Option<MergeFormat> {
        let mut read = |key: &str| {
            let names = ["float32", "bfloat16", "float16"];
            root.get(key).filter(|node| !node.is_null()).and_then(|node| {
                self.reader.choice(key, node, &names, |name| match name.trim_start_matches("torch.") {
                    "float32" => Some(MergeFormat::F32),
                    "bfloat16" => Some(MergeFormat::Bf16),
                    "float16" => Some(MergeFormat::F16),
                    _ => None,
                })
            })
        };
        let (computed, written) = (read("dtype"), read("out_dtype"));
        if matches!(computed, Some(MergeFormat::Bf16 | MergeFormat::F16)) {
            let note =
                "`dtype`: merged in float32 and rounded once; mergekit computes in that format and rounds every step";
            self.notes.push(note.into());
        }
        written.or(computed)
    }

    fn vocabulary(&mut self, root: &Node, base: Option<usize>) -> Option<VocabularyPlan> {
        let source = root.entry("tokenizer_source").filter(|(_, node)| !node.is_null());
        let whole = root.entry("tokenizer").filter(|(_, node)| !node.is_null());
        if let (Some(_), Some((key, _))) = (source, whole) {
            let why = "`tokenizer` and `tokenizer_source` are given together".to_string();
            self.reader.wrong::<()>(key.at, why, "write the source into `tokenizer`: `tokenizer: {source: …}`");
        }
        let plan = match (source, whole) {
            (_, Some((_, node))) => {
                self.reader.check_keys(node, &["source", "tokens", "pad_to_multiple_of"], "`tokenizer`");
                let source = match node.get("source") {
                    Some(source) => self.tokenizer_source("source", source)?,
                    None => TokenizerSource::Union,
                };
                let tokens = node.get("tokens").filter(|n| !n.is_null()).map(|n| self.tokens(n)).unwrap_or_default();
                let pad = node.get("pad_to_multiple_of").filter(|n| !n.is_null());
                let pad_to_multiple_of = pad.and_then(|n| self.multiple(n));
                Some(VocabularyPlan { source, tokens, pad_to_multiple_of })
            }
            (Some((_, node)), None) => Some(VocabularyPlan {
                source: self.tokenizer_source("tokenizer_source", node)?,
                tokens: BTreeMap::new(),
                pad_to_multiple_of: None,
            }),
            (None, None) => None,
        };
        if let (Some(VocabularyPlan { source: TokenizerSource::Base | TokenizerSource::Union, .. }), None) =
            (&plan, base)
            && let Some(first) = self.models.first()
        {
            self.notes.push(format!("without `base_model`, the tokenizer begins with that of {}", first.display()));
        }
        plan
    }

    fn multiple(&mut self, node: &Node) -> Option<usize> {
        match self.reader.whole("pad_to_multiple_of", node)? {
            0 => self.reader.expected("pad_to_multiple_of", node, "a whole number from 1", "64"),
            multiple => Some(multiple as usize),
        }
    }

    fn tokenizer_source(&mut self, key: &str, node: &Node) -> Option<TokenizerSource> {
        match &node.kind {
            NodeKind::Scalar { text, .. } if text == "base" => Some(TokenizerSource::Base),
            NodeKind::Scalar { text, .. } if text == "union" => Some(TokenizerSource::Union),
            NodeKind::Scalar { text, .. } if !Path::new(text).exists() => {
                let hint = match suggest_choice(&["union", "base"], text) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "union, base, or a folder with a tokenizer".into(),
                };
                self.reader.wrong(node.at, format!("`{text}`: no such folder"), hint)
            }
            _ => self.folder(key, node).map(TokenizerSource::Folder),
        }
    }

    fn tokens(&mut self, node: &Node) -> BTreeMap<String, TokenChoice> {
        let NodeKind::Map(entries) = &node.kind else {
            self.reader.expected::<()>(
                "tokens",
                node,
                "tokens and where their rows come from",
                "{\"<tool>\": {source: models/a}}",
            );
            return BTreeMap::new();
        };
        let mut tokens = BTreeMap::new();
        for (token, value) in entries {
            self.reader.check_keys(value, &["source", "force"], "the choice of a row");
            let Some(node) = value.get("source").filter(|source| !source.is_null()) else {
                let why = format!("the choice of a row for `{}` without `source`", token.text);
                self.reader.wrong::<()>(value.at, why, "e.g. `source: models/a`, or `source: {kind: zero}`");
                continue;
            };
            let Some(source) = self.token_row(node) else { continue };
            let force = value.get("force").and_then(|n| self.reader.truth("force", n)).unwrap_or_default();
            tokens.insert(token.text.clone(), TokenChoice { source, force });
        }
        tokens
    }

    /// Reads the source of a token's row.
    fn token_row(&mut self, node: &Node) -> Option<TokenRowSource> {
        let Some(kind) = node.get("kind") else { return self.merged_model(node).map(TokenRowSource::Model) };
        let names = ["zero", "model_token"];
        let zero = self.reader.choice("kind", kind, &names, |name| match name {
            "zero" => Some(true),
            "model_token" => Some(false),
            _ => None,
        })?;
        if zero {
            self.reader.check_keys(node, &["kind"], "a row of zeros");
            return Some(TokenRowSource::Zero);
        }
        self.reader.check_keys(node, &["kind", "model", "token", "token_id"], "the row of a token");
        let Some(named) = node.get("model") else {
            return self.reader.wrong(node.at, "the row of a token without `model`".into(), "e.g. `model: models/a`");
        };
        let model = self.merged_model(named)?;
        match (node.get("token"), node.get("token_id")) {
            (Some(token), None) => {
                Some(TokenRowSource::Token(model, self.reader.text("token", token, "a token", "\"<s>\"")?))
            }
            (None, Some(id)) => Some(TokenRowSource::Row(model, self.reader.whole("token_id", id)? as usize)),
            _ => self.reader.wrong(node.at, "expected `token` or `token_id`".into(), "give one of them"),
        }
    }

    /// Reads a model that is one of those that are merged.
    fn merged_model(&mut self, node: &Node) -> Option<usize> {
        let known = self.models.len();
        let model = self.model("source", node)?;
        if model < known {
            return Some(model);
        }
        let name = self.models.pop().unwrap_or_default();
        self.reader.wrong(
            node.at,
            format!("{} is not merged", name.display()),
            "rows come from the models of the merge",
        )
    }

    fn chat_template(&mut self, node: &Node) -> Option<ChatTemplateChoice> {
        let text = self.reader.text("chat_template", node, "a template", "auto")?;
        match text.as_str() {
            "auto" => Some(ChatTemplateChoice::Auto),
            template if template.contains('{') => Some(ChatTemplateChoice::Text(text)),
            name => self.reader.wrong(
                node.at,
                format!("`chat_template`: mergekit's template `{name}` is not part of ft"),
                "write the template itself, or `auto` for the one that most models have",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::merge_file::{MergeFile, parse};

    /// Folders that exist, for files that name models.
    const ONE: &str = "src";
    const TWO: &str = "tests";

    fn read(text: &str) -> ModelMergeFile {
        let MergeFile::Models(file) = parse("merge.yaml", text).unwrap() else { panic!("a merge of models") };
        file
    }

    #[test]
    fn parameters_are_resolved_from_the_model_up() {
        let text = format!(
            "merge_method: ties\nbase_model: docs\nmodels:\n- model: {ONE}\n  parameters:\n    weight:\n    \
             - {{filter: mlp, value: [0, 1]}}\n    - {{filter: norm, value: 0.25}}\n- model: {TWO}\n  parameters: {{weight: 0.5, density: '0.2'}}\n\
             parameters: {{weight: 2, density: 0.7, t: 1, int8_mask: true}}\ndtype: bfloat16\n"
        );
        let file = read(&text);
        assert_eq!(file.models, [PathBuf::from("docs"), ONE.into(), TWO.into()]);
        let values = |name: &str, depth| file.values(&file.slices[0], name, &vec![name.to_string(); 3], depth).unwrap();
        let mlp = values("model.layers.1.mlp.up_proj.weight", 0.75);
        assert_eq!((mlp.of(0, "weight"), mlp.of(1, "weight"), mlp.of(2, "weight")), (Some(0.75), Some(0.5), None));
        assert_eq!((mlp.of(0, "density"), mlp.of(1, "density")), (Some(0.7), Some(0.2)));
        assert!(mlp.is("normalize") && mlp.number("lambda") == 1.0);
        assert_eq!(values("model.norm.weight", 0.0).of(0, "weight"), Some(0.25));
        assert_eq!(values("lm_head.weight", 0.0).of(0, "weight"), Some(2.0));
        assert_eq!(file.format, Some(MergeFormat::Bf16));
        let notes = file.notes.join("\n");
        for part in ["`t` is ignored: ties has no such parameter", "`int8_mask` is ignored", "rounded once"] {
            assert!(notes.contains(part), "{part}\n{notes}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_with_their_places() {
        let text = "merge_method: tie\nmodels:\n- model: src\n  parameters: {wieght: 1}\n- mode: tests\n- model: org/name\n\
                    base_model: docs+src\ndtype: float8\ntokenizer_source: unon\nchat_template: chatml\nmodel: x\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        for part in [
            "merge.yaml:1:15: unknown choice `tie` for `merge_method`",
            "did you mean `ties`?",
            "merge.yaml:5:3: unknown key `mode`",
            "a model without `model`",
            "merge.yaml:6:10: `org/name`: no such folder",
            "merge.yaml:7:13: `docs+src`: a model with an adapter is not read",
            "ft merge docs src --out DIR",
            "merge.yaml:8:8: unknown choice `float8`",
            "merge.yaml:9:19: `unon`: no such folder",
            "did you mean `union`?",
            "merge.yaml:10:16: `chat_template`: mergekit's template `chatml`",
            "merge.yaml:11:1: unknown key `model`",
        ] {
            assert!(told.contains(part), "{part}\n\n{told}");
        }
        let text = "merge_method: slerp\nslices:\n- sources:\n  - {model: src, layer_range: [0, 2]}\n  \
                    - {model: tests, layer_range: [0, 3]}\n  - {model: src, layer_range: [0, 2]}\n\
                    - sources: [{model: src, layer_range: [2, 2]}]\nparameters: {weigth: 1, density: much}\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        for part in [
            "merge.yaml:5:33: `layer_range`: 3 layers here and 2 of the first model",
            "src is listed twice",
            "`layer_range`: expected the first layer and the one after the last",
            "unknown parameter `weigth`",
        ] {
            assert!(told.contains(part), "{part}\n\n{told}");
        }
        let text = "merge_method: model_stock\nmodels: [{model: src}, {model: tests}]\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        assert!(told.contains("`model_stock` needs `base_model`") && told.contains("at least 3 models"), "{told}");
        let text = "merge_method: linear\nmodels: [{model: src, parameters: {weight: 1}}, {model: tests}]\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        assert!(told.contains("`linear` needs `weight` of tests"), "{told}");
        for text in ["merge_method: nearswap\nmodels: [{model: src}]\n", "merge_method: ties\nmodules: {a: {}}\n"] {
            assert!(parse("merge.yaml", text).is_err());
        }
    }

    #[test]
    fn slices_and_tokens_are_read() {
        let text = "merge_method: passthrough\nslices:\n- sources: [{model: src, layer_range: [0, 2]}]\n\
                    - sources: [{model: tests, layer_range: [1, 2], parameters: {scale: 0.5}}]\n\
                    tokenizer:\n  source: union\n  pad_to_multiple_of: 8\n  tokens:\n    <a>: {source: {kind: zero}}\n    \
                    <b>: {source: {kind: model_token, model: src, token_id: 3}, force: true}\n    <c>: {source: tests}\n";
        let file = read(text);
        assert_eq!(file.slices[1].sources[0].layers, Some((1, 2)));
        let vocabulary = file.vocabulary.unwrap();
        assert_eq!((vocabulary.source, vocabulary.pad_to_multiple_of), (TokenizerSource::Union, Some(8)));
        assert_eq!(vocabulary.tokens["<a>"], TokenChoice { source: TokenRowSource::Zero, force: false });
        assert_eq!(vocabulary.tokens["<b>"], TokenChoice { source: TokenRowSource::Row(0, 3), force: true });
        assert_eq!(vocabulary.tokens["<c>"].source, TokenRowSource::Model(1));
    }
}
