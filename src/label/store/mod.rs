//! A labelling project on disk or on a server: the one place that knows SQL.
//!
//! What a method returned is on the disk: neither SIGKILL nor a loss of power takes it back. A blocking face; every
//! write is one transaction, or a part of the one that [`Store::write`] opens.

mod database;
mod postgres;
mod rows;
mod schema;
mod sqlite;
mod writer;

use super::record::{
    Added, Annotator, Candidate, Kind, NewCandidate, NewPair, NewPrompt, NewVote, Pair, Prompt, Settings, Vote,
};
use crate::error::{Context, Error, Result};
use crate::fsutil::{hex, io_error, temporary};
use database::{Bound, Database, Row};
use postgres::Postgres;
use rows::{Shown, VOTE, annotator, candidate, json, prompt, shown, vote};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlite::Sqlite;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use writer::Writer;

/// A project that is open. `place` is a file or a `postgres://` URL.
pub struct Store {
    database: Mutex<Box<dyn Database>>,
}

/// A task in somebody's hands, as it is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub pair: i64,
    pub annotator: i64,
    /// Whether `b` stands on the left.
    pub swapped: bool,
    /// Milliseconds since 1970.
    pub since: i64,
}

/// What became of a vote.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    New(Vote),
    /// The same request was kept before.
    Known(Vote),
    /// This annotator has judged the pair already, in another request.
    Judged,
}

impl Store {
    /// Makes a project. A file appears whole or not at all.
    ///
    /// Errors: it exists; it cannot be written.
    pub fn create(place: &str, settings: &Settings) -> Result<Self> {
        let exists = |place: &str| {
            Error::user(format!("{place}: there is a project already"))
                .hint("choose another name; `ft label import` adds prompts and answers to a project")
        };
        if postgres::is_url(place) {
            let mut database = Postgres::open(place)?;
            if !database.create_schema()? && database.has_project()? {
                return Err(exists(&database.place()));
            }
            fill(&mut database, settings)?;
        } else {
            let path = Path::new(place);
            if path.exists() {
                return Err(exists(place));
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                crate::fsutil::create_dir_all(folder)?;
            }
            let temp = path.with_file_name(temporary(&name));
            let made = Sqlite::create(&temp)
                .and_then(|mut new| fill(&mut new, settings))
                .and_then(|()| std::fs::rename(&temp, path).map_err(|e| io_error("making", path, e)));
            for end in ["", "-wal", "-shm"] {
                let mut file = temp.clone().into_os_string();
                file.push(end);
                let _ = std::fs::remove_file(file);
            }
            made?;
        }
        Self::open(place)
    }

    /// Opens a project, bringing one of an older version up to date.
    ///
    /// Errors: there is none; it is damaged; it is of a newer version.
    pub fn open(place: &str) -> Result<Self> {
        let mut database: Box<dyn Database> = if postgres::is_url(place) {
            Box::new(Postgres::open(place)?)
        } else {
            Box::new(Sqlite::open(Path::new(place))?)
        };
        let shown = database.place();
        if !database.has_project()? {
            return Err(Error::user(format!("{shown}: holds no labelling project"))
                .hint("make one with: ft label new PROJECT --prompts FILE"));
        }
        let version = version(database.as_mut()).context(|| &shown)?;
        if version > schema::version() {
            return Err(Error::user(format!(
                "{shown}: the project has version {version}, this ft reads up to {}",
                schema::version()
            ))
            .hint("open it with the ft that made it, or a newer one"));
        }
        migrate(database.as_mut(), version).context(|| format!("{shown}: bringing the project up to date"))?;
        Ok(Self { database: Mutex::new(database) })
    }

    /// Where the project lies, as may be shown to anybody: no password.
    pub fn place(&self) -> String {
        self.lock().place()
    }

    /// Takes the project for this process alone to hand out tasks, until the store is dropped; looks for damage.
    ///
    /// Errors: another server has it; it is damaged.
    pub fn own(&self) -> Result<()> {
        self.lock().own()
    }

    /// After a failed write: forgets what was begun, connects again where the connection was lost.
    pub fn recover(&self) -> Result<()> {
        self.lock().recover()
    }

    pub fn settings(&self) -> Result<Settings> {
        let rows = self.query("SELECT value FROM meta WHERE key = 'settings'", &[])?;
        let mut row = rows.into_iter().next().ok_or_else(|| Error::user(format!("{}: no settings", self.place())))?;
        row.json()
    }

    /// Replaces what people are asked, and how.
    pub fn set_settings(&self, settings: &Settings) -> Result<()> {
        let text = json(settings)?;
        self.write(|w| w.execute("UPDATE meta SET value = $1 WHERE key = 'settings'", &[Bound::Text(&text)]).map(drop))
    }

