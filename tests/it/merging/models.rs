//! Merges of whole models against mergekit, by every method (fixtures of model_merges.py).

use crate::support::*;
use ft::convert::merge::models::ModelMerge;
use ft::merging::models::{TensorBlocks, TensorParts, prepare, slices};
use ft::nn::Weights;
use ft::recipe::merge_file::{self, MergeFile, ModelMergeFile};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct ModelCase {
    name: String,
    text: String,
    vocabulary: Option<BTreeMap<String, i64>>,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<ModelCase>,
}

impl ModelCase {
    fn file(&self) -> ModelMergeFile {
        let text = self.text.replace("DIR", fixture("model-merges").to_str().unwrap());
        match merge_file::parse(&self.name, &text).unwrap() {
            MergeFile::Models(file) => file,
            _ => panic!("{}: another kind of merge", self.name),
        }
    }

    /// Returns the expected tensors by name.
    fn expected(&self, all: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let own = |(name, t): (&String, &Tensor)| {
            let name = name.strip_prefix(&format!("{}/", self.name))?;
            (!name.starts_with("mask/")).then(|| (name.to_string(), t.shallow_clone()))
        };
        all.iter().filter_map(own).collect()
    }

    fn merged(&self, out: &Path) -> Weights {
        ModelMerge::open(self.file(), 0).unwrap().write(out, u64::MAX).unwrap();
        Weights::open(out).unwrap()
    }
}

fn cases() -> (Vec<ModelCase>, BTreeMap<String, Tensor>) {
    let cases: Cases = json("model-merges/expected.json");
    (cases.cases, tensors("model-merges/expected.safetensors"))
}

const RANDOM: [&str; 4] = ["dare_linear", "dare_ties", "della", "della_linear"];

/// Float32 results agree within 1e-6 of the largest entry, for every method, gradients, filters and slices.
#[test]
fn every_method_gives_mergekits_tensors() {
    let (cases, expected) = cases();
    let mut seen = 0;
    for case in cases.iter().filter(|case| !RANDOM.contains(&case.name.as_str())) {
        if case.vocabulary.is_some() || case.name.starts_with("bf16") || case.name.starts_with("rounded") {
            continue;
        }
        let out = tempfile::tempdir().unwrap();
        let merged = case.merged(&out.path().join("out"));
        let tensors = case.expected(&expected);
        assert!(tensors.len() >= 6, "{}", case.name);
        for (name, theirs) in &tensors {
            assert_close(&format!("{} {name}", case.name), &merged.get(name).unwrap(), theirs, 1e-6);
        }
        seen += 1;
    }
    assert!(seen >= 20, "{seen} cases");
}

