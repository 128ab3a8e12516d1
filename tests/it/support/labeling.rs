//! Helpers for the tests of labelling: small projects, a temporary PostgreSQL server, a running labelling server, its
//! client.

use crate::support::needs::postgres;
use ft::label::record::answer::{NewCandidate, NewPair, NewPrompt};
use ft::label::record::settings::ProjectSettings;
use ft::label::store::Store;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const FT: &str = env!("CARGO_BIN_EXE_ft");

/// Fills a project with prompts of two answers each, and their pairs.
pub fn fill(store: &Store, pairs: usize, overlap: i64) {
    let prompts: Vec<NewPrompt> = (0..pairs)
        .map(|i| {
            let messages = json!([{ "role": "user", "content": format!("Question {i}?") }]);
            NewPrompt { key: format!("p{i}"), messages, columns: Default::default() }
        })
        .collect();
    store.add_prompts(&prompts).unwrap();
    let ids: Vec<i64> = store.prompts().unwrap().iter().map(|p| p.id).collect();
    let answer = |prompt: &i64, source: &str| NewCandidate {
        prompt: *prompt,
        source: source.into(),
        text: format!("The **{source}** answer to {prompt}."),
        tokens: Some(5),
    };
    let answers: Vec<NewCandidate> = ids.iter().flat_map(|p| [answer(p, "one"), answer(p, "two")]).collect();
    store.add_candidates(&answers).unwrap();
    let answers = store.candidates().unwrap();
    let new: Vec<NewPair> = answers
        .chunks(2)
        .map(|two| NewPair {
            prompt: two[0].prompt,
            a: two[0].id,
            b: two[1].id,
            overlap,
            repeat_of: None,
            reason: "random".into(),
        })
        .collect();
    store.add_pairs(&new).unwrap();
}

/// A project in a temporary folder.
pub struct Project {
    folder: TempDir,
    pub place: String,
}

impl Project {
    pub fn new(pairs: usize, overlap: i64) -> Self {
        Self::with(pairs, overlap, ProjectSettings::default())
    }

    pub fn with(pairs: usize, overlap: i64, settings: ProjectSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("project.db").to_str().unwrap().to_string();
        fill(&Store::create(&place, &settings).unwrap(), pairs, overlap);
        Self { folder, place }
    }

    pub fn store(&self) -> Store {
        Store::open(&self.place).unwrap()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a token for an annotator.
    pub fn token(&self, name: &str, admin: bool) -> String {
        let mut command = ft(&["label", "annotator", &self.place, name, "--json"]);
        if admin {
            command.arg("--admin");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        said["token"].as_str().unwrap().to_string()
    }
}

/// Returns a command that runs ft with these arguments.
pub fn ft(arguments: &[&str]) -> Command {
    let mut command = Command::new(FT);
    command.args(arguments).env("USER", "owner");
    command
}

/// A running labelling server. Killed when dropped.
pub struct Server {
    child: Child,
    pub url: String,
    /// The owner's token.
    pub token: String,
}

impl Server {
    pub fn start(place: &str) -> Self {
        Self::of(ft(&["label", "serve", place, "--address", "127.0.0.1:0"]))
    }

    /// Runs a command that starts a server, and reads the owner's link from its output.
    pub fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((url, token)) = line.trim().split_once("/#token=") else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("no link in {line:?}; {said}");
        };
        Self { url: url.into(), token: token.into(), child }
    }

    pub fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the server and returns its stderr.
    pub fn end(mut self) -> String {
        self.kill();
        self.said()
    }

    /// Ends the server as Ctrl-C does and returns its stderr.
    pub fn interrupt(mut self) -> String {
        let signalled = Command::new("sh").args(["-c", &format!("kill -INT {}", self.child.id())]).status().unwrap();
        assert!(signalled.success() && self.child.wait().unwrap().success());
        self.said()
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    /// Returns a client that uses this token.
    pub fn client(&self, token: &str) -> Client {
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build();
        Client { agent: agent.into(), url: self.url.clone(), token: token.into() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An HTTP client with an annotator's token.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
    token: String,
}

/// The reason why there was no response.
pub type Lost = ureq::Error;

impl Client {
    /// Sends a request and returns status and body of the response, or an error if there was none.
    pub fn try_ask(&self, path: &str, body: &Value) -> Result<(u16, Value), Lost> {
        let request = self.agent.post(format!("{}/api/{path}", self.url));
        let request = request
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.token));
        let mut reply = request.send(body.to_string())?;
        let status = reply.status().as_u16();
        let text = reply.body_mut().read_to_string()?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    pub fn ask(&self, path: &str, body: Value) -> (u16, Value) {
        self.try_ask(path, &body).unwrap()
    }

    /// Sends a request that must succeed and returns the body of the response.
    pub fn done(&self, path: &str, body: Value) -> Value {
        let (status, said) = self.ask(path, body);
        assert_eq!(status, 200, "{path}: {said}");
        said
    }

    /// Returns the id of the annotator's current task.
    pub fn task(&self) -> Option<i64> {
        self.done("next", json!({}))["task"]["id"].as_i64()
    }

    /// Votes on a task and returns status and body of the response.
    pub fn vote(&self, task: i64, choice: &str, request: &str) -> (u16, Value) {
        self.ask("vote", json!({ "task": task, "choice": choice, "request": request }))
    }
}

/// A PostgreSQL server in a temporary folder.
pub struct Postgres {
    child: Child,
    folder: TempDir,
    databases: std::cell::Cell<usize>,
}

impl Postgres {
    /// Starts a server. A test that uses it must begin with `needs!(POSTGRES)`.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // PostgreSQL refuses to run as root, so another user runs it.
        let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap() == 0;
        let nobody = 65534;
        if root {
            chown(folder.path(), Some(nobody), Some(nobody)).unwrap();
        }
        let data = folder.path().join("data");
        let command = |name: &str| {
            let mut command = Command::new(postgres(name).unwrap_or_else(|| panic!("no {name}")));
            command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
            if root {
                command.uid(nobody).gid(nobody);
            }
            command
        };
        let made = command("initdb")
            .args(["-D", data.to_str().unwrap(), "-U", "ft", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let child = command("postgres")
            .args(["-D", data.to_str().unwrap(), "-k", folder.path().to_str().unwrap()])
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, folder, databases: 0.into() };
        let began = Instant::now();
        while ::postgres::Client::connect(&server.url("postgres"), ::postgres::NoTls).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Returns the URL of a database.
    pub fn url(&self, database: &str) -> String {
        let socket = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://ft:secret@{socket}/{database}")
    }

    /// Creates an empty database and returns its URL.
    pub fn database(&self) -> String {
        let name = format!("project{}", self.databases.replace(self.databases.get() + 1));
        let mut client = ::postgres::Client::connect(&self.url("postgres"), ::postgres::NoTls).unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        self.url(&name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
