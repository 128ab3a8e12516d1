//! Stores a project in PostgreSQL, in a schema of its own.

use super::database::{Database, SqlParameter, SqlRow, SqlValue, check_text};
use crate::error::{Error, Result};
use ::postgres::config::{Host, SslMode};
use ::postgres::error::SqlState;
use ::postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use ::postgres::{Client, Config, NoTls, Statement};
use bytes::BytesMut;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// The schema with the tables of a project: a database contains at most one project.
const SCHEMA: &str = "ft_label";

/// Key of the advisory lock that the server of the project holds.
const OWNER: i64 = 0x6674_6c62;

/// How long to wait for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the database may take for one statement and for a lock. `options` in the URL may set other limits.
const STATEMENT: Duration = Duration::from_secs(30);

/// How long a connection may stay without a sign of the other end.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection to a project's database.
pub struct Postgres {
    config: Config,
    client: Client,
    statements: HashMap<String, Statement>,
    /// Whether this connection holds the serving lock.
    owns: bool,
}

/// Returns true if a place is a URL of PostgreSQL.
pub fn is_url(place: &str) -> bool {
    place.starts_with("postgres://") || place.starts_with("postgresql://")
}

impl Postgres {
    pub fn open(url: &str) -> Result<Self> {
        // The parser's message may quote the URL and with it the password, so it is not shown.
        let mut config: Config = url.parse().map_err(|_| {
            Error::user("the PostgreSQL URL cannot be read").hint("postgres://USER:PASSWORD@HOST:5432/DATABASE")
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(Error::user("the PostgreSQL URL asks for TLS (sslmode=require), which ft does not support")
                .hint("reach the server through its local socket, a tunnel (ssh -L) or a proxy, without sslmode"));
        }
        if config.get_ssl_mode() != SslMode::Disable && !is_local(&config) {
            return Err(Error::user(format!(
                "{}: answers, votes and the password would cross the network unencrypted: ft does not support TLS with PostgreSQL",
                place(&config)
            ))
            .hint("reach the server through a tunnel: ssh -L 5433:localhost:5432 HOST, then postgres://…@localhost:5433/…")
            .hint("in a network where nobody else can listen, allow it: add ?sslmode=disable to the URL"));
        }
        config.connect_timeout(PATIENCE).application_name("ft label");
        config.keepalives_idle(SILENCE).tcp_user_timeout(SILENCE);
        let client = connect(&config)?;
        Ok(Self { config, client, statements: HashMap::new(), owns: false })
    }

    /// Creates the schema; returns false if it existed.
    pub fn create_schema(&mut self) -> Result<bool> {
        let there = self.has_schema()?;
        if !there {
            self.script(&format!("CREATE SCHEMA {SCHEMA}"))?;
        }
        Ok(!there)
    }

    fn has_schema(&mut self) -> Result<bool> {
        let sql = "SELECT count(*) FROM pg_namespace WHERE nspname = $1";
        Ok(self.query(sql, &[SqlParameter::Text(SCHEMA)])?.remove(0).int()? > 0)
    }

    fn prepared(&mut self, sql: &str) -> Result<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).map_err(|e| explain(&self.config, &e))?;
        self.statements.insert(sql.to_string(), statement.clone());
        Ok(statement)
    }
}

fn connect(config: &Config) -> Result<Client> {
    let mut client = config.connect(NoTls).map_err(|e| explain(config, &e))?;
    client.batch_execute(&settings(config)).map_err(|e| explain(config, &e))?;
    Ok(client)
}

/// Returns the SQL that configures a connection. Limits from the URL are kept.
fn settings(config: &Config) -> String {
    let mut set =
        format!("SET search_path TO {SCHEMA}; SET client_min_messages TO warning; SET synchronous_commit TO on");
    for limit in ["statement_timeout", "lock_timeout"] {
        if !config.get_options().is_some_and(|given| given.contains(limit)) {
            set += &format!("; SET {limit} TO {}", STATEMENT.as_millis());
        }
    }
    set
}

/// Returns true if every host is this machine: a socket or a loopback address.
fn is_local(config: &Config) -> bool {
    let named = |host: &Host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        Host::Unix(_) => true,
    };
    match config.get_hostaddrs() {
        // `hostaddr` is what the client connects to; the host name is then ignored.
        [] => config.get_hosts().iter().all(named),
        addresses => addresses.iter().all(IpAddr::is_loopback),
    }
}

/// Returns server and database as a URL, without user and password.
fn place(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    let port = config.get_ports().first().map(|p| format!(":{p}")).unwrap_or_default();
    format!("postgres://{host}{port}/{}", config.get_dbname().unwrap_or_default())
}

/// Converts an error of the server into one with a hint.
fn explain(config: &Config, e: &::postgres::Error) -> Error {
    let place = place(config);
    let Some(db) = e.as_db_error() else {
        let cause = std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default();
        return Error::user(format!("{place}: {e}{cause}"))
            .hint("is the server running, and does it accept connections from this machine?");
    };
    let error = Error::user(format!("{place}: {}", db.message()));
    match db.code() {
        &SqlState::DISK_FULL => {
            Error::user(format!("{place}: the server's disk is full; nothing was saved: {}", db.message()))
                .hint("free disk space there and try again")
        }
        &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            error.hint("check user and password of the URL")
        }
        &SqlState::INVALID_CATALOG_NAME => error.hint("create the database first: createdb NAME"),
        &SqlState::INSUFFICIENT_PRIVILEGE => error.hint("give the user the right to create in this database"),
        &SqlState::QUERY_CANCELED | &SqlState::LOCK_NOT_AVAILABLE => error
            .hint("another connection may hold a lock: SELECT * FROM pg_stat_activity on the server shows who")
            .hint("to set another limit, in milliseconds: ?options=-c%20statement_timeout%3D120000 in the URL"),
        &SqlState::READ_ONLY_SQL_TRANSACTION => error.hint("the URL names a read-only server: name the primary"),
        _ => error.hint("is it a project that `ft label new` made?"),
    }
}

