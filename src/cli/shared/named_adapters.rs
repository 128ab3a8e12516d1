//! `--adapter` of commands that answer with several adapters at once, which have names.

use super::model::{ModelArgs, QuantizeArgs, TemplateArgs};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use ft::convert::folder::template;
use ft::data::chat::{ChatTokenizer, tokenizer_folder};
use ft::error::{Error, Result};
use ft::models::Model;
use ft::recipe::suggest::suggest_choice;
use ft::report;
use std::ffi::OsString;
use std::path::PathBuf;

/// Names an adapter, or several by name.
#[derive(Args)]
pub struct NamedAdapters {
    /// Adapter directory (PEFT layout) to load on top of the model; NAME=DIR, several times, for several at once
    #[arg(id = "adapter", long = "adapter", value_name = "DIR|NAME=DIR", value_parser = OsStringValueParser::new().map(AdapterArg::parse))]
    given: Vec<AdapterArg>,
}

/// A value of --adapter.
#[derive(Debug, Clone)]
pub struct AdapterArg {
    /// The name by which rows choose it.
    pub name: Option<String>,
    pub folder: PathBuf,
}

impl AdapterArg {
    /// Splits NAME=DIR. A name has no `/`, so that `./a=b` is a directory.
    fn parse(value: OsString) -> Self {
        match value.to_str().and_then(|text| text.split_once('=')) {
            Some((name, folder)) if !name.is_empty() && !name.contains('/') => {
                Self { name: Some(name.into()), folder: folder.into() }
            }
            _ => Self { name: None, folder: value.into() },
        }
    }
}

/// An adapter that rows choose by its name. Its number in the model is its place in the list.
pub struct NamedAdapter {
    pub name: String,
    /// The base's tokenizer with the chat template that the adapter was trained with; `None`: the base's own.
    tokenizer: Option<ChatTokenizer>,
}

/// A model with adapters, and the tokenizers that they answer with.
pub struct AdaptedModel {
    pub model: Model,
    /// The tokenizer of rows that name no adapter.
    pub tokenizer: ChatTokenizer,
    /// The adapters that rows choose by name; empty if there is none, or one without a name.
    pub named: Vec<NamedAdapter>,
}

impl AdaptedModel {
    /// Returns the tokenizer of the adapter with this number, or of the base.
    pub fn tokenizer_of(&self, adapter: Option<usize>) -> &ChatTokenizer {
        adapter.and_then(|number| self.named[number].tokenizer.as_ref()).unwrap_or(&self.tokenizer)
    }

    /// Returns the tokenizers of base and adapters, each once.
    pub fn tokenizers(&self) -> impl Iterator<Item = &ChatTokenizer> {
        std::iter::once(&self.tokenizer).chain(self.named.iter().filter_map(|n| n.tokenizer.as_ref()))
    }

    /// Returns the number of the adapter called `name`. An error names what is similar.
    pub fn number_of(&self, name: &str) -> Result<usize> {
        let names: Vec<&str> = self.named.iter().map(|n| n.name.as_str()).collect();
        names.iter().position(|known| *known == name).ok_or_else(|| {
            let all = names.join(", ");
            Error::user(format!("no adapter is called `{name}`")).hint(match suggest_choice(&names, name) {
                Some(near) => format!("did you mean `{near}`? (--adapter names {all})"),
                None => format!("--adapter names {all}"),
            })
        })
    }
}

impl ModelArgs<NamedAdapters> {
    /// Returns the adapters in the order in which they are loaded.
    pub fn adapters(&self) -> &[AdapterArg] {
        &self.adapter.given
    }

    /// Loads the model with its adapters, and the tokenizers. Fails if several adapters have no or equal names, and if
    /// adapters that rows choose differ in their tokens.
    pub fn open_adapted(&self, writing: &TemplateArgs, quantize: &QuantizeArgs) -> Result<AdaptedModel> {
        let _loading = report::spinner(&format!("loading {}", self.model.display()));
        let given = self.adapters();
        let folders: Vec<PathBuf> = given.iter().map(|adapter| adapter.folder.clone()).collect();
        if let [] | [AdapterArg { name: None, .. }] = given {
            let tokenizer = self.tokenizer(writing, folders.first().map(PathBuf::as_path))?;
            let model = self.open_model(&folders, quantize)?;
            return Ok(AdaptedModel { model, tokenizer, named: Vec::new() });
        }
        let tokenizer = self.tokenizer(writing, None)?;
        let mut named: Vec<NamedAdapter> = Vec::new();
        for AdapterArg { name, folder } in given {
            let Some(name) = name else {
                return Err(Error::user(format!(
                    "--adapter {}: one of several adapters needs a name",
                    folder.display()
                ))
                .hint(format!("--adapter NAME={}; rows name it in their column `adapter`", folder.display())));
            };
            if named.iter().any(|other| other.name == *name) {
                return Err(Error::user(format!("--adapter: two adapters are called `{name}`")));
            }
            if tokenizer_folder(&self.model, Some(folder))? != self.model {
                return Err(own_tokens(name));
            }
            let own = writing.template.is_none() && template::adapter_template(folder, &self.model)?.is_some();
            let own = own.then(|| self.tokenizer(writing, Some(folder))).transpose()?;
            if own.as_ref().is_some_and(|own| own.stop_ids() != tokenizer.stop_ids()) {
                return Err(Error::user(format!(
                    "adapter `{name}`: its chat template ends an answer with another token than the base's"
                ))
                .hint(
                    "answer its rows on their own, with --adapter DIR; or give one template to all: --template FILE",
                ));
            }
            named.push(NamedAdapter { name: name.clone(), tokenizer: own });
        }
        let model = self.open_model(&folders, quantize)?;
        if model.vocabulary().is_some() {
            let names: Vec<&str> = named.iter().map(|n| n.name.as_str()).collect();
            return Err(own_tokens(&names.join("`, `")));
        }
        Ok(AdaptedModel { model, tokenizer, named })
    }
}

/// Returns the error for an adapter that changes the base's tables of tokens, for other rows too.
fn own_tokens(name: &str) -> Error {
    Error::user(format!("adapter `{name}`: it has tokens that the base lacks, and cannot share the base with others"))
        .hint("answer its rows on their own, with --adapter DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_at_the_first_equals_sign() {
        let parsed = |text: &str| {
            let AdapterArg { name, folder } = AdapterArg::parse(text.into());
            (name, folder.display().to_string())
        };
        assert_eq!(parsed("runs/a"), (None, "runs/a".into()));
        assert_eq!(parsed("a=runs/b=c"), (Some("a".into()), "runs/b=c".into()));
        assert_eq!(parsed("runs/a=b"), (None, "runs/a=b".into()));
        assert_eq!(parsed("./a=b"), (None, "./a=b".into()));
        assert_eq!(parsed("=b"), (None, "=b".into()));
    }
}
