//! Hands out tasks and saves votes. One thread owns the session; a request is answered only after its changes are on
//! disk.
//!
//! A commit waits for the disk, which would limit the number of votes per second. So all requests that arrive during a
//! commit share the next one. If a commit fails, none of its requests is acknowledged, and the session is rebuilt from
//! the store.
//!
//! The web server and the terminal both use the desk; it knows neither HTTP nor keys.

use super::record::{NewVote, Settings, Vote};
use super::screen::{Ballot, Before, SideChoice, Task, renamed, sides};
use super::session::{self, Next, Progress, Refusal, Session};
use super::store::{Given, Lease, Store, Writer};
use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Largest number of requests in one commit.
const BATCH: usize = 256;
/// How often the store is checked for pairs that another process added.
const LOOK: Duration = Duration::from_secs(2);

/// A request of an annotator to the desk.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Returns the task that the annotator holds, or assigns one.
    Next,
    /// Saves a vote and assigns the next task.
    Vote(Ballot),
    /// Undoes the last vote.
    Undo,
    /// Renews the lease: the annotator is still at work.
    Keep,
    /// Shortens the lease: the page was closed.
    Leave,
}

/// Response to a request: the annotator's next task and the progress.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// `None` if there is nothing to do, now or at all.
    pub task: Option<Task>,
    /// Without a task: true if other people hold the remaining tasks, which may become free again.
    pub wait: bool,
    pub progress: Progress,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq)]
pub enum No {
    /// The request is invalid; the text says what was expected.
    Wrong(String),
    /// The session does not allow it.
    Refused(Refusal),
    /// Nothing was saved; the same request may be sent again.
    NotSaved(Error),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type Reply = Box<dyn FnOnce(Result<Turn, No>) + Send>;

struct Job {
    annotator: i64,
    ask: Ask,
    reply: Reply,
}

/// Handle to the thread that owns the session. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Desk(Sender<Job>);

impl Desk {
    /// Locks the project for serving and starts the thread.
    ///
    /// Errors: another process serves the project; the project is damaged.
    pub fn open(store: Store) -> Result<(Self, JoinHandle<()>)> {
        store.own()?;
        let mut clerk = Clerk::new(store)?;
        let (send, receive) = channel();
        let thread = std::thread::Builder::new().name("label desk".into());
        let thread =
            thread.spawn(move || clerk.work(&receive)).map_err(|e| Error::user(format!("starting a thread: {e}")))?;
        Ok((Self(send), thread))
    }

    /// Queues a request. `reply` is called once, on the desk's thread, after the changes are on disk.
    pub fn ask(&self, annotator: i64, ask: Ask, reply: impl FnOnce(Result<Turn, No>) + Send + 'static) {
        // If the desk's thread has ended, the job and its reply are dropped; a waiting receiver notices the closed
        // channel.
        let _ = self.0.send(Job { annotator, ask, reply: Box::new(reply) });
    }

    /// Sends a request and waits for its response.
    pub fn wait(&self, annotator: i64, ask: Ask) -> Result<Turn, No> {
        let (send, receive) = channel();
        self.ask(annotator, ask, move |turn| drop(send.send(turn)));
        receive.recv().unwrap_or_else(|_| Err(closed()))
    }
}

/// Returns the error for requests to a desk whose thread has ended.
pub fn closed() -> No {
    No::NotSaved(Error::bug("the desk is closed"))
}

/// Returns the milliseconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// State of the desk's thread.
struct Clerk {
    store: Store,
    settings: Settings,
    session: Session,
    /// Number of pairs that the session knows.
    pairs: i64,
    /// Time of the last check for new pairs.
    looked: Instant,
}

impl Clerk {
    fn new(store: Store) -> Result<Self> {
        let settings = store.settings()?;
        let (session, pairs) = read(&store, &settings)?;
        Ok(Self { store, settings, session, pairs, looked: Instant::now() })
    }

    fn work(&mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = vec![first];
            batch.extend(jobs.try_iter().take(BATCH - 1));
            if let Err(e) = self.look() {
                crate::report::warn(format!("reading new pairs: {}", e.message()));
            }
            self.serve(batch);
        }
    }

