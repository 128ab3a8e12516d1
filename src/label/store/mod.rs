//! Stores a labelling project in an SQLite file or in PostgreSQL. The only place that knows SQL.
//!
//! When a writing method returns, its changes are on disk and survive SIGKILL and a loss of power. All calls block.
//! Every write is a transaction of its own, or part of the one that [`Store::write`] opens.

mod database;
mod postgres;
mod rows;
mod schema;
mod sqlite;
mod writer;

use super::record::{
    Annotator, AnnotatorKind, Candidate, CandidatePair, InsertCounts, NewCandidate, NewPair, NewPrompt, NewVote,
    ProjectSettings, StoredPrompt, Vote,
};
use crate::error::{Context, Error, Result};
use crate::fsutil::{hex, io_error, temporary_name};
use database::{Database, SqlParameter, SqlRow};
use postgres::Postgres;
use rows::{PairContent, VOTE_COLUMNS, annotator, candidate, json, prompt, shown, vote};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlite::Sqlite;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use writer::StoreTransaction;

/// An open project.
pub struct Store {
    database: Mutex<Box<dyn Database>>,
}

/// A task that an annotator holds, as stored so that it survives a restart of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub pair: i64,
    pub annotator: i64,
    /// Whether `b` is shown on the left.
    pub swapped: bool,
    /// When the task was assigned, in milliseconds since 1970.
    pub since: i64,
}

/// Result of inserting a vote.
#[derive(Debug, Clone, PartialEq)]
pub enum VoteInsertion {
    /// The vote was inserted.
    New(Vote),
    /// The same request was saved before, as this vote.
    Repeated(Vote),
    /// This annotator has already judged the pair in another request.
    AlreadyJudged,
}

