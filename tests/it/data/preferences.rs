//! Compares pairs, judged answers, prompts and SFT examples with what TRL's trainers prepare from the same rows, and
//! tests the row formats of other tools.

use crate::support::files::jsonl;
use crate::support::fixture;
use crate::support::rows::{says, user};
use ft::data::cache::TokenCache;
use ft::data::chat::ChatTokenizer;
use ft::data::dataset::{Dataset, DatasetItem, EncodeOptions, Overflow};
use ft::data::encode::{Example, PairExample, PromptExample, Supervise, UnpairedExample};
use ft::data::rows::{
    AnswerContent, PromptContent, Record, RowFormat, RowPurpose, SourceList, SourceSpec, detect_format, read_record,
};
use ft::data::source::RowPlace;
use ft::error::Result;
use serde_json::{Value, json};

fn tokenizer(row: &Value) -> ChatTokenizer {
    let template = row["template"].as_str().map(|name| fixture("preferences").join(name));
    ChatTokenizer::load(&fixture("tiny-tokenizer"), template.as_deref()).unwrap()
}

fn open<T: DatasetItem>(
    rows: &[Value],
    format: RowFormat,
    tokenizer: &ChatTokenizer,
    max_len: usize,
) -> Result<Dataset<T>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, jsonl(rows)).unwrap();
    let on_overflow = Overflow::Truncate;
    let options = EncodeOptions { supervise: Supervise::Assistant, max_len, on_overflow, overflow_tolerance: 0.0 };
    Dataset::open(&SourceList(vec![SourceSpec::file(path, format)]), tokenizer, &options, &TokenCache::off())
}

fn items<T: DatasetItem>(row: &Value, format: RowFormat) -> Result<Vec<T>> {
    let mut plain = row.clone();
    plain.as_object_mut().unwrap().remove("template");
    open(&[plain], format, &tokenizer(row), 4096)?.to_vec()
}

