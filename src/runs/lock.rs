//! `ft.lock`: records the inputs and the result of a run by hash, and finds later differences.
//!
//! It covers base weights, tokenizer, template, data, recipe, programs and machine. If none of them has changed, a run
//! on the CPU gives the same bits again.

use super::facts::{Environment, Software};
use super::hash::{FileDigest, FileHasher, HashTrust};
use super::inputs::{ModelFiles, SENTENCEPIECE, method_files, model_files};
use super::recipe_hash::{earlier_recipe_sha256, recipe_sha256};
use crate::data::chat::is_template_name;
use crate::error::{Error, Result};
use crate::fsutil::{read_json, write_json};
use crate::models::Dtype;
use crate::recipe::plan::Plan;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FILE: &str = "ft.lock";
/// Version of the file's layout.
const FORMAT: u32 = 1;

/// The training or validation rows by hash, computed while they were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedRows {
    /// Where the rows are.
    pub path: PathBuf,
    /// SHA-256 of the files.
    pub sha256: String,
    /// SHA-256 of the resulting token ids and of the mask of trained tokens. `None` in locks of earlier versions, which
    /// did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_sha256: Option<String>,
}

/// The programs that computed the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPrograms {
    /// Version of ft.
    pub ft: String,
    /// SHA-256 of ft's program file.
    pub ft_sha256: String,
    /// Version of libtorch.
    pub libtorch: String,
}

/// The properties of a machine on which the last bits of a result depend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedMachine {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The processor's or the GPU's name.
    pub device_name: String,
    /// Instruction set.
    pub instructions: String,
    /// Threads that libtorch computes with.
    pub threads: usize,
}

/// Contents of `ft.lock`: all inputs of a run, and its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLock {
    /// Version of the layout.
    pub format: u32,
    /// The folder of the base model and its tokenizer.
    pub base_folder: PathBuf,
    /// Config and weights of the base model, by file name.
    pub base: BTreeMap<String, FileDigest>,
    /// Files of the tokenizer and the model's own templates, by file name.
    pub tokenizer: BTreeMap<String, FileDigest>,
    /// The file of `data.template`, if the recipe gives one.
    pub template: Option<FileDigest>,
    /// Files that the method reads (teachers, reward models, references, ...), by `recipe key: file name`. `None` in
    /// locks of earlier versions, which did not record them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<BTreeMap<String, FileDigest>>,
    /// The training rows.
    pub train: LockedRows,
    /// The validation rows.
    pub valid: Option<LockedRows>,
    /// SHA-256 of the resolved recipe without settings that cannot change a result, such as paths and `run.keep`.
    pub recipe_sha256: String,
    /// `recipe_sha256` as earlier versions computed it, to compare with their locks. `None` in a lock read from a file.
    #[serde(skip)]
    earlier_recipe_sha256: Option<String>,
    /// The number format of the arithmetic. `None` in locks of earlier versions, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<Dtype>,
    /// Sums had a fixed order on the GPU (`run.deterministic`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// Float32 products were computed in TF32 (`run.tf32`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
    /// The programs that computed the run.
    pub programs: LockedPrograms,
    /// The machine on which it was computed.
    pub machine: LockedMachine,
    /// The files of the verified result; `None` until the run has ended.
    pub result: Option<BTreeMap<String, FileDigest>>,
    /// Resumes at which programs or machine had changed: (step after which the run was resumed, differences).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed_with: Vec<(u64, Vec<Drift>)>,
}

/// A difference between a recorded lock and the current state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// What differs.
    pub item: String,
    /// The recorded value.
    pub was: String,
    /// The current value.
    pub is: String,
    /// What the difference can change in the result, in words.
    pub effect: String,
}

/// The file of the running program. This path also works after the file was replaced or removed.
const PROGRAM: &str = "/proc/self/exe";

