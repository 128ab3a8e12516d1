//! Suites of `ft eval` and of runs (`run.evaluate`): asking a run's result, gates, and showing results.

use ft::data::chat::ChatTokenizer;
use ft::error::{Error, Result};
use ft::eval::comparison::GateOutcome;
use ft::eval::report::{EvaluationReport, PAGE};
use ft::eval::results::{Subject, SuiteResults, TaskResults};
use ft::eval::suite::cache::AnswerCache;
use ft::eval::suite::{SuiteBaseline, SuiteSubject, run_suite, write_results};
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::models::{self, content_hash};
use ft::recipe::gate::Gate;
use ft::recipe::plan::Plan;
use ft::recipe::suite_file::{self, SuiteFile, SuiteTask, TaskKind};
use ft::stats::bootstrap::Estimate;
use ft::train::prepare::formats;
use ft::{fsutil, report};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The file of answers beside the results of a suite.
pub const CACHE: &str = "cache.jsonl";
/// The folder of a run in which the results of `run.evaluate` are.
pub const OF_RUN: &str = "evaluation";

/// Reads the suite that a run is asked, if its recipe names one: before the training, so that a mistake is told then.
///
/// Errors: the file has mistakes, or compares answers with those of the model before the run, and the run begins with random weights.
pub fn of_plan(plan: &Plan) -> Result<Option<SuiteFile>> {
    let Some(path) = plan.recipe.run.evaluate.as_deref() else { return Ok(None) };
    let suite = suite_file::read(path)?;
    let compares = |task: &&SuiteTask| match &task.kind {
        TaskKind::Generate(generate) => generate.compares_with_baseline(),
        _ => false,
    };
    match suite.tasks.iter().find(compares).filter(|_| plan.recipe.model.is_random()) {
        Some(task) => Err(Error::user(format!(
            "{}: task `{}` compares answers with those of the model before the run, and this run begins with random weights",
            path.display(),
            task.name
        ))
        .hint("compare with the expected answers: `compare: { against: answer, … }`; or use `ft eval` after the run")),
        None => Ok(Some(suite)),
    }
}

/// Asks a suite of the model as it was before a run and of the run's result, and writes results and report into the run's folder.
pub fn evaluate_run(plan: &Plan, suite: &SuiteFile) -> Result<EvaluationReport> {
    let (recipe, out) = (&plan.recipe, plan.recipe.run.out.as_path());
    let folder = out.join(OF_RUN);
    fsutil::create_dir_all(&folder)?;
    let mut cache = AnswerCache::open(&folder.join(CACHE))?;
    let base = recipe.model.path.as_path();
    let mut asked: Vec<(&str, &Path, Option<&Path>)> = Vec::new();
    if !recipe.model.is_random() {
        let continued = recipe.adapter.as_ref().and_then(|adapter| adapter.continues());
        asked.push(("before", base, continued));
    }
    asked.push(match out.join("adapter_config.json").is_file() {
        true => ("after", base, Some(out)),
        false => ("after", out, None),
    });
    let name = recipe.run.evaluate.as_ref().map_or(String::new(), |path| path.display().to_string());
    let mut results: Option<SuiteResults> = None;
    for (subject, base, adapter) in asked {
        // Answers are compared with those of the model before the run.
        let baseline = results.as_ref().map_or(SuiteBaseline::ForLater, SuiteBaseline::Results);
        let found = evaluate(plan, (suite, &name), (subject, base, adapter), baseline, &mut cache)?;
        results = Some(match results {
            Some(results) => results.joined(found),
            None => found,
        });
    }
    let mut results = results.ok_or_else(|| Error::bug("a run without a result"))?;
    results.evaluated = Some(ft::runs::facts::now());
    write_results(&folder, &results)?;
    concluded(results, &suite.gates, Some(&folder))
}

