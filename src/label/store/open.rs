//! Creates, opens and migrates a project.

use super::connection::Store;
use super::database::{Database, SqlParameter};
use super::postgres::Postgres;
use super::rows::json;
use super::sqlite::Sqlite;
use super::{postgres, schema};
use crate::error::{Context, Error, Result};
use crate::fsutil::{io_error, temporary_name};
use crate::label::record::settings::ProjectSettings;
use std::path::Path;
use std::sync::Mutex;

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
