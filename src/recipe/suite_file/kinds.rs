//! Reads what depends on the kind of a task.

use super::probe_types::{ExposureTask, MembershipTask, PairsTask};
use super::scorers::{SCORER_METRICS, is_scorer};
use super::task::{any_text, flip, positive, required};
use super::types::{
    AnswerFilter, AnswerMap, AnswerSampling, AnswerScore, ChoiceMetric, ChoiceTask, ChoiceTexts, GENERATE_METRICS,
    GenerateTask, LetterFilter, Normaliser, PerplexityTask, PerplexityUnit, RegexFilter, TaskKind,
};
use super::{scorer_keys, template, texts};
use crate::data::rows::RowTemplate;
use crate::recipe::mistakes::SourceSpan;
use crate::recipe::node_reader::NodeReader;
use crate::recipe::tree::{Node, NodeKey, NodeKind};
use fancy_regex::Regex;

const CHOICE_KEYS: [&str; 8] = ["choices", "answer", "continuation", "by", "shuffle", "metrics", "question", "texts"];
const GENERATE_KEYS: [&str; 7] = ["metrics", "max_new_tokens", "stop", "extract", "normalise", "ignore", "samples"];
const SAMPLES_KEYS: [&str; 5] = ["answers", "temperature", "top_p", "seed", "vote"];
const REGEX_KEYS: [&str; 3] = ["regex", "pick", "otherwise"];
const LETTER_KEYS: [&str; 6] = ["letter_of", "regex", "pick", "otherwise", "normalise", "ignore"];
const MAP_KEYS: [&str; 2] = ["map", "otherwise"];
const PERPLEXITY_KEYS: [&str; 4] = ["text", "window", "stride", "per"];

/// Returns the names of the metrics that a task of this kind has.
pub(super) fn metric_names(kind: &TaskKind) -> Vec<String> {
    match kind {
        TaskKind::Choice(choice) => choice.metrics.iter().map(|metric| metric.name().to_string()).collect(),
        TaskKind::Generate(generate) => {
            generate.metrics.iter().flat_map(|metric| generate.numbers_of(metric)).collect()
        }
        TaskKind::Perplexity(perplexity) => {
            let names = |unit: &PerplexityUnit| match unit {
                PerplexityUnit::Token => vec!["token_perplexity"],
                PerplexityUnit::Word => vec!["word_perplexity"],
                PerplexityUnit::Byte => vec!["byte_perplexity", "bits_per_byte"],
            };
            perplexity.per.iter().flat_map(names).map(str::to_string).collect()
        }
        TaskKind::Cloze => ["acc", "perplexity"].map(str::to_string).to_vec(),
        TaskKind::Pairs(pairs) => {
            let decides = |name: &&str| !PairsTask::NEUTRAL.iter().any(|(neutral, _)| neutral == name);
            pairs.metrics().filter(decides).map(str::to_string).collect()
        }
        TaskKind::Extraction(_) => ["extracted", "token_perplexity"].map(str::to_string).to_vec(),
        TaskKind::Membership(_) => MembershipTask::METRICS.map(str::to_string).to_vec(),
        TaskKind::Exposure(_) => ExposureTask::METRICS.map(str::to_string).to_vec(),
    }
}

