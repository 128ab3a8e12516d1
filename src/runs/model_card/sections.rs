//! The text of a model card: training, data, results, machine, limits.

use super::energy;
use crate::characters::printable;
use crate::report;
use crate::runs::diagnose::diagnose;
use crate::runs::diagnose::finding::DiagnosisInput;
use crate::runs::facts::DataFacts;
use crate::runs::folder::RunFolder;
use crate::runs::history::Validation;
use crate::runs::lock;
use crate::runs::number::number;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// A measured number of the result.
pub struct Measure {
    /// Name of the metric.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: Option<[f64; 2]>,
    /// Its value before training.
    pub before: Option<f64>,
}

/// Returns the name of the run's folder, without characters that would act in Markdown.
pub fn plain_name(run: &RunFolder) -> String {
    plain(&run.name())
}

/// Returns the beginning of the card of a result whose export wrote none.
pub fn opening(run: &RunFolder) -> String {
    let what = match run.plan.recipe.adapter {
        Some(_) => format!("An adapter ({}) for {}", plain(&run.adapter()), base_name(run)),
        None if run.plan.recipe.model.is_random() => "A model trained from random weights".into(),
        None => format!("{}, with its weights trained further", base_name(run)),
    };
    let name = plain_name(run);
    let version = env!("CARGO_PKG_VERSION");
    let usage = match run.plan.recipe.method.generates_text() {
        true => {
            "- `ft chat --model DIR`, `ft generate --model DIR`\n\
                 - transformers: `AutoModelForCausalLM.from_pretrained(DIR)`\n\
                 - llama.cpp: `ft export DIR --to gguf`, then `llama-cli -m FILE.gguf`\n"
        }
        false => {
            "- `ft score --model DIR`\n- transformers: `AutoModelForSequenceClassification.from_pretrained(DIR)`\n"
        }
    };
    format!("# {name}\n\n{what}, with ft {version}.\n\n{usage}").trim_end().to_string()
}

/// Returns all sections.
pub fn sections(run: &RunFolder) -> String {
    let all = [training(run), data(run), results(run), machine(run), limits(run), readers(run), recipe(run)];
    let mut text = all.into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    text.push('\n');
    text
}

/// Returns the measurements, by the data that they were taken on: of the last validation (of the best, if that is the result) and of every
/// evaluation in the run's folder.
pub fn measures(run: &RunFolder) -> Vec<(String, Vec<Measure>)> {
    let mut all: Vec<(String, Vec<Measure>)> = Vec::new();
    let valid = run.facts.as_ref().and_then(|f| f.valid.as_ref());
    if let (Some(valid), Some(result)) = (valid, result_validation(run)) {
        let start = run.history.validations.first().filter(|v| v.step == 0);
        let measure = |(name, value): &(String, f64)| Measure {
            name: plain(name),
            value: *value,
            interval: None,
            before: start.map(|v| v.mean(name)).filter(|x| x.is_finite()),
        };
        all.push((file_name(&valid.path), result.means.iter().filter(|(_, x)| x.is_finite()).map(measure).collect()));
    }
    for (file, value) in &run.evaluations {
        let Some(object) = value.as_object() else { continue };
        let data = object.get("data").and_then(Value::as_str).map_or(plain(file), |path| file_name(Path::new(path)));
        let measure = |(name, value): (&String, &Value)| {
            let interval = object.get(&format!("{name}_ci")).and_then(|ci| Some([ci[0].as_f64()?, ci[1].as_f64()?]));
            Some(Measure { name: plain(name), value: value.as_f64()?, interval, before: None })
        };
        all.push((data, object.iter().filter(|(name, _)| is_metric(name)).filter_map(measure).collect()));
    }
    all.retain(|(_, measures)| !measures.is_empty());
    all
}

/// Returns false for numbers of `ft eval --json` that describe the evaluation, not the model.
fn is_metric(name: &str) -> bool {
    !["rows", "asked", "tokens", "max_new_tokens", "rows_per_s"].contains(&name)
}

/// Returns the validation that describes the result; `None` if the run had none after its first step.
fn result_validation(run: &RunFolder) -> Option<&Validation> {
    let best = run.plan.recipe.run.result == crate::recipe::sections::ResultChoice::Best;
    let last = run.history.validations.last().filter(|v| v.step > 0);
    if best { run.history.best().or(last) } else { last }
}

