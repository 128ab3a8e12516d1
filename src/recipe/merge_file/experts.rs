//! Reads the file of a mixture of experts made of dense models, which is that of mergekit-moe.

use super::models::MergeFormat;
use super::node_reader::NodeReader;
use crate::recipe::mistakes::SourceSpan;
use crate::recipe::tree::{Node, NodeKind};
use std::path::PathBuf;

/// A mixture of experts made of dense models.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertMergeFile {
    /// The folder of the model that everything but the MLPs comes from.
    pub base: PathBuf,
    /// The models whose MLPs become the experts, in order.
    pub experts: Vec<ExpertSource>,
    /// The model whose MLPs become experts that compute every token.
    pub shared: Option<ExpertSource>,
    /// Where the routers' weights come from.
    pub gates: GateMode,
    /// How many experts compute a token.
    pub experts_per_token: usize,
    /// The family of the result; `None`: the one that fits the models.
    pub architecture: Option<ExpertArchitecture>,
    /// The number format of the weights; `None`: that of each input.
    pub format: Option<MergeFormat>,
}

/// A model whose MLPs become experts.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSource {
    /// Its folder.
    pub model: PathBuf,
    /// Prompts whose tokens the expert shall get.
    pub positive: Vec<String>,
    /// Prompts whose tokens it shall not get.
    pub negative: Vec<String>,
    /// Standard deviation of normal noise that is added to its weights.
    pub noise: Option<f64>,
    /// Factor on its last matrix.
    pub residual_scale: Option<f64>,
}

/// Where the routers' weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GateMode {
    /// The hidden state of the last token of each prompt, before every layer.
    #[default]
    Hidden,
    /// The mean hidden state of the tokens of each prompt, before every layer.
    HiddenAverage,
    /// The sum of the embeddings of the prompts' tokens, the same in every layer.
    CheapEmbed,
    /// Normal random numbers.
    Random,
    /// Uniform random numbers up to the reciprocal root of their number.
    UniformRandom,
}

impl GateMode {
    /// The names in files.
    const NAMES: [&'static str; 6] = ["hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random"];

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "hidden" | "hidden_last" => Self::Hidden,
            "hidden_avg" => Self::HiddenAverage,
            "cheap_embed" => Self::CheapEmbed,
            "random" => Self::Random,
            "uniform_random" => Self::UniformRandom,
            _ => return None,
        })
    }

    /// Returns the name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::HiddenAverage => "hidden_avg",
            Self::CheapEmbed => "cheap_embed",
            Self::Random => "random",
            Self::UniformRandom => "uniform_random",
        }
    }

    /// Returns true if nothing but random numbers decides which tokens an expert gets.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Random | Self::UniformRandom)
    }
}

/// A family of models with experts that dense models are made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertArchitecture {
    /// Of llama or mistral models.
    Mixtral,
    /// Of qwen2 models, with a shared expert.
    Qwen2Moe,
    /// Of qwen3 models.
    Qwen3Moe,
}

impl ExpertArchitecture {
    const NAMES: [&'static str; 3] = ["mixtral", "qwen", "qwen3"];

    fn named(name: &str) -> Option<Self> {
        Some(match name.to_lowercase().as_str() {
            "mixtral" => Self::Mixtral,
            "qwen" | "qwen moe" | "qwen2_moe" => Self::Qwen2Moe,
            "qwen3" | "qwen3 moe" | "qwen3_moe" => Self::Qwen3Moe,
            _ => return None,
        })
    }

    /// Returns `model_type` of the result.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Mixtral => "mixtral",
            Self::Qwen2Moe => "qwen2_moe",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }
}

const KEYS: [&str; 7] =
    ["base_model", "experts", "shared_experts", "gate_mode", "experts_per_token", "architecture", "dtype"];
const EXPERT_KEYS: [&str; 5] =
    ["source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale"];
const EXPERT_EXAMPLE: &str = "[{source_model: models/a, positive_prompts: [\"solve this equation\"]}]";

