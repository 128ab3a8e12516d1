//! Compares tokenizers with their reference libraries (GPT-2's two files, added tokens, SentencePiece), and tests
//! tokenizers trained on text.

use crate::support::command::{ft_here, stderr};
use crate::support::{fixture, json};
use ft::data::chat::ChatTokenizer;
use ft::data::rows::ChatMessage;
use ft::data::tokenizer_files::{BpeTraining, TrainedBpe, train_bpe};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;

#[derive(serde::Deserialize)]
struct Expected {
    bos: u32,
    eos: u32,
    vocab_size: usize,
    lines: Vec<Line>,
    with_prefix_space: Vec<Line>,
}

#[derive(serde::Deserialize)]
struct Line {
    text: String,
    ids: Vec<u32>,
}

/// Makes a directory with GPT-2's two tokenizer files and further JSON files.
fn gpt2(more: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(fixture("gpt2-tokenizer").join(name), folder.path().join(name)).unwrap();
    }
    for (name, value) in more {
        ft::fsutil::write_json(&folder.path().join(name), value).unwrap();
    }
    folder
}

#[test]
fn vocab_json_and_merges_txt_give_the_ids_of_transformers() {
    let expected: Expected = json("gpt2-tokenizer/expected.json");
    let tokenizer = ChatTokenizer::load(gpt2(&[]).path(), None).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(expected.bos), Some(expected.eos)));
    assert_eq!(tokenizer.vocab_size(), expected.vocab_size);
    assert_eq!(tokenizer.stop_ids(), [expected.eos]);
    let spaced = gpt2(&[(
        "tokenizer_config.json",
        serde_json::json!({"add_prefix_space": true, "tokenizer_class": "GPT2Tokenizer"}),
    )]);
    let spaced = ChatTokenizer::load(spaced.path(), None).unwrap();
    for (tokenizer, lines) in [(&tokenizer, &expected.lines), (&spaced, &expected.with_prefix_space)] {
        for Line { text, ids } in lines {
            assert_eq!(&tokenizer.encode_plain(text).unwrap(), ids, "{text:?}");
        }
    }
    for Line { text, ids } in &expected.lines {
        assert_eq!(&tokenizer.decode(ids, false).unwrap(), text);
    }
    assert!(!tokenizer.decode(&[expected.eos], true).unwrap().contains("endoftext"));
}

#[test]
fn added_tokens_keep_their_ids_or_are_refused() {
    let size = json::<Expected>("gpt2-tokenizer/expected.json").vocab_size as u32;
    let added = |id: u32| serde_json::json!({"<|extra|>": id});
    let tokenizer = ChatTokenizer::load(gpt2(&[("added_tokens.json", added(size))]).path(), None).unwrap();
    assert_eq!(tokenizer.encode("a<|extra|>").unwrap()[1..], [size]);
    let e = ChatTokenizer::load(gpt2(&[("added_tokens.json", added(size + 7))]).path(), None).unwrap_err();
    assert!(e.message().contains("<|extra|>"), "{e}");
}

#[test]
fn a_text_split_that_the_files_do_not_define_is_refused() {
    for (name, value, word) in [
        ("tokenizer_config.json", serde_json::json!({"tokenizer_class": "Qwen2Tokenizer"}), "Qwen2Tokenizer"),
        ("config.json", serde_json::json!({"model_type": "qwen2"}), "qwen2"),
    ] {
        let e = ChatTokenizer::load(gpt2(&[(name, value)]).path(), None).unwrap_err();
        assert!(e.message().contains(word) && !e.hints().is_empty(), "{e}");
        assert_eq!(e.exit_code(), 1);
    }
    let folder = gpt2(&[]);
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\nno such\n").unwrap();
    assert!(ChatTokenizer::load(folder.path(), None).unwrap_err().message().contains("vocab.json"));
    std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
    let e = ChatTokenizer::load(folder.path(), None).unwrap_err();
    assert!(e.to_string().contains("vocab.json"), "{e}");
}

fn training(files: &[&str], vocab_size: usize) -> BpeTraining {
    let files = files.iter().map(PathBuf::from).collect();
    BpeTraining { files, vocab_size, special: Vec::new(), min_frequency: 2, chatml: false }
}