impl ToSql for SqlParameter<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(n) => n.to_sql_checked(ty, out),
            Self::Real(x) => x.to_sql_checked(ty, out),
            Self::Text(text) => text.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn cell(row: &::postgres::Row, i: usize) -> Result<SqlValue, ::postgres::Error> {
    let kind = row.columns()[i].type_();
    Ok(match *kind {
        Type::INT8 => row.try_get::<_, Option<i64>>(i)?.map_or(SqlValue::Null, SqlValue::Int),
        Type::FLOAT8 => row.try_get::<_, Option<f64>>(i)?.map_or(SqlValue::Null, SqlValue::Real),
        Type::BOOL => row.try_get::<_, Option<bool>>(i)?.map_or(SqlValue::Null, |b| SqlValue::Int(b.into())),
        _ => row.try_get::<_, Option<String>>(i)?.map_or(SqlValue::Null, SqlValue::Text),
    })
}

impl Database for Postgres {
    fn place(&self) -> String {
        place(&self.config)
    }

    fn execute(&mut self, sql: &str, values: &[SqlParameter]) -> Result<u64> {
        check_text(values)?;
        let statement = self.prepared(sql)?;
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as _).collect();
        self.client.execute(&statement, &values).map_err(|e| explain(&self.config, &e))
    }

    fn query(&mut self, sql: &str, values: &[SqlParameter]) -> Result<Vec<SqlRow>> {
        check_text(values)?;
        let statement = self.prepared(sql)?;
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as _).collect();
        let rows = self.client.query(&statement, &values).map_err(|e| explain(&self.config, &e))?;
        let read = |row: &::postgres::Row| (0..row.len()).map(|i| cell(row, i)).collect::<Result<_, _>>();
        rows.iter().map(|row| read(row).map(SqlRow::new).map_err(|e| explain(&self.config, &e))).collect()
    }

    fn script(&mut self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).map_err(|e| explain(&self.config, &e))
    }

    fn begin(&mut self) -> Result<()> {
        self.script("BEGIN")
    }

    fn commit(&mut self) -> Result<()> {
        // If a statement of the transaction failed, the server answers COMMIT with a rollback and reports no error.
        self.script("COMMIT")
    }

    fn roll_back(&mut self) {
        let _ = self.client.batch_execute("ROLLBACK");
    }

    fn primary_key_sql(&self) -> &'static str {
        "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"
    }

    fn has_project(&mut self) -> Result<bool> {
        let sql = "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'meta'";
        Ok(self.query(sql, &[SqlParameter::Text(SCHEMA)])?.remove(0).int()? > 0)
    }

    fn lock_for_serving(&mut self) -> Result<()> {
        let taken = self.query("SELECT pg_try_advisory_lock($1)", &[SqlParameter::Int(OWNER)])?.remove(0).flag()?;
        if !taken {
            return Err(super::database::served_already(&self.place(), "another connection to the database"));
        }
        self.owns = true;
        Ok(())
    }

    fn recover(&mut self) -> Result<()> {
        if !self.client.is_closed() {
            self.roll_back();
            return Ok(());
        }
        self.statements.clear();
        self.client = connect(&self.config)?;
        if self.owns { self.lock_for_serving() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unencrypted connections over a network are refused unless the URL allows them.
    #[test]
    fn another_host_is_not_spoken_to_in_clear_unless_asked_for() {
        for url in [
            "postgres://u:secret@db.example.org/d",
            "postgres://u:secret@db.example.org/d?sslmode=prefer",
            "postgres://u:secret@192.168.1.5:5432/d",
            "postgres://u:secret@localhost,db.example.org/d",
            "postgresql://u:secret@localhost/d?hostaddr=192.168.1.5",
        ] {
            let error = Postgres::open(url).err().unwrap();
            assert!(error.message().contains("unencrypted"), "{url}: {}", error.message());
            assert!(
                error.hints().iter().any(|h| h.contains("sslmode=disable")) && !format!("{error:?}").contains("secret")
            );
        }
        for url in [
            "postgres://u@localhost/d",
            "postgres://u@127.0.0.1:5432/d",
            "postgres://u@[::1]/d",
            "postgres:///d?host=/var/run/postgresql",
            "postgres://u@example.org/d?hostaddr=127.0.0.1",
        ] {
            assert!(is_local(&url.parse().unwrap()), "{url}");
        }
    }

    #[test]
    fn no_statement_waits_for_ever() {
        let set = |url: &str| settings(&url.parse().unwrap());
        let usual = set("postgres://u@localhost/d");
        assert!(usual.contains("SET statement_timeout TO 30000") && usual.contains("SET lock_timeout TO 30000"));
        let given = set("postgres://u@localhost/d?options=-c%20statement_timeout%3D120000");
        assert!(!given.contains("statement_timeout") && given.contains("lock_timeout"), "{given}");
    }
}
