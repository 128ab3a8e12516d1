//! When a log gets lines about work in progress, and the thread that prints them.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// If the next work begins within this time, it continues the timer of the previous one. Otherwise many short phases in
/// a row would each restart the timer, and no line would ever be printed.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Prints the progress lines of a log from a thread that lives while there is work.
pub(super) struct ProgressLog {
    board: Mutex<ProgressSchedule>,
    tick: Duration,
    say: Box<dyn Fn(&str) + Send + Sync>,
}

impl ProgressLog {
    /// Begins a log: its first line after `first`, then one `every` interval; `tick` is how often it looks.
    pub fn new(first: Duration, every: Duration, tick: Duration, say: Box<dyn Fn(&str) + Send + Sync>) -> Self {
        let board =
            ProgressSchedule { first, every, works: Vec::new(), works_begun: 0, due: None, idle: None, watched: false };
        Self { board: Mutex::new(board), tick, say }
    }

    /// Returns the schedule.
    pub fn lock(&self) -> MutexGuard<'_, ProgressSchedule> {
        self.board.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins a work and returns its number.
    pub fn begin(log: &Arc<Self>, text: LineText) -> u64 {
        let mut board = log.lock();
        let number = board.begin(Instant::now(), text);
        if !std::mem::replace(&mut board.watched, true) {
            let log = log.clone();
            std::thread::spawn(move || log.watch());
        }
        number
    }

    /// Ends a work. Waits for a line that is being printed; no line about the work is printed after this returns.
    pub fn end(&self, number: u64) {
        self.lock().end(Instant::now(), number);
    }

    fn watch(&self) {
        loop {
            std::thread::sleep(self.tick);
            let mut board = self.lock();
            if board.works.is_empty() {
                board.watched = false;
                return;
            }
            if let Some(line) = board.line(Instant::now()) {
                (self.say)(&line);
            }
        }
    }
}

/// Makes the text of a line from the time that the work has taken.
pub(super) type LineText = Box<dyn Fn(Duration) -> String + Send>;

/// The works in progress, innermost last, and the time of the next line. Pure: the caller passes the time.
pub(super) struct ProgressSchedule {
    first: Duration,
    every: Duration,
    works: Vec<(u64, Instant, LineText)>,
    works_begun: u64,
    due: Option<Instant>,
    /// When the last work ended; `None` while there is work.
    idle: Option<Instant>,
    watched: bool,
}

impl ProgressSchedule {
    /// Ends all works.
    pub fn clear(&mut self) {
        self.works.clear();
    }

    fn begin(&mut self, now: Instant, text: LineText) -> u64 {
        let paused = self.idle.take().is_none_or(|since| now.duration_since(since) > MAX_PAUSE);
        if self.due.is_none() || (self.works.is_empty() && paused) {
            self.due = Some(now + self.first);
        }
        self.works_begun += 1;
        self.works.push((self.works_begun, now, text));
        self.works_begun
    }

    fn end(&mut self, now: Instant, number: u64) {
        let before = self.works.len();
        self.works.retain(|(n, ..)| *n != number);
        if before > 0 && self.works.is_empty() {
            self.idle = Some(now);
        }
    }

    /// Records that a line was printed on stderr; the next progress line is due one interval later.
    pub fn said(&mut self, now: Instant) {
        self.due = Some(now + self.every);
    }

    /// Returns the progress line if one is due.
    fn line(&mut self, now: Instant) -> Option<String> {
        let (_, since, text) = self.works.last()?;
        if self.due.is_some_and(|due| now < due) {
            return None;
        }
        let line = text(now.duration_since(*since));
        self.said(now);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> ProgressSchedule {
        ProgressLog::new(Duration::from_secs(15), Duration::from_secs(30), Duration::from_millis(500), Box::new(|_| ()))
            .board
            .into_inner()
            .unwrap()
    }

    fn named(name: &'static str) -> LineText {
        Box::new(move |took| format!("{name} {}", took.as_secs()))
    }

    /// Returns the lines that are due at each of these seconds.
    fn hear(board: &mut ProgressSchedule, begun: Instant, seconds: std::ops::Range<u64>) -> Vec<String> {
        seconds.filter_map(|s| board.line(begun + Duration::from_secs(s))).collect()
    }

    #[test]
    fn the_first_line_comes_after_a_quarter_of_a_minute_and_then_one_every_half() {
        let (mut board, begun) = (board(), Instant::now());
        let work = board.begin(begun, named("loading"));
        assert_eq!(hear(&mut board, begun, 0..100), ["loading 15", "loading 45", "loading 75"]);
        board.end(begun + Duration::from_secs(100), work);
        assert!(hear(&mut board, begun, 100..900).is_empty(), "a line about work that is over");
    }

    #[test]
    fn the_innermost_work_is_told_and_other_lines_count() {
        let (mut board, begun) = (board(), Instant::now());
        let at = |s| begun + Duration::from_secs(s);
        board.begin(begun, named("ft eval"));
        let inner = board.begin(at(10), named("losses"));
        assert_eq!(hear(&mut board, begun, 10..30), ["losses 5"]);
        board.end(at(30), inner);
        board.said(at(40));
        assert_eq!(hear(&mut board, begun, 40..80), ["ft eval 70"]);
    }

    /// Many short phases must print as many lines as one long phase: none of them may restart the timer.
    #[test]
    fn a_phase_after_a_phase_inherits_what_is_due_and_a_pause_does_not_count() {
        let (mut board, begun) = (board(), Instant::now());
        let at = |s| begun + Duration::from_secs(s);
        let mut lines = Vec::new();
        for phase in 0..6 {
            let work = board.begin(at(10 * phase), named("phase"));
            lines.extend(hear(&mut board, begun, 10 * phase..10 * phase + 10));
            board.end(at(10 * phase + 10), work);
        }
        assert_eq!(lines, ["phase 5", "phase 5"]);
        board.begin(at(1000), named("later"));
        assert_eq!(hear(&mut board, begun, 1000..1020), ["later 15"]);
    }

    /// Tests the thread with intervals of milliseconds: it prints lines although no item is finished, and none after
    /// the end.
    #[test]
    fn the_clock_speaks_by_itself_and_stops_with_the_work() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        let ms = Duration::from_millis;
        let say = move |line: &str| heard.lock().unwrap().push(line.to_string());
        let log = Arc::new(ProgressLog::new(ms(40), ms(40), ms(5), Box::new(say)));
        for _ in 0..2 {
            said.lock().unwrap().clear();
            let work = ProgressLog::begin(&log, named("still"));
            let began = Instant::now();
            while said.lock().unwrap().len() < 3 {
                assert!(began.elapsed() < Duration::from_secs(60), "no lines");
                std::thread::sleep(ms(5));
            }
            log.end(work);
            let lines = said.lock().unwrap().len();
            std::thread::sleep(ms(150));
            assert_eq!(said.lock().unwrap().len(), lines, "a line after the end");
        }
    }
}
