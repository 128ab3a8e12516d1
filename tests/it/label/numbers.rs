//! Compares agreement and ranking numbers with reference packages, and runs the whole way from prompts to a reward
//! model with the real binary: candidates, pairs, judges, report, export, training.

use crate::support::command::stderr;
use crate::support::json;
use crate::support::workspace::Workspace;
use ft::label::project::snapshot::Project;
use ft::label::record::annotator::AnnotatorKind;
use ft::label::record::vote::{NewVote, VoteChoice};
use ft::label::statistics::agreement::{DistanceScale, RatingTable};
use ft::label::statistics::dawid_skene;
use ft::label::statistics::dawid_skene::UnitRatings;
use ft::label::statistics::paired_comparison::{SourceComparison, bradley_terry};
use ft::label::store::Store;
use ft::stats::bootstrap::{Bootstrap, Estimate};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The content of tests/fixtures/agreement.json, which tests/reference/make_agreement.py writes.
#[derive(Deserialize)]
struct Reference {
    tables: Vec<Ratings>,
    fleiss: Vec<Counts>,
    dawid_skene: Vec<Crowd>,
    bradley_terry: Vec<Games>,
}

#[derive(Deserialize)]
struct Ratings {
    name: String,
    /// One row per rater, one column per unit.
    rows: Vec<Vec<Option<f64>>>,
    alpha: BTreeMap<String, f64>,
    cohen: Vec<Couple>,
}

#[derive(Deserialize)]
struct Couple {
    a: usize,
    b: usize,
    units: usize,
    kappa: f64,
}

#[derive(Deserialize)]
struct Counts {
    name: String,
    counts: Vec<Vec<usize>>,
    kappa: f64,
}

#[derive(Deserialize)]
struct Crowd {
    name: String,
    /// (unit, rater, class)
    votes: Vec<(usize, usize, usize)>,
    classes: Vec<usize>,
    posterior: Vec<Vec<f64>>,
    prior: Vec<f64>,
}

#[derive(Deserialize)]
struct Games {
    name: String,
    models: usize,
    /// (winner, loser, times)
    outcomes: Vec<(usize, usize, usize)>,
    deviation: f64,
    strengths: Vec<f64>,
}

/// Uses one bootstrap replicate: these tests compare values, not confidence intervals.
const ONCE: Bootstrap = Bootstrap { replicates: 1, seed: 0 };

#[track_caller]
fn near(name: &str, ours: f64, theirs: f64, within: f64) {
    assert!((ours - theirs).abs() <= within, "{name}: {ours}, the reference has {theirs}");
}

#[test]
fn agreement_equals_reference_packages_and_published_examples() {
    let reference: Reference = json("agreement.json");
    let value = |e: Option<Estimate>| e.map_or(f64::NAN, |e| e.value);
    for ratings in &reference.tables {
        let each =
            ratings.rows.iter().enumerate().flat_map(|(rater, row)| {
                row.iter().enumerate().filter_map(move |(unit, v)| v.map(|v| (unit, rater, v)))
            });
        let table = RatingTable::new(each);
        for (name, scale) in [
            ("nominal", DistanceScale::Nominal),
            ("ordinal", DistanceScale::Ordinal),
            ("interval", DistanceScale::Interval),
        ] {
            let what = format!("{}, {name} alpha", ratings.name);
            near(&what, value(table.alpha(scale, &ONCE)), ratings.alpha[name], 1e-12);
        }
        for couple in &ratings.cohen {
            let (kappa, units) = table.cohen(couple.a, couple.b, &ONCE).unwrap();
            assert_eq!(units, couple.units);
            near(&format!("{}, raters {} and {}", ratings.name, couple.a, couple.b), kappa.value, couple.kappa, 1e-12);
        }
    }
    // As printed in "Computing Krippendorff's Alpha-Reliability".
    let printed = &reference.tables[0].alpha;
    for (scale, alpha) in [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)] {
        near(scale, printed[scale], alpha, 5e-4);
    }
    for (counts, printed) in reference.fleiss.iter().zip([0.430, 0.210]) {
        let ratings = counts.counts.iter().enumerate().flat_map(|(unit, row)| {
            let values = row.iter().enumerate().flat_map(|(v, n)| std::iter::repeat_n(v, *n));
            values.enumerate().map(move |(rater, v)| (unit, rater, v as f64)).collect::<Vec<_>>()
        });
        let (kappa, units, _) = RatingTable::new(ratings).fleiss(&ONCE).unwrap();
        assert_eq!(units, counts.counts.len());
        near(&counts.name, kappa.value, counts.kappa, 1e-12);
        near(&counts.name, kappa.value, printed, 5e-4);
    }
}