pub(super) fn choice(reader: &mut NodeReader, node: &Node) -> Option<ChoiceTask> {
    reader.check_keys(node, &CHOICE_KEYS, "`choice`");
    let NodeKind::Map(_) = node.kind else { return None };
    let choices = required(reader, node, "choices", "[\"{{ a }}\", \"{{ b }}\"]").and_then(|n| choices(reader, n));
    let answer = required(reader, node, "answer", "\"{{ label }}\"").and_then(|n| template(reader, "answer", n));
    let continuation = node.get("continuation").map(|n| template(reader, "continuation", n));
    let letters = node.get("by").map(|n| {
        reader.choice("by", n, &["text", "letter"], |name| match name {
            "text" => Some(false),
            "letter" => Some(true),
            _ => None,
        })
    });
    let shuffle = node.get("shuffle").map(|n| reader.whole("shuffle", n));
    let names = ChoiceMetric::ALL.map(|(name, _)| name);
    let metrics = node.get("metrics").map(|n| names_of(reader, "metrics", n, &names, ChoiceMetric::named));
    if let (Some((key, _)), Some(_)) = (node.entry("continuation"), node.get("by")) {
        let hint = "leave out one of them: with `continuation`, the choices are prompts and have no letters";
        reader.wrong::<()>(key.at, "`continuation` beside `by`".into(), hint);
    }
    if let (Some(_), Some(metrics)) = (node.get("continuation"), node.get("metrics"))
        && names_in(metrics).any(|name| name == ChoiceMetric::MutualInformation.name())
    {
        let hint = "leave it out: with `continuation` the scored text is the same for each choice";
        reader.wrong::<()>(metrics.at, "`acc_mutual_info` beside `continuation`".into(), hint);
    }
    let question = node.get("question").map(|n| template(reader, "question", n));
    let says = node.get("texts").map(|n| template(reader, "texts", n));
    let asked = |metrics: &[ChoiceMetric]| {
        node.get("metrics").is_some_and(|n| names_in(n).any(|name| metrics.iter().any(|metric| metric.name() == name)))
    };
    let of_questions = asked(&[ChoiceMetric::QuestionExactMatch]);
    if let (Some((key, _)), false) = (node.entry("question"), of_questions) {
        reader.wrong::<()>(key.at, "`question` without the metric `question_em`".into(), "add it to `metrics`");
    }
    if let (Some(metrics), true, None) = (node.get("metrics"), of_questions, node.get("question")) {
        let hint = "say which rows are one question, e.g. `question: \"{{ questions.idx }}\"`";
        reader.wrong::<()>(metrics.at, "`question_em` without `question`".into(), hint);
    }
    if let (Some((key, _)), false) = (node.entry("texts"), asked(&[ChoiceMetric::TextF1, ChoiceMetric::TextExactMatch]))
    {
        let hint = "add `text_f1` or `text_em` to `metrics`: nothing else compares what choices say";
        reader.wrong::<()>(key.at, "`texts` without a metric of texts".into(), hint);
    }
    Some(ChoiceTask {
        question: flip(question)?,
        texts: flip(says)?,
        choices: choices?,
        answer: answer?,
        continuation: flip(continuation)?,
        letters: flip(letters)?.unwrap_or(false),
        shuffle: flip(shuffle)?.map(|seed| seed as u64),
        metrics: flip(metrics)?.unwrap_or_else(|| vec![ChoiceMetric::Accuracy, ChoiceMetric::PerCharacter]),
    })
}

fn choices(reader: &mut NodeReader, node: &Node) -> Option<ChoiceTexts> {
    match &node.kind {
        NodeKind::List(items) if items.len() < 2 => {
            reader.wrong(node.at, "`choices`: expected two or more".into(), "e.g. `choices: [\"yes\", \"no\"]`")
        }
        NodeKind::List(items) => {
            let each: Vec<_> = items.iter().map(|item| template(reader, "choices", item)).collect();
            each.into_iter().collect::<Option<_>>().map(ChoiceTexts::Each)
        }
        NodeKind::Scalar { .. } => template(reader, "choices", node).map(ChoiceTexts::List),
        NodeKind::Map(_) => {
            reader.expected("choices", node, "a list, or an expression that gives one", "\"{{ options }}\"")
        }
    }
}

/// Reads a list of names, or one name, each once.
fn names_of<T>(
    reader: &mut NodeReader,
    key: &str,
    node: &Node,
    names: &[&str],
    get: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let items = match &node.kind {
        NodeKind::List(_) => reader.list(key, node, &format!("[{}]", names[0]))?,
        _ => std::slice::from_ref(node),
    };
    let mut seen: Vec<&str> = Vec::new();
    for item in items {
        if let NodeKind::Scalar { text, .. } = &item.kind {
            if seen.contains(&text.as_str()) {
                reader.wrong::<()>(item.at, format!("`{key}` names `{text}` twice"), "name it once");
            }
            seen.push(text);
        }
    }
    let found: Vec<Option<T>> = items.iter().map(|item| reader.choice(key, item, names, &get)).collect();
    found.into_iter().collect()
}

