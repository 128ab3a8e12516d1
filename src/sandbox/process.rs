//! Starts a program in namespaces with limits, watches it, and ends it. What happens between a clone of ft's process and the
//! program is in `child`.

use super::child::{INNER_USER, Prepared, Stage, begin, first_process, program};
use super::{Isolation, Limits, memory};
use libc::{c_char, c_int, c_long, c_void, sock_filter};
use std::ffi::CString;
use std::io::{Error as IoError, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

/// A program to start.
pub struct Launch {
    pub isolation: Isolation,
    pub limits: Limits,
    /// Path of the program.
    pub program: CString,
    /// Its arguments, the name of the program first.
    pub arguments: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// The directory that it works in.
    pub work: CString,
    /// The filter of its system calls.
    pub filter: Vec<sock_filter>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself or by a signal: the status that `waitpid` gives.
    Status(c_int),
    TimedOut,
    TooMuchOutput,
    TooMuchMemory,
}

/// The user that it is outside if ft runs as root: nobody. Limits of processes do not hold for root.
const NOBODY: u32 = 65534;
/// Files that a file system in memory may have.
const MOST_FILES: u64 = 4096;
/// The longest wait before the clock is looked at.
const PATIENCE: Duration = Duration::from_millis(10);
/// Time between two looks at the memory of all processes.
const MEMORY_PATIENCE: Duration = Duration::from_millis(40);

/// A program that was started. When it is dropped, it is ended and waited for.
struct Running {
    pid: libc::pid_t,
    output: OwnedFd,
    status: OwnedFd,
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: plain calls; `pid` is a child that was not waited for. The first process of a namespace takes all others along,
        // and `waitpid` returns when they are gone.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, ptr::null_mut(), 0) < 0 && *libc::__errno_location() == libc::EINTR {}
        }
    }
}

/// Runs a program. Returns how it ended, and what it printed. The error says what could not be done.
pub fn run(launch: &Launch) -> Result<(End, Vec<u8>), String> {
    let mut running = start(launch, false)?;
    let mut output = Vec::new();
    let end = watch(&mut running, launch, &mut output);
    let pipe = running.output.try_clone().map_err(|e| e.to_string())?;
    drop(running);
    // What was printed before the end, and perhaps not read.
    let too_much = !read_some(&pipe, &mut output, launch.limits.output);
    output.truncate(launch.limits.output);
    match end? {
        End::Status(_) if too_much => Ok((End::TooMuchOutput, output)),
        end => Ok((end, output)),
    }
}

/// Does all that comes before a program. The error says what could not be done.
pub fn try_isolation(launch: &Launch) -> Result<(), String> {
    let mut running = start(launch, true)?;
    match watch(&mut running, launch, &mut Vec::new())? {
        End::Status(0) => Ok(()),
        other => Err(format!("a process that does nothing ended with {other:?}")),
    }
}

fn last_error(what: &str) -> String {
    format!("{what}: {}", IoError::last_os_error())
}

fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors, which are new and owned by nobody else.
    unsafe {
        match libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) {
            0 => Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))),
            _ => Err(last_error("a pipe")),
        }
    }
}

fn start(launch: &Launch, only_try: bool) -> Result<Running, String> {
    let ((output, output_end), (status, status_end), (go_end, go)) = (pipe()?, pipe()?, pipe()?);
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let options = format!("size={},nr_inodes={MOST_FILES},mode=1777", launch.limits.disk.max(4096));
    let prepared = Prepared {
        launch,
        arguments: pointers(&launch.arguments),
        environment: pointers(&launch.environment),
        memory_options: CString::new(options).map_err(|e| e.to_string())?,
        // SAFETY: a plain call.
        is_root: unsafe { libc::geteuid() } == 0,
        only_try,
        go: go_end.as_raw_fd(),
        output: output_end.as_raw_fd(),
        status: status_end.as_raw_fd(),
    };
    let namespaces = match launch.isolation {
        Isolation::Namespaces => {
            libc::CLONE_NEWUSER
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
        }
        Isolation::LimitsOnly => 0,
    };
    let flags = (namespaces | libc::SIGCHLD) as c_long;
    // SAFETY: without a stack of its own, the clone goes on here with a copy of the memory, as after a fork. It makes system calls
    // only, and never returns from `first_process` or `program`.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as libc::pid_t;
        match (pid, launch.isolation) {
            (0, Isolation::Namespaces) => first_process(&prepared),
            (0, Isolation::LimitsOnly) => {
                begin(&prepared);
                program(&prepared)
            }
            _ => pid,
        }
    };
    if pid < 0 {
        return Err(last_error("new namespaces"));
    }
    let running = Running { pid, output, status };
    for end in [&running.output, &running.status] {
        // SAFETY: a plain call on an open descriptor.
        if unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(last_error("a pipe that does not wait"));
        }
    }
    if launch.isolation == Isolation::Namespaces {
        let asks = if prepared.is_root { " (for root, programs run as the user 65534, nobody)" } else { "" };
        map_users(pid, prepared.is_root).map_err(|e| format!("the map of users{asks}: {e}"))?;
    }
    // SAFETY: a plain write of one byte.
    if unsafe { libc::write(go.as_raw_fd(), [1u8].as_ptr().cast(), 1) } != 1 {
        return Err(last_error("telling the process to go on"));
    }
    Ok(running)
}

