//! Properties of packing, masks and scrubbing that hold for all rows, on random ones.

use crate::support::files::jsonl;
use crate::support::laws::cases;
use crate::support::rows::{talk, tiny_tokenizer};
use ft::data::batch::pack;
use ft::data::dataset;
use ft::data::dataset::{EncodeOptions, Overflow};
use ft::data::encode::{Example, Supervise};
use ft::data::rows::RowFormat;
use ft::scrub::{NameList, PersonalDataKind, Scrubber};
use proptest::prelude::*;
use serde_json::Value;

/// Returns the example of a row with the tokens that are trained on under each setting.
fn examples(row: &Value) -> [Example; 3] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, jsonl(std::slice::from_ref(row))).unwrap();
    let tokenizer = tiny_tokenizer();
    [Supervise::Assistant, Supervise::Last, Supervise::All].map(|supervise| {
        let on_overflow = Overflow::Error;
        let options = EncodeOptions { supervise, max_len: 8192, on_overflow, overflow_tolerance: 0.0 };
        dataset::load(&path, RowFormat::Auto, None, &tokenizer, &options).unwrap().to_vec().unwrap().remove(0)
    })
}

/// A text that a person could write: it begins and ends with a letter.
fn content() -> impl Strategy<Value = String> {
    "[a-zA-Zé]([a-zA-Z0-9 .,!?é\n-]{0,20}[a-zA-Zé])?"
}

/// Conversations of one to four exchanges, as (question, answer).
fn exchanges() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((content(), content()), 1..5)
}

proptest! {
    #![proptest_config(cases(300))]

    /// Every example is in exactly one row, and no row is longer than the budget.
    #[test]
    fn packing_keeps_every_example_once_and_the_budget(
        lengths in prop::collection::vec(1u32..200, 0..300),
        budget in 200usize..1000,
        shift in 0usize..300,
    ) {
        let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
        order.rotate_left(shift % lengths.len().max(1));
        let rows = pack(&lengths, &order, budget);
        let mut seen: Vec<usize> = rows.concat();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        for row in &rows {
            prop_assert!(!row.is_empty());
            prop_assert!(row.iter().map(|&i| lengths[i] as usize).sum::<usize>() <= budget);
        }
        // Two rows that are open at the same time are never both at most half full.
        let total: usize = lengths.iter().map(|l| *l as usize).sum();
        prop_assert!(rows.len() <= 2 * total.div_ceil(budget) + 1, "{} rows for {total} tokens", rows.len());
    }

    /// Personal data is replaced wherever it is in a text, the rest is unchanged, and nothing is found a second time.
    #[test]
    fn scrubbing_removes_the_value_keeps_the_rest_and_is_idempotent(
        before in "[a-z ]{0,20}",
        after in "[a-z ]{0,20}",
        name in "[a-z]{2,8}",
        host in "[a-z]{2,8}",
    ) {
        let kinds = PersonalDataKind::ALL;
        let mut scrubber = Scrubber::new(&kinds, NameList::of([]), Some(b"a key for tests, sixteen"));
        let mail = format!("{name}@{host}.example.org");
        let text = format!("{before} <{mail}> {after}");
        let once = scrubber.text(&text).unwrap();
        prop_assert!(!once.contains(&mail), "{once}");
        let rest = once.strip_prefix(&format!("{before} <[EMAIL:")).and_then(|t| t.strip_suffix(&format!("]> {after}")));
        prop_assert!(rest.is_some_and(|pseudonym| pseudonym.len() == 8), "{once}");
        prop_assert_eq!(scrubber.text(&once).unwrap(), once.clone());
        // The same value has the same pseudonym.
        prop_assert_eq!(scrubber.text(&text).unwrap(), once);
    }

    /// Any text can be scrubbed, and scrubbing the result changes nothing.
    #[test]
    fn scrubbing_any_text_twice_equals_scrubbing_it_once(text in "[ -~\n]{0,60}|\\PC{0,30}") {
        let kinds = PersonalDataKind::ALL;
        let mut scrubber = Scrubber::new(&kinds, NameList::of(["May", "Otto"]), Some(b"a key for tests, sixteen"));
        let once = scrubber.text(&text).unwrap();
        prop_assert_eq!(scrubber.text(&once).unwrap(), once);
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// The trained tokens are the answers and the ends of their turns, all answers or the last one; the ids do not depend
    /// on the mask, and the first token is never trained on.
    #[test]
    fn masks_cover_the_answers_and_nothing_else(turns in exchanges(), system in prop::option::of(content())) {
        let mut all: Vec<(&str, &str)> = system.iter().map(|text| ("system", text.as_str())).collect();
        all.extend(turns.iter().flat_map(|(question, answer)| [("user", question.as_str()), ("assistant", answer)]));
        let [every, last, whole] = examples(&talk(&all));
        prop_assert_eq!(&every.ids, &last.ids);
        prop_assert_eq!(&every.ids, &whole.ids);
        let tokenizer = tiny_tokenizer();
        let trained = |example: &Example| {
            let marked = example.ids.iter().zip(example.supervised.iter());
            let ids: Vec<u32> = marked.filter(|(_, supervised)| **supervised).map(|(id, _)| *id).collect();
            tokenizer.decode(&ids, false).unwrap().replace("<|im_end|>\n", "<|im_end|>")
        };
        let ended: Vec<String> = turns.iter().map(|(_, answer)| format!("{answer}<|im_end|>")).collect();
        prop_assert_eq!(trained(&every), ended.concat());
        prop_assert_eq!(trained(&last), ended.last().unwrap().clone());
        let covered = |of: &Example, by: &Example| of.supervised.iter().zip(by.supervised.iter()).all(|(a, b)| !a || *b);
        prop_assert!(covered(&last, &every) && covered(&every, &whole));
    }
}