/// Returns the names in a list, or the one name.
pub(super) fn names_in(node: &Node) -> impl Iterator<Item = &str> {
    let items = match &node.kind {
        NodeKind::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    items.iter().filter_map(|item| match &item.kind {
        NodeKind::Scalar { text, .. } => Some(text.as_str()),
        _ => None,
    })
}

pub(super) fn generate(reader: &mut NodeReader, node: &Node) -> Option<GenerateTask> {
    let empty = Node::map(node.at);
    let node = if node.is_null() { &empty } else { node };
    let keys: Vec<&str> = GENERATE_KEYS.into_iter().chain(scorer_keys::KEYS).collect();
    reader.check_keys(node, &keys, "`generate`");
    let NodeKind::Map(_) = node.kind else { return None };
    let compared = GENERATE_METRICS.map(|(name, _)| name);
    let known = |name: &str| (compared.contains(&name) || is_scorer(name)).then(|| name.to_string());
    let names: Vec<&str> = compared.into_iter().chain(SCORER_METRICS).collect();
    let metrics = node.get("metrics").map(|n| names_of(reader, "metrics", n, &names, known));
    let max_new_tokens = node.get("max_new_tokens").map(|n| positive(reader, "max_new_tokens", n));
    let stop = node.get("stop").map(|n| stop(reader, n));
    let extract = node.get("extract").map(|n| filters(reader, n));
    let names = Normaliser::ALL.map(|(name, _)| name);
    let normalise = node.get("normalise").map(|n| match &n.kind {
        NodeKind::List(items) if items.is_empty() => Some(Vec::new()),
        _ => names_of(reader, "normalise", n, &names, Normaliser::named),
    });
    let ignore = node.get("ignore").map(|n| ignored(reader, n));
    let samples = node.get("samples").map(|n| samples(reader, n));
    if let (Some(Some(samples)), Some(metrics)) = (&samples, node.get("metrics"))
        && !samples.vote
        && let Some(name) = names_in(metrics).find(|name| GENERATE_METRICS.contains(&(name, AnswerScore::Joint)))
    {
        let why = format!("`{name}` of several answers to each prompt: it has no value for each item");
        reader.wrong::<()>(metrics.at, why, "set `vote: true` in `samples`, so that one answer is scored");
    }
    let scorers = scorer_keys::scorers(reader, node)?;
    let (metrics, samples) = (flip(metrics)?, flip(samples)?);
    let metrics = metrics.unwrap_or_else(|| scorer_keys::default_metrics(&scorers));
    scorer_keys::check(reader, node, &metrics, &scorers, samples.as_ref());
    Some(GenerateTask {
        metrics,
        max_new_tokens: flip(max_new_tokens)?,
        stop: flip(stop)?,
        extract: flip(extract)?.unwrap_or_default(),
        normalise: flip(normalise)?.unwrap_or_else(|| vec![Normaliser::Whitespace]),
        ignore: flip(ignore)?.unwrap_or_default(),
        samples,
        scorers,
    })
}

fn stop(reader: &mut NodeReader, node: &Node) -> Option<Vec<String>> {
    let found = texts(reader, "stop", node, "[\"\\n\"]")?;
    match found.iter().any(String::is_empty) {
        true => reader.wrong(node.at, "`stop`: an empty text would end every answer".into(), "remove it"),
        false => Some(found),
    }
}

/// Checks that a text is a regular expression.
fn regex(reader: &mut NodeReader, key: &str, at: SourceSpan, pattern: String) -> Option<String> {
    match Regex::new(&pattern) {
        Ok(_) => Some(pattern),
        Err(e) => {
            let hint = "put it in single quotes, in which YAML changes no backslash: 'answer is (.*)'";
            reader.wrong(at, format!("`{key}`: `{pattern}` is no regular expression: {e}"), hint)
        }
    }
}

fn ignored(reader: &mut NodeReader, node: &Node) -> Option<Vec<String>> {
    let found = texts(reader, "ignore", node, "[',']")?;
    let each: Vec<_> = found.into_iter().map(|pattern| regex(reader, "ignore", node.at, pattern)).collect();
    each.into_iter().collect()
}

/// Reads one filter, or several in order.
fn filters(reader: &mut NodeReader, node: &Node) -> Option<Vec<AnswerFilter>> {
    let items = match &node.kind {
        NodeKind::List(_) => reader.list("extract", node, "['answer is (.*)']")?,
        _ => std::slice::from_ref(node),
    };
    let found: Vec<_> = items.iter().map(|item| filter(reader, item)).collect();
    found.into_iter().collect()
}

fn filter(reader: &mut NodeReader, node: &Node) -> Option<AnswerFilter> {
    match &node.kind {
        NodeKind::Scalar { text, plain: true } => match text.as_str() {
            "lowercase" => return Some(AnswerFilter::Lowercase),
            "uppercase" => return Some(AnswerFilter::Uppercase),
            "strip" => return Some(AnswerFilter::Strip),
            "tags" => return Some(AnswerFilter::Tags),
            _ => {}
        },
        NodeKind::Map(_) if node.get("map").is_some() => return answer_map(reader, node).map(AnswerFilter::Map),
        NodeKind::Map(_) if node.get("letter_of").is_some() => {
            return letter_filter(reader, node).map(AnswerFilter::Letter);
        }
        NodeKind::Map(_) => {
            reader.check_keys(node, &REGEX_KEYS, "a filter");
            return regex_filter(reader, node).map(AnswerFilter::Regex);
        }
        _ => {}
    }
    let example = "'answer is (.*)'";
    let pattern = reader.text("extract", node, "a regular expression, lowercase, uppercase, strip or tags", example)?;
    regex(reader, "extract", node.at, pattern).map(|pattern| AnswerFilter::Regex(RegexFilter::first(pattern)))
}

/// Reads `regex`, `pick` and `otherwise`.
fn regex_filter(reader: &mut NodeReader, node: &Node) -> Option<RegexFilter> {
    let pattern = required(reader, node, "regex", "'answer is (.*)'")
        .and_then(|n| reader.text("regex", n, "a regular expression", "'answer is (.*)'"))
        .and_then(|pattern| regex(reader, "regex", node.at, pattern));
    let pick = node.get("pick").map(|n| pick(reader, n));
    let otherwise = node.get("otherwise").map(|n| any_text(reader, "otherwise", n));
    Some(RegexFilter {
        pattern: pattern?,
        pick: flip(pick)?.unwrap_or_default(),
        otherwise: flip(otherwise)?.unwrap_or_else(|| RegexFilter::OTHERWISE.into()),
    })
}

/// Reads `{ letter_of: "{{ choices }}", regex: '…' }`.
fn letter_filter(reader: &mut NodeReader, node: &Node) -> Option<LetterFilter> {
    reader.check_keys(node, &LETTER_KEYS, "a filter with `letter_of`");
    let choices = template(reader, "letter_of", node.get("letter_of")?);
    let regex = regex_filter(reader, node);
    let names = ["case", "punctuation"];
    let known = |name: &str| Normaliser::named(name).filter(|_| names.contains(&name));
    let normalise = node.get("normalise").map(|n| names_of(reader, "normalise", n, &names, known));
    let ignore = node.get("ignore").map(|n| ignored(reader, n));
    let normalise = flip(normalise)?.unwrap_or_default();
    Some(LetterFilter {
        choices: choices?,
        regex: regex?,
        ignore_case: normalise.contains(&Normaliser::Case),
        ignore_punctuation: normalise.contains(&Normaliser::Punctuation),
        ignore: flip(ignore)?.unwrap_or_default(),
    })
}

/// Reads `{ map: { text: another }, otherwise: text }`.
fn answer_map(reader: &mut NodeReader, node: &Node) -> Option<AnswerMap> {
    reader.check_keys(node, &MAP_KEYS, "a filter with `map`");
    let map = node.get("map")?;
    let NodeKind::Map(entries) = &map.kind else {
        return reader.expected("map", map, "texts and what takes their place", "{ A: \"yes\", B: \"no\" }");
    };
    let entry = |(from, to): &(NodeKey, Node)| Some((from.text.clone(), any_text(reader, "map", to)?));
    let texts: Option<Vec<_>> = entries.iter().map(entry).collect();
    let otherwise = node.get("otherwise").map(|n| any_text(reader, "otherwise", n));
    Some(AnswerMap { texts: texts?, otherwise: flip(otherwise)? })
}

/// Reads a whole number, which may be negative.
fn pick(reader: &mut NodeReader, node: &Node) -> Option<i64> {
    match NodeReader::scalar(node) {
        crate::recipe::tree::Scalar::Int(n) if i64::try_from(n).is_ok() => Some(n as i64),
        _ => reader.expected("pick", node, "a whole number", "-1"),
    }
}

fn samples(reader: &mut NodeReader, node: &Node) -> Option<AnswerSampling> {
    reader.check_keys(node, &SAMPLES_KEYS, "`samples`");
    let NodeKind::Map(_) = node.kind else { return None };
    let answers = required(reader, node, "answers", "8").and_then(|n| positive(reader, "answers", n));
    let mut number = |key: &str| node.get(key).map(|n| reader.number(key, n).map(|x| (x, n.at)));
    let (temperature, top_p) = (number("temperature"), number("top_p"));
    let seed = node.get("seed").map(|n| reader.whole("seed", n));
    let vote = node.get("vote").map(|n| reader.truth("vote", n));
    if let Some(Some((x, at))) = temperature
        && x <= 0.0
    {
        let hint = "at 0 all answers would be equal; leave out `samples` for one greedy answer";
        reader.wrong::<()>(at, format!("`temperature`: expected a number above 0, found {x}"), hint);
    }
    if let Some(Some((x, at))) = top_p
        && !(x > 0.0 && x <= 1.0)
    {
        reader.wrong::<()>(at, format!("`top_p`: expected a share above 0 and at most 1, found {x}"), "e.g. 0.95");
    }
    Some(AnswerSampling {
        answers: answers?,
        temperature: flip(temperature)?.map_or(1.0, |(x, _)| x),
        top_p: flip(top_p)?.map_or(1.0, |(x, _)| x),
        seed: flip(seed)?.unwrap_or_default() as u64,
        vote: flip(vote)?.unwrap_or(true),
    })
}

pub(super) fn perplexity(reader: &mut NodeReader, node: &Node) -> Option<PerplexityTask> {
    let empty = Node::map(node.at);
    let node = if node.is_null() { &empty } else { node };
    reader.check_keys(node, &PERPLEXITY_KEYS, "`perplexity`");
    let NodeKind::Map(_) = node.kind else { return None };
    let text = node.get("text").map(|n| template(reader, "text", n));
    let window = node.get("window").map(|n| positive(reader, "window", n));
    let stride = node.get("stride").map(|n| positive(reader, "stride", n));
    if let (Some(Some(window)), Some(Some(stride))) = (window, stride)
        && stride > window
    {
        let at = node.nearest("stride");
        let why = format!("`stride`: {stride} tokens do not fit into a window of {window}");
        reader.wrong::<()>(at, why, "at most as large as `window`: smaller strides give each token more context");
    }
    let names = PerplexityUnit::ALL.map(|(name, _)| name);
    let per = node.get("per").map(|n| names_of(reader, "per", n, &names, PerplexityUnit::named));
    let default = || RowTemplate::compile("{{ text }}").ok();
    Some(PerplexityTask {
        text: flip(text)?.or_else(default)?,
        window: flip(window)?,
        stride: flip(stride)?,
        per: flip(per)?.unwrap_or_else(|| PerplexityUnit::ALL.map(|(_, unit)| unit).to_vec()),
    })
}

/// Reads `cloze`, which has no settings.
pub(super) fn cloze(reader: &mut NodeReader, node: &Node) -> Option<()> {
    match &node.kind {
        _ if node.is_null() => Some(()),
        NodeKind::Map(entries) if entries.is_empty() => Some(()),
        _ => reader.expected("cloze", node, "no settings", "{}"),
    }
}
