//! Computes a sequence of results on several threads, and hands them over in order.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

/// Results that may be waiting for earlier ones, for each thread.
const WAITING: usize = 2;

/// Calls `work(state, i)` for every i below `count` on `threads` threads, each with a state of its own, and hands the results to
/// `take` on the calling thread, in order. Returns the states. Of several failures, the first in order is returned.
///
/// Few results wait at a time, so memory depends on the number of threads alone.
pub fn in_order<S: Send, T: Send>(
    count: usize,
    threads: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<Vec<S>> {
    let threads = threads.min(count);
    if threads <= 1 {
        let mut own = state();
        for i in 0..count {
            take(work(&mut own, i)?)?;
        }
        return Ok(vec![own]);
    }
    let queue = Queue { count, most: WAITING * threads, progress: Mutex::default(), changed: Condvar::new() };
    thread::scope(|scope| {
        let help = || {
            let _stop = StopOnPanic(&queue);
            let mut own = state();
            while let Some(i) = queue.next_to_compute() {
                queue.put(i, work(&mut own, i));
            }
            own
        };
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(help)).collect();
        let _stop = StopOnPanic(&queue);
        let mut own = state();
        let mut outcome = Ok(());
        loop {
            match queue.next_step() {
                Step::Take(result) => outcome = result.and_then(&mut take),
                Step::Compute(i) => queue.put(i, work(&mut own, i)),
                Step::End => break,
            }
            if outcome.is_err() {
                break;
            }
        }
        queue.stop();
        let mut states = vec![own];
        for helper in helpers {
            states.push(helper.join().map_err(|_| Error::bug("a thread that merges failed"))?);
        }
        outcome.map(|()| states)
    })
}

struct Queue<T> {
    count: usize,
    /// Results that may be computed before the next one is taken.
    most: usize,
    progress: Mutex<Progress<T>>,
    changed: Condvar,
}

struct Progress<T> {
    /// The next item that nobody computes yet.
    next: usize,
    /// Items that were taken.
    taken: usize,
    done: BTreeMap<usize, Result<T>>,
    stopped: bool,
}

impl<T> Default for Progress<T> {
    fn default() -> Self {
        Self { next: 0, taken: 0, done: BTreeMap::new(), stopped: false }
    }
}

enum Step<T> {
    Take(Result<T>),
    Compute(usize),
    End,
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        self.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'g>(&self, guard: MutexGuard<'g, Progress<T>>) -> MutexGuard<'g, Progress<T>> {
        self.changed.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Claims the next item, if it is not too far ahead of the one that is taken next.
    fn claim(&self, progress: &mut Progress<T>) -> Option<usize> {
        let free = progress.next < self.count && progress.next < progress.taken + self.most;
        free.then(|| {
            progress.next += 1;
            progress.next - 1
        })
    }

    /// Waits for an item to compute; `None` at the end.
    fn next_to_compute(&self) -> Option<usize> {
        let mut progress = self.lock();
        loop {
            if progress.stopped || progress.next == self.count {
                return None;
            }
            if let Some(i) = self.claim(&mut progress) {
                return Some(i);
            }
            progress = self.wait(progress);
        }
    }

    /// Returns what the thread that takes results does next: it computes one while the next result is not there.
    fn next_step(&self) -> Step<T> {
        let mut progress = self.lock();
        loop {
            let next = progress.taken;
            if let Some(result) = progress.done.remove(&next) {
                progress.taken += 1;
                self.changed.notify_all();
                return Step::Take(result);
            }
            if progress.stopped || next == self.count {
                return Step::End;
            }
            if let Some(i) = self.claim(&mut progress) {
                return Step::Compute(i);
            }
            progress = self.wait(progress);
        }
    }

    fn put(&self, i: usize, result: Result<T>) {
        self.lock().done.insert(i, result);
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }
}

/// Lets the other threads end if one panics.
struct StopOnPanic<'q, T>(&'q Queue<T>);

impl<T> Drop for StopOnPanic<'_, T> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_every_one_once() {
        for threads in [1, 2, 5] {
            for count in [0, 1, 3, 200] {
                let mut seen = Vec::new();
                let work = |own: &mut usize, i: usize| {
                    *own += 1;
                    // Later items are faster.
                    std::thread::sleep(std::time::Duration::from_micros((200 - i as u64) % 7 * 10));
                    Ok(i)
                };
                let take = |i| {
                    seen.push(i);
                    Ok(())
                };
                let states = in_order(count, threads, || 0, work, take).unwrap();
                assert!(seen.iter().copied().eq(0..count), "{seen:?}");
                assert_eq!(states.iter().sum::<usize>(), count);
            }
        }
    }

    #[test]
    fn the_first_failure_in_order_ends_the_work() {
        for threads in [1, 3] {
            let work = |(): &mut (), i: usize| match i % 10 {
                7 => Err(Error::user(format!("item {i}"))),
                _ => Ok(i),
            };
            let mut taken = 0;
            let count = |_| {
                taken += 1;
                Ok(())
            };
            assert_eq!(in_order(1000, threads, || (), work, count).unwrap_err().message(), "item 7");
            assert_eq!(taken, 7);
            let refuse = |i| if i == 3 { Err(Error::user("full")) } else { Ok(()) };
            assert_eq!(in_order(1000, threads, || (), |_, i| Ok(i), refuse).unwrap_err().message(), "full");
        }
    }
}
