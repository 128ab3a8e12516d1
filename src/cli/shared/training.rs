//! Steps that the commands which train share: `ft train`, `check`, `resume` and `replay`.

use super::suite;
use ft::error::Result;
use ft::recipe::plan::Plan;
use ft::recipe::suite_file::SuiteFile;
use ft::runs::facts::Software;
use ft::{report, runtime, train};
use std::time::Duration;

/// Returns the plan, changed to fit into memory if --fit is given, and reports the change.
pub fn fit_plan(plan: Plan, fit: &Option<Option<String>>) -> Result<Plan> {
    let Some(size) = fit else { return Ok(plan) };
    let (plan, said) = train::fit::fit(&plan, size.as_deref().map(train::fit::parse_size).transpose()?)?;
    report::info(said);
    Ok(plan)
}

/// Reports how a run ended: as JSON on stdout or in one line on stderr.
pub fn print_summary(summary: &train::summary::RunSummary, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(summary).expect("a summary is JSON"));
        return Ok(());
    }
    let best =
        summary.best_value.map_or(String::new(), |v| format!(", best validation {} {v:.4}", summary.best_metric));
    report::info(format!(
        "{} steps, {} tokens in {}{best}, peak tensor memory {}",
        summary.steps,
        report::count(summary.tokens),
        report::duration(Duration::from_secs_f64(summary.seconds)),
        report::bytes(summary.memory),
    ));
    Ok(())
}

/// Asks the suite that the recipe names of the model before and after the run, and reports the numbers. Fails if one of its gates
/// does not hold; the run's result is kept.
pub fn evaluate(plan: &Plan, suite: Option<SuiteFile>) -> Result<()> {
    let Some(file) = suite else { return Ok(()) };
    let found = suite::evaluate_run(plan, &file)?;
    report::info(suite::summary(&found));
    suite::refuse_failed(&found.gates, false)
}

/// Returns the versions of ft and libtorch, which the run records.
pub fn software() -> Software {
    let libtorch = runtime::get().libtorch.version.clone();
    Software { ft: env!("CARGO_PKG_VERSION").into(), libtorch: libtorch.unwrap_or("unknown".into()) }
}