fn training(run: &RunFolder) -> Option<String> {
    let (h, recipe) = (&run.history, &run.plan.recipe);
    let mut rows = vec![("method", plain(run.plan.method())), ("trained", plain(&run.adapter()))];
    if !recipe.model.is_random() {
        rows.push(("base", base_name(run)));
    }
    if let Some(f) = &run.facts {
        let share = 100.0 * f.trained as f64 / f.parameters.max(1) as f64;
        rows.push((
            "parameters",
            format!("{} trained, {} in the base ({share:.2} %)", count(f.trained), count(f.parameters)),
        ));
    }
    if let Some(last) = h.steps.last() {
        rows.push(("steps", format!("{} ({:.2} epochs, {} tokens)", count(last.step), last.epoch, count(last.tokens))));
        rows.push(("learning rate", number(recipe.optim.lr.unwrap_or(last.lr))));
    }
    rows.push(("seed", recipe.run.seed.to_string()));
    if let Some(words) = run.averaged_result() {
        rows.push(("result", plain(&words)));
    }
    Some(format!("## Training\n\n{}", list(&rows)))
}

fn data(run: &RunFolder) -> Option<String> {
    let facts = run.facts.as_ref()?;
    let mut table =
        vec![["", "file", "rows", "examples", "tokens", "trained on", "SHA-256"].map(String::from).to_vec()];
    let row = |name: &str, d: &DataFacts| {
        vec![
            name.to_string(),
            file_name(&d.path),
            count(d.rows as u64),
            count(d.examples as u64),
            count(d.tokens as u64),
            format!("{:.1} %", 100.0 * d.supervised_share()),
            format!("`{}`", d.sha256),
        ]
    };
    table.push(row("training", &facts.train));
    table.extend(facts.valid.as_ref().map(|valid| row("validation", valid)));
    let cut: Vec<String> =
        [("dropped", facts.train.dropped), ("truncated", facts.train.truncated), ("split", facts.train.split)]
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(what, n)| format!("{} {what}", count(*n as u64)))
            .collect();
    let cut = match cut.is_empty() {
        true => String::new(),
        false => format!("\n\nToo long for {} tokens: {}.", count(facts.train.max_len as u64), cut.join(", ")),
    };
    Some(format!("## Data\n\n{}{cut}", table_of(&table)))
}

fn results(run: &RunFolder) -> Option<String> {
    let mut text = String::from("## Results\n");
    let found = measures(run);
    if found.is_empty() && run.card.is_none() && run.held_out.is_none() {
        return Some(text + "\nNothing was measured on held-out data.");
    }
    for (data, measures) in found {
        let compared = measures.iter().any(|m| m.before.is_some());
        let mut head = vec!["metric".to_string()];
        head.extend(compared.then(|| "before".to_string()));
        head.extend(["value".to_string(), "95 % interval".to_string()]);
        let mut table = vec![head];
        for m in measures {
            let mut row = vec![m.name];
            row.extend(compared.then(|| m.before.map_or("-".into(), number)));
            row.push(number(m.value));
            row.push(m.interval.map_or("-".into(), |[low, high]| format!("{} to {}", number(low), number(high))));
            table.push(row);
        }
        text += &format!("\n{data}:\n\n{}\n", table_of(&table));
    }
    if let Some(card) = &run.card {
        let [low, high] = card.accuracy.interval;
        text += &format!(
            "\nRight on {:.3} of {} held-out pairs (95 % {low:.3} to {high:.3}); by the length of answers alone {:.3}.\n",
            card.accuracy.share,
            count(card.pairs as u64),
            card.length.longer_wins.max(card.length.shorter_wins)
        );
    }
    let reward = |key: &str| run.held_out.as_ref().and_then(|found| found[key].as_f64());
    if let (Some(before), Some(after)) = (reward("reward_before"), reward("reward_after")) {
        text += &format!(
            "\nMean reward of answers to held-out prompts: {} before, {} after.\n",
            number(before),
            number(after)
        );
    }
    Some(text.trim_end().to_string())
}

fn machine(run: &RunFolder) -> Option<String> {
    let e = &run.facts.as_ref()?.environment;
    let seconds = run.seconds();
    let mut rows = vec![
        ("device", format!("{} ({}), {} threads", plain(&e.device_name), plain(&e.device), e.threads)),
        ("time", report::duration(Duration::from_secs_f64(seconds))),
    ];
    if let Some(speed) = run.history.tokens_per_s() {
        rows.push(("speed", format!("{} tokens/s", count(speed.round() as u64))));
    }
    if run.history.memory() > 0 {
        rows.push(("memory", format!("{} of tensors at most", report::bytes(run.history.memory()))));
    }
    let energy = match energy::estimate(e, seconds) {
        Some(found) => format!("about {} kWh; estimated, not measured: {}", number(found.kwh), found.basis),
        None => "not estimated: the power of this GPU is not known".into(),
    };
    rows.push(("energy", energy));
    rows.push(("programs", format!("ft {}, libtorch {}", plain(&e.ft), plain(&e.libtorch))));
    Some(format!("## Machine\n\n{}", list(&rows)))
}

