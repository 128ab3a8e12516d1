//! Runs programs that nobody has read, such as code that a model wrote.
//!
//! A program gets an empty directory, the only place that it can write to, and limits of time, memory, processes, output and disk.
//! [`Isolation::Namespaces`] also takes the network and all other processes from it: the program runs in new user, process, mount, network and
//! IPC namespaces of Linux, with everything mounted read-only, as a user without rights, and system calls that it does not need fail
//! (`filter`). The first process of a process namespace takes all others along when it ends, so nothing of a program
//! is left after [`Sandbox::run`], however it forked. What it can do is read: files that the user of ft may read are visible to it.
//!
//! [`Isolation::LimitsOnly`] is for machines that allow no namespaces: the program runs as the user of ft and can write to their files; it can neither
//! open sockets nor start processes, so that it can be ended whole. Nothing chooses it but the caller.
//!
//! `workplace`: the directory of a run, and what killed processes left of theirs; `process` starts and watches a program; `child`: what happens before it runs; `filter`: which system calls it may use; `memory`: what all its
//! processes use together.

mod child;
mod filter;
mod memory;
mod process;
mod workplace;

use crate::error::{Error, Result};
use process::{End, Launch};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use workplace::Workplace;

/// What stands for the program's file in a command.
pub const FILE_PLACEHOLDER: &str = "{file}";

/// How a program is kept from everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// In namespaces of its own.
    #[default]
    Namespaces,
    /// Not at all, except that it cannot open sockets or start processes.
    LimitsOnly,
}

