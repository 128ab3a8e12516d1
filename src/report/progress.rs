//! Shows the progress of long work: a bar on a terminal, lines at fixed time intervals in a log.
//!
//! In a log, lines are printed after a time, not after a number of items: an item that takes minutes, or a phase that
//! counts nothing, must not look like a process that hangs. Pieces of work can be nested; a line reports the innermost
//! one. Any other line on stderr also shows that the process is alive, so it postpones the next progress line.

use super::progress_log::ProgressLog;
use super::{count, duration, on_terminal};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// Time from the beginning of the work to the first line in a log, and time between lines.
const FIRST_LINE_AFTER: Duration = Duration::from_secs(15);
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// How often the log's thread checks whether a line is due.
const TICK: Duration = Duration::from_millis(500);

/// A line predicts the remaining time only after 1/20 of the pieces were done.
const ETA_FROM: u64 = 20;

/// A piece of work in progress; it ends when this is dropped or `finish_and_clear` is called.
pub struct Progress {
    bar: ProgressBar,
    counted: Arc<ProgressCounters>,
    /// Its id in the log; `None` on a terminal.
    number: Option<u64>,
}

/// Counts that indicatif does not keep.
#[derive(Default)]
struct ProgressCounters {
    /// Pieces that were done before this work began; they must not count for its speed.
    done_before: AtomicU64,
    extra_units: AtomicU64,
    unit: Mutex<&'static str>,
}

impl ProgressCounters {
    /// Returns `40 tokens/s`, if something was counted.
    fn rate(&self, took: Duration) -> Option<String> {
        let more = Some(self.extra_units.load(Ordering::Relaxed)).filter(|more| *more > 0)?;
        let unit = *self.unit.lock().expect("nobody panics while holding it");
        Some(format!("{:.0} {unit}/s", more as f64 / took.as_secs_f64()))
    }
}

/// Shows a bar over `total` pieces of work; in a log, lines at fixed time intervals.
pub fn bar(total: u64, what: &str) -> Progress {
    shaped(total, what, "{msg} [{bar:30}] {human_pos}/{human_len} {rate} eta {eta}")
}

/// Shows the bar of a training run; its message is that of the last step.
pub fn training_bar(total: u64) -> Progress {
    shaped(total, "steps", "step {pos}/{len} [{bar:24}] {msg}  eta {eta}")
}

fn shaped(total: u64, what: &str, template: &str) -> Progress {
    let counted = Arc::<ProgressCounters>::default();
    let more = counted.clone();
    let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = match more.rate(state.elapsed()) {
            Some(rate) => write!(out, "{rate}"),
            None => write!(out, "{:.0}/s", state.per_sec()),
        };
    };
    let style = ProgressStyle::with_template(template).expect("template is constant");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
    Progress::new(bar, counted, what, on_terminal())
}

/// Shows a spinner for work of unknown length; in a log, lines at fixed time intervals.
pub fn spinner(what: &str) -> Progress {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    bar.set_style(ProgressStyle::default_spinner());
    let spinner = Progress::new(bar, Arc::default(), what, on_terminal());
    if on_terminal() {
        spinner.bar.enable_steady_tick(Duration::from_millis(100));
    }
    spinner
}

/// Begins work that contains other work. A log gets lines about it while no inner work is active; a terminal shows
/// nothing.
pub fn enclosing_work(what: &str) -> Progress {
    Progress::new(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), Arc::default(), what, false)
}

impl Progress {
    fn new(bar: ProgressBar, counted: Arc<ProgressCounters>, what: &str, shown: bool) -> Self {
        bar.set_message(what.to_string());
        let bar = if shown { BARS.add(bar) } else { bar };
        let line = ProgressLine { bar: bar.clone(), counted: counted.clone() };
        let number = (!on_terminal()).then(|| ProgressLog::begin(&LOG, Box::new(move |took| line.text(took))));
        Self { bar, counted, number }
    }

    /// Sets the number of pieces that were done before this work began, for example by the run that is resumed.
    pub fn starting_at(self, done: u64) -> Self {
        self.counted.done_before.store(done, Ordering::Relaxed);
        self.bar.set_position(done);
        self.bar.reset_eta();
        self
    }