impl Store {
    /// Creates a project. `place` is a file or a `postgres://` URL. A file appears complete or not at all.
    ///
    /// Errors: the project exists; it cannot be written.
    pub fn create(place: &str, settings: &ProjectSettings) -> Result<Self> {
        let exists = |place: &str| {
            Error::user(format!("{place}: the project already exists"))
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
            let temp = path.with_file_name(temporary_name(&name));
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

    /// Opens a project and migrates it if it has an older version. `place` is a file or a `postgres://` URL.
    ///
    /// Errors: there is no project; it is damaged; it has a newer version.
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
        migrate(database.as_mut(), version).context(|| format!("{shown}: updating the project to this version"))?;
        Ok(Self { database: Mutex::new(database) })
    }

    /// Returns the file or the URL of the project, without the password, so that it may be shown.
    pub fn location(&self) -> String {
        self.lock().place()
    }

    /// Checks the project for damage and locks it, so that only this process hands out tasks until the store is
    /// dropped.
    ///
    /// Errors: another server holds the lock; the project is damaged.
    pub fn lock_for_serving(&self) -> Result<()> {
        self.lock().lock_for_serving()
    }

    /// Recovers after a failed write: rolls back an open transaction and reconnects if the connection was lost.
    pub fn recover(&self) -> Result<()> {
        self.lock().recover()
    }

    /// Returns the settings of the project.
    pub fn settings(&self) -> Result<ProjectSettings> {
        let rows = self.query("SELECT value FROM meta WHERE key = 'settings'", &[])?;
        let mut row =
            rows.into_iter().next().ok_or_else(|| Error::user(format!("{}: no settings", self.location())))?;
        row.json()
    }

    /// Replaces the settings of the project.
    pub fn set_settings(&self, settings: &ProjectSettings) -> Result<()> {
        let text = json(settings)?;
        self.write(|w| {
            w.execute("UPDATE meta SET value = $1 WHERE key = 'settings'", &[SqlParameter::Text(&text)]).map(drop)
        })
    }

    /// Returns all prompts in the order in which they were added.
    pub fn prompts(&self) -> Result<Vec<StoredPrompt>> {
        self.read("SELECT id, key, messages, columns FROM prompts ORDER BY id", prompt)
    }

    /// Adds prompts. A prompt whose key exists is left unchanged.
    pub fn add_prompts(&self, prompts: &[NewPrompt]) -> Result<InsertCounts> {
        let sql = "INSERT INTO prompts (key, messages, columns) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        self.add(prompts, |w, p| {
            let (messages, columns) = (p.messages.to_string(), json(&p.columns)?);
            w.execute(sql, &[SqlParameter::Text(&p.key), SqlParameter::Text(&messages), SqlParameter::Text(&columns)])
        })
    }

    /// Returns all candidate answers in the order in which they were added.
    pub fn candidates(&self) -> Result<Vec<Candidate>> {
        self.read("SELECT id, prompt, source, text, tokens FROM candidates ORDER BY id", candidate)
    }

    /// Adds candidate answers. The same text from the same source to the same prompt is stored once.
    pub fn add_candidates(&self, candidates: &[NewCandidate]) -> Result<InsertCounts> {
        let sql = "INSERT INTO candidates (prompt, source, text, digest, tokens) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT DO NOTHING";
        self.add(candidates, |w, c| {
            let digest = hex(&Sha256::digest(c.text.as_bytes()));
            let (source, text) = (SqlParameter::Text(&c.source), SqlParameter::Text(&c.text));
            w.execute(
                sql,
                &[SqlParameter::Int(c.prompt), source, text, SqlParameter::Text(&digest), SqlParameter::int(c.tokens)],
            )
        })
    }

    /// Returns all pairs in the order in which they were added and are shown.
    pub fn pairs(&self) -> Result<Vec<CandidatePair>> {
        self.read("SELECT id, prompt, a, b, overlap, repeat_of, reason FROM pairs ORDER BY id", |row| {
            Ok(CandidatePair {
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

    /// Adds pairs. Two answers form a pair only once, in whatever order, and a pair has at most one hidden repeat.
    pub fn add_pairs(&self, pairs: &[NewPair]) -> Result<InsertCounts> {
        let sql = "INSERT INTO pairs (prompt, a, b, low, high, overlap, repeat_of, reason) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
        self.add(pairs, |w, p| {
            let (low, high) = (p.a.min(p.b), p.a.max(p.b));
            let ids = [p.prompt, p.a, p.b, low, high, p.overlap].map(SqlParameter::Int);
            w.execute(sql, &[&ids[..], &[SqlParameter::int(p.repeat_of), SqlParameter::Text(&p.reason)]].concat())
        })
    }

    /// Returns the prompt and the answers `a` and `b` of a pair.
    pub fn pair_content(&self, pair: i64) -> Result<PairContent> {
        shown(self.lock().as_mut(), pair)
    }

    /// Returns the number of pairs: a cheap way to notice that another process added some.
    pub fn pair_count(&self) -> Result<i64> {
        self.query("SELECT count(*) FROM pairs", &[])?.remove(0).int()
    }

    /// Returns all annotators.
    pub fn annotators(&self) -> Result<Vec<Annotator>> {
        self.read("SELECT id, name, kind, token_hash, detail FROM annotators ORDER BY id", annotator)
    }

    /// Returns the annotator with this name; creates it if there is none.
    ///
    /// Errors: an annotator with this name has another kind.
    pub fn annotator(&self, name: &str, kind: AnnotatorKind, detail: &Value) -> Result<Annotator> {
        let found = self.write(|w| {
            let insert = "INSERT INTO annotators (name, kind, detail) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            w.execute(
                insert,
                &[SqlParameter::Text(name), SqlParameter::Text(kind.name()), SqlParameter::Text(&detail.to_string())],
            )?;
            let select = "SELECT id, name, kind, token_hash, detail FROM annotators WHERE name = $1";
            annotator(&mut w.query(select, &[SqlParameter::Text(name)])?.remove(0))
        })?;
        if found.kind != kind {
            return Err(Error::user(format!("{}: `{name}` is a {}, not a {kind}", self.location(), found.kind))
                .hint("choose another name"));
        }
        Ok(found)
    }

    /// Sets an annotator's detail and token hash. `None` removes the token.
    pub fn set_annotator(&self, id: i64, token_hash: Option<&str>, detail: &Value) -> Result<()> {
        let sql = "UPDATE annotators SET token_hash = $1, detail = $2 WHERE id = $3";
        let detail = detail.to_string();
        self.write(|w| {
            w.execute(sql, &[SqlParameter::text(token_hash), SqlParameter::Text(&detail), SqlParameter::Int(id)])
                .map(drop)
        })
    }

    /// Returns the votes that were not undone, in the order in which they were given.
    pub fn votes(&self) -> Result<Vec<Vote>> {
        self.read(&format!("SELECT {VOTE_COLUMNS} FROM votes WHERE undone = 0 ORDER BY id"), vote)
    }

    /// Returns all votes, including undone ones.
    pub fn votes_and_undone(&self) -> Result<Vec<Vote>> {
        self.read(&format!("SELECT {VOTE_COLUMNS} FROM votes ORDER BY id"), vote)
    }

    /// Adds a vote. If the same request was saved before, returns the stored vote.
    ///
    /// Errors: the annotator has judged the pair in another request; the vote cannot be written.
    pub fn add_vote(&self, new: &NewVote) -> Result<Vote> {
        match self.write(|w| w.vote(new))? {
            VoteInsertion::New(vote) | VoteInsertion::Repeated(vote) => Ok(vote),
            VoteInsertion::AlreadyJudged => Err(Error::user(format!(
                "{}: annotator {} has already judged pair {}",
                self.location(),
                new.annotator,
                new.pair
            ))
            .hint("to change a vote, undo it first")),
        }
    }

    /// Adds votes in one transaction. Pairs that the annotator has already judged are left unchanged.
    pub fn add_votes(&self, new: &[NewVote]) -> Result<InsertCounts> {
        self.add(new, |w, v| Ok(u64::from(matches!(w.vote(v)?, VoteInsertion::New(_)))))
    }

    /// Returns the tasks that annotators held when the project was last served.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        self.read("SELECT pair, annotator, swapped, since FROM leases ORDER BY since", |row| {
            Ok(Lease { pair: row.int()?, annotator: row.int()?, swapped: row.flag()?, since: row.int()? })
        })
    }

    /// Runs `change` in one transaction: on success all its changes are on disk, on failure none.
    pub fn write<R>(&self, change: impl FnOnce(&mut StoreTransaction) -> Result<R>) -> Result<R> {
        let mut database = self.lock();
        database.begin()?;
        let done = change(&mut StoreTransaction(database.as_mut())).and_then(|value| database.commit().map(|()| value));
        if done.is_err() {
            database.roll_back();
        }
        done
    }

    /// Adds rows in one transaction. `insert` returns the number of rows that it inserted.
    fn add<T>(
        &self,
        rows: &[T],
        mut insert: impl FnMut(&mut StoreTransaction, &T) -> Result<u64>,
    ) -> Result<InsertCounts> {
        self.write(|w| {
            let mut added = InsertCounts::default();
            for row in rows {
                match insert(w, row)? {
                    0 => added.known += 1,
                    _ => added.new += 1,
                }
            }
            Ok(added)
        })
    }

    fn read<T>(&self, sql: &str, row: impl Fn(&mut SqlRow) -> Result<T>) -> Result<Vec<T>> {
        let rows = self.query(sql, &[])?;
        rows.into_iter().map(|mut r| row(&mut r)).collect::<Result<_>>().context(|| self.location())
    }

    fn query(&self, sql: &str, values: &[SqlParameter]) -> Result<Vec<SqlRow>> {
        self.lock().query(sql, values)
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Database>> {
        // A panic inside a transaction leaves it open; the next transaction then fails to begin, and nothing is
        // half-written.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the error for a second server of the same project.
fn served_already(place: &str, holder: &str) -> Error {
    let by = if holder.is_empty() { String::new() } else { format!(" ({holder})") };
    Error::user(format!("{place}: the project is being served already{by}"))
        .hint("people join the server that runs, each with a link of their own: ft label annotator PROJECT NAME")
        .hint("or stop that server first")
}

/// Reads the version of the tables.
fn version(database: &mut dyn Database) -> Result<i64> {
    let rows = database.query("SELECT value FROM meta WHERE key = 'version'", &[])?;
    let text = rows.into_iter().next().map(|mut row| row.text()).transpose()?;
    let number = text.as_deref().and_then(|t| t.parse().ok()).filter(|v| *v >= 1);
    number.ok_or_else(|| {
        Error::user(format!("the version of the project cannot be read: {text:?}"))
            .hint("the project is damaged: restore it from a copy")
    })
}

/// Creates the tables and writes the settings.
fn fill(database: &mut dyn Database, settings: &ProjectSettings) -> Result<()> {
    migrate(database, 0)?;
    database
        .execute("INSERT INTO meta (key, value) VALUES ('settings', $1)", &[SqlParameter::Text(&json(settings)?)])
        .map(drop)
}

/// Runs the schema steps from `version` to the newest in one transaction.
fn migrate(database: &mut dyn Database, version: i64) -> Result<()> {
    let steps = &schema::STEPS[version as usize..];
    if steps.is_empty() {
        return Ok(());
    }
    database.begin()?;
    let mut run = || -> Result<()> {
        for step in steps {
            let sql = step.replace("{id}", database.primary_key_sql());
            database.script(&sql)?;
        }
        let sql = "INSERT INTO meta (key, value) VALUES ('version', $1) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        database.execute(sql, &[SqlParameter::Text(&schema::version().to_string())])?;
        database.commit()
    };
    let done = run();
    if done.is_err() {
        database.roll_back();
    }
    done
}