#[test]
fn error_rates_of_annotators_equal_crowd_kit() {
    for crowd in json::<Reference>("agreement.json").dawid_skene {
        let raters = crowd.votes.iter().map(|v| v.1).max().unwrap() + 1;
        let mut units: Vec<UnitRatings> = vec![Vec::new(); crowd.posterior.len()];
        crowd.votes.iter().for_each(|(unit, rater, class)| units[*unit].push((*rater, *class)));
        let found = dawid_skene::dawid_skene(&units, raters, crowd.classes.len());
        for (unit, (ours, theirs)) in found.posterior.iter().zip(&crowd.posterior).enumerate() {
            ours.iter().zip(theirs).for_each(|(o, t)| near(&format!("{}, unit {unit}", crowd.name), *o, *t, 1e-6));
        }
        found.prior.iter().zip(&crowd.prior).for_each(|(o, t)| near(&crowd.name, *o, *t, 1e-6));
    }
}

#[test]
fn bradley_terry_strengths_equal_choix() {
    for games in json::<Reference>("agreement.json").bradley_terry {
        let outcomes: Vec<SourceComparison> = games
            .outcomes
            .iter()
            .flat_map(|(w, l, n)| std::iter::repeat_n(SourceComparison { group: 0, a: *w, b: *l, score: 1.0 }, *n))
            .collect();
        let found = bradley_terry(games.models, &outcomes, &[1.0], games.deviation);
        found.iter().zip(&games.strengths).for_each(|(o, t)| near(&games.name, *o, *t, 1e-5));
    }
}

/// Creates a workspace with a project of `prompts` prompts. The tiny model's context is long enough for a judge's
/// question.
fn workspace(prompts: usize) -> Workspace {
    let space = Workspace::new();
    let model = space.path("models/smollm2-135m-instruct/config.json");
    let mut config: Value = ft::fsutil::read_json(&model).unwrap();
    config["max_position_embeddings"] = json!(2048);
    ft::fsutil::write_json(&model, &config).unwrap();
    let rows = std::fs::read_to_string("datasets/prompts.jsonl").unwrap();
    let rows: Vec<&str> = rows.lines().take(prompts).collect();
    std::fs::write(space.path("prompts.jsonl"), rows.join("\n")).unwrap();
    space.ft(&["label", "new", "p.label", "--prompts", "prompts.jsonl", "--overlap", "2"]);
    space
}

fn project(space: &Workspace) -> Project {
    Project::read(&Store::open(space.path("p.label").to_str().unwrap()).unwrap()).unwrap()
}

const MODEL: [&str; 4] = ["--model", "models/smollm2-135m-instruct", "--dtype", "f32"];

fn candidates(space: &Workspace, more: &[&str]) -> Value {
    let how = ["label", "candidates", "p.label", "--max-new-tokens", "12", "--json"];
    let run = space.ft(&[&how[..], &MODEL, more].concat());
    serde_json::from_slice(&run.stdout).unwrap()
}

/// Runs a command that must fail with exit code 1 and returns its stderr.
fn fails(space: &Workspace, arguments: &[&str]) -> String {
    let out = space.command(arguments).output().unwrap();
    let said = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "ft {}: {said}", arguments.join(" "));
    said
}

