//! Hands out tasks and saves votes. One thread owns the session; a request is answered only after its changes are on
//! disk.
//!
//! A commit waits for the disk, which would limit the number of votes per second. So all requests that arrive during a
//! commit share the next one. If a commit fails, none of its requests is acknowledged, and the session is rebuilt from
//! the store.
//!
//! The web server and the terminal both use the desk; it knows neither HTTP nor keys.

use super::assignment::{self, LabelProgress, NextTask, TaskAssignment, TaskRefusal};
use super::record::{NewVote, ProjectSettings, Vote};
use super::screen::{ScreenTask, ScreenVote, SideChoice, UndoneVote, rename_sides, side_names};
use super::store::{Lease, Store, StoreTransaction, VoteInsertion};
use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Largest number of requests in one commit.
const MAX_BATCH: usize = 256;
/// How often the store is checked for pairs that another process added.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// A request of an annotator to the desk.
#[derive(Debug, Clone, PartialEq)]
pub enum DeskRequest {
    /// Returns the task that the annotator holds, or assigns one.
    Next,
    /// Saves a vote and assigns the next task.
    Vote(ScreenVote),
    /// Undoes the last vote.
    Undo,
    /// Renews the lease: the annotator is still at work.
    Keep,
    /// Shortens the lease: the page was closed.
    Leave,
}

/// Response to a request: the annotator's next task and the progress.
#[derive(Debug, Clone, PartialEq)]
pub struct DeskResponse {
    /// `None` if there is nothing to do, now or at all.
    pub task: Option<ScreenTask>,
    /// Without a task: true if other people hold the remaining tasks, which may become free again.
    pub wait: bool,
    pub progress: LabelProgress,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq)]
pub enum DeskError {
    /// The request is invalid; the text says what was expected.
    Invalid(String),
    /// The session does not allow it.
    Refused(TaskRefusal),
    /// Nothing was saved; the same request may be sent again.
    NotSaved(Error),
}

impl From<TaskRefusal> for DeskError {
    fn from(refusal: TaskRefusal) -> Self {
        Self::Refused(refusal)
    }
}

type ResponseCallback = Box<dyn FnOnce(Result<DeskResponse, DeskError>) + Send>;

struct QueuedRequest {
    annotator: i64,
    ask: DeskRequest,
    reply: ResponseCallback,
}

/// Handle to the thread that owns the session. The thread ends when the last handle is dropped.
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
fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// State of the desk's thread.
struct DeskThread {
    store: Store,
    settings: ProjectSettings,
    session: TaskAssignment,
    /// Number of pairs that the session knows.
    pairs: i64,
    /// Time of the last check for new pairs.
    looked: Instant,
}

impl DeskThread {
    fn new(store: Store) -> Result<Self> {
        let settings = store.settings()?;
        let (session, pairs) = load_assignment(&store, &settings)?;
        Ok(Self { store, settings, session, pairs, looked: Instant::now() })
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
            self.session.add_pairs(self.store.pairs()?);
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
        let (session, settings, store) = (&mut self.session, &self.settings, &self.store);
        let at = now();
        let done = store.write(|writer| {
            let mut counter = BatchTransaction { session, settings, writer, now: at };
            batch.iter().map(|job| counter.handle(job.annotator, &job.ask)).collect()
        });
        if done.is_err() {
            // The session already contains changes that the store does not have.
            self.store.recover()?;
            (self.session, self.pairs) = load_assignment(&self.store, &self.settings)?;
        }
        done
    }
}

/// Builds the session from the store; returns it with the number of pairs.
fn load_assignment(store: &Store, settings: &ProjectSettings) -> Result<(TaskAssignment, i64)> {
    let annotators = store.annotators()?;
    let mut votes = store.votes()?;
    votes.retain(|v| assignment::affects_assignment(v, &annotators));
    let (pairs, leases) = (store.pairs()?, store.leases()?);
    let count = pairs.len() as i64;
    Ok((TaskAssignment::new(settings.seed, settings.lease * 1000, pairs, &votes, &leases, now()), count))
}

/// Handles the requests of one batch inside its transaction.
struct BatchTransaction<'a, 'b> {
    session: &'a mut TaskAssignment,
    settings: &'a ProjectSettings,
    writer: &'a mut StoreTransaction<'b>,
    now: i64,
}

impl BatchTransaction<'_, '_> {
    /// Handles one request. The outer error comes from the store and ends the transaction; the inner one concerns this
    /// annotator only.
    fn handle(&mut self, annotator: i64, ask: &DeskRequest) -> Result<Result<DeskResponse, DeskError>> {
        match ask {
            DeskRequest::Next => self.respond(annotator, None),
            DeskRequest::Vote(ballot) => match self.vote(annotator, ballot)? {
                Ok(()) => self.respond(annotator, None),
                Err(no) => Ok(Err(no)),
            },
            DeskRequest::Undo => self.undo(annotator),
            DeskRequest::Keep | DeskRequest::Leave => {
                match ask {
                    DeskRequest::Keep => self.session.renew(annotator, self.now),
                    _ => self.session.shorten(annotator, self.now),
                }
                Ok(Ok(DeskResponse { task: None, wait: false, progress: self.session.progress(annotator) }))
            }
        }
    }

