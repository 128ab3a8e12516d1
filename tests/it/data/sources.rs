//! Tests where rows come from: several files, mixes, the cache of token ids, and files that are read in parts.

use crate::support::rows::tiny_tokenizer;
use crate::support::snapshot::assert_snapshot;
use crate::support::{command, fixture};
use ft::data::batch::{BatchPlan, Loader};
use ft::data::cache::{CacheChoice, TokenCache};
use ft::data::chat::ChatTokenizer;
use ft::data::dataset::{Dataset, EncodeOptions, Overflow};
use ft::data::encode::{Example, Supervise};
use ft::data::inspect;
use ft::data::rows::{RowFormat, SourceList, SourceSpec};
use ft::error::Result;
use serde_json::json;
use std::path::{Path, PathBuf};

fn options() -> EncodeOptions {
    let on_overflow = Overflow::Error;
    EncodeOptions { supervise: Supervise::Assistant, max_len: 4096, on_overflow, overflow_tolerance: 0.0 }
}

/// A temporary folder for data files and a token cache, with a tokenizer.
struct Place {
    folder: tempfile::TempDir,
    tokenizer: ChatTokenizer,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), tokenizer: tiny_tokenizer() }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn rows(&self, name: &str, rows: std::ops::Range<usize>) -> PathBuf {
        let text: String = rows
            .map(|i| format!("{}\n", json!({ "prompt": format!("number {i}?"), "completion": format!(" {i}") })))
            .collect();
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
    fn open_with(&self, sources: Vec<SourceSpec>, options: &EncodeOptions) -> Result<Dataset> {
        let cache = TokenCache::new(&CacheChoice::Folder(self.path("cache")))?;
        Dataset::open(&SourceList(sources), &self.tokenizer, options, &cache)
    }
    fn open(&self, path: &Path) -> Dataset {
        self.open_with(vec![SourceSpec::file(path, RowFormat::Auto)], &options()).unwrap()
    }
    fn kept(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("cache")).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.extension().is_some_and(|e| e == "tokens")).collect()
    }
}

#[test]
fn token_ids_are_cached_by_rows_and_settings() {
    let place = Place::new();
    let path = place.rows("a.jsonl", 0..50);
    let first = place.open(&path);
    let again = place.open(&path);
    assert_eq!((first.summary.tokenised_rows, again.summary.tokenised_rows), (50, 0));
    assert_eq!(first.to_vec().unwrap(), again.to_vec().unwrap());
    let plain = ft::data::dataset::load(&path, RowFormat::Auto, None, &place.tokenizer, &options()).unwrap();
    assert_eq!(plain.to_vec().unwrap(), again.to_vec().unwrap(), "cached or not, the tokens must be the same");
    assert_eq!(plain.summary.sha256, ft::fsutil::sha256(&path).unwrap());
    assert!(again.summary.line().contains("from the cache"));
    // A file's name and time do not matter, only its content.
    let copy = place.rows("b.jsonl", 0..50);
    assert_eq!(place.open(&copy).summary.tokenised_rows, 0);
    assert_eq!(place.kept().len(), 1);
    place.rows("b.jsonl", 1..51);
    let changed = place.open(&copy);
    assert_eq!(changed.summary.tokenised_rows, 50);
    assert_ne!(changed.to_vec().unwrap(), first.to_vec().unwrap());
    // These matter, too: which tokens are trained on, how rows are read, how many, and the tokenizer with its template.
    let all = EncodeOptions { supervise: Supervise::All, ..options() };
    let source = || SourceSpec::file(&path, RowFormat::Auto);
    assert_eq!(place.open_with(vec![source()], &all).unwrap().summary.tokenised_rows, 50);
    assert_eq!(place.open_with(vec![SourceSpec { rows: Some(7), ..source() }], &options()).unwrap().len(), 7);
    let renamed = SourceSpec {
        columns: [("text".to_string(), "prompt".to_string())].into(),
        ..SourceSpec::file(&path, RowFormat::Text)
    };
    assert_eq!(place.open_with(vec![renamed], &options()).unwrap().summary.tokenised_rows, 50);
    let other = Place {
        tokenizer: ChatTokenizer::load(&fixture("tiny-tokenizer"), Some(&fixture("templates/thinking.jinja"))).unwrap(),
        ..place
    };
    assert_eq!(other.open(&path).summary.tokenised_rows, 50);
    // The cache does not depend on `max_len`.
    let short = EncodeOptions { max_len: again.summary.lengths.max - 1, on_overflow: Overflow::Truncate, ..options() };
    let cut = other.open_with(vec![source()], &short).unwrap();
    assert_eq!(cut.summary.tokenised_rows, 0);
    assert!(cut.summary.truncated > 0 && cut.to_vec().unwrap().iter().all(|e| e.ids.len() < again.summary.lengths.max));
}

