//! `ft.lock`: records the inputs and the result of a run by hash, and finds later differences.
//!
//! It covers base weights, tokenizer, template, data, recipe, programs and machine. If none of them has changed, a run
//! on the CPU gives the same bits again.

use super::facts::{Environment, Software};
use super::hash::{FileDigest, FileHasher, HashTrust};
use crate::data::is_template_name;
use crate::error::{Error, Result};
use crate::fsutil::{hex, read_json, write_json};
use crate::models::Dtype;
use crate::recipe;
use crate::recipe::neutral::{remove_neutral_settings, take_source_paths};
use crate::recipe::plan::Plan;
use crate::recipe::sections::Recipe;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FILE: &str = "ft.lock";
/// Version of the file's layout.
const FORMAT: u32 = 1;

/// The training or validation rows by hash, computed while they were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedRows {
    pub path: PathBuf,
    pub sha256: String,
    /// SHA-256 of the resulting token ids and of the mask of trained tokens. `None` in locks of earlier versions, which
    /// did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_sha256: Option<String>,
}

/// The programs that computed the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPrograms {
    pub ft: String,
    /// SHA-256 of ft's program file.
    pub ft_sha256: String,
    pub libtorch: String,
}

/// The properties of a machine on which the last bits of a result depend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedMachine {
    pub device: String,
    pub device_name: String,
    pub instructions: String,
    pub threads: usize,
}

/// Contents of `ft.lock`: all inputs of a run, and its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLock {
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
    pub train: LockedRows,
    pub valid: Option<LockedRows>,
    /// SHA-256 of the resolved recipe without settings that cannot change a result, such as paths and `run.keep`.
    pub recipe_sha256: String,
    /// `recipe_sha256` as earlier versions computed it, to compare with their locks. `None` in a lock read from a file.
    #[serde(skip)]
    earlier_recipe_sha256: Option<String>,
    /// The number format of the arithmetic. `None` in locks of earlier versions, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<Dtype>,
    pub programs: LockedPrograms,
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
    pub item: String,
    pub was: String,
    pub is: String,
    /// What the difference can change in the result, in words.
    pub effect: String,
}

/// The file of the running program. This path also works after the file was replaced or removed.
const PROGRAM: &str = "/proc/self/exe";

/// Files of a model folder that belong to the tokenizer.
const TOKENIZER: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Subfolder with further chat templates of a model.
const TEMPLATES: &str = "additional_chat_templates";

/// Returns true for config and weights of a model, i.e. for the files that a run reads in addition to the tokenizer.
fn is_base(name: &str) -> bool {
    name == "config.json"
        || name == "generation_config.json"
        || name.ends_with(".safetensors")
        || name.ends_with(".safetensors.index.json")
}

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
        let (mut base, mut tokenizer) = (BTreeMap::new(), BTreeMap::new());
        let listed = |folder: &Path| -> Result<Vec<String>> {
            let entries =
                std::fs::read_dir(folder).map_err(|e| crate::fsutil::io_error("reading folder", folder, e))?;
            Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
        };
        let mut names = listed(folder)?;
        if folder.join(TEMPLATES).is_dir() {
            names.extend(listed(&folder.join(TEMPLATES))?.into_iter().map(|name| format!("{TEMPLATES}/{name}")));
        }
        names.sort();
        for name in names {
            let into = match () {
                () if TOKENIZER.contains(&name.as_str()) => &mut tokenizer,
                () if name.starts_with(TEMPLATES) && name.ends_with(".jinja") => &mut tokenizer,
                () if is_base(&name) => &mut base,
                () => continue,
            };
            let locked = hasher.hash_file(&folder.join(&name))?;
            into.insert(name, locked);
        }
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
            let names: std::collections::BTreeSet<&String> = then.keys().chain(here.keys()).collect();
            for name in names {
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

/// Hashes the files behind the paths in the recipe's `method` section: files themselves; of a model or adapter folder
/// its config, weights and tokenizer. Other folders (a teacher's cache) are left out: their readers check them.
fn method_files(recipe: &Recipe, hasher: &mut FileHasher) -> Result<BTreeMap<String, FileDigest>> {
    let mut paths = Vec::new();
    let value = serde_json::to_value(&recipe.method).map_err(|e| Error::bug(format!("recipe: {e}")))?;
    paths_below("method", &value, &mut paths);
    let mut found = BTreeMap::new();
    for (key, path) in paths {
        if path.is_file() {
            found.insert(key, hasher.hash_file(&path)?);
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        let names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        if !names.iter().any(|n| n == "config.json" || n == ADAPTER) {
            continue;
        }
        for name in names.iter().filter(|n| is_base(n) || TOKENIZER.contains(&n.as_str()) || *n == ADAPTER) {
            found.insert(format!("{key}: {name}"), hasher.hash_file(&path.join(name))?);
        }
    }
    Ok(found)
}

const ADAPTER: &str = "adapter_config.json";

/// Collects the values below a recipe key that the schema declares as paths.
fn paths_below(key: &str, value: &Value, into: &mut Vec<(String, PathBuf)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, v)| paths_below(&format!("{key}.{name}"), v, into)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| paths_below(&format!("{key}.{i}"), v, into)),
        Value::String(text) if recipe::schema::key(key).is_some_and(|k| k.kind.ends_with("path")) => {
            into.push((key.to_string(), text.into()));
        }
        _ => {}
    }
}