    /// Adds finished pieces.
    pub fn inc(&self, pieces: u64) {
        self.bar.inc(pieces);
    }

    /// Sets the number of finished pieces.
    pub fn set_position(&self, pieces: u64) {
        self.bar.set_position(pieces);
    }

    /// Sets the number of all pieces.
    pub fn set_length(&self, pieces: u64) {
        self.bar.set_length(pieces);
    }

    /// Sets the text of the bar or spinner.
    pub fn set_message(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    /// Adds to a second count that shows the speed better than finished pieces do, such as the tokens of answers that
    /// end together.
    pub fn count(&self, more: u64, unit: &'static str) {
        *self.counted.unit.lock().expect("nobody panics while holding it") = unit;
        self.counted.extra_units.fetch_add(more, Ordering::Relaxed);
    }

    /// Ends the work; no more lines about it are printed.
    pub fn finish_and_clear(&self) {
        if let Some(number) = self.number {
            LOG.end(number);
        }
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish_and_clear();
    }
}

/// Writes a log line about a piece of work.
struct ProgressLine {
    bar: ProgressBar,
    counted: Arc<ProgressCounters>,
}

impl ProgressLine {
    /// Returns the line: `answers: 12/105, 40 tokens/s, 30.0s, eta 4m 02s`.
    fn text(&self, took: Duration) -> String {
        let (done, before) = (self.bar.position(), self.counted.done_before.load(Ordering::Relaxed));
        let mut parts = Vec::new();
        match self.bar.length().filter(|total| *total > 0) {
            Some(total) => parts.push(format!("{}/{}", count(done), count(total))),
            None if done > 0 => parts.push(format!("{} done", count(done))),
            None => {}
        }
        parts.extend(self.counted.rate(took));
        parts.push(duration(took));
        // The first few of many pieces predict little: answers, for example, end late and together.
        if let Some(total) = self.bar.length().filter(|total| *total > done && done > before) {
            let (made, left) = (done - before, total - done);
            if ETA_FROM * made >= total - before {
                parts.push(format!("eta {}", duration(took.mul_f64(left as f64 / made as f64))));
            }
        }
        format!("{}: {}", self.bar.message(), parts.join(", "))
    }
}

/// Runs `print`, which writes a line to stderr: hides the bars meanwhile, and postpones the next progress line of a
/// log.
pub(super) fn print_beside_bars(print: impl FnOnce()) {
    match on_terminal() {
        true => BARS.suspend(print),
        false => {
            print();
            LOG.lock().said(Instant::now());
        }
    }
}

/// Ends all works without a line about them; called before an error is printed.
pub(super) fn clear_all() {
    LOG.lock().clear();
    let _ = on_terminal().then(|| BARS.clear());
}

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static LOG: LazyLock<Arc<ProgressLog>> = LazyLock::new(|| {
    Arc::new(ProgressLog::new(FIRST_LINE_AFTER, LINE_INTERVAL, TICK, Box::new(|line| eprintln!("{line}"))))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_position_rate_time_and_what_is_left() {
        let line = |total: Option<u64>| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()).with_message("answers");
            ProgressLine { bar, counted: Arc::default() }
        };
        let took = Duration::from_secs(30);
        assert_eq!(line(None).text(took), "answers: 30.0s");
        let bar = line(Some(2105));
        assert_eq!(bar.text(took), "answers: 0/2,105, 30.0s");
        bar.bar.set_position(12);
        assert_eq!(bar.text(took), "answers: 12/2,105, 30.0s", "a guess from a few of many");
        bar.bar.set_position(110);
        bar.counted.done_before.store(5, Ordering::Relaxed);
        assert_eq!(bar.text(took), "answers: 110/2,105, 30.0s, eta 9m 30s");
        *bar.counted.unit.lock().unwrap() = "tokens";
        bar.counted.extra_units.store(1200, Ordering::Relaxed);
        assert_eq!(bar.text(took), "answers: 110/2,105, 40 tokens/s, 30.0s, eta 9m 30s");
        bar.bar.set_position(2105);
        assert!(!bar.text(took).contains("eta"));
    }
}
