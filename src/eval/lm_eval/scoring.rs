//! How answers are made and scored: `generation_kwargs`, `filter_list`, `metric_list`, `repeats`.

use super::patterns::translated;
use super::task::TaskConversion;
use crate::data::source::RowColumns;
use crate::recipe::lm_eval_file::TaskValue;
use crate::recipe::suite_file::RegexFilter;
use serde_json::{Map, Value, json};

/// What lm-evaluation-harness generates at most if a task does not say it.
const NEW_TOKENS: u64 = 256;
const TOKEN_KEYS: [&str; 4] = ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"];
const CHOICE_METRICS: [&str; 7] = ["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score", "f1", "mcc"];
const WRITTEN_METRICS: [&str; 5] = ["exact_match", "bleu", "chrf", "chrf++", "ter"];
/// The column whose list `multi_choice_regex` reads.
const CHOICES: &str = "choices";

/// Filters of one name, in the words of a suite.
#[derive(Default)]
struct Pipeline {
    name: String,
    filters: Vec<Value>,
    /// The first so many answers are used.
    first: Option<u64>,
    vote: bool,
}

impl TaskConversion<'_> {
    /// Returns the metrics of a task with choices.
    pub(super) fn choice_metrics(&mut self) -> Option<Vec<String>> {
        let metrics = self.metrics_among(&CHOICE_METRICS, &["acc", "acc_norm"])?;
        if self.task.get("filter_list").is_some() {
            self.notes.add(super::NoteStatus::Unused, "filter_list", "nothing is taken of likelihoods");
        }
        Some(metrics)
    }

    /// Returns those metrics of a task that ft has; `None` if there is none, which is noted.
    pub(super) fn metrics_among(&mut self, known: &[&str], default: &[&str]) -> Option<Vec<String>> {
        let entries = self.metric_entries();
        if self.task.get("metric_list").is_none() {
            return Some(default.iter().map(|name| name.to_string()).collect());
        }
        let mut found: Vec<String> = Vec::new();
        for (name, entry) in entries {
            if let Some(function) = entry.function() {
                self.notes
                    .refused_part("metric_list", format!("`{name}`: the Python function `{function}` is not run"));
            } else if !known.contains(&name.as_str()) {
                let note = format!("there is no metric `{name}` for this kind of task: there are {}", known.join(", "));
                self.notes.refused_part("metric_list", note);
            } else if !found.contains(&name) {
                self.notes.mapped("metric_list", format!("`{name}`"));
                found.push(name);
            }
        }
        if found.is_empty() {
            let note =
                format!("none of its metrics is left; choose others, --set 'metric_list=[{{metric: {}}}]'", default[0]);
            self.notes.refused("metric_list", note);
            return None;
        }
        Some(found)
    }

    fn metric_entries(&self) -> Vec<(String, TaskValue)> {
        let Some(TaskValue::List(entries)) = self.task.get("metric_list").map(|key| &key.value) else {
            return Vec::new();
        };
        let name = |entry: &TaskValue| match entry.get("metric") {
            Some(TaskValue::Function(name)) => name.clone(),
            other => other.and_then(TaskValue::text).unwrap_or_default().to_string(),
        };
        entries.iter().map(|entry| (name(entry), entry.clone())).collect()
    }

    /// Returns the settings of kind `generate`, one for each list of filters, with its name.
    pub(super) fn scoring(&mut self) -> Option<Vec<(String, Map<String, Value>)>> {
        let metrics = self.metrics_among(&WRITTEN_METRICS, &["exact_match"]);
        let mut kind = Map::from_iter([("metrics".to_string(), Value::from(metrics.clone().unwrap_or_default()))]);
        self.exact_match(&mut kind);
        let sampled = self.generation(&mut kind);
        let pipelines = self.pipelines();
        metrics?;
        let of = |mut pipeline: Pipeline| {
            let mut kind = kind.clone();
            if !pipeline.filters.is_empty() {
                kind.insert("extract".into(), std::mem::take(&mut pipeline.filters).into());
            }
            if let Some((mut samples, repeats)) = sampled.clone() {
                let answers = if pipeline.vote { pipeline.first.unwrap_or(repeats) } else { 1 };
                samples.insert("answers".into(), answers.into());
                samples.insert("vote".into(), pipeline.vote.into());
                kind.insert("samples".into(), samples.into());
            }
            (pipeline.name, kind)
        };
        Some(pipelines?.into_iter().map(of).collect())
    }

    /// Adds what exact match ignores.
    fn exact_match(&mut self, kind: &mut Map<String, Value>) {
        let entries = self.metric_entries();
        let entry = entries.iter().find(|(name, _)| name == "exact_match").map(|(_, entry)| entry.clone());
        if entry.is_none() && self.task.get("metric_list").is_some() {
            return;
        }
        let argument = |name: &str| entry.as_ref().and_then(|entry| entry.get(name));
        let normalise: Vec<&str> =
            [("ignore_case", "case"), ("ignore_punctuation", "punctuation"), ("ignore_numbers", "numbers")]
                .into_iter()
                .filter(|(name, _)| argument(name) == Some(&TaskValue::Scalar(true.into())))
                .map(|(_, ours)| ours)
                .collect();
        kind.insert("normalise".into(), json!(normalise));
        if let Some(TaskValue::List(items)) = argument("regexes_to_ignore") {
            let mut ignored = Vec::new();
            for item in items {
                match item.text().ok_or("no text".to_string()).and_then(translated) {
                    Ok(pattern) => ignored.push(pattern),
                    Err(fault) => self.notes.refused("metric_list", format!("`regexes_to_ignore`: {fault}")),
                }
            }
            kind.insert("ignore".into(), json!(ignored));
        }
    }

    /// Adds how answers are generated. Returns settings of sampling and how many answers there are, if answers are sampled.
    fn generation(&mut self, kind: &mut Map<String, Value>) -> Option<(Map<String, Value>, u64)> {
        let settings = self.task.get("generation_kwargs").map(|key| key.value.clone());
        let get = |name: &str| settings.as_ref().and_then(|settings| settings.get(name)).and_then(TaskValue::to_json);
        let stop: Vec<String> = match get("until") {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_string).collect(),
            _ => vec![self.task.text("fewshot_delimiter").unwrap_or("\n\n").to_string()],
        };
        kind.insert("stop".into(), stop.into_iter().filter(|text| !text.is_empty()).collect());
        let tokens =
            TOKEN_KEYS.iter().find_map(|name| get(name)).and_then(|value| value.as_u64()).unwrap_or(NEW_TOKENS);
        kind.insert("max_new_tokens".into(), tokens.into());
        if settings.is_some() {
            self.notes.mapped("generation_kwargs", "`generate.stop`, `generate.max_new_tokens`");
        }
        let temperature = get("temperature").and_then(|value| value.as_f64()).unwrap_or(0.0);
        let sampled = match get("do_sample") {
            Some(Value::Bool(sampled)) => sampled,
            _ => temperature > 0.0,
        };
        if let Some(TaskValue::Map(entries)) = &settings {
            for (name, value) in entries {
                let read = ["until", "temperature", "do_sample", "top_p"].contains(&name.as_str())
                    || TOKEN_KEYS.contains(&name.as_str());
                let same = name == "num_beams" && *value == TaskValue::Scalar(1.into());
                if !read && !same {
                    let told = value.to_json().unwrap_or_default();
                    self.notes.refused_part(
                        "generation_kwargs",
                        format!("`{name}: {told}` is not there; answers are generated without it"),
                    );
                }
            }
        }
        let repeats =
            self.task.get("repeats").and_then(|key| key.value.to_json()).and_then(|value| value.as_u64()).unwrap_or(1);
        if !sampled {
            if self.task.get("repeats").is_some() {
                let note =
                    if repeats > 1 { "greedy answers to one prompt are equal: one is generated" } else { "one answer" };
                self.notes.mapped("repeats", note);
            }
            return None;
        }
        self.notes.approximated("generation_kwargs", "sampled answers are others than those of another program");
        let mut samples = Map::new();
        samples.insert("answers".into(), repeats.into());
        if temperature > 0.0 {
            samples.insert("temperature".into(), json!(temperature));
        }
        if let Some(top_p) = get("top_p").filter(|value| value.as_f64().is_some_and(|p| p < 1.0)) {
            samples.insert("top_p".into(), top_p);
        }
        if self.task.get("repeats").is_some() {
            self.notes.mapped("repeats", "`generate.samples.answers`");
        }
        Some((samples, repeats))
    }

    /// Returns the lists of filters that ft has; `None` if there is none left.
    fn pipelines(&mut self) -> Option<Vec<Pipeline>> {
        let Some(key) = self.task.get("filter_list") else { return Some(vec![Pipeline::default()]) };
        let TaskValue::List(lists) = key.value.clone() else {
            self.notes.refused("filter_list", "expected a list");
            return None;
        };
        let mut found = Vec::new();
        for list in &lists {
            let name = list.get("name").and_then(TaskValue::text).unwrap_or("filter").to_string();
            let Some(TaskValue::List(steps)) = list.get("filter") else {
                self.notes.refused_part("filter_list", format!("`{name}` has no list `filter`"));
                continue;
            };
            match pipeline(&name, steps, &self.row) {
                Ok(pipeline) => {
                    self.notes.mapped("filter_list", format!("`{name}`: `generate.extract`"));
                    if pipeline.filters.contains(&TAGS.into()) {
                        let note = format!("`{name}`: the tags of an answer are one text with spaces between them");
                        self.notes.approximated("filter_list", note);
                    }
                    found.push(pipeline);
                }
                Err(why) => self.notes.refused_part("filter_list", format!("`{name}`: {why}")),
            }
        }
        if found.is_empty() {
            let hint = "write its regular expression as `regex`, or score answers as they are with --set filter_list=";
            self.notes.refused("filter_list", format!("none of its lists is left: {hint}"));
            return None;
        }
        Some(found)
    }
}

