//! Reads the file of a merge of whole models, which is mergekit's configuration.
//!
//! mergekit ignores keys and parameters that it does not know. Here unknown keys are mistakes; parameters that another method has
//! are noted, because such files are often copied from one method to another.
//!
//! slices: which layers of which models are merged. parameters: values of a method's parameters. checks: what a method cannot do with
//! a slice. vocabulary: tokens and the chat template.

mod checks;
mod parameters;
mod slices;
mod vocabulary;

use super::models::{MergeFormat, ModelMergeFile};
use super::node_reader::NodeReader;
use crate::merging::models::ModelMethod;
use crate::recipe::mistakes::SourceSpan;
use crate::recipe::tree::{Node, NodeKind};
use std::path::PathBuf;

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
        let path = self.reader.model_folder(key, node)?;
        let found = self.models.iter().position(|known| *known == path);
        Some(found.unwrap_or_else(|| {
            self.models.push(path);
            self.models.len() - 1
        }))
    }

    /// Reads the number format of the result, and notes that merging itself is done in float32.
    fn format(&mut self, root: &Node) -> Option<MergeFormat> {
        let (computed, written) =
            (self.reader.merge_format(root, "dtype"), self.reader.merge_format(root, "out_dtype"));
        if matches!(computed, Some(MergeFormat::Bf16 | MergeFormat::F16)) {
            let note =
                "`dtype`: merged in float32 and rounded once; mergekit computes in that format and rounds every step";
            self.notes.push(note.into());
        }
        written.or(computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::merge_file::models::{TokenChoice, TokenRowSource, TokenizerSource};
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