#[test]
fn a_damaged_token_cache_is_rebuilt_or_refused() {
    let place = Place::new();
    let path = place.rows("a.jsonl", 0..50);
    let good = place.open(&path).to_vec().unwrap();
    let kept = place.kept().remove(0);
    let bytes = std::fs::read(&kept).unwrap();
    for damaged in [&bytes[..bytes.len() / 2], &bytes[..20], b"", b"something else", &bytes[1..]] {
        std::fs::write(&kept, damaged).unwrap();
        let dataset = place.open(&path);
        assert_eq!((dataset.summary.tokenised_rows, dataset.to_vec().unwrap() == good), (50, true));
    }
    // A changed token is detected when it is read.
    let mut bad = bytes.clone();
    bad[100] ^= 1;
    std::fs::write(&kept, bad).unwrap();
    let e = place.open(&path).to_vec().unwrap_err();
    assert!(e.message().contains("is damaged") && e.to_string().contains("remove it"), "{e}");
}

#[test]
fn runs_may_share_a_cache_folder() {
    let place = Place::new();
    let path = place.rows("a.jsonl", 0..2000);
    let together: Vec<Vec<Example>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| place.open(&path).to_vec().unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(together.windows(2).all(|pair| pair[0] == pair[1]) && together[0].len() == 2000);
}

#[test]
fn several_files_are_read_one_after_the_other() {
    let place = Place::new();
    std::fs::create_dir(place.path("many")).unwrap();
    place.rows("many/b.jsonl", 10..30);
    place.rows("many/a.jsonl", 0..10);
    place.rows("c.jsonl", 30..35);
    let one = place.rows("whole.jsonl", 0..35);
    let many = |path: &str| SourceSpec::file(place.path(path), RowFormat::Auto);
    let whole: Vec<Vec<u32>> = place.open(&one).iter().map(|e| e.unwrap().ids).collect();
    for sources in [vec![many("many"), many("c.jsonl")], vec![many("many/*.jsonl"), many("c.jsonl")]] {
        let dataset = place.open_with(sources, &options()).unwrap();
        assert_eq!(dataset.iter().map(|e| e.unwrap().ids).collect::<Vec<_>>(), whole);
        assert_eq!(dataset.location(12), (place.path("many/b.jsonl").as_path(), 3));
        assert_eq!(dataset.summary.files.len(), 3);
        assert_eq!((dataset.summary.rows, dataset.summary.mix.len()), (35, 0));
    }
    let first = SourceSpec { rows: Some(12), ..many("many") };
    assert_eq!(place.open_with(vec![first], &options()).unwrap().len(), 12);
    let same = place.open_with(vec![many("c.jsonl"), many("c.jsonl")], &options()).unwrap();
    let found = inspect::find_duplicates(&same);
    assert_eq!((found.groups, found.superfluous), (5, 5));
    assert!(found.first[0][0].ends_with("c.jsonl:1"), "{found:?}");
    let overlap = inspect::find_overlap(&place.open(&one), &same);
    assert_eq!(overlap.rows, 10);
    assert!(overlap.first[0].0.ends_with("whole.jsonl:31") && overlap.first[0].1.ends_with("c.jsonl:1"));
}