fn trained(training: &BpeTraining) -> (tempfile::TempDir, TrainedBpe) {
    let folder = tempfile::tempdir().unwrap();
    let done = train_bpe(training, folder.path()).unwrap();
    (folder, done)
}

#[test]
fn a_trained_tokenizer_is_lossless_has_its_specials_and_is_reproducible() {
    let wanted = BpeTraining {
        special: vec!["<|tool|>".into()],
        chatml: true,
        ..training(&["datasets/chat.jsonl", "datasets/instruction.jsonl", "datasets/text.jsonl"], 600)
    };
    let (folder, done) = trained(&wanted);
    assert_eq!(done.vocab_size, 600);
    assert_eq!(done.special, ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|tool|>"]);
    let tokenizer = ChatTokenizer::load(folder.path(), None).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.pad(), tokenizer.eos()), (Some(0), Some(1), Some(3)));
    assert_eq!((tokenizer.turn_end(), tokenizer.vocab_size()), (Some(3), 600));
    for text in ["The waiting room", " 漢字 😀\n\n\tnaïve \u{0}", "<|tool|>x<|im_end|>", ""] {
        let ids = tokenizer.encode_plain(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert!(tokenizer.encode("The waiting room").unwrap().len() < 8, "no pairs were merged");
    let messages = [ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")];
    let shown = tokenizer.render(&messages, true).unwrap();
    assert_eq!(shown, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n");
    let again = trained(&wanted).0;
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(folder.path()) == read(again.path()), "{name}");
    }
}

#[test]
fn plain_text_is_read_whole_and_merged_across_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("book.txt");
    std::fs::write(&file, "A paragraph.\n\n\nAnother one.\n\n\n".repeat(9000)).unwrap(); // several blocks
    let (out, done) = trained(&BpeTraining { files: vec![file.clone()], ..training(&[], 300) });
    assert_eq!(done.bytes, 9000 * 30);
    assert!(done.texts > 2);
    let tokenizer = ChatTokenizer::load(out.path(), None).unwrap();
    assert!(tokenizer.encode("\n\n").unwrap().len() == 1);
    std::fs::write(&file, b"good\nbad \xff\n").unwrap();
    let e = train_bpe(&BpeTraining { files: vec![file], ..training(&[], 300) }, out.path()).unwrap_err();
    assert!(e.message().contains("book.txt:2"), "{e}");
}

#[test]
fn the_shipped_tokenizer_can_be_reproduced() {
    let (folder, _) = trained(&training(&["datasets/stories/train.jsonl"], 640));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let (made, shipped) = (folder.path().join(name), Path::new("datasets/stories/tokenizer").join(name));
        assert!(std::fs::read(made).unwrap() == std::fs::read(shipped).unwrap(), "{name}");
    }
}

#[test]
fn the_command_trains_shows_and_protects_existing_files() {
    let space = tempfile::tempdir().unwrap();
    let out = space.path().join("tokenizer");
    let to = out.to_str().unwrap();
    let train = ["tokenizer", "train", "--data", "datasets/text.jsonl", "datasets/chat.jsonl", "--vocab-size", "500"];
    let train = |more: &[&str]| ft_here(&[&train[..], &["--out", to, "--json"], more].concat());
    let done = train(&["--special", "<|a|>", "--special", "<|b|>", "--chat-template", "chatml"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let about: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&about["vocab_size"], &about["special"][5]), (&500.into(), &"<|b|>".into()));
    let shown = ft_here(&["tokenizer", "show", "--model", to, "<|b|>A room", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["ids"][0], &shown["special"][0]), (&5.into(), &true.into()));
    let pieces: Vec<&str> = shown["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(pieces.concat(), "<|b|>A room");

    let refused = |output: Output, word: &str| {
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(word), "{said}");
    };
    refused(train(&[]), "--force");
    assert!(train(&["--force"]).status.success());
    assert!(!out.join("chat_template.jinja").exists(), "the folder must be replaced as a whole");
    let inside = out.join("corpus.txt");
    std::fs::write(&inside, "A text of the user's.").unwrap();
    let line =
        ["tokenizer", "train", "--data", inside.to_str().unwrap(), "--vocab-size", "300", "--out", to, "--force"];
    refused(ft_here(&line), "is in the folder that --force would replace");
    assert!(inside.exists());
    std::fs::write(out.join("config.json"), "{}").unwrap();
    refused(train(&["--force"]), "this folder has config.json");
    refused(
        ft_here(&["tokenizer", "train", "--data", "datasets/text.jsonl", "--vocab-size", "100", "--out", "x"]),
        "at least 258",
    );
    refused(ft_here(&["tokenizer", "train", "--data", "gone.jsonl", "--vocab-size", "300", "--out", to]), "--force");
    let new = space.path().join("new");
    refused(
        ft_here(&["tokenizer", "train", "--data", "gone.txt", "--vocab-size", "300", "--out", new.to_str().unwrap()]),
        "gone.txt",
    );
    assert!(!new.exists());
}