fn limits(run: &RunFolder) -> Option<String> {
    let mut points = vec![
        "The results above hold for the data named there. Nothing else was measured: not safety, not bias, not what the base could \
         do before."
            .to_string(),
    ];
    if !run.plan.recipe.model.is_random() {
        points.push(format!("Licence and limits of {} apply to this result, too.", base_name(run)));
    }
    let patient = DiagnosisInput { plan: &run.plan, facts: run.facts.as_ref(), history: &run.history };
    points.extend(diagnose(patient).iter().map(|f| {
        let evidence: Vec<String> = f.evidence.iter().map(|(k, v)| format!("{k} {v}")).collect();
        format!("Found in the run: {} ({}).", plain(&f.title), plain(&evidence.join("; ")))
    }));
    Some(format!("## Limits\n\n- {}", points.join("\n- ")))
}

/// Lists which programs read the result, as its export found.
fn readers(run: &RunFolder) -> Option<String> {
    let found = run.export.as_ref()?["compatibility"].as_array()?;
    let row = |c: &Value| {
        // Reports of earlier versions have no command, and no answer "not known".
        let reads = match c["reads"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not known",
        };
        let note = [c["note"].as_str(), c["command"].as_str()].into_iter().flatten().filter(|text| !text.is_empty());
        let note = note.collect::<Vec<_>>().join(": ");
        Some(vec![plain(c["consumer"].as_str()?), reads.to_string(), plain(&note)])
    };
    let mut table = vec![["program", "reads it", ""].map(String::from).to_vec()];
    table.extend(found.iter().filter_map(row));
    (table.len() > 1).then(|| format!("## Which programs read it\n\n{}", table_of(&table)))
}

/// Returns the recipe as it was written, with what was set beside it.
fn recipe(run: &RunFolder) -> Option<String> {
    let text = run.plan.text.trim_end();
    // A fence longer than any in the text, so that the text cannot end it.
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let sets: String =
        run.plan.sets.iter().map(|set| format!("\n    --set {}", printable(set).replace('\n', " "))).collect();
    let sets = if sets.is_empty() { sets } else { format!("\n\nChanged on the command line:\n{sets}") };
    Some(format!(
        "## Recipe\n\n{fence}yaml\n{text}\n{fence}{sets}\n\n`{}` has the hashes of all inputs and of the result.",
        lock::FILE
    ))
}

fn base_name(run: &RunFolder) -> String {
    file_name(&run.plan.recipe.model.path)
}

/// Returns the last part of a path: where files lie on the machine that trained is nobody's business.
fn file_name(path: &Path) -> String {
    plain(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
}

/// Returns text on one line in which nothing acts as Markdown or HTML.
fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '\n' | '\r' | '\t' => safe.push(' '),
            '|' | '*' | '_' | '`' | '[' | ']' | '<' | '>' | '\\' | '#' => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

fn count(n: u64) -> String {
    report::count(n)
}

/// Returns a Markdown list of names with values.
fn list(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("- {name}: {value}")).collect::<Vec<_>>().join("\n")
}

/// Returns a Markdown table; the first row is its head.
fn table_of(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |", row.join(" | "));
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.insert(1, format!("|{}", "---|".repeat(rows[0].len())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::model_card::example;
    use serde_json::json;

    #[test]
    fn a_card_has_what_was_recorded_and_no_place_of_the_machine() {
        let mut run = example::finished();
        run.evaluations.push((
            "eval.json".into(),
            json!({ "data": "/home/me/secret/test.jsonl", "rows": 105,
            "exact_match": 0.771, "exact_match_ci": [0.68, 0.84], "exact_match_ignoring_case": null }),
        ));
        let card = sections(&run);
        for part in [
            "- steps: 2 (1.00 epochs, 640 tokens)",
            "| training | train.jsonl | 10 | 10 | 640 | 25.0 % | `aa` |",
            "Too long for 128 tokens: 3 dropped.",
            "| loss | 3.5000 | 1.2500 | - |",
            "test.jsonl:\n",
            "| exact\\_match | 0.7710 | 0.6800 to 0.8400 |",
            "estimated, not measured",
            "yaml\nmodel:",
        ] {
            assert!(card.contains(part), "{part}\n{card}");
        }
        assert!(!card.contains("/home/me"), "{card}");
        assert!(!card.contains("| rows | 105"), "{card}");
    }

    #[test]
    fn without_measurements_the_card_says_so() {
        let mut run = example::finished();
        run.history.validations.clear();
        assert!(sections(&run).contains("Nothing was measured on held-out data."));
    }

    #[test]
    fn a_recipe_cannot_leave_its_fence_and_names_cannot_act() {
        let mut run = example::finished();
        run.plan.text = "# ````\n".into();
        assert!(sections(&run).contains("`````yaml\n# ````\n`````"));
        assert_eq!(plain("a|b\n<script>*x*"), "a\\|b \\<script\\>\\*x\\*");
    }
}