/// The filter of tags in a suite.
const TAGS: &str = "tags";

/// Translates the settings of a regular expression.
fn regex_filter(get: &dyn Fn(&str) -> Option<Value>) -> Result<Map<String, Value>, String> {
    let pattern =
        get("regex_pattern").map_or(r"#### (\-?[0-9\.\,]+)".into(), |p| p.as_str().unwrap_or_default().to_string());
    let mut filter = Map::from_iter([("regex".to_string(), Value::from(translated(&pattern)?))]);
    if let Some(pick) = get("group_select").filter(|pick| *pick != json!(0)) {
        filter.insert("pick".into(), pick);
    }
    if let Some(text) = get("fallback").filter(|text| *text != json!(RegexFilter::OTHERWISE)) {
        filter.insert("otherwise".into(), text);
    }
    Ok(filter)
}

/// Translates `multi_choice_regex`, which reads the list `choices` of a row.
fn letter_filter(get: &dyn Fn(&str) -> Option<Value>, row: &RowColumns) -> Result<Map<String, Value>, String> {
    if !matches!(row.get(CHOICES), Some(Value::Array(_))) {
        return Err(format!(
            "`multi_choice_regex` reads the column `{CHOICES}`, a list: give it with --column '{CHOICES}={{{{ … }}}}'"
        ));
    }
    let mut filter = Map::from_iter([("letter_of".to_string(), Value::from(format!("{{{{ {CHOICES} }}}}")))]);
    filter.extend(regex_filter(get)?);
    let normalise: Vec<&str> = [("ignore_case", "case"), ("ignore_punctuation", "punctuation")]
        .into_iter()
        .filter(|(name, _)| get(name) == Some(json!(true)))
        .map(|(_, ours)| ours)
        .collect();
    if !normalise.is_empty() {
        filter.insert("normalise".into(), json!(normalise));
    }
    if let Some(Value::Array(items)) = get("regexes_to_ignore") {
        let ignored: Result<Vec<String>, String> =
            items.iter().map(|item| item.as_str().ok_or("no text".to_string()).and_then(translated)).collect();
        filter.insert("ignore".into(), json!(ignored?));
    }
    Ok(filter)
}