impl RunLock {
    /// Hashes the inputs of a plan. The hashes of the rows were computed when they were read and are passed in.
    pub fn new(
        plan: &Plan,
        train: LockedRows,
        valid: Option<LockedRows>,
        software: &Software,
        environment: &Environment,
        trust: HashTrust,
    ) -> Result<Self> {
        let folder = &plan.recipe.model.path;
        let mut hasher = FileHasher::open(trust);
        let ModelFiles { base, tokenizer } = model_files(folder, &mut hasher)?;
        // `data.template` may name one of the model's own templates: its file is then hashed with the tokenizer.
        let file = plan.recipe.data.template.as_ref().filter(|path| !is_template_name(path));
        let template = file.map(|path| hasher.hash_file(path)).transpose()?;
        let method = Some(method_files(&plan.recipe, &mut hasher)?);
        let programs = LockedPrograms {
            ft: software.ft.clone(),
            ft_sha256: hasher.hash_file(Path::new(PROGRAM))?.sha256,
            libtorch: software.libtorch.clone(),
        };
        hasher.close();
        Ok(Self {
            format: FORMAT,
            base_folder: folder.clone(),
            base,
            tokenizer,
            template,
            method,
            train,
            valid,
            recipe_sha256: recipe_sha256(&plan.recipe),
            earlier_recipe_sha256: Some(earlier_recipe_sha256(&plan.recipe)),
            arithmetic: Some(plan.recipe.model.dtype),
            deterministic: plan.recipe.run.deterministic,
            tf32: plan.recipe.run.tf32,
            programs,
            machine: LockedMachine {
                device: environment.device.clone(),
                device_name: environment.device_name.clone(),
                instructions: environment.instructions.clone(),
                threads: environment.threads,
            },
            result: None,
            resumed_with: Vec::new(),
        })
    }

    /// Reads the lock of a run folder; `None` if there is none. Fails if another version of ft wrote it in another
    /// layout.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let lock: Self = read_json(&path)?;
        if lock.format != FORMAT {
            return Err(Error::user(format!("{}: format {}, this ft reads {FORMAT}", path.display(), lock.format))
                .hint("read it with the ft version that wrote it"));
        }
        Ok(Some(lock))
    }

    /// Writes the lock into a run folder.
    pub fn write(&self, run: &Path) -> Result<()> {
        write_json(&run.join(FILE), self)
    }

    /// Returns the differences between this recorded lock and `now`.
    pub fn drift(&self, now: &RunLock) -> Vec<Drift> {
        let mut found = Vec::new();
        let mut compare = |item: String, was: String, is: String, effect: &str| {
            if was != is {
                found.push(Drift { item, was, is, effect: effect.into() });
            }
        };
        let none = BTreeMap::new();
        let (method, method_now) = match (&self.method, &now.method) {
            (Some(then), Some(here)) => (then, here),
            _ => (&none, &none),
        };
        for (what, then, here, effect) in [
            ("base", &self.base, &now.base, "the initial weights, and so every number of the result"),
            ("tokenizer", &self.tokenizer, &now.tokenizer, "token ids or the template, and so what is trained on"),
            ("method", method, method_now, "the models or rewards that the run is trained with"),
        ] {
            let added_later = |name: &str| name.ends_with(SENTENCEPIECE) && !then.contains_key(name);
            let names: BTreeSet<&String> = then.keys().chain(here.keys()).collect();
            for name in names.into_iter().filter(|name| !added_later(name)) {
                compare(format!("{what}: {name}"), shown(then.get(name)), shown(here.get(name)), effect);
            }
        }
        let template = "the text around each message, and so what is trained on";
        compare("template".into(), shown(self.template.as_ref()), shown(now.template.as_ref()), template);
        compare("training rows".into(), short(&self.train.sha256), short(&now.train.sha256), "what is trained on");
        let valid = |lock: &RunLock| lock.valid.as_ref().map_or("none".into(), |v| short(&v.sha256));
        let effect = "which checkpoint is the best, and when a run with run.patience stops";
        compare("validation rows".into(), valid(self), valid(now), effect);
        let sides = [
            ("training tokens", Some(&self.train), Some(&now.train)),
            ("validation tokens", self.valid.as_ref(), now.valid.as_ref()),
        ];
        for (item, then, here) in sides {
            let tokens = |rows: Option<&LockedRows>| rows.and_then(|r| r.tokens_sha256.clone());
            if let (Some(then), Some(here)) = (tokens(then), tokens(here)) {
                compare(
                    item.into(),
                    short(&then),
                    short(&here),
                    "how rows are rendered and tokenised, and so what is trained on",
                );
            }
        }
        let effect = "a setting of the run; `ft runs diff` shows which";
        if now.earlier_recipe_sha256.as_ref() != Some(&self.recipe_sha256) {
            compare("recipe".into(), short(&self.recipe_sha256), short(&now.recipe_sha256), effect);
        }
        let (a, b) = (&self.programs, &now.programs);
        compare("ft".into(), a.ft.clone(), b.ft.clone(), "how rows are read and numbers are computed");
        if a.ft == b.ft {
            let effect = "another build of the same version, whose code may differ";
            compare("ft's program file".into(), short(&a.ft_sha256), short(&b.ft_sha256), effect);
        }
        let effect = "kernels and their order of sums: the last bits, which training amplifies";
        compare("libtorch".into(), a.libtorch.clone(), b.libtorch.clone(), effect);
        let (a, b) = (&self.machine, &now.machine);
        compare("device".into(), a.device.clone(), b.device.clone(), "kernels and the random numbers of dropout");
        let effect = "kernels depend on the hardware: the last bits, which training amplifies";
        compare("device name".into(), a.device_name.clone(), b.device_name.clone(), effect);
        compare("instructions".into(), a.instructions.clone(), b.instructions.clone(), effect);
        let effect = "sums are split over threads: the last bits, which training amplifies";
        compare("threads".into(), a.threads.to_string(), b.threads.to_string(), effect);
        found
    }
}