/// Asks a suite of one model with the settings of a run.
fn evaluate(
    plan: &Plan,
    suite: (&SuiteFile, &str),
    (name, base, adapter): (&str, &Path, Option<&Path>),
    baseline: SuiteBaseline,
    cache: &mut AnswerCache,
) -> Result<SuiteResults> {
    let recipe = &plan.recipe;
    let device = models::device(&recipe.model.device)?;
    let kind = recipe.model.dtype.choose(device, Some(base))?.dtype.kind();
    let storage = formats::storage(recipe, device)?;
    let adapters: Vec<PathBuf> = adapter.map(Path::to_path_buf).into_iter().collect();
    let loading = report::spinner(&format!("loading {}", base.display()));
    let tokenizer = ChatTokenizer::load_for(base, adapter, &recipe.data.rendering()?)?;
    let model = models::open_stored(base, &adapters, device, kind, storage)?;
    let folders: Vec<&Path> = std::iter::once(base).chain(adapter).collect();
    let subject = SuiteSubject {
        info: Subject {
            name: name.into(),
            model: base.display().to_string(),
            adapter: adapter.map(|adapter| adapter.display().to_string()),
        },
        adapter: AnsweringAdapter::Active,
        tokenizer: &tokenizer,
        identity: format!("{} {kind:?} {storage:?} {device:?}", content_hash::hash(&folders)?),
    };
    drop(loading);
    run_suite(&model, suite, &[subject], baseline, cache)
}

/// Compares the models of an evaluation and checks the gates. Writes report.html and report.md if there is a folder for them.
pub fn concluded(results: SuiteResults, gates: &[Gate], out: Option<&Path>) -> Result<EvaluationReport> {
    let found = EvaluationReport::of(results, gates)?;
    if let Some(out) = out {
        found.write(out)?;
        report::info(format!("the report as a page: {}", out.join(PAGE).display()));
    }
    Ok(found)
}

/// Fails if a gate does not hold, or, if `certain`, not with its whole interval.
pub fn refuse_failed(outcomes: &[GateOutcome], certain: bool) -> Result<()> {
    let failed: Vec<&GateOutcome> = outcomes.iter().filter(|gate| !gate.holds || (certain && !gate.certain)).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = failed.iter().map(|gate| format!("`{}` for {}", gate.gate, gate.subject)).collect();
    let verb = if failed.len() == 1 { "does" } else { "do" };
    let how = if failed.iter().all(|gate| gate.holds) { " with certainty" } else { "" };
    Err(Error::user(format!("{} of {} gates {verb} not hold{how}: {}", failed.len(), outcomes.len(), named.join(", ")))
        .hint(format!("{PAGE} shows the items that became worse")))
}

/// Returns a number with its interval.
pub fn estimate(found: Option<Estimate>) -> String {
    let Some(Estimate { value, interval }) = found else { return "-".to_string() };
    format!("{value:.4}") + &interval.map_or(String::new(), |[a, b]| format!("  (95 % {a:.4} to {b:.4})"))
}

/// Returns the numbers without items and answers, and what they say.
pub fn as_json(found: &EvaluationReport) -> Value {
    let results = &found.results;
    let task = |task: &TaskResults| {
        let estimates: Vec<Value> = task.results.iter().map(|found| json!(found.estimates)).collect();
        json!({
            "name": task.name,
            "kind": task.kind,
            "main_metric": task.main_metric,
            "metrics": task.metrics,
            "data": task.data,
            "items": task.items.len(),
            "estimates": estimates,
        })
    };
    json!({
        "suite": results.suite,
        "title": results.title,
        "subjects": results.subjects,
        "tasks": results.tasks.iter().map(task).collect::<Vec<_>>(),
        "verdicts": found.verdicts(),
        "comparison": found.comparison,
        "gates": found.gates,
        "forgetting": found.forgetting,
        "groups": found.groups,
    })
}

/// Returns the numbers for a terminal, and what they say if several models were asked or the suite has gates.
pub fn summary(found: &EvaluationReport) -> String {
    let numbers = report::table(&table(&found.results));
    match found.results.subjects.len() > 1 || !found.gates.is_empty() || !found.groups.is_empty() {
        true => format!("{numbers}\n\n{}", report::for_stdout(&found.summary())),
        false => numbers,
    }
}

/// Returns a row for each metric of each task, with a column for each subject.
fn table(results: &SuiteResults) -> Vec<Vec<String>> {
    let titles = ["task", "items", "metric"].map(String::from).into_iter();
    let mut table = vec![titles.chain(results.subjects.iter().map(|subject| subject.name.clone())).collect::<Vec<_>>()];
    for task in &results.tasks {
        for (i, metric) in task.metrics.iter().enumerate() {
            let begin = match i {
                0 => [task.name.clone(), report::count(task.items.len() as u64)],
                _ => Default::default(),
            };
            let found = task.results.iter().map(|found| estimate(found.estimates.get(&metric.name).copied()));
            table.push(begin.into_iter().chain([metric.name.clone()]).chain(found).collect());
        }
    }
    table
}