    /// All prompts, in the order in which they were added.
    pub fn prompts(&self) -> Result<Vec<Prompt>> {
        self.read("SELECT id, key, messages, columns FROM prompts ORDER BY id", prompt)
    }

    /// Adds prompts; one whose key is known stays as it is.
    pub fn add_prompts(&self, prompts: &[NewPrompt]) -> Result<Added> {
        let sql = "INSERT INTO prompts (key, messages, columns) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        self.add(prompts, |w, p| {
            let (messages, columns) = (p.messages.to_string(), json(&p.columns)?);
            w.execute(sql, &[Bound::Text(&p.key), Bound::Text(&messages), Bound::Text(&columns)])
        })
    }

    /// All answers, in the order in which they were added.
    pub fn candidates(&self) -> Result<Vec<Candidate>> {
        self.read("SELECT id, prompt, source, text, tokens FROM candidates ORDER BY id", candidate)
    }

    /// Adds answers; the same text of the same source to the same prompt is kept once.
    pub fn add_candidates(&self, candidates: &[NewCandidate]) -> Result<Added> {
        let sql = "INSERT INTO candidates (prompt, source, text, digest, tokens) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT DO NOTHING";
        self.add(candidates, |w, c| {
            let digest = hex(&Sha256::digest(c.text.as_bytes()));
            let (source, text) = (Bound::Text(&c.source), Bound::Text(&c.text));
            w.execute(sql, &[Bound::Int(c.prompt), source, text, Bound::Text(&digest), Bound::int(c.tokens)])
        })
    }

    /// All pairs, in the order in which they were added, which is the order in which they are shown.
    pub fn pairs(&self) -> Result<Vec<Pair>> {
        self.read("SELECT id, prompt, a, b, overlap, repeat_of, reason FROM pairs ORDER BY id", |row| {
            Ok(Pair {
                id: row.int()?,
                prompt: row.int()?,
                a: row.int()?,
                b: row.int()?,
                overlap: row.int()?,
                repeat_of: row.int_or_null()?,
                reason: row.text()?,
            })
        })
    }

    /// Adds pairs; two answers are a pair once, whichever comes first, and a pair is repeated once.
    pub fn add_pairs(&self, pairs: &[NewPair]) -> Result<Added> {
        let sql = "INSERT INTO pairs (prompt, a, b, low, high, overlap, repeat_of, reason) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
        self.add(pairs, |w, p| {
            let (low, high) = (p.a.min(p.b), p.a.max(p.b));
            let ids = [p.prompt, p.a, p.b, low, high, p.overlap].map(Bound::Int);
            w.execute(sql, &[&ids[..], &[Bound::int(p.repeat_of), Bound::Text(&p.reason)]].concat())
        })
    }

    /// What a pair shows: its prompt, `a` and `b`.
    pub fn shown(&self, pair: i64) -> Result<Shown> {
        shown(self.lock().as_mut(), pair)
    }

    /// How many pairs there are: cheap, to see that somebody added some.
    pub fn pair_count(&self) -> Result<i64> {
        self.query("SELECT count(*) FROM pairs", &[])?.remove(0).int()
    }

    pub fn annotators(&self) -> Result<Vec<Annotator>> {
        self.read("SELECT id, name, kind, token_hash, detail FROM annotators ORDER BY id", annotator)
    }

    /// The annotator of this name, made where there is none.
    ///
    /// Errors: there is one of another kind.
    pub fn annotator(&self, name: &str, kind: Kind, detail: &Value) -> Result<Annotator> {
        let found = self.write(|w| {
            let insert = "INSERT INTO annotators (name, kind, detail) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            w.execute(insert, &[Bound::Text(name), Bound::Text(kind.name()), Bound::Text(&detail.to_string())])?;
            let select = "SELECT id, name, kind, token_hash, detail FROM annotators WHERE name = $1";
            annotator(&mut w.query(select, &[Bound::Text(name)])?.remove(0))
        })?;
        if found.kind != kind {
            return Err(Error::user(format!("{}: `{name}` is a {}, not a {kind}", self.place(), found.kind))
                .hint("choose another name"));
        }
        Ok(found)
    }

    /// Sets what is known of an annotator beside its name; `token_hash`: none takes the token away.
    pub fn set_annotator(&self, id: i64, token_hash: Option<&str>, detail: &Value) -> Result<()> {
        let sql = "UPDATE annotators SET token_hash = $1, detail = $2 WHERE id = $3";
        let detail = detail.to_string();
        self.write(|w| w.execute(sql, &[Bound::text(token_hash), Bound::Text(&detail), Bound::Int(id)]).map(drop))
    }

    /// Votes that stand, in the order in which they were given.
    pub fn votes(&self) -> Result<Vec<Vote>> {
        self.read(&format!("SELECT {VOTE} FROM votes WHERE undone = 0 ORDER BY id"), vote)
    }

    /// Every vote, those that were taken back too.
    pub fn votes_and_undone(&self) -> Result<Vec<Vote>> {
        self.read(&format!("SELECT {VOTE} FROM votes ORDER BY id"), vote)
    }

    /// Adds a vote; the same request sent again gives the vote that is kept.
    ///
    /// Errors: the annotator has judged the pair in another request; the disk is full.
    pub fn add_vote(&self, new: &NewVote) -> Result<Vote> {
        match self.write(|w| w.vote(new))? {
            Given::New(vote) | Given::Known(vote) => Ok(vote),
            Given::Judged => Err(Error::user(format!(
                "{}: annotator {} has judged pair {} already",
                self.place(),
                new.annotator,
                new.pair
            ))
            .hint("a vote is changed by taking it back first")),
        }
    }

    /// Adds many votes at once; pairs that their annotator has judged are left as they are.
    pub fn add_votes(&self, new: &[NewVote]) -> Result<Added> {
        self.add(new, |w, v| Ok(u64::from(matches!(w.vote(v)?, Given::New(_)))))
    }

    /// Tasks that were in somebody's hands when the project was last served.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        self.read("SELECT pair, annotator, swapped, since FROM leases ORDER BY since", |row| {
            Ok(Lease { pair: row.int()?, annotator: row.int()?, swapped: row.flag()?, since: row.int()? })
        })
    }

    /// Several changes as one: all of them are on the disk when this returns, or none.
    pub fn write<R>(&self, change: impl FnOnce(&mut Writer) -> Result<R>) -> Result<R> {
        let mut database = self.lock();
        database.begin()?;
        let done = change(&mut Writer(database.as_mut())).and_then(|value| database.commit().map(|()| value));
        if done.is_err() {
            database.roll_back();
        }
        done
    }

    /// Adds rows in one transaction; `insert` says how many rows it made.
    fn add<T>(&self, rows: &[T], mut insert: impl FnMut(&mut Writer, &T) -> Result<u64>) -> Result<Added> {
        self.write(|w| {
            let mut added = Added::default();
            for row in rows {
                match insert(w, row)? {
                    0 => added.known += 1,
                    _ => added.new += 1,
                }
            }
            Ok(added)
        })
    }

    fn read<T>(&self, sql: &str, row: impl Fn(&mut Row) -> Result<T>) -> Result<Vec<T>> {
        let rows = self.query(sql, &[])?;
        rows.into_iter().map(|mut r| row(&mut r)).collect::<Result<_>>().context(|| self.place())
    }

    fn query(&self, sql: &str, values: &[Bound]) -> Result<Vec<Row>> {
        self.lock().query(sql, values)
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Database>> {
        // A panic in a transaction leaves it open, and the next one begins with a clear error; nothing is half-written.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a second server.
fn served_already(place: &str, holder: &str) -> Error {
    let by = if holder.is_empty() { String::new() } else { format!(" ({holder})") };
    Error::user(format!("{place}: the project is being served already{by}"))
        .hint("people join the server that runs, each with a link of their own: ft label annotator PROJECT NAME")
        .hint("or stop that server first")
}

/// The version of the tables.
fn version(database: &mut dyn Database) -> Result<i64> {
    let rows = database.query("SELECT value FROM meta WHERE key = 'version'", &[])?;
    let text = rows.into_iter().next().map(|mut row| row.text()).transpose()?;
    let number = text.as_deref().and_then(|t| t.parse().ok()).filter(|v| *v >= 1);
    number.ok_or_else(|| {
        Error::user(format!("the version of the project cannot be read: {text:?}"))
            .hint("the project is damaged: restore it from a copy")
    })
}

/// Makes the tables and writes the settings.
fn fill(database: &mut dyn Database, settings: &Settings) -> Result<()> {
    migrate(database, 0)?;
    database
        .execute("INSERT INTO meta (key, value) VALUES ('settings', $1)", &[Bound::Text(&json(settings)?)])
        .map(drop)
}

/// Takes the steps from `version` to the newest, as one transaction.
fn migrate(database: &mut dyn Database, version: i64) -> Result<()> {
    let steps = &schema::STEPS[version as usize..];
    if steps.is_empty() {
        return Ok(());
    }
    database.begin()?;
    let mut run = || -> Result<()> {
        for step in steps {
            let sql = step.replace("{id}", database.numbered());
            database.script(&sql)?;
        }
        let sql = "INSERT INTO meta (key, value) VALUES ('version', $1) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        database.execute(sql, &[Bound::Text(&schema::version().to_string())])?;
        database.commit()
    };
    let done = run();
    if done.is_err() {
        database.roll_back();
    }
    done
}
