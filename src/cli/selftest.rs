//! `ft selftest`: checks that a given model is computed correctly on a given device.

use super::shared::model::ModelArgs;
use clap::Args;
use ft::data::chat::ChatTokenizer;
use ft::error::{Error, Result};
use ft::selftest;
use ft::selftest::compare::{CheckResult, CheckVerdict};
use ft::selftest::input::{SelftestInput, TEXTS};
use ft::{models, native, report};
use serde_json::json;
use std::time::Instant;
use tch::Kind;

/// Check that training and generation compute correct numbers with your model and device
///
/// Each check computes one result in two ways and compares: gradients and finite differences, micro-batches and one
/// batch, packed and single rows, recomputed and stored layers, merged and adapted weights, cached and full passes, a
/// resumed and an uninterrupted run. Without --adapter, a LoRA of random noise on all linear layers is tested. Nothing
/// on disk changes.
#[derive(Args)]
pub struct SelftestArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `ft selftest`. Fails if a check fails.
pub fn run(args: SelftestArgs) -> Result<()> {
    let began = Instant::now();
    let tokenizer = ChatTokenizer::load(&args.model.model, None)?;
    let rows = TEXTS.iter().map(|t| tokenizer.encode_plain(t)).collect::<Result<Vec<_>>>()?;
    let device = models::device(&args.model.device)?;
    let subject = SelftestInput {
        device,
        kind: args.model.dtype.choose_kind(device, &args.model.model)?,
        model: args.model.model,
        adapter: args.model.adapter.folder,
        rows,
    };
    let checks = report::enclosing_work("checks");
    let lines = selftest::run(&subject, &mut |line| {
        checks.inc(1);
        if !args.json {
            println!("{}", check_text(line));
        }
    })?;
    checks.finish_and_clear();
    let count = |verdict| lines.iter().filter(|l| l.verdict == verdict).count();
    let (passed, failed, skipped) =
        (count(CheckVerdict::Passed), count(CheckVerdict::Failed), count(CheckVerdict::Skipped));
    let seconds = began.elapsed();
    if args.json {
        let value = json!({
            "model": subject.model, "adapter": subject.adapter, "device": format!("{:?}", subject.device),
            "dtype": match subject.kind {
                Kind::BFloat16 => "bf16",
                Kind::Half => "f16",
                _ => "f32",
            },
            "passed": passed, "failed": failed, "skipped": skipped, "seconds": seconds.as_secs_f64(), "checks": lines,
        });
        println!("{value}");
    } else {
        let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        let memory = native::memory(subject.device)?.peak;
        println!(
            "\n{passed} passed, {failed} failed{skipped} in {}; peak tensor memory {}",
            report::duration(seconds),
            report::bytes(memory)
        );
    }
    if failed == 0 {
        return Ok(());
    }
    let names: Vec<&str> = lines.iter().filter(|l| l.verdict == CheckVerdict::Failed).map(|l| l.name).collect();
    Err(Error::user(format!(
        "{}: {failed} of {} checks failed: {}",
        subject.model.display(),
        lines.len(),
        names.join(", ")
    ))
    .hint("do not trust a training run on this model and device yet")
    .hint("try --dtype f32 and --device cpu to find the cause; weights with NaN fail everywhere"))
}

/// Formats a check as two lines: what was compared, then the difference, its limit and the reason of the limit.
fn check_text(line: &CheckResult) -> String {
    let verdict = match line.verdict {
        CheckVerdict::Passed => "ok   ",
        CheckVerdict::Failed => "FAIL ",
        CheckVerdict::Skipped => "skip ",
    };
    let head = format!("{verdict} {:<13} {:<5} {}", line.name, line.dtype, line.compared);
    let Some(difference) = line.difference else { return format!("{head}\n      {}", line.reason) };
    let at = if difference == 0.0 || line.at.is_empty() { String::new() } else { format!(" ({})", line.at) };
    format!(
        "{head}\n      differs by {difference:.1e}{at}, at most {:.1e}: {}  [{:.1} s]",
        line.tolerance, line.reason, line.seconds
    )
}