/// Translates a list of filters. Errors: what is not there.
fn pipeline(name: &str, steps: &[TaskValue], row: &RowColumns) -> Result<Pipeline, String> {
    let mut found = Pipeline { name: name.into(), ..Pipeline::default() };
    for step in steps {
        let get = |key: &str| step.get(key).and_then(TaskValue::to_json);
        if let Some(function) = step.function() {
            return Err(format!("the Python function `{function}` is not run"));
        }
        match step.get("function").and_then(TaskValue::text).unwrap_or_default() {
            "take_first" => {}
            "take_first_k" => found.first = get("k").and_then(|k| k.as_u64()),
            "majority_vote" => found.vote = true,
            "remove_whitespace" => found.filters.push("strip".into()),
            word @ ("lowercase" | "uppercase") => found.filters.push(word.into()),
            "regex" => found.filters.push(regex_filter(&get)?.into()),
            "multi_choice_regex" => found.filters.push(letter_filter(&get, row)?.into()),
            "regex_pos" if get("fallback").is_some() => return Err("`regex_pos` with another `fallback`".into()),
            "regex_pos" => found.filters.push(TAGS.into()),
            "map" => {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
                let Some(Value::Object(entries)) = get("mapping_dict") else {
                    return Err("`map` has no `mapping_dict`".into());
                };
                let map: Map<String, Value> =
                    entries.iter().map(|(from, to)| (from.clone(), text(to).into())).collect();
                let otherwise = get("default_value").map_or(RegexFilter::OTHERWISE.to_string(), |value| text(&value));
                found.filters.push(json!({ "map": map, "otherwise": otherwise }));
            }
            other => return Err(format!("there is no filter `{other}`")),
        }
    }
    Ok(found)
}