fn expected(part: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture("preferences/expected.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[part].as_array().unwrap().clone()
}

/// Returns the format as which TRL reads a row: a dialogue written as one text (Anthropic HH) is plain text to TRL.
fn as_trl(row: &Value) -> RowFormat {
    if row["chosen"].as_str().is_some_and(|t| t.contains("\n\nHuman:")) {
        RowFormat::Preference
    } else {
        RowFormat::Auto
    }
}

#[test]
fn pairs_equal_trl() {
    let rows = expected("pairs");
    assert!(rows.len() > 10);
    for case in rows {
        let row = &case["row"];
        let pair = items::<PairExample>(row, as_trl(row)).unwrap().remove(0);
        let found = json!({ "prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected });
        assert_eq!(found, case["dpo"], "{row}");
        // The masks of the data collator: 0 over the prompt, 1 over the answer.
        let [chosen, rejected] = pair.sequences();
        assert_eq!(json!({ "chosen_ids": chosen.ids, "rejected_ids": rejected.ids }), case["reward"], "{row}");
        for (example, answer) in [(&chosen, &pair.chosen), (&rejected, &pair.rejected)] {
            assert_eq!(example.target_count(), answer.len());
            assert!(example.supervised[pair.prompt.len()..].iter().all(|s| *s));
        }
        assert_eq!(pair.margin, row["margin"].as_f64());
    }
}

#[test]
fn judged_answers_equal_trl() {
    for case in expected("unpaired") {
        let row = &case["row"];
        let found = items::<UnpairedExample>(row, RowFormat::Auto).unwrap();
        let same = found.iter().filter(|u| {
            json!({ "p": u.prompt, "c": u.completion, "l": u.good })
                == json!({ "p": case["prompt_ids"], "c": case["completion_ids"], "l": case["label"] })
        });
        assert_eq!(same.count(), 1, "{row}: {found:?}");
        assert_eq!(found.len(), if row.get("chosen").is_some() { 2 } else { 1 });
    }
}

#[test]
fn prompts_equal_those_of_generation() {
    for case in expected("prompts") {
        let found = items::<PromptExample>(&case["row"], RowFormat::Auto).unwrap();
        assert_eq!(json!(found[0].ids), case["ids"]);
    }
    // The prompt of a conversation is everything before its last answer.
    let turns = |n: usize| {
        let all = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
        all[..n].iter().map(|(role, content)| json!({ "role": role, "content": content })).collect::<Vec<_>>()
    };
    let talk = items::<PromptExample>(&json!({ "messages": turns(4) }), RowFormat::Auto).unwrap();
    assert_eq!(talk, items::<PromptExample>(&json!({ "prompt": turns(3) }), RowFormat::Auto).unwrap());
}

#[test]
fn trained_tokens_equal_trl_except_after_the_last_stop_token() {
    for case in expected("examples") {
        let row = &case["row"];
        let example = items::<Example>(row, RowFormat::Auto).unwrap().remove(0);
        assert_eq!(json!(example.ids), case["input_ids"], "{row}");
        let labels: Vec<i64> = serde_json::from_value(case["labels"].clone()).unwrap();
        let stop = tokenizer(row).stop_ids()[0];
        for (t, label) in labels.iter().enumerate() {
            // TRL also trains on the first token, which no token precedes, and on the line feed after the last stop
            // token of a conversation, which is never generated.
            let after_stop = !example.ids[t..].contains(&stop);
            let learnt = *label >= 0 && t > 0 && !after_stop;
            assert_eq!(example.supervised[t], learnt, "{row}: token {t}");
        }
    }
}

#[test]
fn rows_of_other_tools_are_pairs() {
    let plain = items::<PairExample>(
        &json!({ "prompt": [user("q")], "chosen": [says("good")], "rejected": [says("bad")] }),
        RowFormat::Auto,
    )
    .unwrap();
    let same = [
        // UltraFeedback, with its scores and the chosen conversation in further columns
        json!({ "prompt": "q", "prompt_id": "x", "chosen": [user("q"), says("good")], "rejected": [user("q"), says("bad")],
                "messages": [user("q"), says("good")], "score_chosen": 9.0, "score_rejected": 1.0 }),
        // HH
        json!({ "chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad" }),
        // LLaMA-Factory, both of its forms
        json!({ "conversations": [{ "from": "human", "value": "q" }], "chosen": { "from": "gpt", "value": "good" },
                "rejected": { "from": "gpt", "value": "bad" } }),
        json!({ "instruction": "q", "input": "", "chosen": "good", "rejected": "bad" }),
        // messages of prompts written as JSON text, as CSV has them
        json!({ "prompt": json!([user("q")]).to_string(), "chosen": json!([says("good")]).to_string(),
                "rejected": json!([says("bad")]).to_string() }),
        // answers that repeat the prompt
        json!({ "prompt": [user("q")], "chosen": [user("q"), says("good")], "rejected": [user("q"), says("bad")] }),
    ];
    for row in same {
        assert_eq!(items::<PairExample>(&row, RowFormat::Auto).unwrap(), plain, "{row}");
    }
    let with_system = json!({ "system": "S", "question": "q", "chosen": "good", "rejected": "bad" });
    let pair = items::<PairExample>(&with_system, RowFormat::Auto).unwrap().remove(0);
    let text = tokenizer(&json!({})).decode(&pair.prompt, false).unwrap();
    assert!(text.starts_with("<|im_start|>system\nS<|im_end|>") && text.ends_with("<|im_start|>assistant\n"), "{text}");
    // OpenRLHF: text without a prompt, and a margin.
    let open = json!({ "chosen": "A: yes", "rejected": "A: no", "margin": 3 });
    let pair = items::<PairExample>(&open, RowFormat::Auto).unwrap().remove(0);
    assert_eq!((pair.margin, pair.prompt), (Some(3.0), tokenizer(&json!({})).encode("A:").unwrap()));
    let kto = json!({ "conversations": [{ "from": "human", "value": "q" }, { "from": "gpt", "value": "good" }],
                      "kto_tag": true });
    let judged = items::<UnpairedExample>(&kto, RowFormat::Auto).unwrap().remove(0);
    assert_eq!((&judged.prompt, &judged.completion, judged.good), (&plain[0].prompt, &plain[0].chosen, true));
}

#[test]
fn answers_that_first_differ_in_a_user_turn_begin_with_that_turn() {
    let talk = |last: [&str; 2]| {
        let turns = [("user", "a"), ("assistant", "b"), ("user", last[0]), ("assistant", last[1])];
        turns.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect::<Vec<_>>()
    };
    let row = json!({ "chosen": talk(["c", "d"]), "rejected": talk(["x", "y"]) });
    let pair = items::<PairExample>(&row, RowFormat::Auto).unwrap().remove(0);
    let text = |ids: &[u32]| tokenizer(&json!({})).decode(ids, false).unwrap();
    assert!(text(&pair.prompt).ends_with("b<|im_end|>\n<|im_start|>"), "{}", text(&pair.prompt));
    assert!(text(&pair.rejected).starts_with("user\nx<|im_end|>"), "{}", text(&pair.rejected));
}

#[test]
fn dialogues_remain_text_without_a_template() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(fixture("tiny-tokenizer").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer_config.json"), "{\"eos_token\": \"<|im_end|>\"}").unwrap();
    let bare = ChatTokenizer::load(folder.path(), None).unwrap();
    let case = expected("pairs").into_iter().find(|c| as_trl(&c["row"]) == RowFormat::Preference).unwrap();
    let pairs: Vec<PairExample> = open(&[case["row"].clone()], RowFormat::Auto, &bare, 4096).unwrap().to_vec().unwrap();
    assert_eq!(json!(pairs[0].prompt), case["dpo"]["prompt_ids"]);
    assert_eq!(json!(pairs[0].chosen), case["dpo"]["chosen_ids"]);
}

#[test]
fn invalid_pairs_are_refused_with_their_line() {
    let good = json!({ "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")] });
    for (bad, says_) in [
        (json!({ "chosen": [user("q"), says("a")], "rejected": [user("q"), says("a")] }), "are the same"),
        (json!({ "chosen": [user("q"), says("a")], "rejected": [user("r"), says("b")] }), "share no message"),
        (json!({ "chosen": [user("q"), says("a")] }), "key `rejected` is missing"),
        (
            json!({ "chosen": [user("q"), says("a")], "rejected": 3 }),
            "key `rejected` is a number, expected text or messages",
        ),
        (json!({ "chosen": [user("q"), says("a")], "rejected": "b" }), "must both be text or both be messages"),
        (
            json!({ "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")], "margin": "x" }),
            "key `margin` is text, expected a number",
        ),
    ] {
        let e = open::<PairExample>(&[good.clone(), bad], RowFormat::Auto, &tokenizer(&json!({})), 4096).unwrap_err();
        assert!(e.message().contains("rows.jsonl:2: ") && e.message().contains(says_), "{says_}: {e}");
    }
    let e = items::<PairExample>(&json!({ "text": "a" }), RowFormat::Auto).unwrap_err();
    assert!(e.message().contains("no preference pairs"), "{e}");
    let e =
        items::<Example>(&json!({ "prompt": "a", "completion": "b", "label": false }), RowFormat::Auto).unwrap_err();
    assert!(e.message().contains("answers with a label (good or bad)"), "{e}");
}