#[test]
fn a_mix_gives_each_source_its_share_and_resumes_exactly() {
    let place = Place::new();
    let (few, many) = (place.rows("few.jsonl", 0..20), place.rows("many.jsonl", 100..280));
    let weighted = |path: &Path, weight| SourceSpec { weight: Some(weight), ..SourceSpec::file(path, RowFormat::Auto) };
    let dataset = place.open_with(vec![weighted(&few, 1.0), weighted(&many, 1.0)], &options()).unwrap();
    let shares: Vec<(usize, usize)> = dataset.summary.mix.iter().map(|s| (s.examples, s.per_epoch)).collect();
    assert_eq!(shares, [(20, 100), (180, 100)]);
    assert!(dataset.summary.mix_lines()[0].contains("each 5.00 times"), "{:?}", dataset.summary.mix_lines());
    let plan = BatchPlan { tokens: 128, accumulate: None, examples: Some(7) };
    let loader = || Loader::new(dataset.lengths().to_vec(), dataset.mix(), plan, true, 3).unwrap();
    let mut straight = loader();
    let steps: Vec<_> = (0..60).map(|_| straight.next()).collect();
    let epoch: Vec<usize> = steps[..29].iter().flat_map(|s| s.rows.iter().flatten().copied()).collect();
    assert_eq!((epoch.len(), epoch.iter().filter(|i| **i < 20).count()), (200, 100));
    let mut resumed = loader();
    for _ in 0..37 {
        resumed.next();
    }
    let at = resumed.cursor();
    let mut resumed = loader();
    resumed.rewind(at).unwrap();
    assert!(steps[37..].iter().all(|step| *step == resumed.next()));
}

#[test]
fn columns_of_other_names_are_read() {
    let place = Place::new();
    let path = place.path("a.jsonl");
    std::fs::write(&path, "{\"question\": \"a?\", \"answer\": \" b\"}\n{\"question\": \"c?\"}\n").unwrap();
    let columns = [("prompt".to_string(), "question".to_string()), ("completion".to_string(), "answer".to_string())];
    let source =
        |rows| SourceSpec { columns: columns.clone().into(), rows, ..SourceSpec::file(&path, RowFormat::Auto) };
    let dataset = place.open_with(vec![source(Some(1))], &options()).unwrap();
    assert_eq!(dataset.summary.format, RowFormat::PromptCompletion);
    let e = place.open_with(vec![source(None)], &options()).unwrap_err();
    assert!(e.message().contains("a.jsonl:2: no column `answer`; found"), "{e}");
}

#[test]
fn long_files_read_in_parts_give_the_same_rows() {
    let place = Place::new();
    let path = place.rows("a.jsonl", 0..9000);
    let text = std::fs::read_to_string(&path).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let csv: String = rows.iter().map(|r| format!("{},{}\n", r["prompt"], r["completion"])).collect();
    std::fs::write(place.path("a.csv"), format!("prompt,completion\n{csv}")).unwrap();
    std::fs::write(place.path("a.json"), serde_json::to_string(&rows).unwrap()).unwrap();
    let whole = place.open(&path).to_vec().unwrap();
    for name in ["a.csv", "a.json"] {
        assert_eq!(place.open(&place.path(name)).to_vec().unwrap(), whole, "{name}");
    }
}