    fn respond(&mut self, annotator: i64, before: Option<Vote>) -> Result<Result<DeskResponse, DeskError>> {
        let (task, wait) = match self.session.next_task(annotator, self.now) {
            NextTask::Task { lease, fresh } => {
                if fresh || before.is_some() {
                    self.writer.lease(&lease)?;
                }
                (Some(self.task(lease, before)?), false)
            }
            NextTask::Wait => (None, true),
            NextTask::Done => (None, false),
        };
        if task.is_none() {
            self.writer.delete_lease(annotator)?;
        }
        Ok(Ok(DeskResponse { task, wait, progress: self.session.progress(annotator) }))
    }

    fn task(&mut self, lease: Lease, before: Option<Vote>) -> Result<ScreenTask> {
        let (prompt, a, b) = self.writer.shown(lease.pair)?;
        let (left, right) = if lease.swapped { (b.text, a.text) } else { (a.text, b.text) };
        let before = before.map(|v| UndoneVote {
            choice: SideChoice::from_choice(v.choice, lease.swapped),
            strength: v.strength,
            ratings: rename_sides(&v.ratings, side_names(lease.swapped), ["left", "right"]),
            note: v.note,
            flagged: v.flagged,
            edited: v.edited,
        });
        Ok(ScreenTask { id: lease.pair, prompt, left, right, before })
    }

    fn vote(&mut self, annotator: i64, ballot: &ScreenVote) -> Result<Result<(), DeskError>> {
        if let Err(why) = self.check(ballot) {
            return Ok(Err(DeskError::Invalid(why)));
        }
        let lease = match self.session.may_vote(annotator, ballot.task, self.now) {
            Ok(lease) => lease,
            // The response to this very vote may have been lost: the vote is saved, and the page sends it again.
            Err(refusal) => {
                let known = self.writer.vote_by_request(annotator, &ballot.request)?;
                return Ok(if known.is_some_and(|v| v.pair == ballot.task) { Ok(()) } else { Err(refusal.into()) });
            }
        };
        let waited = (self.now - lease.since) as f64 / 1000.0;
        let new = NewVote {
            choice: ballot.choice.to_choice(lease.swapped),
            strength: ballot.strength,
            swapped: lease.swapped,
            // The time on a task cannot exceed the time since it was assigned.
            seconds: Some(ballot.seconds.filter(|s| s.is_finite() && *s >= 0.0).unwrap_or(waited).min(waited.max(0.0))),
            note: ballot.note.clone().filter(|n| !n.trim().is_empty()),
            flagged: ballot.flagged,
            ratings: rename_sides(&ballot.ratings, ["left", "right"], side_names(lease.swapped)),
            edited: ballot.edited.clone().filter(|e| !e.trim().is_empty()),
            request: Some(ballot.request.clone()),
            ..NewVote::new(ballot.task, annotator, ballot.choice.to_choice(lease.swapped))
        };
        match self.writer.vote(&new)? {
            VoteInsertion::New(vote) => self.session.record_vote(&vote),
            // A request that arrives again after its vote was undone.
            VoteInsertion::Repeated(vote) if vote.pair == ballot.task => {}
            VoteInsertion::Repeated(_) => {
                return Ok(Err(DeskError::Invalid("`request`: this id was already used for another vote".into())));
            }
            VoteInsertion::AlreadyJudged => return Ok(Err(TaskRefusal::NotYours.into())),
        }
        Ok(Ok(()))
    }

    /// Checks a ballot; the error says what is wrong.
    fn check(&self, ballot: &ScreenVote) -> Result<(), String> {
        if ballot.request.is_empty() || ballot.request.len() > 64 {
            return Err("`request`: expected 1 to 64 characters, new for each vote".into());
        }
        let one = matches!(ballot.choice, SideChoice::Left | SideChoice::Right);
        match ballot.strength {
            Some(_) if !self.settings.strength => return Err("`strength`: this project does not ask for it".into()),
            Some(_) if !one => return Err("`strength` is allowed only with the choice of one answer".into()),
            Some(n) if !(1..=3).contains(&n) => return Err(format!("`strength` {n}: expected 1, 2 or 3")),
            _ => {}
        }
        if ballot.edited.is_some() && !self.settings.edit {
            return Err("`edited`: this project does not ask for better answers".into());
        }
        for (name, sides) in &ballot.ratings {
            let best = self.settings.criteria.iter().find(|c| c.name == *name).map(|c| c.best);
            let best = best.ok_or_else(|| format!("`ratings`: no criterion {name:?}"))?;
            let rated = sides
                .as_object()
                .ok_or_else(|| format!("`ratings`: {name:?}: expected an object with left and right"))?;
            for (side, value) in rated {
                let good = value.as_i64().is_some_and(|n| (1..=best).contains(&n));
                if !good || !matches!(side.as_str(), "left" | "right") {
                    return Err(format!("`ratings`: {name:?}: expected left and right from 1 to {best}"));
                }
            }
        }
        let texts = [&ballot.note, &ballot.edited].into_iter().flatten();
        if texts.chain([&ballot.request]).any(|t| t.contains('\0')) {
            return Err("text with a NUL character".into());
        }
        Ok(())
    }

    fn undo(&mut self, annotator: i64) -> Result<Result<DeskResponse, DeskError>> {
        let (vote, _) = match self.session.undo(annotator, self.now) {
            Ok(undone) => undone,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        match self.writer.undo(annotator, vote)? {
            Some(vote) => self.respond(annotator, Some(vote)),
            None => Err(Error::bug(format!("vote {vote} of annotator {annotator} cannot be undone"))),
        }
    }
}
