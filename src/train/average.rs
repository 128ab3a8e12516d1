//! The mean of a run's last checkpoints as its result (`run.result: { average: N }`), as Vaswani et al. 2017 (arXiv 1706.03762,
//! section 6.1) average theirs.
//!
//! Only checkpoints that `run.save_every` asks for count, and that of the last step: others, saved because a validation was
//! better or a signal arrived, depend on how the run went. The mean is made from the checkpoints' files when training is
//! over, so it needs no memory while the run trains, and a resumed run gets the same one.

use super::checkpoint::{BestValidation, Checkpoints};
use super::records::RunRecorder;
use crate::error::{Error, Result};
use crate::methods::contract::{Method, SelectionMetric};
use crate::models::Model;
use crate::recipe::sections::RunSection;
use crate::report;
use crate::runs::averaged::AveragedResult;

/// Which checkpoints of a run are averaged.
#[derive(Debug, Clone, Copy)]
pub struct AveragedCheckpoints {
    /// How many.
    count: usize,
    /// Steps from one to the next.
    every: u64,
}

impl AveragedCheckpoints {
    /// Returns those that a run's settings ask for; `None` if its result is no mean.
    pub fn of(run: &RunSection) -> Option<Self> {
        Some(Self { count: run.result.averaged()?, every: run.save_every })
    }

    /// Returns those of a run that ends with step `last`, among checkpoints in ascending order.
    pub fn among(self, steps: &[u64], last: u64) -> Vec<u64> {
        let scheduled = |s: &u64| *s == last || (*s < last && self.every > 0 && s.is_multiple_of(self.every));
        let all: Vec<u64> = steps.iter().copied().filter(scheduled).collect();
        all[all.len().saturating_sub(self.count)..].to_vec()
    }
}

/// Fails if a run of `total` steps saves fewer checkpoints than are to be averaged.
pub fn check_length(run: &RunSection, total: u64) -> Result<()> {
    let Some(AveragedCheckpoints { count, every }) = AveragedCheckpoints::of(run) else { return Ok(()) };
    let saved = total.div_ceil(every.max(1));
    if saved >= count as u64 {
        return Ok(());
    }
    Err(Error::user(format!(
        "run.result: the mean of {count} checkpoints, but a run of {total} steps saves {saved} (run.save_every {every})"
    ))
    .hint(format!("average {saved} or fewer, or set run.save_every to at most {}", (total / count as u64).max(1))))
}

/// Gives the model the mean of the run's last checkpoints, whose steps are `steps`, and validates it. Damaged ones are
/// left out, with a warning. Fails if none is left.
pub fn use_average(
    checkpoints: &Checkpoints,
    steps: Vec<u64>,
    model: &Model,
    method: &mut dyn Method,
    records: &RunRecorder,
) -> Result<AveragedResult> {
    let last = *steps.last().ok_or_else(|| Error::bug("a run without a checkpoint of its last step"))?;
    let (good, damaged): (Vec<u64>, Vec<u64>) = steps.into_iter().partition(|step| checkpoints.is_good(*step));
    for step in &damaged {
        report::warn(format!("the checkpoint of step {step} is damaged and left out of the average"));
    }
    if good.is_empty() {
        return Err(Error::user("all checkpoints that were to be averaged are damaged")
            .hint("start anew with --overwrite or another run.out"));
    }
    checkpoints.restore_mean(&good, model)?;
    let aim = method.selection_metric();
    let averaging = report::spinner("validating the average of checkpoints");
    let means = method.validate(model)?;
    averaging.finish_and_clear();
    Ok(AveragedResult {
        steps: good,
        metric: aim.metric.into(),
        value: means.and_then(|means| means.get(aim.metric).copied()).filter(|v| v.is_finite()),
        last_value: records.validated(last, aim.metric),
    })
}

/// Reports the average beside the last and the best weights, with a warning if these are better.
pub fn report_average(average: &AveragedResult, best: Option<BestValidation>, aim: SelectionMetric) {
    let best = best.map(|b| (b.step, b.value));
    report::info(format!("the result is {}", average.describe(best)));
    let others = average.last_value.into_iter().chain(best.map(|(_, value)| value));
    if average.value.is_some_and(|value| others.into_iter().any(|other| aim.better(other, value))) {
        report::warn(
            "other weights of this run validate better than the average; `run.result: best` publishes the best",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_checkpoints_of_the_schedule_are_averaged() {
        let averaged = AveragedCheckpoints { count: 3, every: 10 };
        assert_eq!(averaged.among(&[10, 20, 30, 34, 40, 45], 45), [30, 40, 45]);
        // A validation was better at 34, and a signal arrived at 41.
        assert_eq!(averaged.among(&[10, 20, 30, 34, 40, 41, 50], 50), [30, 40, 50]);
        assert_eq!(averaged.among(&[10, 17], 17), [10, 17]);
        // What a run that goes on needs later is among those that are kept now.
        let now = averaged.among(&[10, 20, 30, 40], 40);
        assert!(averaged.among(&[10, 20, 30, 40, 45], 45).iter().all(|s| *s == 45 || now.contains(s)));
    }
}