#[test]
fn recipes_take_one_source_or_a_list() {
    let recipe = |data: &str, sets: &[&str]| {
        let text = format!("model: {{ path: m }}\nmethod: {{ sft: {{}} }}\ndata:\n{data}\nrun: {{ out: o }}\n");
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        ft::recipe::plan::parse("x.yaml", &text, &sets)
    };
    let one = recipe("  train: { path: a.jsonl, rows: 3 }", &[]).unwrap();
    assert_eq!((one.recipe.data.train.0.len(), one.recipe.data.train.0[0].rows), (1, Some(3)));
    let list = "  train:\n    - { path: 'a/*.jsonl', weight: 2 }\n    - { path: b, format: text, weight: 1, columns: { text: body } }\n  cache: false";
    let two = recipe(list, &[]).unwrap();
    assert_eq!((two.recipe.data.train.0.len(), two.recipe.data.train.0[1].columns["text"].as_str()), (2, "body"));
    assert_eq!(two.recipe.data.cache, CacheChoice::Off);
    assert!(two.recipe.data.train.0[0].path.is_absolute());
    for plan in [&one, &two] {
        assert_eq!(recipe_of(&plan.to_yaml().unwrap()), plan.recipe, "a written plan must read the same");
    }
    let set =
        recipe("  train: { path: a.jsonl }", &["data.train.rows=5", "data.cache=kept", "data.valid.path=v.jsonl"])
            .unwrap();
    assert_eq!(set.recipe.data.train.0[0].rows, Some(5));
    assert!(matches!(&set.recipe.data.cache, CacheChoice::Folder(f) if f.ends_with("kept")));
    assert_eq!(set.recipe.data.valid.unwrap().0[0].path.file_name().unwrap(), "v.jsonl");
    let mut recorded = String::new();
    for (data, sets, says) in [
        ("  train: [{ path: a, wieght: 1 }]", &[][..], "x.yaml:4:22: unknown key `wieght`"),
        ("  train: [{ path: a, wieght: 1 }]", &[], "did you mean `weight`?"),
        ("  train: [{ format: text }]", &[], "`data.train.0.path` is missing"),
        ("  train: a.jsonl", &[], "write `train: { path: a.jsonl }`"),
        ("  train: [a.jsonl]", &[], "expected a section"),
        ("  train: []", &[], "at least 1 values"),
        ("  train: [{ path: a, rows: x }]", &[], "data.train.rows: Use only this many rows, from the beginning"),
        ("  train: { path: a, weight: 2 }", &[], "`weight` has no effect: there is one source"),
        ("  train: [{ path: a, weight: 2 }, { path: b }]", &[], "`data.train.1` has no `weight`"),
        ("  train: [{ path: a, weight: 0 }, { path: b, weight: 1 }]", &[], "`weight` 0 leaves the source out"),
        ("  train: { path: a }\n  valid: [{ path: b, weight: 1 }]", &[], "`data.valid` has a `weight`"),
        ("  train: [{ path: a }]", &["data.train.path=b"], "`data.train` is a list"),
        ("  train: { path: a }\n  cache: 3", &[], "`data.cache`: expected"),
    ] {
        let e = recipe(data, sets).unwrap_err().to_string();
        assert!(e.contains(says), "{data}: expected {says:?} in:\n{e}");
        recorded += &format!("{data} {sets:?}\n\nerror: {e}\n--------\n");
    }
    assert_snapshot("recipe-sources", &recorded);
}

fn recipe_of(text: &str) -> ft::recipe::sections::Recipe {
    ft::recipe::plan::parse("y.yaml", text, &[]).unwrap().recipe
}

