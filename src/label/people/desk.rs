//! Hands out tasks and saves votes. One thread owns the assignment; a request is answered only after its changes are on
//! disk.
//!
//! A commit waits for the disk, which would limit the number of votes per second. So all requests that arrive during a
//! commit share the next one. If a commit fails, none of its requests is acknowledged, and the assignment is rebuilt
//! from the store.
//!
//! The web server and the terminal both use the desk; it knows neither HTTP nor keys.

use super::assignment;
use super::assignment::TaskAssignment;
use super::request::{DeskError, DeskRequest, DeskResponse};
use super::transaction::BatchTransaction;
use crate::error::{Error, Result};
use crate::label::record::settings::ProjectSettings;
use crate::label::store::Store;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Largest number of requests in one commit.
const MAX_BATCH: usize = 256;

/// How often the store is checked for pairs that another process added.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

type ResponseCallback = Box<dyn FnOnce(Result<DeskResponse, DeskError>) + Send>;

struct QueuedRequest {
    annotator: i64,
    ask: DeskRequest,
    reply: ResponseCallback,
}

/// Handle to the thread that owns the assignment. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Desk(Sender<QueuedRequest>);

impl Desk {
    /// Locks the project for serving and starts the thread.
    ///
    /// Errors: another process serves the project; the project is damaged.
    pub fn open(store: Store) -> Result<(Self, JoinHandle<()>)> {
        store.lock_for_serving()?;
        let mut clerk = DeskThread::new(store)?;
        let (send, receive) = channel();
        let thread = std::thread::Builder::new().name("label desk".into());
        let thread =
            thread.spawn(move || clerk.work(&receive)).map_err(|e| Error::user(format!("starting a thread: {e}")))?;
        Ok((Self(send), thread))
    }

    /// Queues a request. `reply` is called once, on the desk's thread, after the changes are on disk.
    pub fn ask(
        &self,
        annotator: i64,
        ask: DeskRequest,
        reply: impl FnOnce(Result<DeskResponse, DeskError>) + Send + 'static,
    ) {
        // If the desk's thread has ended, the job and its reply are dropped; a waiting receiver notices the closed
        // channel.
        let _ = self.0.send(QueuedRequest { annotator, ask, reply: Box::new(reply) });
    }

    /// Sends a request and waits for its response.
    pub fn ask_and_wait(&self, annotator: i64, turn: DeskRequest) -> Result<DeskResponse, DeskError> {
        let (send, receive) = channel();
        self.ask(annotator, turn, move |turn| drop(send.send(turn)));
        receive.recv().unwrap_or_else(|_| Err(closed_error()))
    }
}

/// Returns the error for requests to a desk whose thread has ended.
pub fn closed_error() -> DeskError {
    DeskError::NotSaved(Error::bug("the desk is closed"))
}

/// Returns the milliseconds since 1970.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// State of the desk's thread.
struct DeskThread {
    store: Store,
    settings: ProjectSettings,
    assignment: TaskAssignment,
    /// Number of pairs that the assignment knows.
    pairs: i64,
    /// Time of the last check for new pairs.
    looked: Instant,
}

impl DeskThread {
    fn new(store: Store) -> Result<Self> {
        let settings = store.settings()?;
        let (assignment, pairs) = load_assignment(&store, &settings)?;
        Ok(Self { store, settings, assignment, pairs, looked: Instant::now() })
    }

    fn work(&mut self, jobs: &Receiver<QueuedRequest>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = vec![first];
            batch.extend(jobs.try_iter().take(MAX_BATCH - 1));
            if let Err(e) = self.refresh_pairs() {
                crate::report::warn(format!("reading new pairs: {}", e.message()));
            }
            self.process(batch);
        }
    }

    /// Loads pairs that another process added since the last check.
    fn refresh_pairs(&mut self) -> Result<()> {
        if self.looked.elapsed() < REFRESH_INTERVAL {
            return Ok(());
        }
        self.looked = Instant::now();
        let count = self.store.pair_count()?;
        if count != self.pairs {
            self.assignment.add_pairs(self.store.pairs()?);
            self.pairs = count;
        }
        Ok(())
    }

    /// Processes a batch in one commit. If that fails, processes its requests one by one, so that each gets its own
    /// result.
    fn process(&mut self, batch: Vec<QueuedRequest>) {
        match self.commit(&batch) {
            Ok(answers) => batch.into_iter().zip(answers).for_each(|(job, answer)| (job.reply)(answer)),
            Err(e) if batch.len() == 1 => {
                crate::report::warn(format!("not saved: {}", e.message()));
                batch.into_iter().for_each(|job| (job.reply)(Err(DeskError::NotSaved(e.clone()))));
            }
            Err(_) => batch.into_iter().for_each(|job| self.process(vec![job])),
        }
    }

    /// Processes a batch and returns the responses after the commit.
    fn commit(&mut self, batch: &[QueuedRequest]) -> Result<Vec<Result<DeskResponse, DeskError>>> {
        let (assignment, settings, store) = (&mut self.assignment, &self.settings, &self.store);
        let at = now();
        let done = store.write(|writer| {
            let mut counter = BatchTransaction { assignment, settings, writer, now: at };
            batch.iter().map(|job| counter.handle(job.annotator, &job.ask)).collect()
        });
        if done.is_err() {
            // The assignment already contains changes that the store does not have.
            self.store.recover()?;
            (self.assignment, self.pairs) = load_assignment(&self.store, &self.settings)?;
        }
        done
    }
}

/// Builds the assignment from the store; returns it with the number of pairs.
fn load_assignment(store: &Store, settings: &ProjectSettings) -> Result<(TaskAssignment, i64)> {
    let annotators = store.annotators()?;
    let mut votes = store.votes()?;
    votes.retain(|v| assignment::affects_assignment(v, &annotators));
    let (pairs, leases) = (store.pairs()?, store.leases()?);
    let count = pairs.len() as i64;
    Ok((TaskAssignment::new(settings.seed, settings.lease * 1000, pairs, &votes, &leases, now()), count))
}
