//! Runs the parsers on the inputs that earlier fuzzing has found (fuzz/corpus, `make fuzz`) and on tests/hostile.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// Runs a target on all files of its corpus and, if there are any, of the hostile files of its kind, with which fuzzing
/// starts.
fn replay(name: &str, target: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hostile = format!("tests/hostile/{name}");
    let hostile = root.join(&hostile).is_dir().then_some(hostile);
    for folder in std::iter::once(format!("fuzz/corpus/{name}")).chain(hostile) {
        let files: Vec<_> = std::fs::read_dir(root.join(&folder)).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(files.len() > 10, "{folder}");
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            std::panic::catch_unwind(|| target(&bytes))
                .unwrap_or_else(|_| panic!("{} breaks the parser of {name}", file.display()));
        }
    }
}

macro_rules! the_corpus_makes_no_parser_panic {
    ($($name:ident),*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name), targets::$name);
        }
    )*};
}

the_corpus_makes_no_parser_panic!(gguf, safetensors, recipe, config, template, rows, tokenizer, labels);

/// Every target is built by fuzz/Cargo.toml, run by `make fuzz` and replayed here.
#[test]
fn every_target_is_built_run_and_replayed() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let script = read("fuzz/run.sh");
    let run = script.split_once("${1:-").unwrap().1.split_once('}').unwrap().0;
    let run: Vec<&str> = run.split(' ').collect();
    let (replayed, manifest, wrapper) = (read("tests/it/fuzz.rs"), read("fuzz/Cargo.toml"), read("fuzz/instrument.sh"));
    let replayed = replayed.split_once("no_parser_panic!(").unwrap().1.split_once(')').unwrap().0;
    assert_eq!(run, replayed.split(", ").collect::<Vec<_>>());
    for name in &run {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        assert!(wrapper.contains(&format!("--crate-name {name} ")), "{name} is not instrumented");
        assert!(read(&format!("fuzz/fuzz_targets/{name}.rs")).contains(&format!("targets::{name}(data)")), "{name}");
    }
}