#[derive(serde::Deserialize)]
struct AddedCase {
    base: String,
    post: bool,
    config: Value,
    files: serde_json::Map<String, Value>,
    ids: Vec<Vec<u32>>,
    bare: Vec<Vec<u32>>,
    size: usize,
    special: Vec<u32>,
    eos: Option<u32>,
}

#[derive(serde::Deserialize)]
struct AddedTokens {
    lines: Vec<String>,
    cases: std::collections::BTreeMap<String, AddedCase>,
}

/// Makes the directory of a case, as the fixture's make.py does.
fn with_added(case: &AddedCase) -> tempfile::TempDir {
    let mut more: Vec<(&str, Value)> = vec![("tokenizer_config.json", case.config.clone())];
    more.extend(case.files.iter().map(|(name, value)| (name.as_str(), value.clone())));
    if case.base == "gpt2" {
        return gpt2(&more);
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, first, last) = match case.base.as_str() {
        "spm" => ("added-tokens/spm.json", ("<s>", 1), ("</s>", 2)),
        _ => ("tiny-tokenizer/tokenizer.json", ("<|endoftext|>", 0), ("<|im_end|>", 2)),
    };
    let mut tokenizer: Value = json(file);
    if case.post {
        tokenizer["post_processor"] = ft::tokenizer_json::around(Some(first), Some(last));
    }
    more.push(("tokenizer.json", tokenizer));
    for (name, value) in more {
        ft::fsutil::write_json(&folder.path().join(name), &value).unwrap();
    }
    folder
}

#[test]
fn tokens_added_by_other_files_have_the_ids_of_transformers() {
    let AddedTokens { lines, cases } = json("added-tokens/expected.json");
    assert!(cases.len() > 20);
    for (name, case) in cases {
        let folder = with_added(&case);
        let tokenizer = ChatTokenizer::load(folder.path(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        for ((line, ids), bare) in lines.iter().zip(&case.ids).zip(&case.bare) {
            assert_eq!(&tokenizer.encode_plain(line).unwrap(), ids, "{name}: {line:?}");
            assert_eq!(&tokenizer.encode(line).unwrap(), bare, "{name}: {line:?}");
        }
        let special: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id)).collect();
        assert_eq!((tokenizer.vocab_size(), special), (case.size, case.special), "{name}");
        assert_eq!(tokenizer.eos(), case.eos, "{name}");
    }
    let bad = with_added(&AddedCase {
        config: serde_json::json!({"added_tokens_decoder": {"x": {"content": "y"}}}),
        ..json::<AddedTokens>("added-tokens/expected.json").cases.remove("nothing").unwrap()
    });
    let e = ChatTokenizer::load(bad.path(), None).unwrap_err();
    assert!(
        e.message().contains("tokenizer_config.json: added_tokens_decoder: entry `x`") && !e.hints().is_empty(),
        "{e}"
    );
}

#[derive(serde::Deserialize)]
struct Pieces {
    lines: Vec<String>,
    models: std::collections::BTreeMap<String, PieceModel>,
}

#[derive(serde::Deserialize)]
struct PieceModel {
    size: usize,
    bos: u32,
    eos: u32,
    ids: Vec<Vec<u32>>,
    crc32: Vec<u32>,
    text: Vec<String>,
}

/// Computes the CRC-32 checksum of zlib.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, b| (0..8).fold(crc ^ u32::from(*b), |crc, _| step(crc)))
}

