//! Stores a project in one SQLite file with a write-ahead log.

use super::database::{Database, SqlParameter, SqlRow, SqlValue, check_text};
use crate::error::{Error, Result};
use crate::fsutil::{FileAccess, create_new, io_error, no_follow_options};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, params_from_iter};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Marks the file as a labelling project: "ftlb".
const APPLICATION: i64 = 0x6674_6c62;

/// How long to wait while another process writes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A project file.
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
    /// The lock file, while this process serves the project.
    owner: Option<File>,
}

impl Sqlite {
    /// Opens an existing project file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            let what = if path.exists() { "is not a file" } else { "no such project" };
            return Err(Error::user(format!("{}: {what}", path.display()))
                .hint("make one with: ft label new PROJECT --prompts FILE"));
        }
        Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    /// Creates an empty project file that only its owner can read. SQLite gives its auxiliary files the same
    /// permissions.
    pub fn create(path: &Path) -> Result<Self> {
        create_new(path, FileAccess::OwnerOnly).map_err(|e| io_error("making", path, e))?;
        let new = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mark = format!("PRAGMA application_id = {APPLICATION}");
        new.connection.execute_batch(&mark).map_err(|e| new.error(e))?;
        Ok(new)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self> {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|e| explain(path, &e))?;
        let new = Self { path: path.to_path_buf(), connection, owner: None };
        let set = || {
            new.connection.busy_timeout(PATIENCE)?;
            // FULL: the log is on disk before a commit returns, so that a vote survives a loss of power.
            new.connection.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
                 PRAGMA trusted_schema = OFF;",
            )
        };
        set().map_err(|e| new.error(e))?;
        new.connection.set_prepared_statement_cache_capacity(64);
        Ok(new)
    }

    fn error(&self, e: rusqlite::Error) -> Error {
        explain(&self.path, &e)
    }

    fn number(&self, pragma: &str) -> Result<i64> {
        self.connection.query_row(pragma, [], |row| row.get(0)).map_err(|e| self.error(e))
    }

    /// Returns the path of the lock file. The project file itself cannot be the lock: closing another handle of it
    /// would release the locks that SQLite holds on it.
    fn lock_file(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".lock");
        name.into()
    }
}

/// Converts an error of SQLite into one with a hint.
fn explain(path: &Path, e: &rusqlite::Error) -> Error {
    let place = path.display();
    match e.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::user(format!("{place}: is not a labelling project"))
            .hint("a project is the file that `ft label new` made; was another file meant?"),
        Some(ErrorCode::DatabaseCorrupt) => Error::user(format!("{place}: the project is damaged: {e}"))
            .hint("restore it from a copy, or recover what is readable: sqlite3 FILE .recover"),
        Some(ErrorCode::DiskFull) => {
            Error::user(format!("{place}: the disk is full; nothing was saved")).hint("free disk space and try again")
        }
        Some(ErrorCode::SystemIoFailure) => {
            Error::user(format!("{place}: the disk cannot be written or read; nothing was saved: {e}"))
                .hint("check the disk, a quota, or a limit on the size of files (ulimit -f), and try again")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            Error::user(format!("{place}: {e}")).hint("check the permissions of the file and of its folder")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::user(format!("{place}: another program has locked the project: {e}"))
                .hint("close it there; ft waits 20 seconds for the lock")
        }
        _ => Error::user(format!("{place}: {e}")).hint("is it a project that `ft label new` made?"),
    }
}

impl ToSql for SqlParameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Owned(Value::Null),
            Self::Int(n) => ToSqlOutput::Owned(Value::Integer(*n)),
            Self::Real(x) => ToSqlOutput::Owned(Value::Real(*x)),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

/// Replaces `$1` by `?1`, SQLite's form of a numbered value.
fn with_sqlite_placeholders(sql: &str) -> String {
    sql.replace('$', "?")
}

impl Database for Sqlite {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn execute(&mut self, sql: &str, values: &[SqlParameter]) -> Result<u64> {
        check_text(values)?;
        let run = || self.connection.prepare_cached(&with_sqlite_placeholders(sql))?.execute(params_from_iter(values));
        run().map(|n| n as u64).map_err(|e| self.error(e))
    }

    fn query(&mut self, sql: &str, values: &[SqlParameter]) -> Result<Vec<SqlRow>> {
        check_text(values)?;
        let run = || -> rusqlite::Result<Vec<SqlRow>> {
            let mut statement = self.connection.prepare_cached(&with_sqlite_placeholders(sql))?;
            let width = statement.column_count();
            let mut rows = statement.query(params_from_iter(values))?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                let cell = |i| {
                    Ok(match row.get_ref(i)? {
                        ValueRef::Null => SqlValue::Null,
                        ValueRef::Integer(n) => SqlValue::Int(n),
                        ValueRef::Real(x) => SqlValue::Real(x),
                        ValueRef::Text(text) | ValueRef::Blob(text) => {
                            SqlValue::Text(String::from_utf8_lossy(text).into_owned())
                        }
                    })
                };
                all.push(SqlRow::new((0..width).map(cell).collect::<rusqlite::Result<_>>()?));
            }
            Ok(all)
        };
        run().map_err(|e| self.error(e))
    }

    fn script(&mut self, sql: &str) -> Result<()> {
        self.connection.execute_batch(sql).map_err(|e| self.error(e))
    }

    fn begin(&mut self) -> Result<()> {
        // Takes the write lock at once. A transaction that read first would fail at its first write if another process
        // had written in between.
        self.script("BEGIN IMMEDIATE")
    }

    fn commit(&mut self) -> Result<()> {
        self.script("COMMIT")
    }

    fn roll_back(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    fn primary_key_sql(&self) -> &'static str {
        "INTEGER PRIMARY KEY"
    }

    fn has_project(&mut self) -> Result<bool> {
        Ok(self.number("PRAGMA application_id")? == APPLICATION)
    }

    fn lock_for_serving(&mut self) -> Result<()> {
        let damage: String =
            self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| self.error(e))?;
        if damage != "ok" {
            return Err(Error::user(format!("{}: the project is damaged: {damage}", self.place()))
                .hint("restore it from a copy, or recover what is readable: sqlite3 FILE .recover"));
        }
        let path = self.lock_file();
        let mut options = no_follow_options();
        let open = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(|e| io_error("opening", &path, e))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(super::database::served_already(&self.place(), holder.trim()));
        }
        let mut note = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "process {}", std::process::id())
        };
        note().map_err(|e| io_error("writing", &path, e))?;
        self.owner = Some(file);
        Ok(())
    }

    fn recover(&mut self) -> Result<()> {
        self.roll_back();
        Ok(())
    }
}
