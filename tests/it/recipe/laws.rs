//! Properties of `--set` on random settings: an edit on the command line and the same edit in the file give the same
//! plan.

use crate::support::laws::cases;
use ft::recipe;
use ft::recipe::sections::Recipe;
use proptest::prelude::*;

const GOOD: &str =
    "model: { path: base }\nmethod: { sft: {} }\nadapter: { lora: {} }\ndata: { train: { path: a.jsonl } }\n";

/// Settings (section, key, value) that are valid together with any other of them.
fn setting() -> impl Strategy<Value = (&'static str, &'static str, String)> {
    prop_oneof![
        (1e-7f64..1.0).prop_map(|lr| ("optim", "lr", format!("{lr:e}"))),
        (0.0f64..100.0).prop_map(|norm| ("optim", "max_norm", norm.to_string())),
        (0u64..1000).prop_map(|steps| ("optim", "warmup", steps.to_string())),
        any::<u64>().prop_map(|seed| ("run", "seed", seed.to_string())),
        (1u64..100_000).prop_map(|steps| ("run", "steps", steps.to_string())),
        "[a-z]{1,8}( [a-z]{1,8})?".prop_map(|name| ("run", "out", format!("runs/{name}"))),
        (1u64..64).prop_map(|rows| ("batch", "accumulate", rows.to_string())),
    ]
}

fn parse(text: &str, sets: &[String]) -> Recipe {
    recipe::plan::parse("x.yaml", text, sets).unwrap_or_else(|e| panic!("{text}\n{sets:?}\n{e}")).recipe
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_set_equals_the_same_edit_of_the_file(settings in prop::collection::vec(setting(), 0..6)) {
        let out = ("run", "out", "runs/default".to_string());
        // A later edit of a key replaces an earlier one.
        let mut last: Vec<&(&str, &str, String)> = Vec::new();
        for setting in std::iter::once(&out).chain(&settings) {
            last.retain(|s| (s.0, s.1) != (setting.0, setting.1));
            last.push(setting);
        }
        let mut text = GOOD.to_string();
        for section in ["optim", "batch", "run"] {
            let own: Vec<String> = last.iter().filter(|s| s.0 == section).map(|s| format!("{}: {}", s.1, s.2)).collect();
            if !own.is_empty() {
                text += &format!("{section}: {{ {} }}\n", own.join(", "));
            }
        }
        let sets: Vec<String> =
            std::iter::once(&out).chain(&settings).map(|(section, key, value)| format!("{section}.{key}={value}")).collect();
        let (edited, set) = (parse(&text, &[]), parse(GOOD, &sets));
        prop_assert_eq!(&edited, &set);
        // An empty value removes a key again: without all settings but `run.out`, the defaults are back.
        let removed = last.iter().filter(|s| s.1 != "out").map(|s| format!("{}.{}=", s.0, s.1));
        let back: Vec<String> = sets.iter().cloned().chain(removed).collect();
        let bare: Vec<String> = last.iter().filter(|s| s.1 == "out").map(|s| format!("run.out={}", s.2)).collect();
        prop_assert_eq!(parse(GOOD, &back), parse(GOOD, &bare));
    }
}