/// Reads the whole file; `None` if something is missing. Mistakes are noted as they are met.
pub(super) fn file(reader: &mut NodeReader, root: &Node) -> Option<ExpertMergeFile> {
    reader.check_keys(root, &KEYS, "the file of a mixture of experts");
    let base = reader.required(root, "base_model", "models/base").and_then(|n| reader.model_folder("base_model", n));
    let given = |key: &str| root.get(key).filter(|node| !node.is_null());
    let gates = match given("gate_mode") {
        None => Some(GateMode::default()),
        Some(node) => reader.choice("gate_mode", node, &GateMode::NAMES, GateMode::named),
    };
    let needs_prompts = gates.is_some_and(|gates| !gates.is_random());
    let experts = reader.required(root, "experts", EXPERT_EXAMPLE).and_then(|n| experts_of(reader, "experts", n));
    let shared = match given("shared_experts") {
        None => Some(Vec::new()),
        Some(node) => shared_expert(reader, node),
    };
    let per_token = match given("experts_per_token") {
        None => Some(2),
        Some(node) => reader.whole("experts_per_token", node).map(|n| n as usize),
    };
    let architecture = match given("architecture") {
        None => Some(None),
        Some(node) => {
            let names = &ExpertArchitecture::NAMES;
            reader.choice("architecture", node, names, ExpertArchitecture::named).map(Some)
        }
    };
    let format = reader.merge_format(root, "dtype");
    let at = |key: &str| root.entry(key).map_or(SourceSpan::start(0), |(key, _)| key.at);
    if let (Some(experts), Some(per_token)) = (&experts, per_token)
        && !(1..=experts.len()).contains(&per_token)
    {
        let place = if root.get("experts_per_token").is_some() { "experts_per_token" } else { "experts" };
        let why = format!("`experts_per_token` is {per_token}, and there are {} experts", experts.len());
        reader.wrong::<()>(at(place), why, "a token is computed by at least one and at most all experts");
    }
    if let Some(experts) = experts.as_ref().filter(|_| needs_prompts) {
        check_prompts(reader, root, experts);
    }
    let shared = shared?.pop();
    if let Some(node) = given("shared_experts").filter(|_| needs_prompts)
        && shared.as_ref().is_some_and(|expert| expert.positive.is_empty())
    {
        reader.wrong::<()>(node.at, "a shared expert without `positive_prompts`".into(), "its gate is made of them");
    }
    Some(ExpertMergeFile {
        base: base?,
        experts: experts?,
        shared,
        gates: gates?,
        experts_per_token: per_token?,
        architecture: architecture?,
        format,
    })
}

/// Notes experts that no router could tell apart.
fn check_prompts(reader: &mut NodeReader, root: &Node, experts: &[ExpertSource]) {
    let Some(node) = root.get("experts") else { return };
    let NodeKind::List(items) = &node.kind else { return };
    for (item, _) in items.iter().zip(experts).filter(|(_, expert)| expert.positive.is_empty()) {
        let hint = "texts whose tokens it shall get; `gate_mode: random` needs none";
        reader.wrong::<()>(item.at, "an expert without `positive_prompts`".into(), hint);
    }
    let prompts = |expert: &ExpertSource| (expert.positive.clone(), expert.negative.clone());
    if experts.len() > 1 && experts.iter().all(|expert| prompts(expert) == prompts(&experts[0])) {
        let why = "all experts have the same prompts, so the router could not tell them apart".to_string();
        reader.wrong::<()>(node.at, why, "give each expert prompts of its own");
    }
}

fn experts_of(reader: &mut NodeReader, key: &str, node: &Node) -> Option<Vec<ExpertSource>> {
    let items = reader.list(key, node, EXPERT_EXAMPLE)?;
    let read: Vec<Option<ExpertSource>> = items.iter().map(|item| expert(reader, item)).collect();
    read.into_iter().collect()
}

fn shared_expert(reader: &mut NodeReader, node: &Node) -> Option<Vec<ExpertSource>> {
    let shared = experts_of(reader, "shared_experts", node)?;
    match shared.len() {
        1 => Some(shared),
        _ => reader.wrong(node.at, "more than one shared expert".into(), "qwen2_moe has one"),
    }
}

