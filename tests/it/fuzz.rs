//! Runs the parsers on the inputs that earlier fuzzing has found (fuzz/corpus, `make fuzz`) and on tests/hostile.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn the_corpus_makes_no_parser_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    type Target = fn(&[u8]);
    let replay: [(&str, Target); 8] = [
        ("gguf", targets::gguf),
        ("safetensors", targets::safetensors),
        ("recipe", targets::recipe),
        ("config", targets::config),
        ("template", targets::template),
        ("rows", targets::rows),
        ("tokenizer", targets::tokenizer),
        ("labels", targets::labels),
    ];
    for (name, target) in replay {
        // The hostile files are also used as seeds for fuzzing.
        let seeds = format!("tests/hostile/{name}");
        for folder in std::iter::once(format!("fuzz/corpus/{name}")).chain(root.join(&seeds).is_dir().then_some(seeds))
        {
            let files: Vec<_> = std::fs::read_dir(root.join(&folder)).unwrap().map(|e| e.unwrap().path()).collect();
            assert!(files.len() > 10, "{folder}");
            for file in files {
                let bytes = std::fs::read(&file).unwrap();
                std::panic::catch_unwind(|| target(&bytes))
                    .unwrap_or_else(|_| panic!("{} breaks the parser of {name}", file.display()));
            }
        }
    }
}
