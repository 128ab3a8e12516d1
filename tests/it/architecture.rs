//! Checks the architecture: modules form layers (here "floors") and import only from lower layers, and each third-party
//! library is used in few named files.
//!
//! Add a new module to `FLOORS`, and a new library that should be used in one place only to `LIBRARIES`.

use fancy_regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Layers from top to bottom. A module may import itself, modules of lower layers and those of `EVERYWHERE`.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["selftest"],
    &["train", "eval", "convert", "label"],
    &["runs"],
    &["recipe"],
    &["methods"],
    &["rewards"],
    &["data", "generate"],
    &["jinja", "scrub"],
    &["models"],
    &["adapters"],
    &["nn", "model_files"],
    &["merging"],
    &["native", "stats", "text_metrics", "gguf", "onnx", "sandbox"],
];

/// Modules that any layer may import and that import no layer: errors, files, random numbers, properties of the
/// machine, invisible characters, JSON with exact numbers, protobuf, sections of tokenizer.json.
const EVERYWHERE: &[&str] =
    &["characters", "choice", "error", "report", "fsutil", "json", "protobuf", "rng", "machine", "tokenizer_json"];

/// Modules outside the layers: they load libtorch into the process. Only those of `MAY_USE_PROCESS` may import them.
const PROCESS: &[&str] = &["runtime", "libtorch"];
const MAY_USE_PROCESS: &[&str] = &["cli", "main", "runtime"];

/// Allowed imports between two modules of one layer, each with its reason.
const ALONG: &[(&str, &str)] = &[
    ("train", "convert"), // a run ends in a verified export
    ("eval", "label"),    // answers of a suite are compared by the judges of `ft label judge`
];

/// Libraries and the files (or folders, ending in `/`) that may use them.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("clap", &["src/cli/", "src/main.rs"]),
    ("clap_complete", &["src/cli/manual.rs"]),
    ("clap_mangen", &["src/cli/manual.rs"]),
    ("serde_yaml", &["src/recipe/", "src/choice.rs"]),
    ("saphyr_parser", &["src/recipe/"]),
    ("polars", &["src/data/source/"]),
    ("polars_arrow", &["src/data/source/"]),
    ("polars_arrow_format", &["src/data/source/"]),
    ("polars_buffer", &["src/data/source/"]),
    ("polars_parquet", &["src/data/source/"]),
    ("glob", &["src/data/source/"]),
    ("tokenizers", &["src/data/tokenizer_files/", "src/data/chat/tokenizer.rs", "src/data/chat/load.rs"]),
    ("safetensors", &["src/nn/weights.rs", "src/nn/safetensors.rs", "src/convert/"]),
    ("memmap2", &["src/nn/weights.rs", "src/gguf/file.rs", "src/data/cache/token_store.rs"]),
    ("xxhash_rust", &["src/fsutil/"]),
    ("torch_sys", &["src/native/"]),
    ("jsonschema", &["src/rewards/json.rs"]),
    ("ureq", &["src/rewards/http.rs"]),
    ("rusqlite", &["src/label/store/sqlite.rs"]),
    ("postgres", &["src/label/store/"]),
    ("axum", &["src/label/server/"]),
    ("hyper", &["src/label/server/"]),
    ("tokio", &["src/label/server/"]),
    ("pulldown_cmark", &["src/runs/page/markdown/"]),
    ("pulldown_latex", &["src/runs/page/markdown/"]),
    ("ammonia", &["src/runs/page/markdown/"]),
    ("ratatui", &["src/label/terminal/"]),
    ("whatlang", &["src/eval/suite/scorers/instructions.rs"]),
    // Not in `data` or `recipe`: rows and recipes are plain numbers and text, not tensors.
    (
        "tch",
        &[
            "src/cli/",
            "src/selftest/",
            "src/train/",
            "src/eval/",
            "src/convert/",
            "src/label/machines/",
            "src/methods/",
            "src/rewards/",
            "src/generate/",
            "src/models/",
            "src/adapters/",
            "src/merging/",
            "src/nn/",
            "src/native/",
            "src/runtime.rs",
            "src/error.rs",
        ],
    ),
];