fn expert(reader: &mut NodeReader, node: &Node) -> Option<ExpertSource> {
    reader.check_keys(node, &EXPERT_KEYS, "an expert");
    let NodeKind::Map(_) = &node.kind else { return None };
    let given = |key: &str| node.get(key).filter(|node| !node.is_null());
    let positive = given("positive_prompts").map_or(Some(Vec::new()), |n| prompts(reader, "positive_prompts", n));
    let negative = given("negative_prompts").map_or(Some(Vec::new()), |n| prompts(reader, "negative_prompts", n));
    let mut number = |key: &str| given(key).map_or(Some(None), |n| reader.number(key, n).map(Some));
    let (noise, residual_scale) = (number("noise_scale"), number("residual_scale"));
    let Some(named) = given("source_model") else {
        return reader.wrong(node.at, "an expert without `source_model`".into(), "e.g. `source_model: models/a`");
    };
    let model = reader.model_folder("source_model", named);
    Some(ExpertSource {
        model: model?,
        positive: positive?,
        negative: negative?,
        noise: noise?,
        residual_scale: residual_scale?,
    })
}

fn prompts(reader: &mut NodeReader, key: &str, node: &Node) -> Option<Vec<String>> {
    let NodeKind::List(items) = &node.kind else {
        return reader.expected(key, node, "a list of texts", "[\"solve this equation\"]");
    };
    let read: Vec<Option<String>> =
        items.iter().map(|item| reader.text(key, item, "a text", "\"solve this equation\"")).collect();
    read.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::merge_file::{MergeFile, parse};

    #[test]
    fn a_file_of_experts_is_told_apart_by_its_keys() {
        let text = "base_model: docs\ngate_mode: cheap_embed\ndtype: bfloat16\nexperts:\n\
                    - {source_model: src, positive_prompts: [a, \"1\"], negative_prompts: [c], residual_scale: 0.5}\n\
                    - {source_model: tests, positive_prompts: [b], noise_scale: 0.1}\n";
        let MergeFile::Experts(file) = parse("merge.yaml", text).unwrap() else { panic!("a mixture of experts") };
        assert_eq!((file.base, file.gates, file.experts_per_token), ("docs".into(), GateMode::CheapEmbed, 2));
        assert_eq!((file.shared, file.architecture, file.format), (None, None, Some(MergeFormat::Bf16)));
        assert_eq!(file.experts[0].positive, ["a", "1"]);
        assert_eq!(file.experts[0].residual_scale, Some(0.5));
        assert_eq!((file.experts[1].noise, file.experts[1].negative.len()), (Some(0.1), 0));
    }

    #[test]
    fn all_mistakes_are_reported_with_their_places() {
        let text = "base_model: nowhere\ngate_mode: hiden\nexperts_per_token: 3\narchitecture: deepseek\nexpert: 1\n\
                    experts:\n- {source_model: src, positive_prompts: x}\n- {positive_prompts: [a], residual_scale: much}\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        for part in [
            "merge.yaml:1:13: `nowhere`: no such folder",
            "merge.yaml:2:12: unknown choice `hiden` for `gate_mode`",
            "merge.yaml:4:15: unknown choice `deepseek`",
            "merge.yaml:5:1: unknown key `expert`",
            "merge.yaml:7:41: `positive_prompts`: expected a list of texts",
            "an expert without `source_model`",
            "`residual_scale`: expected a number",
        ] {
            assert!(told.contains(part), "{part}\n\n{told}");
        }
        let text = "base_model: docs\nexperts_per_token: 3\nexperts:\n- {source_model: src}\n- {source_model: tests}\n";
        let told = parse("merge.yaml", text).unwrap_err().to_string();
        for part in [
            "merge.yaml:2:1: `experts_per_token` is 3, and there are 2 experts",
            "merge.yaml:4:3: an expert without `positive_prompts`",
            "all experts have the same prompts",
        ] {
            assert!(told.contains(part), "{part}\n\n{told}");
        }
    }
}