/// Maps the users of the namespace of a process to those outside.
fn map_users(pid: libc::pid_t, is_root: bool) -> std::io::Result<()> {
    let write = |file: &str, text: String| std::fs::write(format!("/proc/{pid}/{file}"), text);
    // SAFETY: plain calls.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if is_root {
        // The first process is root among root's files; the program is nobody.
        let map = format!("0 0 1\n{INNER_USER} {NOBODY} 1\n");
        write("uid_map", map.clone())?;
        return write("gid_map", map);
    }
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{INNER_USER} {user} 1\n"))?;
    write("gid_map", format!("{INNER_USER} {group} 1\n"))
}

/// Reads from a pipe what is there. Returns false if it was more than `most` bytes in all.
fn read_some(pipe: &OwnedFd, into: &mut Vec<u8>, most: usize) -> bool {
    let mut chunk = [0u8; 8 << 10];
    loop {
        // SAFETY: `chunk` has room for that many bytes.
        let n = unsafe { libc::read(pipe.as_raw_fd(), chunk.as_mut_ptr().cast::<c_void>(), chunk.len()) };
        if n <= 0 {
            if n < 0 && IoError::last_os_error().kind() == ErrorKind::Interrupted {
                continue;
            }
            return true;
        }
        into.extend_from_slice(&chunk[..n as usize]);
        if into.len() > most {
            return false;
        }
    }
}

/// Waits for the end of a program or a limit.
fn watch(running: &mut Running, launch: &Launch, output: &mut Vec<u8>) -> Result<End, String> {
    let deadline = Instant::now() + launch.limits.wall;
    let (mut looked, most) = (Instant::now(), launch.limits.memory);
    let mut told: Vec<u8> = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut ends = [wait(&running.output), wait(&running.status)];
        // A pipe that nobody writes to any longer would end each wait at once.
        let patience = left.min(PATIENCE).as_millis() as c_int;
        // SAFETY: `ends` has two entries.
        unsafe { libc::poll(ends.as_mut_ptr(), 2, patience) };
        let closed = ends.iter().any(|end| end.revents & (libc::POLLHUP | libc::POLLERR) != 0);
        if !read_some(&running.output, output, launch.limits.output) {
            return Ok(End::TooMuchOutput);
        }
        read_some(&running.status, &mut told, 64);
        // The first message counts: a process that could not become the program ends, too.
        if let Some([stage, a, b, c, d]) = told.first_chunk::<5>() {
            let number = i32::from_le_bytes([*a, *b, *c, *d]);
            if *stage == Stage::Ended as u8 {
                return Ok(End::Status(number));
            }
            let what = Stage::WORDS.get(usize::from(*stage)).copied().unwrap_or("an unknown step");
            return Err(format!("{what}: {}", IoError::from_raw_os_error(number)));
        }
        let mut status = 0;
        // SAFETY: a plain call; the child is left to be waited for, because `Running` does that.
        let ended = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let found = libc::waitid(libc::P_PID, running.pid as libc::id_t, &mut info, flags);
            if found == 0 && info.si_pid() == running.pid {
                // The form of `waitpid`.
                status = if info.si_code == libc::CLD_EXITED { info.si_status() << 8 } else { info.si_status() };
            }
            found == 0 && info.si_pid() == running.pid
        };
        if ended {
            // Its last words may have come between reading and looking.
            let known = told.len();
            read_some(&running.status, &mut told, 64);
            if told.len() > known {
                continue;
            }
            return Ok(End::Status(status));
        }
        if left.is_zero() {
            return Ok(End::TimedOut);
        }
        if looked.elapsed() > MEMORY_PATIENCE {
            if memory::of_descendants(running.pid, most) > most {
                return Ok(End::TooMuchMemory);
            }
            looked = Instant::now();
        }
        if closed {
            std::thread::sleep(PATIENCE.min(left) / 5);
        }
    }
}