/// Limits of a program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Time by the clock.
    pub wall: Duration,
    /// Processor time of each process, in seconds.
    pub cpu: u64,
    /// Address space of each process, and about the resident memory of all together, in bytes.
    pub memory: u64,
    /// Processes and threads at a time. With [`Isolation::LimitsOnly`] there is one process, and no limit of threads.
    pub processes: u64,
    /// Bytes that it may print, standard output and error together.
    pub output: usize,
    /// Bytes of all files that it writes; of each one with [`Isolation::LimitsOnly`].
    pub disk: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(10),
            cpu: 10,
            memory: 1 << 30,
            processes: 32,
            output: 64 << 10,
            disk: 16 << 20,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramEnd {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, as of a limit of processor time.
    Signal(i32),
    /// It was ended after the time by the clock.
    TimedOut,
    /// It was ended because it printed too much.
    TooMuchOutput,
    /// It was ended because its processes together used too much memory.
    TooMuchMemory,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramRun {
    /// How it ended.
    pub end: ProgramEnd,
    /// What it printed to standard output and error, at most as much as allowed.
    pub output: String,
}

impl ProgramRun {
    /// Returns true if it ended by itself without an error.
    pub fn succeeded(&self) -> bool {
        self.end == ProgramEnd::Exited(0)
    }

    /// Says in a line how it ended: the last line that it printed, or the limit that it reached.
    pub fn summary(&self) -> String {
        match self.end {
            ProgramEnd::Exited(0) => "passed".into(),
            ProgramEnd::TimedOut => "did not end in time".into(),
            ProgramEnd::TooMuchOutput => "printed too much".into(),
            ProgramEnd::TooMuchMemory => "used too much memory".into(),
            ProgramEnd::Signal(signal) => format!("ended by signal {signal}"),
            ProgramEnd::Exited(code) => match self.output.lines().rev().find(|line| !line.trim().is_empty()) {
                Some(line) => crate::fsutil::excerpt(line.trim()),
                None => format!("ended with exit code {code}"),
            },
        }
    }
}

/// A way to run programs with limits.
#[derive(Debug, Clone)]
pub struct Sandbox {
    isolation: Isolation,
    limits: Limits,
    /// The program that runs files, found on the PATH, and its arguments.
    program: PathBuf,
    arguments: Vec<String>,
    /// Name of the file that is run.
    file: String,
}

impl Sandbox {
    /// Prepares a sandbox that runs files named `file` with a command, such as `python3 {file}`.
    ///
    /// Errors: the command names no program that is there, or lacks `{file}`; this machine cannot isolate programs.
    pub fn new(isolation: Isolation, limits: Limits, command: &[String], file: &str) -> Result<Self> {
        let Some((name, arguments)) = command.split_first().filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::user("the command names no program").hint("e.g. [python3, \"{file}\"]"));
        };
        if !command.iter().any(|part| part.contains(FILE_PLACEHOLDER)) {
            return Err(Error::user(format!("the command `{}` lacks `{{file}}`", command.join(" ")))
                .hint("it stands for the file to run, e.g. [python3, \"{file}\"]"));
        }
        let program = if name.contains(FILE_PLACEHOLDER) { PathBuf::from(name) } else { found(name)? };
        workplace::remove_leftovers_once();
        let sandbox = Self { isolation, limits, program, arguments: arguments.to_vec(), file: file.into() };
        sandbox.check()?;
        Ok(sandbox)
    }

    /// Fails if this machine cannot isolate programs, by trying it.
    fn check(&self) -> Result<()> {
        if self.isolation == Isolation::LimitsOnly {
            return Ok(());
        }
        let place = Workplace::make(&self.file, "")?;
        let launch = self.launch(&place)?;
        process::try_isolation(&launch).map_err(|why| {
            Error::user(format!("programs cannot be isolated on this machine: {why}"))
                .hint(
                    "ft needs Linux 5.14 or newer with user namespaces for everyone: sysctl user.max_user_namespaces, \
                     kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; containers often forbid them",
                )
                .hint("`sandbox: limits_only` runs programs as your user, with limits but without isolation: only for code that you trust")
        })
    }

    /// Runs a program and waits for its end. Afterwards no process of it is left.
    ///
    /// Errors: the command cannot be started.
    pub fn run(&self, text: &str) -> Result<ProgramRun> {
        let place = Workplace::make(&self.file, text)?;
        let launch = self.launch(&place)?;
        let (end, output) = process::run(&launch).map_err(|why| {
            Error::user(format!("starting `{}`: {why}", self.command_line()))
                .hint("may the command be executed, and by other users than its owner?")
        })?;
        let end = match end {
            End::Status(status) => ended(status),
            End::TimedOut => ProgramEnd::TimedOut,
            End::TooMuchOutput => ProgramEnd::TooMuchOutput,
            End::TooMuchMemory => ProgramEnd::TooMuchMemory,
        };
        Ok(ProgramRun { end, output: String::from_utf8_lossy(&output).into_owned() })
    }

    /// Returns the command as one line.
    pub fn command_line(&self) -> String {
        let parts = std::iter::once(self.program.display().to_string()).chain(self.arguments.iter().cloned());
        parts.collect::<Vec<_>>().join(" ")
    }

    fn launch(&self, place: &Workplace) -> Result<Launch> {
        let file = place.file.to_str().ok_or_else(|| Error::user("the directory for temporary files is no text"))?;
        let with_file = |part: &str| text_of(part.replace(FILE_PLACEHOLDER, file));
        let program = self.program.to_str().map_or_else(|| c_string(self.program.as_os_str()), with_file)?;
        let arguments = self.arguments.iter().map(|part| with_file(part));
        let work = place.work.display();
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
        let environment = [
            format!("PATH={path}"),
            format!("HOME={work}"),
            format!("TMPDIR={work}"),
            "LANG=C.UTF-8".into(),
            "OMP_NUM_THREADS=1".into(),
            "PYTHONDONTWRITEBYTECODE=1".into(),
        ];
        Ok(Launch {
            isolation: self.isolation,
            limits: self.limits,
            arguments: std::iter::once(Ok(program.clone())).chain(arguments).collect::<Result<_>>()?,
            program,
            environment: environment.into_iter().map(text_of).collect::<Result<_>>()?,
            work: c_string(place.work.as_os_str())?,
            filter: filter::program(self.isolation),
        })
    }
}

fn ended(status: i32) -> ProgramEnd {
    match libc::WIFEXITED(status) {
        true => ProgramEnd::Exited(libc::WEXITSTATUS(status)),
        false => ProgramEnd::Signal(libc::WTERMSIG(status)),
    }
}

/// Finds a program as a shell does.
fn found(name: &str) -> Result<PathBuf> {
    let fits = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let places: Vec<PathBuf> = match name.contains('/') {
        true => vec![crate::fsutil::absolute(Path::new(name))],
        false => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|p| p.join(name)).collect(),
    };
    places.into_iter().find(|path| fits(path)).ok_or_else(|| {
        Error::user(format!("there is no program `{name}`"))
            .hint("`command` is a program and its arguments; is it on the PATH, and may it be executed?")
    })
}

fn text_of(text: String) -> Result<CString> {
    CString::new(text).map_err(|_| Error::user("a command with a NUL character"))
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::user("a path with a NUL character"))
}