/// Files that may contain `unsafe`, and the text that each such line or the line after it must contain.
const UNSAFE: &[(&str, &str)] = &[
    ("src/native/mod.rs", ""), // libtorch beyond tch, up to transfers
    ("src/native/arithmetic.rs", ""),
    ("src/native/attention.rs", ""),
    ("src/native/autograd.rs", ""),
    ("src/native/devices.rs", ""),
    ("src/native/graphs.rs", ""),
    ("src/native/lists.rs", ""),
    ("src/native/memory.rs", ""),
    ("src/native/profile.rs", ""),
    ("src/native/transfers.rs", ""),
    ("src/native/wide_products.rs", ""),
    ("src/native/kernels.rs", ""),      // our own loops over tensor memory
    ("src/native/cuda/library.rs", ""), // functions of the CUDA driver and NVRTC
    ("src/native/cuda/compiler.rs", ""),
    ("src/native/cuda/module.rs", ""),
    ("src/native/merging.rs", ""),   // our own loops over blocks of models that are merged
    ("src/native/products.rs", ""),  // products and a decoding step over tensor memory
    ("src/native/quantised.rs", ""), // blocks of quantised weights, and products that read them
    ("src/runtime.rs", ""),          // signals, the loader's list of libraries
    ("src/machine/cpu.rs", ""),      // system calls, names of instruction sets
    ("src/machine/memory.rs", ""),   // system calls
    ("src/machine/cuda.rs", ""),     // the NVIDIA driver
    ("src/sandbox/child.rs", ""),    // system calls before a program runs
    ("src/sandbox/process.rs", ""),  // namespaces and limits of programs that are not trusted
    ("src/bin/ft-launch.rs", ""),    // anonymous memory for the packed binary
    ("src/nn/weights.rs", "Mmap::map"),
    ("src/nn/weights.rs", "release_mapped"),
    ("src/gguf/file.rs", "Mmap::map"),
    ("src/gguf/file.rs", "unchecked_advise_range"),
    ("src/data/cache/token_store.rs", "Mmap::map"),
    ("src/data/cache/token_store.rs", "unchecked_advise"),
];

/// Files of `models` that may import `adapters`; a model family may not.
const MODELS_KNOWING_ADAPTERS: &[&str] = &["src/models/open.rs", "src/models/vocabulary.rs"];

/// Returns the text without comments, and so without the examples in them.
fn code(text: &str) -> String {
    let uncommented = |line: &str| match line.trim_start().starts_with("//") {
        true => String::new(),
        false => line.split(" // ").next().unwrap_or("").to_string(),
    };
    text.lines().map(uncommented).collect::<Vec<_>>().join("\n")
}

/// Returns the top-level module of a file: `nn` for `src/nn/head.rs` and for `src/nn.rs`.
fn module(file: &str) -> &str {
    let inner = file.strip_prefix("src/").unwrap_or(file);
    inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs")
}

/// Returns the modules of the crate that a file imports: `crate::a::…`, `ft::a::…` and `use crate::{a::…, b};`.
fn imports(code: &str) -> BTreeSet<String> {
    let plain = Regex::new(r"(?<![\w:])(?:crate|ft)::(\w+)").unwrap();
    let grouped = Regex::new(r"(?<![\w:])(?:crate|ft)::\{((?:[^{}]|\{[^{}]*\})*)\}").unwrap();
    let inner = Regex::new(r"\{[^{}]*\}").unwrap();
    let mut found: BTreeSet<String> = plain.captures_iter(code).map(|c| c.unwrap()[1].to_string()).collect();
    for group in grouped.captures_iter(code) {
        let flat = inner.replace_all(group.unwrap().get(1).unwrap().as_str(), "").into_owned();
        found.extend(
            flat.split(',')
                .filter_map(|part| part.trim().split("::").next())
                .filter(|n| !n.is_empty())
                .map(String::from),
        );
    }
    found
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&module))
}

