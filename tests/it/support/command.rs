//! The real binary, and what a command wrote.

use super::root;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// Returns the path of ft: `FT_TEST_FT` if it is set, because both binaries can be carried to another machine
/// (benches/gpu_check.py).
pub fn ft_binary() -> PathBuf {
    std::env::var_os("FT_TEST_FT").unwrap_or(env!("CARGO_BIN_EXE_ft").into()).into()
}

/// Returns a command that runs ft with these arguments in `folder`.
pub fn ft(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(ft_binary());
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

/// Runs ft in the root of the repository.
pub fn ft_here(arguments: &[&str]) -> Output {
    ft(&root(), arguments).output().unwrap()
}

/// Returns what a command wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns what a command wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that must succeed.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}\n{}", stdout(&output), stderr(&output));
    output
}

/// Returns the size in bytes on the first line of a /proc file that starts with `name`; `None` if the file or the line
/// is missing.
pub fn proc_bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// Waits for a process and returns its output, and its largest resident size in bytes.
pub fn output_and_peak_memory(mut child: Child) -> (Output, u64) {
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes).unwrap());
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: both pointers are those of local variables.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(waited, child.id() as i32);
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    (Output { status: ExitStatus::from_raw(status), stdout, stderr }, (usage.ru_maxrss as u64) << 10)
}

/// Returns the path of Python's interpreter. A `python3` on the PATH may be a script that starts it as another process.
pub fn python() -> String {
    let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    String::from_utf8_lossy(&asked.stdout).trim().to_string()
}

/// Counts processes whose command line has this text.
pub fn processes_of(text: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok());
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}