#[test]
fn long_pairs_are_truncated_or_dropped() {
    let says = |n: usize| json!([{ "role": "assistant", "content": "word ".repeat(n) }]);
    let row = |prompt: usize, chosen: usize| json!({ "prompt": [{ "role": "user", "content": "word ".repeat(prompt) }], "chosen": says(chosen), "rejected": says(1) });
    let rows = [row(1, 2), row(1, 60), row(200, 2)];
    let whole: Dataset<PairExample> = open(&rows, RowFormat::Auto, &tokenizer(&json!({})), 4096).unwrap();
    let max = whole.get(0).unwrap().sequences()[0].ids.len() + 20;
    let cut: Dataset<PairExample> = open(&rows, RowFormat::Auto, &tokenizer(&json!({})), max).unwrap();
    assert_eq!((cut.len(), cut.summary.truncated, cut.summary.dropped), (2, 1, 1));
    let (long, shorter) = (whole.get(1).unwrap(), cut.get(1).unwrap());
    assert_eq!((&shorter.prompt, &shorter.rejected), (&long.prompt, &long.rejected));
    assert_eq!(shorter.chosen, long.chosen[..max - long.prompt.len()]);
    assert_eq!(cut.lengths()[1] as usize, max + long.prompt.len() + long.rejected.len());
}

#[test]
fn the_purpose_of_rows_decides_between_formats() {
    let columns = |row: Value| row.as_object().unwrap().clone();
    let both = columns(json!({ "prompt": "q", "chosen": [], "rejected": [], "messages": [{ "role": "user" }] }));
    let found = |want| detect_format(&both, want, "rows.jsonl".as_ref()).map(RowFormat::name).unwrap_or("none");
    assert_eq!(found(RowPurpose::Pairs), "preference");
    assert_eq!(found(RowPurpose::Anything), "preference");
    assert_eq!(found(RowPurpose::Answers), "messages");
    assert_eq!(found(RowPurpose::Prompts), "prompt");
    assert_eq!(found(RowPurpose::Verdicts), "preference");
    let place = RowPlace { path: "rows.jsonl".as_ref(), line: 1 };
    let row = columns(json!({ "chosen": "The sky is blue", "rejected": "The sky is green" }));
    let Record::Preference(pair) = read_record(row, RowFormat::Preference, place).unwrap() else { panic!() };
    assert_eq!(pair.prompt, PromptContent::Text("The sky is".into()));
    assert_eq!(pair.chosen, AnswerContent::Text(" blue".into()));
}