fn ft(folder: &Path, arguments: &[&str]) -> (bool, String, String) {
    let out = command::ft(folder, arguments).env("XDG_CACHE_HOME", folder.join("home")).output().unwrap();
    (out.status.success(), command::stdout(&out), command::stderr(&out))
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn files_are_converted_and_split_by_the_command() {
    let place = Place::new();
    let pairs =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/preference.jsonl")).unwrap();
    let count = pairs.lines().count();
    std::fs::write(place.path("pairs.jsonl"), &pairs).unwrap();
    let folder = place.folder.path();
    let (done, _, said) =
        ft(folder, &["data", "convert", "pairs.jsonl", "--to", "unpaired", "--out", "unpaired.jsonl"]);
    assert!(done && said.contains("pairs.jsonl: preference"), "{said}");
    let rows = lines(&place.path("unpaired.jsonl"));
    assert_eq!((rows.len(), rows[0]["label"] == true, rows[1]["label"] == false), (2 * count, true, true));
    // The written file can be read again, also as answers to train on.
    let (done, _, said) = ft(folder, &["data", "convert", "unpaired.jsonl", "--to", "messages", "--out", "chat.jsonl"]);
    assert!(done && said.contains(&format!("{count} rows left out: labelled as bad")), "{said}");
    assert_eq!(place.open(&place.path("chat.jsonl")).len(), count);
    // An invalid row stops the conversion, which then leaves no file, unless `--drop-bad` leaves such rows out.
    let same = json!({ "prompt": "q", "chosen": "a", "rejected": "a" });
    std::fs::write(place.path("bad.jsonl"), format!("{pairs}{same}\n")).unwrap();
    let convert = ["data", "convert", "bad.jsonl", "--to", "preference", "--out", "good.jsonl"];
    let (done, _, said) = ft(folder, &convert);
    assert!(!done && said.contains(&format!("bad.jsonl:{}", count + 1)) && said.contains("--drop-bad"), "{said}");
    assert!(!place.path("good.jsonl").exists());
    let (done, _, said) = ft(folder, &[&convert[..], &["--drop-bad"]].concat());
    assert!(done && said.contains("1 bad rows left out"), "{said}");
    assert_eq!(lines(&place.path("good.jsonl")).len(), count);
    let (done, _, said) = ft(folder, &["data", "convert", "bad.jsonl", "--to", "prompt", "--out", "bad.jsonl"]);
    assert!(!done && said.contains("is also the input file"), "{said}");

    // Equal rows go to the same split.
    let twice = std::fs::read_to_string(place.rows("many.jsonl", 0..200)).unwrap().repeat(2);
    std::fs::write(place.path("many.jsonl"), twice).unwrap();
    let split = ["data", "split", "many.jsonl", "--valid", "0.2", "--train-out", "t.jsonl", "--valid-out", "v.jsonl"];
    let (done, _, said) = ft(folder, &split);
    assert!(done, "{said}");
    let (train, valid) = (lines(&place.path("t.jsonl")), lines(&place.path("v.jsonl")));
    assert_eq!(train.len() + valid.len(), 400);
    assert!((40..130).contains(&valid.len()) && valid.iter().all(|row| !train.contains(row)), "{}", valid.len());

    let (done, out, _) = ft(folder, &["data", "cache", "--folder", "cache", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(done && found["files"].as_u64().unwrap() > 0 && found["removed"] == 0, "{out}");
    assert!(ft(folder, &["data", "cache", "--folder", "cache", "--prune", "0"]).1.contains("removed"));
    assert!(place.kept().is_empty());
}

#[test]
fn inspect_shows_every_kind_of_row() {
    let place = Place::new();
    let model = fixture("tiny-tokenizer");
    let model = model.to_str().unwrap();
    let rows = [
        (
            "pair",
            json!({ "prompt": "q", "chosen": " good", "rejected": " bad", "note": 1 }),
            "preference",
            "q« good<|im_end|>»",
        ),
        ("judged", json!({ "prompt": "q", "completion": " good", "label": true }), "unpaired", "q« good<|im_end|>»"),
        ("prompt", json!({ "prompt": "q" }), "prompt", "q"),
        ("text", json!({ "text": "words" }), "text", "<|im_end|>»"),
        (
            "hh",
            json!({ "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b" }),
            "hh",
            "<|im_start|>assistant\n«b<|im_end|>\n»",
        ),
    ];
    for (name, row, format, shown) in rows {
        let file = format!("{name}.jsonl");
        std::fs::write(place.path(&file), format!("{row}\n")).unwrap();
        let (done, out, said) = ft(place.folder.path(), &["data", "inspect", &file, "--model", model, "--json"]);
        assert!(done, "{said}");
        let found: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(found["format"], format);
        let previews = found["tokens"]["previews"].as_array().unwrap();
        assert!(previews.iter().any(|p| p.as_str().unwrap().ends_with(shown)), "{name}: {previews:?}");
        assert_eq!(found["unused_columns"] == json!(["note"]), name == "pair");
        assert!(ft(place.folder.path(), &["data", "inspect", &file, "--model", model]).0);
    }
    // Several files: each is tokenised as its own format says, and formats that make the same items share a data set.
    let (done, out, said) = ft(place.folder.path(), &["data", "inspect", "*.jsonl", "--model", model, "--json"]);
    assert!(done, "{said}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let parts = found["tokens"].as_array().unwrap();
    let files: Vec<usize> = parts.iter().map(|part| part["files"].as_array().unwrap().len()).collect();
    assert_eq!(files, [2, 1, 1, 1], "{out}");
    assert!(parts.iter().all(|part| !part["previews"].as_array().unwrap().is_empty()), "{out}");
}
