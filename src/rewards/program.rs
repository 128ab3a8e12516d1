//! Runs a user's program that prints one line for each line of its input: reward commands, and commands that judge
//! pairs.
//!
//! The program is started anew for every batch and must end when its input ends. So its output is complete even if it
//! buffers, and no state of an earlier batch is left in it. A program that takes long to start is better run as a
//! server (`http`).

use super::spec::CommandSpec;
use crate::error::{Error, Result};
use crate::fsutil::excerpt;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// An error shows at most this many bytes of the end of stderr.
const STDERR_BYTES: usize = 2000;

/// A program with its expected input and output.
pub struct LineProgram {
    spec: CommandSpec,
    /// Describes one line of output in errors, such as `one number`.
    output_line: &'static str,
    /// Describes one line of input in errors.
    input_line: &'static str,
    /// Bytes that a line of output may have on average. More is an error: the program prints something else.
    bytes_per_line: usize,
}

impl LineProgram {
    /// Describes a program; starts nothing. Fails if `run` is empty.
    pub fn new(spec: CommandSpec, reads: &'static str, prints: &'static str, most: usize) -> Result<Self> {
        match spec.run.first() {
            Some(program) if !program.is_empty() => {
                Ok(Self { spec, output_line: prints, input_line: reads, bytes_per_line: most })
            }
            _ => Err(Error::user("command: `run` names no program").hint("run: [python3, judge.py]")),
        }
    }

    /// Returns the command line in backquotes, for errors.
    pub fn name(&self) -> String {
        format!("`{}`", self.spec.run.join(" "))
    }

    /// Runs the program on `lines` and returns its output, one line for each of them, in their order.
    ///
    /// Errors: it cannot be started, fails, takes too long, or prints more or fewer lines.
    pub fn ask(&self, lines: &[String]) -> Result<Vec<String>> {
        let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let printed = self.run_with_input(input, self.bytes_per_line * (lines.len() + 4))?;
        let printed = String::from_utf8_lossy(&printed);
        let found: Vec<&str> = printed.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        if found.len() != lines.len() {
            return Err(Error::user(format!(
                "{}: printed {} lines for {} lines of input; it begins: {}",
                self.name(),
                found.len(),
                lines.len(),
                excerpt(&printed)
            ))
            .hint(format!(
                "it must print {} for each line that it reads, in their order, and nothing else, to stdout",
                self.output_line
            )));
        }
        Ok(found.into_iter().map(String::from).collect())
    }

    /// Runs the program on `input` and returns its output. Output of more than `most` bytes is an error.
    fn run_with_input(&self, input: String, most: usize) -> Result<Vec<u8>> {
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
        // A program may end before it has read all input. The error of writing is ignored: its exit status or its
        // output shows what went wrong.
        if let Some(mut stdin) = child.stdin.take() {
            thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        }
        // One byte more shows that there was more.
        let output = in_thread(child.stdout.take(), move |pipe| read_begin(pipe, most.saturating_add(1)));
        let errors = in_thread(child.stderr.take(), |pipe| read_end(pipe, STDERR_BYTES));
        let printed = output.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        // Checked before waiting: a program that ignores the closed pipe would run until the timeout.
        let too_long = printed.as_ref().is_ok_and(|p| p.len() > most);
        let status = if too_long { None } else { wait_until(&mut child, deadline) };
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let said = || match errors
            .recv_timeout(Duration::from_secs(1))
            .map(|e| String::from_utf8_lossy(&e).trim().to_string())
        {
            Ok(text) if !text.is_empty() => format!("; its stderr ends:\n{text}"),
            _ => "; it wrote nothing to stderr".into(),
        };
        match (printed, status) {
            _ if too_long => Err(Error::user(format!("{}: printed more than {most} bytes{}", self.name(), said()))
                .hint(format!(
                    "it must print {} for each line that it reads, and nothing else, to stdout",
                    self.output_line
                ))),
            (Ok(printed), Some(status)) if status.success() => Ok(printed),
            (_, Some(status)) if !status.success() => {
                Err(Error::user(format!("{}: ended with {}{}", self.name(), status, said()))
                    .hint(format!("run it by hand with lines of {}", self.input_line)))
            }
            _ => Err(Error::user(format!("{}: did not end within {} s{}", self.name(), self.spec.timeout, said()))
                .hint("raise `timeout`; the command must end when its input ends")),
        }
    }
}

/// Reads a pipe in a thread of its own, so that the program never waits for us to read.
fn in_thread<P: Send + 'static>(
    pipe: Option<P>,
    read: impl FnOnce(P) -> Vec<u8> + Send + 'static,
) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let _ = send.send(pipe.map(read).unwrap_or_default());
    });
    receive
}

/// Reads at most `most` bytes.
fn read_begin(pipe: impl Read, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.take(most as u64).read_to_end(&mut bytes);
    bytes
}

/// Reads to the end, and returns the last `most` bytes. Never holds more than a few of them.
fn read_end(mut pipe: impl Read, most: usize) -> Vec<u8> {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 8 << 10]);
    loop {
        match pipe.read(&mut chunk) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return bytes,
        }
        bytes.drain(..bytes.len().saturating_sub(most));
    }
}

/// Waits for the program; `None` if it still runs at `deadline`.
fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_errors_only_the_end_is_held() {
        let endless = std::io::repeat(b'x').take(300 << 20).chain(&b"the cause"[..]);
        let end = read_end(endless, STDERR_BYTES);
        assert!(end.len() == STDERR_BYTES && end.ends_with(b"xthe cause") && end.capacity() < 100_000);
        assert_eq!(read_end(&b"short"[..], STDERR_BYTES), b"short");
    }
}
