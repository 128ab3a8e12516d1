//! A program of the user's that is given lines and prints as many: how reward commands and judges of pairs are asked.
//!
//! It is started for every batch and ends with its input: then what it prints is whole, whether it buffers or not, and
//! a batch never meets what an earlier one left behind. A judge that takes long to start is better a server (`http`).

use super::spec::CommandSpec;
use crate::error::{Error, Result};
use crate::fsutil::shortened;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of the end of stderr that an error shows.
const TAIL: usize = 2000;

/// The program, and what errors say that it should do.
pub struct Program {
    spec: CommandSpec,
    /// What one line of its output is: `a number`.
    prints: &'static str,
    /// What one line of its input is.
    reads: &'static str,
    /// Bytes a line of output may have on average before it is taken to print something else.
    most: usize,
}

impl Program {
    /// Errors: no program is named.
    pub fn new(spec: CommandSpec, reads: &'static str, prints: &'static str, most: usize) -> Result<Self> {
        match spec.run.first() {
            Some(program) if !program.is_empty() => Ok(Self { spec, prints, reads, most }),
            _ => Err(Error::user("command: `run` names no program").hint("run: [python3, judge.py]")),
        }
    }

    /// As errors call it.
    pub fn name(&self) -> String {
        format!("`{}`", self.spec.run.join(" "))
    }

    /// What it prints to each of these lines, in their order.
    ///
    /// Errors: it cannot be started, fails, takes too long, or prints another number of lines.
    pub fn ask(&self, lines: &[String]) -> Result<Vec<String>> {
        let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let printed = self.talk(input, self.most * (lines.len() + 4))?;
        let printed = String::from_utf8_lossy(&printed);
        let found: Vec<&str> = printed.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        if found.len() != lines.len() {
            return Err(Error::user(format!(
                "{}: printed {} lines for {} lines of input; it begins: {}",
                self.name(),
                found.len(),
                lines.len(),
                shortened(&printed)
            ))
            .hint(format!(
                "it must print {} for each line that it reads, in their order, and nothing else, to stdout",
                self.prints
            )));
        }
        Ok(found.into_iter().map(String::from).collect())
    }

    /// What the command prints when it is given `input`; no more than `most` bytes.
    fn talk(&self, input: String, most: usize) -> Result<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs_f64(self.spec.timeout);
        let mut child = Command::new(&self.spec.run[0])
            .args(&self.spec.run[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| {
                Error::user(format!("starting {}: {e}", self.name()))
                    .hint("`run` is a program and its arguments; is it on the PATH, and may it be executed?")
            })?;
        // A command that reads no more ends the writing; what is wrong then shows in its exit or its output.
        if let Some(mut stdin) = child.stdin.take() {
            thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        }
        let output = collect(child.stdout.take(), most);
        let errors = collect(child.stderr.take(), usize::MAX);
        let printed = output.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let status = wait(&mut child, deadline);
        let said = || match errors.recv_timeout(Duration::from_secs(1)).map(|e| tail(&e)) {
            Ok(text) if !text.is_empty() => format!("; its stderr ends:\n{text}"),
            _ => "; it wrote nothing to stderr".into(),
        };
        match (printed, status) {
            (Ok(printed), _) if printed.len() > most => {
                let _ = child.kill();
                Err(Error::user(format!("{}: printed more than {most} bytes{}", self.name(), said())).hint(format!(
                    "it must print {} for each line that it reads, and nothing else, to stdout",
                    self.prints
                )))
            }
            (Ok(printed), Some(status)) if status.success() => Ok(printed),
            (_, Some(status)) if !status.success() => {
                Err(Error::user(format!("{}: ended with {}{}", self.name(), status, said()))
                    .hint(format!("try it by hand: give it lines of {}", self.reads)))
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::user(format!("{}: no end after {} s{}", self.name(), self.spec.timeout, said()))
                    .hint("raise `timeout`; does the command end when its input ends?"))
            }
        }
    }
}

/// Reads all, in a thread of its own; one byte more than `most` says that there was more.
fn collect(pipe: Option<impl Read + Send + 'static>, most: usize) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take((most as u64).saturating_add(1)).read_to_end(&mut bytes);
        }
        let _ = send.send(bytes);
    });
    receive
}

/// How the command ended; `None`: it has not until `deadline`.
fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).trim().to_string()
}
