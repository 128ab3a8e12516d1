//! Adapters that PEFT saved over a base with a resized vocabulary (tests/fixtures/vocabulary.py): opened over the base as it is,
//! and merged.

use crate::support::files::copied;
use crate::support::*;
use ft::adapters::file;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::merge;
use ft::convert::verify::report::ExportVerdict;
use ft::models::{self, Model};
use ft::nn::Tokens;
use tch::{Kind, Tensor};

/// The fixtures that have all rows of the tables that they were trained with.
const WHOLE: [&str; 10] = [
    "plain",
    "plain-tied",
    "rows",
    "rows-of-embedding",
    "rows-tied",
    "saved",
    "saved-tied",
    "adapted",
    "tokens-tied",
    "adapted-tied",
];

#[derive(serde::Deserialize)]
struct Expected {
    model: String,
    rows: i64,
    input: Vec<u32>,
}

fn logits(model: &Model, ids: &[u32]) -> Tensor {
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&Tokens::pack(&[ids], device()), |out| out.logits(&rows)).unwrap()
}

#[test]
fn pefts_adapters_of_a_resized_base_give_its_logits_and_are_merged() {
    let out = tempfile::tempdir().unwrap();
    for name in WHOLE {
        let folder = fixture(format!("vocabulary/{name}"));
        let Expected { model: base, rows, input } = json(format!("vocabulary/{name}/expected.json"));
        let expected = &tensors(format!("vocabulary/{name}/expected.safetensors"))["logits"];
        let model = models::open(&fixture(&base), &[folder.clone()], device(), Kind::Float).unwrap();
        assert_eq!(model.config().vocab_size, rows, "{name}");
        assert_close(name, &logits(&model, &input), expected, 1e-5);

        let into = out.path().join(name);
        let part = [WeightedAdapter::read(&folder, 1.0).unwrap()];
        let report = merge::adapters::merge_into_model(&fixture(&base), &part, &into, None, u64::MAX).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{name}: {:?}", report.problems);
        let merged = models::open(&into, &[], device(), Kind::Float).unwrap();
        assert_eq!(merged.config().vocab_size, rows, "{name}");
        assert_eq!(merged.config().tie_word_embeddings, model.config().tie_word_embeddings, "{name}");
        assert_close(name, &logits(&merged, &input), expected, 1e-5);
    }
}

/// PEFT saves no rows of an output head that it did not adapt, although they are new.
#[test]
fn an_adapter_without_the_new_rows_of_the_head_is_refused() {
    let e = models::open(&fixture("tiny-qwen3"), &[fixture("vocabulary/tokens")], device(), Kind::Float).err().unwrap();
    assert!(e.message().contains("no row 64 of `lm_head`") && !e.hints().is_empty(), "{e}");
}

#[test]
fn an_adapter_for_another_width_or_with_other_factors_for_a_tied_head_is_refused() {
    let refused = |base: &str, name: &str| {
        models::open(&fixture(base), &[fixture(format!("vocabulary/{name}"))], device(), Kind::Float).err().unwrap()
    };
    let e = refused("tiny-llama", "plain-tied");
    assert!(e.message().contains("width 64"), "{e}");
    // The head's factors in the file must be the embedding's.
    let folder = copied(&fixture("vocabulary/adapted-tied"));
    let path = folder.path().join(file::TENSORS);
    let mut all = tensors(&path);
    let factor = all.get_mut("base_model.model.lm_head.lora_A.weight").unwrap();
    *factor = &*factor + 1.0;
    ft::nn::weights::save(&path, all.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
    let read = file::read(folder.path()).unwrap();
    assert!(read.spec.ties_head());
    let e = models::open(&fixture("tiny-qwen2"), &[folder.path().into()], device(), Kind::Float).err().unwrap();
    assert!(e.message().contains("lm_head.lora_A.weight"), "{e}");
}