#[test]
fn a_sentencepiece_vocabulary_gives_the_ids_of_its_library() {
    let Pieces { lines, models } = json("sentencepiece/expected.json");
    assert_eq!((lines.len(), models.len()), (500, 4));
    for (name, model) in models {
        let folder = fixture("sentencepiece").join(&name);
        assert!(ChatTokenizer::in_directory(&folder));
        let tokenizer = ChatTokenizer::load(&folder, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()),
            (model.size, Some(model.bos), Some(model.eos)),
            "{name}"
        );
        for (i, line) in lines.iter().enumerate() {
            let ids = tokenizer.encode_plain(line).unwrap();
            if let Some(wanted) = model.ids.get(i) {
                assert_eq!(&ids, wanted, "{name}: line {i}, {line:?}");
                if let Some(text) = model.text.get(i) {
                    assert_eq!(&tokenizer.decode(&ids, true).unwrap(), text, "{name}: line {i}, {line:?}");
                }
            }
            let written = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            assert_eq!(crc32(written.as_bytes()), model.crc32[i], "{name}: line {i}, {line:?}: {ids:?}");
        }
    }
}

#[test]
fn a_damaged_sentencepiece_vocabulary_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.model");
    let whole = std::fs::read(fixture("sentencepiece/llama/tokenizer.model")).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"IQ== 0\nIg== 1\n", b""] {
        std::fs::write(&file, bytes).unwrap();
        let e = ChatTokenizer::load(folder.path(), None).unwrap_err();
        assert!(e.message().contains("tokenizer.model") && e.exit_code() == 1 && !e.hints().is_empty(), "{e}");
    }
}

/// A tokenizer with more tokens than the model has embeddings for is accepted until a data row uses such a token.
#[test]
fn a_token_without_an_embedding_is_refused_where_a_row_uses_it() {
    let space = crate::support::workspace::Workspace::new();
    let folder = space.path("models/medical");
    let mut config: Value = ft::fsutil::read_json(&folder.join("tokenizer_config.json")).unwrap();
    config["added_tokens_decoder"] = serde_json::json!({});
    let rows = ft::models::Config::read(&folder).unwrap().vocab_size as u64;
    let size = ChatTokenizer::load(&folder, None).unwrap().vocab_size() as u64;
    // Add tokens up to the last row of the embedding, and one more.
    for id in size..=rows {
        let content = if id == rows { "<|unused|>".to_string() } else { format!("<|{id}|>") };
        config["added_tokens_decoder"][id.to_string()] = serde_json::json!({"content": content, "special": true});
    }
    ft::fsutil::write_json(&folder.join("tokenizer_config.json"), &config).unwrap();
    let write = |name: &str, answer: &str| {
        let row = |n: usize, a: &str| serde_json::json!({"prompt": format!("case {n}: "), "completion": a}).to_string();
        std::fs::write(space.path(name), [row(1, "yes"), row(2, answer), row(3, "no")].join("\n")).unwrap();
    };
    write("good.jsonl", "perhaps");
    write("bad.jsonl", "so <|unused|> it is");
    let recipe = |rows: &str| {
        format!(
            "model: {{ path: models/medical }}\nmethod: {{ sft: {{}} }}\nadapter: {{ lora: {{}} }}\ndata: {{ train: {{ path: {rows} }} }}\n\
             run: {{ steps: 1, samples: 0, out: out }}\n"
        )
    };
    for (rows_file, good) in [("good.jsonl", true), ("bad.jsonl", false)] {
        std::fs::write(space.path("sft.yaml"), recipe(rows_file)).unwrap();
        for command in
            [vec!["train", "sft.yaml", "--overwrite"], vec!["eval", "--model", "models/medical", "--data", rows_file]]
        {
            let done = space.command(&command).output().unwrap();
            let said = stderr(&done);
            assert_eq!(done.status.success(), good, "{command:?}: {said}");
            if command[0] == "train" {
                assert!(good.then(|| said.contains("`<|unused|>`")).unwrap_or(true), "{said}");
            }
            if !good {
                assert!(
                    said.contains("bad.jsonl:2") && said.contains("<|unused|>") && said.contains(&rows.to_string()),
                    "{said}"
                );
            }
        }
    }
}