/// What mergekit computes in float32 and writes in bfloat16 is the same here but for one step of rounding, in few entries. What it
/// computes in bfloat16 is rounded after every step there and once here, so that it is some steps apart.
#[test]
fn results_in_bfloat16_are_rounded_once() {
    let (cases, expected) = cases();
    let (mut rounded, mut computed) = (0, 0);
    for case in &cases {
        let in_float = case.name.starts_with("rounded-");
        if !in_float && !case.name.starts_with("bf16-") {
            continue;
        }
        let out = tempfile::tempdir().unwrap();
        let merged = case.merged(&out.path().join("out"));
        for (name, theirs) in &case.expected(&expected) {
            let ours = merged.get(name).unwrap();
            assert_eq!(ours.kind(), Kind::BFloat16, "{} {name}", case.name);
            let ours = ours.to_kind(Kind::Float);
            // A step of bfloat16 is at most 2^-7 of the number.
            if in_float {
                let apart = (&ours - theirs).abs() / theirs.abs().clamp_min(1e-30);
                assert!(apart.max().double_value(&[]) <= 1.0 / 128.0, "{} {name}", case.name);
                let different = apart.gt(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
                assert!(different < 0.02, "{} {name}: {different}", case.name);
                rounded += 1;
            } else {
                computed += usize::from(!ours.equal(theirs));
            }
        }
    }
    assert!(rounded >= 30 && computed > 0, "{rounded} {computed}");
}

/// The masks of DARE and DELLA are random in mergekit and cannot be repeated. Given its masks, the results are the same.
#[test]
fn random_methods_give_mergekits_tensors_with_its_masks() {
    let (cases, expected) = cases();
    let random: Vec<&ModelCase> = cases.iter().filter(|case| RANDOM.contains(&case.name.as_str())).collect();
    assert_eq!(random.len(), 4);
    for case in random {
        let file = case.file();
        let slice = &file.slices[0];
        let models: Vec<BTreeMap<String, Tensor>> =
            slice.sources.iter().map(|s| Weights::open(&file.models[s.model]).unwrap().all()).collect();
        let base = slice.sources.iter().position(|s| Some(s.model) == slice.base);
        for (name, theirs) in &case.expected(&expected) {
            let blocks = TensorBlocks::of(&theirs.size());
            let place =
                |rows: &Range<i64>| (rows.start * blocks.columns) as usize..(rows.end * blocks.columns) as usize;
            let numbers = |t: &Tensor| Vec::<f32>::try_from(t.to_kind(Kind::Float).flatten(0, -1)).unwrap();
            let inputs: Vec<Vec<f32>> = models.iter().map(|model| numbers(&model[name])).collect();
            let mask = |part: usize| numbers(&expected[&format!("{}/mask/{part}/{name}", case.name)]);
            let masks: Vec<Vec<f32>> =
                (0..models.len()).map(|part| if Some(part) == base { Vec::new() } else { mask(part) }).collect();
            let read = |part: usize, rows: Range<i64>, to: &mut [f32]| {
                to.copy_from_slice(&inputs[part][place(&rows)]);
                Ok(())
            };
            // An entry is kept if its number is below the probability.
            let draw = |part: usize, rows: Range<i64>, to: &mut [f64]| {
                to.iter_mut().zip(&masks[part][place(&rows)]).for_each(|(to, mask)| *to = 1.0 - f64::from(*mask));
            };
            let (count, threads) = (models.len(), 1);
            let parts = TensorParts { name, blocks, base, count, draw: &draw, read: &read, threads };
            let values = file.values(slice, name, &vec![name.clone(); models.len()], 0.0).unwrap();
            let merged = prepare(file.method, &parts, &values).unwrap();
            let all = 0..blocks.rows;
            let mut ours = vec![0.0; blocks.entries() as usize];
            merged.block(&all, &slices(&parts.read_all(&all).unwrap()), &mut ours);
            let ours = Tensor::from_slice(&ours).view_as(theirs);
            assert_close(&format!("{} {name}", case.name), &ours, theirs, 1e-6);
        }
    }
}

/// Without its masks: the share of entries that is kept is the density, and the sum of their magnitudes that of all entries.
#[test]
fn random_methods_keep_the_density_and_the_sum_of_magnitudes() {
    let folder = fixture("model-merges");
    for (method, more) in [("dare_linear", ""), ("della_linear", ", epsilon: 0.2"), ("dare_linear", ", rescale: false")]
    {
        let text = format!(
            "merge_method: {method}\nbase_model: {0}/base\nmodels: [{{model: {0}/one, parameters: {{weight: 1}}}}]\n\
             parameters: {{density: 0.4{more}}}\n",
            folder.display()
        );
        let MergeFile::Models(file) = merge_file::parse("x", &text).unwrap() else { panic!() };
        let out = tempfile::tempdir().unwrap();
        ModelMerge::open(file, 5).unwrap().write(&out.path().join("out"), u64::MAX).unwrap();
        let [base, one, merged] =
            [folder.join("base"), folder.join("one"), out.path().join("out")].map(|f| Weights::open(&f).unwrap().all());
        let (mut kept, mut all, mut entries) = (0.0, 0.0, 0);
        for (name, base) in &base {
            let (change, whole) = (&merged[name] - base, &one[name] - base);
            kept += change.count_nonzero(None::<i64>).int64_value(&[]) as f64;
            all += change.numel() as f64;
            let sum = |t: &Tensor| t.abs().sum(Kind::Double).double_value(&[]);
            if more.contains("rescale") {
                assert!(sum(&change) < sum(&whole), "{name}");
            } else {
                assert_number(name, sum(&change), sum(&whole), 1e-4);
            }
            entries += 1;
        }
        assert!(entries > 10);
        // About 4,800 entries: the standard deviation of the share is 0.007.
        assert!((kept / all - 0.4).abs() < 0.035, "{method}{more}: {}", kept / all);
    }
}

/// Rows of tokens are those of mergekit, whatever ids the new tokens got, which mergekit gives in the order of a hash table.
#[test]
fn vocabularies_are_aligned_as_by_mergekit() {
    let (cases, expected) = cases();
    let mut seen = 0;
    for case in &cases {
        let Some(theirs) = &case.vocabulary else { continue };
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("out");
        let merged = case.merged(&folder);
        let tokenizer = ft::data::chat::ChatTokenizer::load(&folder, None).unwrap();
        let ours = tokenizer.vocabulary();
        assert!(ours.keys().eq(theirs.keys()), "{}: {ours:?}", case.name);
        for (name, rows) in &case.expected(&expected) {
            let found = merged.get(name).unwrap();
            assert_eq!(found.size(), rows.size(), "{} {name}", case.name);
            for (token, id) in theirs {
                let row = found.get(i64::from(ours[token]));
                assert_close(&format!("{} {name} {token}", case.name), &row, &rows.get(*id), 1e-6);
            }
            for row in theirs.len() as i64..rows.size()[0] {
                assert_close(&format!("{} {name} padding", case.name), &found.get(row), &rows.get(row), 2e-6);
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}