/// Returns the reason why `from` may not import `to`, or `None` if it may.
fn objection(from: &str, to: &str) -> Option<String> {
    if from == to || EVERYWHERE.contains(&to) || (PROCESS.contains(&to) && MAY_USE_PROCESS.contains(&from)) {
        return None;
    }
    match (floor(from), floor(to)) {
        (_, None) if PROCESS.contains(&to) => Some("only the command deals with the process's libtorch".into()),
        (_, None) => Some(format!("`{to}` has no floor")),
        (Some(a), Some(b)) if a < b || ALONG.contains(&(from, to)) => None,
        (Some(a), Some(b)) if a == b => Some("they share a floor".into()),
        (Some(_), Some(_)) => Some(format!("`{to}` lies above")),
        (None, Some(_)) => Some(format!("`{from}` must know no floor")),
    }
}

/// Returns every violation of the tables in the files, given as (path, text).
fn violations(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in files {
        let (from, code) = (module(file), code(text));
        for to in imports(&code) {
            // Macros and items of the crate root are not modules.
            if to.chars().next().is_some_and(char::is_uppercase) {
                continue;
            }
            if let Some(why) = objection(from, &to) {
                found.push(format!("{file}: imports `{to}`: {why}"));
            }
            if from == "models" && to == "adapters" && !MODELS_KNOWING_ADAPTERS.contains(&file.as_str()) {
                found.push(format!("{file}: imports `adapters`: they attach while the model is built"));
            }
        }
        for (library, places) in LIBRARIES {
            let named = Regex::new(&format!(r"(?<![\w:])(?<!mod )(?:::)?{library}(?:::|;)")).unwrap();
            let inside = places.iter().any(|p| if p.ends_with('/') { file.starts_with(p) } else { file == p });
            if !inside && named.is_match(&code).unwrap() {
                found.push(format!("{file}: knows `{library}`, which belongs to {}", places.join(", ")));
            }
        }
        let word = Regex::new(r"\bunsafe\b").unwrap();
        let lines: Vec<&str> = code.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| word.is_match(l).unwrap()) {
            let near = format!("{line}{}", lines.get(i + 1).unwrap_or(&""));
            if !UNSAFE.iter().any(|(place, with)| file == place && near.contains(with)) {
                let places: Vec<&str> = UNSAFE.iter().map(|(place, _)| *place).collect();
                found.push(format!("{file}:{}: `unsafe` outside {}", i + 1, places.join(", ")));
            }
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, root: &Path, into: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
                into.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(&root.join("src"), root, &mut files);
    files.sort();
    files
}

#[test]
fn imports_run_downward_and_libraries_stay_in_their_place() {
    let files = sources();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in &files {
        let from = module(file);
        edges.entry(from.to_string()).or_default().extend(imports(&code(text)).into_iter().filter(|to| to != from));
    }
    for (from, to) in &edges {
        println!(
            "{from} -> {}",
            to.iter().filter(|t| !EVERYWHERE.contains(&t.as_str())).cloned().collect::<Vec<_>>().join(", ")
        );
    }
    assert!(
        files.len() > 50 && edges.values().map(BTreeSet::len).sum::<usize>() > 30,
        "too few source files or imports were found"
    );
    let found = violations(&files);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Files compiled for one instruction set (such as AVX-512) must not include headers with functions. If such a function
/// is not inlined, several object files contain it, and the linker may keep the copy that an older processor cannot
/// run. The functions of numbers.h are always inlined and have internal linkage.
#[test]
fn instruction_set_specific_files_include_no_other_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("native");
    let included = Regex::new(r#"(?m)^\s*#include [<"](.+)[>"]"#).unwrap();
    let files = [
        "product.cpp",
        "product_tile.h",
        "amx.h",
        "kernels.cpp",
        "merge.cpp",
        "quantised.cpp",
        "quantised_product.cpp",
    ];
    let headers = ["dequantise.h", "ggml.h", "ggml_tile.h", "formats.h", "numbers.h"];
    for file in files.iter().chain(&headers) {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let found: Vec<String> = included.captures_iter(text.as_str()).map(|c| c.unwrap()[1].to_string()).collect();
        let plain = ["cstdint", "cstring", "type_traits", "immintrin.h", "kernels.h", "merge.h", "quantised.h"];
        let known = |f: &String| plain.iter().chain(&headers).chain(&files).any(|name| name == f);
        assert!(!found.is_empty() && found.iter().all(known), "{file}: {found:?}");
    }
}

#[test]
fn every_module_is_listed_and_every_row_is_needed() {
    let files = sources();
    let (_, root) = files.iter().find(|(f, _)| f == "src/lib.rs").unwrap();
    let declared = Regex::new(r"(?m)^pub mod (\w+);").unwrap();
    let modules: BTreeSet<String> = declared.captures_iter(root.as_str()).map(|c| c.unwrap()[1].to_string()).collect();
    let placed: Vec<&str> = FLOORS.iter().copied().flatten().chain(EVERYWHERE).chain(PROCESS).copied().collect();
    for module in &modules {
        assert!(placed.contains(&module.as_str()), "src/lib.rs: `{module}` has no floor");
    }
    for name in placed {
        assert!(modules.contains(name) || name == "cli", "`{name}` is no longer a module");
    }
    for (from, to) in ALONG {
        let used = files.iter().any(|(f, text)| module(f) == *from && imports(&code(text)).contains(*to));
        assert!(used, "nothing in {from} imports {to} any longer; remove the row from ALONG");
    }
    for place in UNSAFE.iter().map(|(p, _)| p).chain(MODELS_KNOWING_ADAPTERS) {
        assert!(files.iter().any(|(f, _)| f == place), "{place} does not exist any longer; remove its row");
    }
}

#[test]
fn every_kind_of_violation_is_detected() {
    let broken = |file: &str, text: &str| violations(&[(file.to_string(), text.to_string())]);
    for (file, text, expected) in [
        ("src/nn/head.rs", "use crate::models::Model;", "`models` lies above"),
        ("src/nn/head.rs", "fn f() { crate::train::run() }", "`train` lies above"),
        ("src/data/batch/pack.rs", "use crate::{error::Error, nn::{self, Tokens}, train::log};", "`train` lies above"),
        ("src/eval/run.rs", "use crate::{\n    convert::{gguf, export},\n};", "`convert`: they share a floor"),
        ("src/error.rs", "use crate::models::Model;", "`error` must know no floor"),
        ("src/nn/head.rs", "use crate::fresh::Thing;", "`fresh` has no floor"),
        ("src/models/qwen.rs", "use crate::adapters::ModulePlan;", "attach while the model is built"),
        ("src/models/qwen.rs", "use crate::runtime::start;", "only the command"),
        ("src/train/mod.rs", "use clap::Parser;", "knows `clap`"),
        ("src/data/rows/record.rs", "let x = serde_yaml::from_str(s);", "knows `serde_yaml`"),
        ("src/data/rows/record.rs", "fn f(t: &tch::Tensor) {}", "knows `tch`"),
        ("src/adapters/file.rs", "use ::safetensors::Dtype;", "knows `safetensors`"),
        ("src/nn/weights.rs", "unsafe { other() }", "`unsafe` outside"),
        ("src/nn/ops.rs", "unsafe { Mmap::map(f) }", "`unsafe` outside"),
    ] {
        let found = broken(file, text);
        assert!(found.iter().any(|v| v.contains(expected)), "{file}: {text}: {found:?}");
    }
    for (file, text) in [
        ("src/models/llama.rs", "use crate::nn::{Builder, Linear};"),
        ("src/adapters/file.rs", "// use crate::train::run;\nuse crate::nn::safetensors;"),
        ("src/cli/import.rs", "use ft::convert::safetensors::Dtype;\nuse crate::cli::sampling;"),
        ("src/nn/weights.rs", "let m = unsafe { Mmap::map(&f) };"),
    ] {
        assert_eq!(broken(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}