    /// Loads pairs that another process added since the last check.
    fn look(&mut self) -> Result<()> {
        if self.looked.elapsed() < LOOK {
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
    fn serve(&mut self, batch: Vec<Job>) {
        match self.commit(&batch) {
            Ok(answers) => batch.into_iter().zip(answers).for_each(|(job, answer)| (job.reply)(answer)),
            Err(e) if batch.len() == 1 => {
                crate::report::warn(format!("not saved: {}", e.message()));
                batch.into_iter().for_each(|job| (job.reply)(Err(No::NotSaved(e.clone()))));
            }
            Err(_) => batch.into_iter().for_each(|job| self.serve(vec![job])),
        }
    }

    /// Processes a batch and returns the responses after the commit.
    fn commit(&mut self, batch: &[Job]) -> Result<Vec<Result<Turn, No>>> {
        let (session, settings, store) = (&mut self.session, &self.settings, &self.store);
        let at = now();
        let done = store.write(|writer| {
            let mut counter = Counter { session, settings, writer, now: at };
            batch.iter().map(|job| counter.handle(job.annotator, &job.ask)).collect()
        });
        if done.is_err() {
            // The session already contains changes that the store does not have.
            self.store.recover()?;
            (self.session, self.pairs) = read(&self.store, &self.settings)?;
        }
        done
    }
}

/// Builds the session from the store; returns it with the number of pairs.
fn read(store: &Store, settings: &Settings) -> Result<(Session, i64)> {
    let annotators = store.annotators()?;
    let mut votes = store.votes()?;
    votes.retain(|v| session::counts(v, &annotators));
    let (pairs, leases) = (store.pairs()?, store.leases()?);
    let count = pairs.len() as i64;
    Ok((Session::new(settings.seed, settings.lease * 1000, pairs, &votes, &leases, now()), count))
}

/// Handles the requests of one batch inside its transaction.
struct Counter<'a, 'b> {
    session: &'a mut Session,
    settings: &'a Settings,
    writer: &'a mut Writer<'b>,
    now: i64,
}

impl Counter<'_, '_> {
    /// Handles one request. The outer error comes from the store and ends the transaction; the inner one concerns this
    /// annotator only.
    fn handle(&mut self, annotator: i64, ask: &Ask) -> Result<Result<Turn, No>> {
        match ask {
            Ask::Next => self.turn(annotator, None),
            Ask::Vote(ballot) => match self.vote(annotator, ballot)? {
                Ok(()) => self.turn(annotator, None),
                Err(no) => Ok(Err(no)),
            },
            Ask::Undo => self.undo(annotator),
            Ask::Keep | Ask::Leave => {
                match ask {
                    Ask::Keep => self.session.keep(annotator, self.now),
                    _ => self.session.leave(annotator, self.now),
                }
                Ok(Ok(Turn { task: None, wait: false, progress: self.session.progress(annotator) }))
            }
        }
    }

    fn turn(&mut self, annotator: i64, before: Option<Vote>) -> Result<Result<Turn, No>> {
        let (task, wait) = match self.session.next(annotator, self.now) {
            Next::Task { lease, fresh } => {
                if fresh || before.is_some() {
                    self.writer.lease(&lease)?;
                }
                (Some(self.task(lease, before)?), false)
            }
            Next::Wait => (None, true),
            Next::Done => (None, false),
        };
        if task.is_none() {
            self.writer.release(annotator)?;
        }
        Ok(Ok(Turn { task, wait, progress: self.session.progress(annotator) }))
    }

    fn task(&mut self, lease: Lease, before: Option<Vote>) -> Result<Task> {
        let (prompt, a, b) = self.writer.shown(lease.pair)?;
        let (left, right) = if lease.swapped { (b.text, a.text) } else { (a.text, b.text) };
        let before = before.map(|v| Before {
            choice: SideChoice::of(v.choice, lease.swapped),
            strength: v.strength,
            ratings: renamed(&v.ratings, sides(lease.swapped), ["left", "right"]),
            note: v.note,
            flagged: v.flagged,
            edited: v.edited,
        });
        Ok(Task { id: lease.pair, prompt, left, right, before })
    }

    fn vote(&mut self, annotator: i64, ballot: &Ballot) -> Result<Result<(), No>> {
        if let Err(why) = self.check(ballot) {
            return Ok(Err(No::Wrong(why)));
        }
        let lease = match self.session.may_vote(annotator, ballot.task, self.now) {
            Ok(lease) => lease,
            // The response to this very vote may have been lost: the vote is saved, and the page sends it again.
            Err(refusal) => {
                let known = self.writer.vote_of(annotator, &ballot.request)?;
                return Ok(if known.is_some_and(|v| v.pair == ballot.task) { Ok(()) } else { Err(refusal.into()) });
            }
        };
        let waited = (self.now - lease.since) as f64 / 1000.0;
        let new = NewVote {
            choice: ballot.choice.choice(lease.swapped),
            strength: ballot.strength,
            swapped: lease.swapped,
            // The time on a task cannot exceed the time since it was assigned.
            seconds: Some(ballot.seconds.filter(|s| s.is_finite() && *s >= 0.0).unwrap_or(waited).min(waited.max(0.0))),
            note: ballot.note.clone().filter(|n| !n.trim().is_empty()),
            flagged: ballot.flagged,
            ratings: renamed(&ballot.ratings, ["left", "right"], sides(lease.swapped)),
            edited: ballot.edited.clone().filter(|e| !e.trim().is_empty()),
            request: Some(ballot.request.clone()),
            ..NewVote::new(ballot.task, annotator, ballot.choice.choice(lease.swapped))
        };
        match self.writer.vote(&new)? {
            Given::New(vote) => self.session.voted(&vote),
            // A request that arrives again after its vote was undone.
            Given::Known(vote) if vote.pair == ballot.task => {}
            Given::Known(_) => {
                return Ok(Err(No::Wrong("`request`: this id was already used for another vote".into())));
            }
            Given::Judged => return Ok(Err(Refusal::NotYours.into())),
        }
        Ok(Ok(()))
    }

    /// Checks a ballot; the error says what is wrong.
    fn check(&self, ballot: &Ballot) -> Result<(), String> {
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

    fn undo(&mut self, annotator: i64) -> Result<Result<Turn, No>> {
        let (vote, _) = match self.session.undo(annotator, self.now) {
            Ok(undone) => undone,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        match self.writer.undo(annotator, vote)? {
            Some(vote) => self.turn(annotator, Some(vote)),
            None => Err(Error::bug(format!("vote {vote} of annotator {annotator} cannot be undone"))),
        }
    }
}
