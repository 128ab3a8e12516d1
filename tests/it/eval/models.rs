//! A tiny model with a tokenizer, of which tests ask suites.

use crate::support::files::copy_files;
use crate::support::{device, fixture};
use ft::data::chat::ChatTokenizer;
use ft::error::Result;
use ft::eval::results::{self, SuiteResults};
use ft::eval::suite::cache::AnswerCache;
use ft::eval::suite::{SuiteBaseline, SuiteSubject, run_suite};
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::models::{Model, open};
use ft::recipe::suite_file;
use tch::Kind;

/// A model that is asked.
pub struct Subject {
    _folder: tempfile::TempDir,
    pub model: Model,
    pub tokenizer: ChatTokenizer,
}

impl Subject {
    /// Opens a random llama with a tokenizer of 400 tokens and a chat template.
    pub fn tiny_llama() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["tiny-llama", "tiny-tokenizer"] {
            copy_files(&fixture(part), folder.path(), |name| !name.ends_with(".py"));
        }
        let model = open(folder.path(), &[], device(), Kind::Float).unwrap();
        let tokenizer = ChatTokenizer::load(folder.path(), None).unwrap();
        Self { _folder: folder, model, tokenizer }
    }

    /// Runs a suite given as text.
    pub fn run(&self, suite: &str) -> Result<SuiteResults> {
        self.run_with(suite, &mut AnswerCache::in_memory())
    }

    /// Does the same with the answers in `cache`.
    pub fn run_with(&self, suite: &str, cache: &mut AnswerCache) -> Result<SuiteResults> {
        let suite = suite_file::parse("suite.yaml", suite)?;
        let subject = SuiteSubject {
            info: results::Subject { name: "tiny".into(), model: "tiny-llama".into(), adapter: None },
            adapter: AnsweringAdapter::Active,
            tokenizer: &self.tokenizer,
            identity: "tiny".into(),
        };
        run_suite(&self.model, (&suite, "suite.yaml"), &[subject], SuiteBaseline::First, cache)
    }
}