#[test]
fn candidates_are_distinct_and_sampling_continues() {
    let space = workspace(4);
    let made = candidates(&space, &["--temperatures", "0.7,1.3", "-n", "2", "--source", "tiny"]);
    let sources: Vec<&str> =
        made["sources"].as_array().unwrap().iter().map(|s| s["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["tiny, T=0.7", "tiny, T=1.3"]);
    let first = project(&space).candidates;
    assert!((8..=16).contains(&first.len()), "{}", first.len());
    let texts: BTreeSet<(i64, &str)> = first.iter().map(|c| (c.prompt, c.text.as_str())).collect();
    assert_eq!(texts.len(), first.len(), "a prompt has duplicate answers");
    assert!(first.iter().all(|c| c.tokens.is_some_and(|n| (1..=12).contains(&n))));
    // The same call again adds nothing, and prompts with enough answers are not sampled again.
    let again = candidates(&space, &["--temperatures", "0.7,1.3", "-n", "2", "--source", "tiny"]);
    assert_eq!(project(&space).candidates, first);
    let asked: u64 = again["sources"].as_array().unwrap().iter().map(|s| s["made"]["prompts"].as_u64().unwrap()).sum();
    assert!(asked < 8, "{asked} of 8");
    // Another source adds answers of its own. Several greedy answers are refused, because they would be equal.
    candidates(&space, &["-n", "1", "--greedy", "--source", "calm"]);
    let all = project(&space).candidates;
    assert!(all.len() > first.len() && all.iter().any(|c| c.source == "calm"));
    let said = fails(&space, &[&["label", "candidates", "p.label"][..], &MODEL, &["-n", "3", "--greedy"]].concat());
    assert!(said.contains("would all be the same one"), "{said}");
}

#[test]
fn judges_see_both_orders_and_inconsistent_choices_are_ties() {
    let space = workspace(5);
    candidates(&space, &["--temperature", "1", "-n", "2"]);
    space.ft(&["label", "pairs", "p.label", "--strategy", "all", "--repeats", "0.4"]);
    let before = project(&space);
    let (repeats, pairs): (Vec<_>, Vec<_>) = before.pairs.iter().partition(|p| p.repeat_of.is_some());
    assert!(pairs.len() >= 3 && repeats.len() == (0.4 * pairs.len() as f64).round() as usize, "{:?}", before.pairs);

    // A program that always prefers the first answer: its choice changes with the order, so every vote is a tie.
    let first = ["sh", "-c", "while read line; do echo a; done"];
    space.ft(&[&["label", "judge", "p.label", "--name", "first", "--command"][..], &first].concat());
    // A program that prefers the longer answer and reports how strongly.
    let longest = r#"import json, sys
for line in sys.stdin:
    row = json.loads(line)
    a, b = len(row["a"]), len(row["b"])
    print(json.dumps({"choice": "tie" if a == b else "a" if a > b else "b", "strength": 2, "note": row["prompt"][0]["role"]}))
"#;
    std::fs::write(space.path("judge.py"), longest).unwrap();
    space.ft(&["label", "judge", "p.label", "--name", "longest", "--command", "python3", "judge.py"]);
    // A language model with a rubric.
    std::fs::write(space.path("rubric.txt"), "The kinder answer is better.").unwrap();
    let judge =
        [&["label", "judge", "p.label", "--rubric", "rubric.txt", "--name", "llm", "--json"][..], &MODEL].concat();
    let said: Value = serde_json::from_slice(&space.ft(&judge).stdout).unwrap();
    assert_eq!(said["judged"].as_u64().unwrap() as usize, pairs.len());
    let reasoning =
        ["label", "judge", "p.label", "--name", "thinker", "--reasoning", "6", "--orders", "drawn", "--limit", "2"];
    space.ft(&[&reasoning[..], &MODEL].concat());

    let after = project(&space);
    let by = |name: &str| {
        let annotator = after.annotators.iter().find(|a| a.name == name).unwrap();
        let votes: Vec<_> = after.votes.iter().filter(|v| v.annotator == annotator.id).collect();
        (annotator, votes)
    };
    let (annotator, votes) = by("first");
    assert_eq!((annotator.kind, votes.len()), (AnnotatorKind::Command, pairs.len()));
    assert!(
        votes
            .iter()
            .all(|v| v.choice == VoteChoice::Tie && v.detail["ab"]["choice"] == "a" && v.detail["ba"]["choice"] == "b")
    );
    let texts = after.candidates_by_id();
    let by_pair: BTreeMap<i64, _> = after.pairs.iter().map(|p| (p.id, p)).collect();
    for vote in by("longest").1 {
        let pair = by_pair[&vote.pair];
        let length = |id: i64| texts[&id].text.chars().count();
        let expected = match length(pair.a).cmp(&length(pair.b)) {
            std::cmp::Ordering::Greater => VoteChoice::A,
            std::cmp::Ordering::Less => VoteChoice::B,
            std::cmp::Ordering::Equal => VoteChoice::Tie,
        };
        assert_eq!(vote.choice, expected);
        assert_eq!(vote.strength, (expected != VoteChoice::Tie).then_some(2));
        assert_eq!(vote.note.as_deref(), Some("user"));
    }
    let (annotator, votes) = by("llm");
    assert_eq!(
        (annotator.kind, &annotator.detail["rubric"]),
        (AnnotatorKind::Judge, &json!("The kinder answer is better."))
    );
    for vote in &votes {
        let order = |key: &str| {
            let shares = vote.detail[key]["probabilities"].as_object().unwrap();
            let sum: f64 = shares.values().map(|p| p.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-9 && vote.detail[key]["of_all_words"].as_f64().unwrap() <= 1.0);
            VoteChoice::named(vote.detail[key]["choice"].as_str().unwrap()).unwrap()
        };
        let (ab, ba) = (order("ab"), order("ba"));
        assert_eq!(vote.choice, if ab == ba { ab } else { VoteChoice::Tie });
    }
    let (_, votes) = by("thinker");
    assert_eq!(votes.len(), 2);
    // A judge that has judged all pairs has nothing to do, and a name cannot be reused for another kind of judge.
    let said: Value = serde_json::from_slice(&space.ft(&judge).stdout).unwrap();
    assert_eq!(said["judged"], 0);
    let said = fails(&space, &["label", "judge", "p.label", "--name", "llm", "--command", "cat"]);
    assert!(said.contains("`llm` is a judge, not a command"), "{said}");
    let said = fails(
        &space,
        &["label", "judge", "p.label", "--name", "mute", "--command", "sh", "-c", "cat >/dev/null; echo maybe"],
    );
    assert!(said.contains("printed 1 lines"), "{said}");

    let report: Value = serde_json::from_slice(
        &space
            .ft(&[
                "label",
                "report",
                "p.label",
                "--json",
                "--votes",
                "longest",
                "--out",
                "r.html",
                "--replicates",
                "100",
            ])
            .stdout,
    )
    .unwrap();
    let judge = |name: &str| report["judges"].as_array().unwrap().iter().find(|j| j["name"] == name).unwrap().clone();
    assert_eq!(judge("first")["order"]["flipped"]["share"], 1.0);
    assert_eq!(judge("first")["order"]["first"]["share"], 1.0);
    assert_eq!(judge("longest")["order"]["flipped"]["share"], 0.0);
    assert!(judge("longest")["with_verdicts"].is_null() && judge("llm")["with_verdicts"]["pairs"] == pairs.len());
    let page = std::fs::read_to_string(space.path("r.html")).unwrap();
    assert!(page.contains("Judges") && page.contains("longest") && !page.contains("NaN"));
}

/// Creates a project in which two annotators voted on every pair. The answer of source x wins two of three pairs; the
/// annotators disagree on some.
fn judged(space: &Workspace) -> Project {
    candidates(space, &["--temperature", "0.8", "-n", "1", "--source", "x"]);
    candidates(space, &["--temperature", "1.2", "-n", "1", "--source", "y"]);
    space.ft(&["label", "pairs", "p.label", "--strategy", "all"]);
    let store = Store::open(space.path("p.label").to_str().unwrap()).unwrap();
    let before = Project::read(&store).unwrap();
    let texts = before.candidates_by_id();
    for (person, name) in ["ann", "bob"].into_iter().enumerate() {
        let annotator = store.annotator(name, AnnotatorKind::Person, &json!({})).unwrap();
        for (i, pair) in before.pairs.iter().enumerate() {
            let a_is_x = texts[&pair.a].source.starts_with('x');
            let choice = match i % 6 {
                0 => VoteChoice::Tie,
                1 => VoteChoice::BothBad,
                2 if person == 1 => VoteChoice::Tie,
                k => {
                    if (k == 3) != a_is_x {
                        VoteChoice::A
                    } else {
                        VoteChoice::B
                    }
                }
            };
            store.add_vote(&NewVote { seconds: Some(2.0), ..NewVote::new(pair.id, annotator.id, choice) }).unwrap();
        }
    }
    Project::read(&store).unwrap()
}

#[test]
fn exported_pairs_train_a_reward_model_and_dpo_directly() {
    let space = workspace(24);
    let project = judged(&space);
    let out = [
        "label",
        "export",
        "p.label",
        "--out",
        "pairs.jsonl",
        "--valid-out",
        "valid.jsonl",
        "--valid",
        "0.3",
        "--json",
    ];
    let told: Value = serde_json::from_slice(&space.ft(&out).stdout).unwrap();
    let (train, valid) = (told["rows"]["train"].as_u64().unwrap(), told["rows"]["valid"].as_u64().unwrap());
    assert!(train > 0 && valid > 0, "{told}");
    let left_out = ["ties", "both_bad"].map(|k| told["rows"]["left_out"][k].as_u64().unwrap()).iter().sum::<u64>();
    assert_eq!(train + valid + left_out, project.pairs.len() as u64, "{told}");
    let same =
        ["label", "export", "p.label", "--out", "pairs.parquet", "--valid-out", "valid.parquet", "--valid", "0.3"];
    space.ft(&same);

    // Both files have the same rows and are read as preference pairs.
    for name in ["pairs.jsonl", "pairs.parquet"] {
        let seen: Value = serde_json::from_slice(&space.ft(&["data", "inspect", name, "--json"]).stdout).unwrap();
        assert_eq!(
            (&seen["format"], seen["rows"].as_u64(), &seen["bad"]),
            (&json!("preference"), Some(train), &json!(0)),
            "{name}"
        );
    }
    let converted = |name: &str, out: &str| {
        space.ft(&["data", "convert", name, "--to", "preference", "--out", out]);
        std::fs::read_to_string(space.path(out)).unwrap()
    };
    assert_eq!(converted("pairs.jsonl", "a.jsonl"), converted("pairs.parquet", "b.jsonl"));

    let sets = |recipe: &str, file: &str, out: &str| {
        let (train, valid) = (format!("data.train.path={file}"), format!("data.valid.path=valid.{}", &file[6..]));
        let out = format!("run.out={out}");
        let set = [
            "train",
            recipe,
            "--set",
            &train,
            "--set",
            &valid,
            "--set",
            "run.steps=2",
            "--set",
            "run.eval_every=0",
            "--set",
            &out,
        ];
        space.ft(&set);
    };
    sets("recipes/reward-helpful.yaml", "pairs.parquet", "adapters/rm");
    sets("recipes/dpo-medical.yaml", "pairs.jsonl", "adapters/dpo");
    assert!(
        space.path("adapters/rm/report_card.json").exists()
            && space.path("adapters/dpo/adapter_model.safetensors").exists()
    );

    // The reward model can judge, and its uncertainty can select pairs.
    space.ft(&[&["label", "judge", "p.label", "--reward", "adapters/rm"][..], &MODEL].concat());
    candidates(&space, &["--temperature", "1.5", "-n", "2", "--source", "z"]);
    let doubtful = [
        "label",
        "pairs",
        "p.label",
        "--strategy",
        "informative",
        "--budget",
        "5",
        "--reward",
        "adapters/rm",
        "--json",
    ];
    let told: Value = serde_json::from_slice(&space.ft(&[&doubtful[..], &MODEL].concat()).stdout).unwrap();
    assert_eq!(told["pairs"], 5);
    let after = Project::read(&Store::open(space.path("p.label").to_str().unwrap()).unwrap()).unwrap();
    assert_eq!(after.pairs.iter().filter(|p| p.reason == "uncertainty").count(), 5);
    let rm = after.annotators.iter().find(|a| a.kind == AnnotatorKind::Reward).unwrap();
    let votes: Vec<_> = after.votes.iter().filter(|v| v.annotator == rm.id).collect();
    assert_eq!(votes.len(), project.pairs.len());
    for vote in votes {
        let [a, b] = [0, 1].map(|i| vote.detail["scores"][i].as_f64().unwrap());
        assert_eq!(
            vote.choice,
            if a == b {
                VoteChoice::Tie
            } else if a > b {
                VoteChoice::A
            } else {
                VoteChoice::B
            }
        );
    }
}

#[test]
fn reports_and_all_export_formats_match_the_votes() {
    let space = workspace(24);
    let project = judged(&space);
    let pairs = project.pairs.len();
    let report = ["label", "report", "p.label", "--json", "--out", "r.json", "--out", "r.html", "--replicates", "200"];
    let report: Value = serde_json::from_slice(&space.ft(&report).stdout).unwrap();
    assert_eq!(report, space.json("r.json"));
    assert_eq!(
        (report["judged_by"].clone(), report["counts"]["shared"].as_u64()),
        (json!(["ann", "bob"]), Some(pairs as u64))
    );
    // The annotators disagree in every sixth pair, starting with the third.
    let differ = (0..pairs).filter(|i| i % 6 == 2).count();
    let equal = report["agreement"]["raw"]["value"].as_f64().unwrap();
    near("equal votes", equal, 1.0 - differ as f64 / pairs as f64, 1e-12);
    let alpha = &report["agreement"]["alpha_nominal"];
    let (low, high) = (alpha["interval"][0].as_f64().unwrap(), alpha["interval"][1].as_f64().unwrap());
    assert!(
        low < alpha["value"].as_f64().unwrap() && alpha["value"].as_f64().unwrap() < high && high <= 1.0,
        "{alpha}"
    );
    let sources: Vec<&str> =
        report["ranking"]["sources"].as_array().unwrap().iter().map(|s| s["source"].as_str().unwrap()).collect();
    assert!(sources.len() == 2 && sources[0].starts_with('x'), "{sources:?}");
    assert_eq!(report["agreement"]["cohen"].as_array().unwrap().len(), 1);

    for (format, kind) in [("ranked", "prompt"), ("unpaired", "unpaired")] {
        for file in [format!("{format}.jsonl"), format!("{format}.parquet")] {
            space.ft(&["label", "export", "p.label", "--format", format, "--out", &file, "--aggregate", "dawid-skene"]);
            let seen: Value = serde_json::from_slice(&space.ft(&["data", "inspect", &file, "--json"]).stdout).unwrap();
            assert_eq!((&seen["format"], &seen["bad"]), (&json!(kind), &json!(0)), "{file}");
        }
    }
    space.ft(&["label", "export", "p.label", "--format", "argilla", "--out", "argilla.jsonl"]);
    // A file exported for Argilla can be imported again with the same votes.
    space.ft(&["label", "new", "back.label", "--prompts", "prompts.jsonl"]);
    space.ft(&["label", "import", "back.label", "argilla.jsonl"]);
    let back = Project::read(&Store::open(space.path("back.label").to_str().unwrap()).unwrap()).unwrap();
    assert_eq!((back.pairs.len(), back.votes.len()), (pairs, project.votes.len()));

    let said = fails(&space, &["label", "export", "p.label", "--out", "x.jsonl", "--votes", "machines"]);
    assert!(said.contains("no votes by machines") && said.contains("ann, bob"), "{said}");
    let said = fails(&space, &["label", "export", "p.label", "--out", "x.csv"]);
    assert!(said.contains("JSON Lines or Parquet"), "{said}");
    let said = fails(&space, &["label", "export", "p.label", "--out", "x.jsonl", "--both-bad"]);
    assert!(said.contains("--format unpaired"), "{said}");
    let said = fails(&space, &["label", "pairs", "p.label", "--strategy", "all"]);
    assert!(said.contains("there is no new pair to choose"), "{said}");
    let said = fails(&space, &["label", "report", "p.label", "--out", "r.pdf"]);
    assert!(said.contains(".html or .json"), "{said}");
}

/// Runs the whole labelling demo on a tiny model. A second run must skip every stage.
#[test]
fn the_labelling_demo_skips_unchanged_stages() {
    let space = workspace(4);
    // An untrained model gives no right answers, so here the answer with more letters e wins.
    let judge = "import json, sys\nfor line in sys.stdin:\n    row = json.loads(line)\n    a, b = row['a'].count('e'), row['b'].count('e')\n    print('a' if a > b else 'b' if b > a else 'tie')\n";
    std::fs::write(space.path("judge.py"), judge).unwrap();
    let run = || {
        let few = "--set run.steps=2 --set run.eval_every=0 --set run.samples=0 --set model.device=cpu";
        let out = std::process::Command::new("bash")
            .arg(std::env::current_dir().unwrap().join("setup/labeling.sh"))
            .current_dir(space.path(""))
            .env("FT", env!("CARGO_BIN_EXE_ft"))
            .env("PROMPTS", "20")
            .env("JUDGE", "python3 judge.py")
            .env("JUDGED", "3")
            .env("MORE_EARLY", few)
            .env("MORE_LATE", few)
            .env("MORE_REWARD", few)
            .env("MORE_ANSWERS", "--max-new-tokens 12 --device cpu")
            .env("CUDA_VISIBLE_DEVICES", "")
            .output()
            .unwrap();
        let text = [out.stdout, out.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
        assert!(out.status.success(), "{text}");
        text
    };
    let first = run();
    assert!(first.contains("correct on") && first.contains("agrees with the verdict in"), "{first}");
    let second = run();
    assert_eq!(second.matches(": unchanged").count(), 10, "{second}");
}
