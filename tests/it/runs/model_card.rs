//! Tests the model card that a run leaves with its result.

use super::records::Space;
use crate::support::command::stderr;

#[test]
fn a_run_leaves_a_card_that_keeps_what_people_write() {
    let space = Space::new();
    std::fs::write(space.path("model/LICENSE"), "Do what you like.").unwrap();
    std::fs::write(space.path("model/README.md"), "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Base\n").unwrap();
    let output = space.train("run", &["run.epochs=1", "run.samples=0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(space.text("run/LICENSE"), "Do what you like.");
    let card = space.text("run/README.md");
    let header = card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
    for line in ["library_name: peft", "pipeline_tag: text-generation", "license: apache-2.0", "language: [en]"] {
        assert!(header.lines().any(|l| l == line), "{line}: {header}");
    }
    let index = header.lines().find_map(|line| line.strip_prefix("model-index: ")).unwrap();
    let index: serde_json::Value = serde_json::from_str(index).unwrap();
    assert_eq!(index[0]["results"][0]["dataset"]["name"], "valid.jsonl");
    for part in [
        "Read it with PEFT",
        "## Training",
        "| training | train.jsonl | 24 |",
        "## Results",
        "| loss | ",
        "## Recipe",
        "rank: 8",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    let here = space.path("run").display().to_string();
    let body = card.split("\n---\n").nth(1).unwrap();
    assert!(!body.contains(&here), "{body}");

    let edited = card.replace("A LoRA adapter", "For the clinic: a LoRA adapter");
    std::fs::write(space.path("run/README.md"), edited).unwrap();
    std::fs::write(
        space.path("run/eval.json"),
        r#"{"data": "/data/held_out.jsonl", "exact_match": 0.5, "exact_match_ci": [0.25, 0.75], "rows": 8}"#,
    )
    .unwrap();
    space.ft(&["runs", "card", "run"]);
    let card = space.text("run/README.md");
    assert!(card.contains("For the clinic: a LoRA adapter"), "{card}");
    assert!(
        card.contains("held\\_out.jsonl:\n") && card.contains("| exact\\_match | 0.5000 | 0.2500 to 0.7500 |"),
        "{card}"
    );
    assert_eq!(card.matches("## Results").count(), 1);

    // Not finished: no result to describe.
    std::fs::remove_file(space.path("run/summary.json")).unwrap();
    let facts = space.text("run/run.json").replace("\"finished\"", "\"interrupted\"");
    std::fs::write(space.path("run/run.json"), facts).unwrap();
    let refused = space.refused(&["runs", "card", "run"]);
    assert!(refused.contains("the run is interrupted, so it has no result"), "{refused}");
}