fn short(sha256: &str) -> String {
    sha256.get(..12).unwrap_or(sha256).to_string()
}

fn shown(file: Option<&FileDigest>) -> String {
    file.map_or("missing".into(), |f| format!("{} ({} bytes)", short(&f.sha256), f.bytes))
}

/// Hashes the recipe without the settings that cannot change a result (`recipe::neutral`) and without the paths of files
/// whose contents are hashed separately.
fn recipe_sha256(recipe: &Recipe) -> String {
    let mut value = serde_json::to_value(recipe).unwrap_or_default();
    remove_neutral_settings(&mut value);
    for name in ["train", "valid"] {
        take_source_paths(&mut value, name);
    }
    hash_without(value, &["/model/path", "/data/template"])
}

/// Hashes the recipe as earlier versions of ft did: with `data.cache` and with the paths in lists of sources.
fn earlier_recipe_sha256(recipe: &Recipe) -> String {
    let keys = [
        "/run/out",
        "/run/keep",
        "/run/save_every",
        "/run/samples",
        "/run/threads",
        "/run/eval_at_start",
        "/model/path",
        "/model/device",
        "/model/storage",
        "/data/train/path",
        "/data/valid/path",
        "/data/template",
    ];
    hash_without(serde_json::to_value(recipe).unwrap_or_default(), &keys)
}

/// Returns the SHA-256 of a JSON value without some keys, given as JSON pointers.
fn hash_without(mut value: Value, keys: &[&str]) -> String {
    for path in keys {
        let (section, key) = path.rsplit_once('/').expect("paths have a slash");
        if let Some(section) = value.pointer_mut(section).and_then(Value::as_object_mut) {
            section.shift_remove(key); // the rest keeps its order, on which the hash depends
        }
    }
    hex(&Sha256::digest(value.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sets: &[&str]) -> Plan {
        let text = "model: { path: m }\nmethod: { sft: {} }\ndata: { train: { path: t.jsonl } }\nrun: { out: o }\n";
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        recipe::plan::parse("r.yaml", text, &sets).unwrap()
    }

    #[test]
    fn places_and_bookkeeping_are_no_part_of_the_recipe() {
        let hash = |sets: &[&str]| recipe_sha256(&plan(sets).recipe);
        assert_eq!(hash(&[]), hash(&["run.out=elsewhere", "run.keep=9", "run.samples=0", "run.threads=3"]));
        assert_ne!(hash(&[]), hash(&["optim.lr=1e-3"]));
        assert_ne!(hash(&[]), hash(&["run.seed=8"]));
        assert_eq!(hash(&["data.cache=c"]), hash(&["data.cache=d"]));
        let sources = |path: &str| hash(&[&format!("data.train=[{{path: {path}}}, {{path: b.jsonl}}]")]);
        assert_eq!(sources("a.jsonl"), sources("moved/a.jsonl"));
    }

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
    }

    #[test]
    fn models_that_a_method_reads_are_locked_and_caches_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (file, text) in [
            ("teacher/config.json", "{}"),
            ("teacher/model.safetensors", "w"),
            ("teacher/notes.txt", "n"),
            ("taught/train-00000.safetensors", "c"),
        ] {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), text).unwrap();
        }
        let distill = format!(
            "method={{distill: {{teachers: [{{path: {}}}], cache: {}}}}}",
            at("teacher").display(),
            at("taught").display()
        );
        let files = || method_files(&plan(&[&distill]).recipe, &mut FileHasher::open(HashTrust::Bytes)).unwrap();
        let then = files();
        let names: Vec<&str> = then.keys().map(String::as_str).collect();
        let teacher = "method.distill.teachers.0.path";
        assert_eq!(names, [format!("{teacher}: config.json"), format!("{teacher}: model.safetensors")]);
        std::fs::write(at("teacher/model.safetensors"), "other").unwrap();
        assert_ne!(files(), then);
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
