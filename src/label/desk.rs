//! Hands out tasks and takes votes: one thread owns the session, and nothing is answered before it is on the disk.
//!
//! What arrives while a commit runs is kept with the next one, so that many people share the wait for the disk. When a
//! commit fails, nothing of it is acknowledged, and the session is read anew from what the store holds.
//!
//! The page and the terminal are faces of it; it knows neither HTTP nor keys.

use super::record::{NewVote, Settings, Vote};
use super::screen::{Ballot, Before, SideChoice, Task, renamed, sides};
use super::session::{self, Next, Progress, Refusal, Session};
use super::store::{Given, Lease, Store, Writer};
use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests that one commit may hold.
const BATCH: usize = 256;
/// How often the store is asked whether somebody added pairs.
const LOOK: Duration = Duration::from_secs(2);

/// What somebody asks of the desk; annotators by id.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// The task in hand, or another.
    Next,
    Vote(Ballot),
    /// Takes the last vote back.
    Undo,
    /// Still at work.
    Keep,
    /// The page was closed.
    Leave,
}

/// How things stand for one person after a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// None: nothing to do, now or at all.
    pub task: Option<Task>,
    /// Without a task: other people hold what is left, and it may come back.
    pub wait: bool,
    pub progress: Progress,
}

/// Why a request is not done.
#[derive(Debug, Clone, PartialEq)]
pub enum No {
    /// The request makes no sense as it stands; what was expected.
    Wrong(String),
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

/// The way to the thread that owns the session. It ends when the last handle is gone.
#[derive(Clone)]
pub struct Desk(Sender<Job>);

impl Desk {
    /// Takes the project and opens the desk.
    ///
    /// Errors: another process serves the project; it is damaged.
    pub fn open(store: Store) -> Result<(Self, JoinHandle<()>)> {
        store.own()?;
        let mut clerk = Clerk::new(store)?;
        let (send, receive) = channel();
        let thread = std::thread::Builder::new().name("label desk".into());
        let thread = thread.spawn(move || clerk.work(&receive)).map_err(|e| Error::user(format!("a thread: {e}")))?;
        Ok((Self(send), thread))
    }

    /// Asks; `reply` is called once, on the desk's thread, when the answer is on the disk.
    pub fn ask(&self, annotator: i64, ask: Ask, reply: impl FnOnce(Result<Turn, No>) + Send + 'static) {
        // With the desk's thread gone the job is dropped and with it the reply: who waits for it sees that.
        let _ = self.0.send(Job { annotator, ask, reply: Box::new(reply) });
    }

    /// Asks and waits.
    pub fn wait(&self, annotator: i64, ask: Ask) -> Result<Turn, No> {
        let (send, receive) = channel();
        self.ask(annotator, ask, move |turn| drop(send.send(turn)));
        receive.recv().unwrap_or_else(|_| Err(closed()))
    }
}

/// The answer of a desk whose thread has ended.
pub fn closed() -> No {
    No::NotSaved(Error::bug("the desk is closed"))
}

/// Milliseconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The thread's state.
struct Clerk {
    store: Store,
    settings: Settings,
    session: Session,
    pairs: i64,
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

    /// Takes up pairs that were added meanwhile.
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

    /// Does all of a batch in one commit; where that fails, one by one, so that each learns its own fate.
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

    /// The answers to a batch, once they are on the disk.
    fn commit(&mut self, batch: &[Job]) -> Result<Vec<Result<Turn, No>>> {
        let (session, settings, store) = (&mut self.session, &self.settings, &self.store);
        let at = now();
        let done = store.write(|writer| {
            let mut counter = Counter { session, settings, writer, now: at };
            batch.iter().map(|job| counter.handle(job.annotator, &job.ask)).collect()
        });
        if done.is_err() {
            // The session has seen events that the store has not.
            self.store.recover()?;
            (self.session, self.pairs) = read(&self.store, &self.settings)?;
        }
        done
    }
}

/// The session as the store has it, and how many pairs there are.
fn read(store: &Store, settings: &Settings) -> Result<(Session, i64)> {
    let annotators = store.annotators()?;
    let mut votes = store.votes()?;
    votes.retain(|v| session::counts(v, &annotators));
    let (pairs, leases) = (store.pairs()?, store.leases()?);
    let count = pairs.len() as i64;
    Ok((Session::new(settings.seed, settings.lease * 1000, pairs, &votes, &leases, now()), count))
}

/// One batch in the middle of its transaction.
struct Counter<'a, 'b> {
    session: &'a mut Session,
    settings: &'a Settings,
    writer: &'a mut Writer<'b>,
    now: i64,
}

impl Counter<'_, '_> {
    /// The outer error is the store's and ends the transaction; the inner one is for the person alone.
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
            // Perhaps the answer to this very vote got lost on its way.
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
            // A page cannot have worked longer than it had the task.
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
            // An old request that arrives once more, of a vote that was taken back since.
            Given::Known(vote) if vote.pair == ballot.task => {}
            Given::Known(_) => return Ok(Err(No::Wrong("`request` names another vote already".into()))),
            Given::Judged => return Ok(Err(Refusal::NotYours.into())),
        }
        Ok(Ok(()))
    }

    /// What is wrong with a ballot.
    fn check(&self, ballot: &Ballot) -> Result<(), String> {
        if ballot.request.is_empty() || ballot.request.len() > 64 {
            return Err("`request`: expected 1 to 64 characters, new for each vote".into());
        }
        let one = matches!(ballot.choice, SideChoice::Left | SideChoice::Right);
        match ballot.strength {
            Some(_) if !self.settings.strength => return Err("`strength`: this project does not ask for it".into()),
            Some(_) if !one => return Err("`strength` belongs to the choice of one answer".into()),
            Some(n) if !(1..=3).contains(&n) => return Err(format!("`strength` {n}: expected 1, 2 or 3")),
            _ => {}
        }
        if ballot.edited.is_some() && !self.settings.edit {
            return Err("`edited`: this project does not ask for better answers".into());
        }
        for (name, sides) in &ballot.ratings {
            let best = self.settings.criteria.iter().find(|c| c.name == *name).map(|c| c.best);
            let best = best.ok_or_else(|| format!("`ratings`: no criterion {name:?}"))?;
            let rated = sides.as_object().ok_or_else(|| format!("`ratings`: {name:?} holds no sides"))?;
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
            None => Err(Error::bug(format!("vote {vote} of annotator {annotator} cannot be taken back"))),
        }
    }
}