impl Drift {
    /// Returns true if an input (a file or a setting) changed; false if only programs or machine did.
    pub fn is_input(&self) -> bool {
        let inputs = [
            "base",
            "tokenizer",
            "template",
            "method",
            "training rows",
            "validation rows",
            "training tokens",
            "validation tokens",
            "recipe",
        ];
        inputs.iter().any(|i| self.item.split(':').next() == Some(i))
    }
}

fn short(sha256: &str) -> String {
    sha256.get(..12).unwrap_or(sha256).to_string()
}

fn shown(file: Option<&FileDigest>) -> String {
    file.map_or("missing".into(), |f| format!("{} ({} bytes)", short(&f.sha256), f.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::sections::Recipe;
    use crate::runs::recipe_hash::tests::plan;

    #[test]
    fn locks_of_earlier_versions_are_accepted() {
        let list = "data.train=[{path: a.jsonl}, {path: b.jsonl}]";
        for (sets, same) in [(vec![], true), (vec!["data.cache=c"], false), (vec![list], false)] {
            let now = plan(&sets);
            let (then, other) = (earlier_recipe_sha256(&now.recipe), plan(&["optim.lr=1e-3"]));
            assert_eq!(then == recipe_sha256(&now.recipe), same, "{sets:?}");
            let lock = |recipe: &Recipe| RunLock {
                recipe_sha256: recipe_sha256(recipe),
                earlier_recipe_sha256: Some(earlier_recipe_sha256(recipe)),
                ..some_lock()
            };
            let earlier = RunLock { recipe_sha256: then, earlier_recipe_sha256: None, ..some_lock() };
            assert_eq!(earlier.drift(&lock(&now.recipe)), [], "{sets:?}");
            assert_eq!(earlier.drift(&lock(&other.recipe))[0].item, "recipe");
        }
        // They did not record tokenizer.model.
        let mut now = some_lock();
        now.tokenizer.insert(SENTENCEPIECE.into(), file("ab"));
        assert_eq!(some_lock().drift(&now), []);
        let mut changed = now.clone();
        changed.tokenizer.insert(SENTENCEPIECE.into(), file("cd"));
        assert_eq!(now.drift(&changed)[0].item, "tokenizer: tokenizer.model");
    }

    fn file(sha: &str) -> FileDigest {
        FileDigest { sha256: sha.repeat(32), bytes: 9 }
    }

    fn some_lock() -> RunLock {
        RunLock {
            format: FORMAT,
            base_folder: "m".into(),
            base: [("config.json".to_string(), file("ab"))].into(),
            tokenizer: BTreeMap::new(),
            template: None,
            method: None,
            train: LockedRows { path: "t".into(), sha256: "1".repeat(64), tokens_sha256: Some("2".repeat(64)) },
            valid: None,
            recipe_sha256: "2".repeat(64),
            earlier_recipe_sha256: None,
            arithmetic: None,
            deterministic: false,
            tf32: false,
            programs: LockedPrograms { ft: "0.1.0".into(), ft_sha256: "3".repeat(64), libtorch: "2.11.0".into() },
            machine: LockedMachine {
                device: "cpu".into(),
                device_name: "x".into(),
                instructions: "AVX2".into(),
                threads: 2,
            },
            result: None,
            resumed_with: Vec::new(),
        }
    }

    #[test]
    fn every_difference_is_named_with_what_it_can_change() {
        let then = some_lock();
        assert_eq!(then.drift(&then.clone()), []);
        let mut now = then.clone();
        now.base.insert("config.json".into(), file("cd"));
        now.base.insert("model.safetensors".into(), file("ef"));
        now.template = Some(file("aa"));
        now.train.sha256 = "9".repeat(64);
        now.programs.libtorch = "2.11.1".into();
        now.machine.threads = 4;
        let items: Vec<String> = then.drift(&now).into_iter().map(|d| d.item).collect();
        let expected =
            ["base: config.json", "base: model.safetensors", "template", "training rows", "libtorch", "threads"];
        assert_eq!(items, expected);
    }
}
