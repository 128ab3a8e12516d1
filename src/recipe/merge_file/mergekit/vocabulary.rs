//! Tokens of the result, the rows that are chosen for some of them, and its chat template.

use super::FileReader;
use crate::recipe::merge_file::models::{
    ChatTemplateChoice, TokenChoice, TokenRowSource, TokenizerSource, VocabularyPlan,
};
use crate::recipe::suggest::suggest_choice;
use crate::recipe::tree::{Node, NodeKind};
use std::collections::BTreeMap;
use std::path::Path;

impl FileReader<'_, '_> {
    pub(super) fn vocabulary(&mut self, root: &Node, base: Option<usize>) -> Option<VocabularyPlan> {
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
            _ => self.reader.model_folder(key, node).map(TokenizerSource::Folder),
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

    pub(super) fn chat_template(&mut self, node: &Node) -> Option<ChatTemplateChoice> {
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
