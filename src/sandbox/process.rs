//! Starts a program in namespaces with limits, watches it, and ends it: system calls of Linux.
//!
//! ft's process is cloned. The clone is the first process of the new namespaces: it mounts, starts the program as a second process, waits for it,
//! and says over a pipe how it ended. Between the clone and the program, only system calls are made: other threads of ft are not
//! copied and may have held locks, such as that of the memory allocator. Everything that these calls need is prepared before.

use super::{Isolation, Limits};
use libc::{c_char, c_int, c_long, c_void, sock_filter};
use std::ffi::{CStr, CString};
use std::io::{Error as IoError, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
}

/// The user that the program is in its namespace.
const INNER_USER: u32 = 1000;
/// The user that it is outside if ft runs as root: nobody. Limits of processes do not hold for root.
const NOBODY: u32 = 65534;
/// Files that a file system in memory may have.
const MOST_FILES: u64 = 4096;
/// Open files of a process.
const OPEN_FILES: u64 = 256;
/// Devices without a state that programs use.
const DEVICES: [&CStr; 5] = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom"];
/// The capability to read what belongs to root, which a program keeps if ft runs as root: its interpreter may be there.
const CAP_DAC_READ_SEARCH: u32 = 2;
/// The longest wait before the clock is looked at.
const PATIENCE: Duration = Duration::from_millis(10);

/// What a message over the pipe is about: the end of the program, or what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Ended,
    Map,
    Session,
    Mounts,
    Devices,
    Work,
    Processes,
    Fork,
    Streams,
    Limits,
    User,
    Program,
}

impl Stage {
    /// The words for messages, in the order of the stages.
    const WORDS: [&str; 12] = [
        "the end of the program",
        "waiting for the map of users",
        "a session of its own",
        "making all mounts private and read-only",
        "devices",
        "a file system in memory",
        "the list of processes (/proc)",
        "starting a process",
        "input and output",
        "limits",
        "another user",
        "the program",
    ];
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: u64,
}
const READ_ONLY: u64 = 1;
const NO_SET_USER: u64 = 2;
const NO_DEVICES: u64 = 4;

/// What the new processes need, prepared so that they allocate nothing.
struct Prepared<'a> {
    launch: &'a Launch,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// Options of the file system in memory.
    memory_options: CString,
    is_root: bool,
    only_try: bool,
    /// Ends of pipes: the clone reads `go` and writes the others.
    go: RawFd,
    output: RawFd,
    status: RawFd,
}

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
        if closed {
            std::thread::sleep(PATIENCE.min(left) / 5);
        }
    }
}

/// Says over the pipe what failed, and ends.
unsafe fn fail(prepared: &Prepared, stage: Stage) -> ! {
    unsafe { tell(prepared, stage, *libc::__errno_location()) }
}

unsafe fn tell(prepared: &Prepared, stage: Stage, number: c_int) -> ! {
    let [a, b, c, d] = number.to_le_bytes();
    unsafe {
        libc::write(prepared.status, [stage as u8, a, b, c, d].as_ptr().cast(), 5);
        libc::_exit(0)
    }
}

/// What each clone of ft does first: it ends with ft, closes ft's files, and waits until ft says go.
unsafe fn begin(prepared: &Prepared) {
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let mut kept = [prepared.go, prepared.output, prepared.status];
        kept.sort_unstable();
        let mut from = 3;
        for fd in kept {
            if fd > from {
                libc::syscall(libc::SYS_close_range, from, fd - 1, 0);
            }
            from = fd + 1;
        }
        libc::syscall(libc::SYS_close_range, from, c_int::MAX, 0);
        let mut byte = 0u8;
        if libc::read(prepared.go, ptr::from_mut(&mut byte).cast(), 1) != 1 {
            fail(prepared, Stage::Map);
        }
        if libc::setsid() < 0 {
            fail(prepared, Stage::Session);
        }
    }
}

/// The first process of the namespaces.
unsafe fn first_process(prepared: &Prepared) -> ! {
    unsafe {
        begin(prepared);
        mounts(prepared);
        let program_pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD as c_long, 0, 0, 0, 0) as libc::pid_t;
        if program_pid == 0 {
            program(prepared);
        }
        if program_pid < 0 {
            fail(prepared, Stage::Fork);
        }
        libc::close(prepared.output);
        loop {
            let mut status = 0;
            let ended = libc::waitpid(-1, &mut status, 0);
            if ended == program_pid {
                tell(prepared, Stage::Ended, status);
            }
            if ended < 0 && *libc::__errno_location() != libc::EINTR {
                fail(prepared, Stage::Fork);
            }
        }
    }
}

unsafe fn set_attributes(path: &CStr, flags: c_int, set: u64, clear: u64) -> bool {
    let attributes = MountAttributes { set, clear, propagation: 0, namespace: 0 };
    let (pointer, size) = (ptr::from_ref(&attributes), size_of::<MountAttributes>());
    unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), flags, pointer, size) == 0 }
}

/// Makes everything read-only but the directory that the program works in.
unsafe fn mounts(prepared: &Prepared) {
    unsafe {
        let mount = |from: &CStr, to: &CStr, kind: *const c_char, flags: u64, options: *const c_char| {
            libc::mount(from.as_ptr(), to.as_ptr(), kind, flags, options.cast()) == 0
        };
        let (none, closed) = (ptr::null(), libc::MS_NOSUID | libc::MS_NODEV);
        if !mount(c"none", c"/", none, libc::MS_REC | libc::MS_PRIVATE, none)
            || !set_attributes(c"/", libc::AT_RECURSIVE, READ_ONLY | NO_SET_USER | NO_DEVICES, 0)
        {
            fail(prepared, Stage::Mounts);
        }
        for device in DEVICES {
            if !mount(device, device, none, libc::MS_BIND, none) || !set_attributes(device, 0, 0, NO_DEVICES) {
                fail(prepared, Stage::Devices);
            }
        }
        let work = &prepared.launch.work;
        if !mount(c"tmpfs", work, c"tmpfs".as_ptr(), closed, prepared.memory_options.as_ptr()) {
            fail(prepared, Stage::Work);
        }
        // Where /proc is hidden in part, as in containers, a new one may not show it: then there is none.
        if !mount(c"proc", c"/proc", c"proc".as_ptr(), closed | libc::MS_NOEXEC, none)
            && !mount(c"tmpfs", c"/proc", c"tmpfs".as_ptr(), closed | libc::MS_RDONLY, none)
        {
            fail(prepared, Stage::Processes);
        }
    }
}

/// Becomes the program.
unsafe fn program(prepared: &Prepared) -> ! {
    let Prepared { launch, .. } = prepared;
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        if null < 0
            || libc::dup2(null, 0) < 0
            || libc::dup2(prepared.output, 1) < 0
            || libc::dup2(prepared.output, 2) < 0
            || libc::chdir(launch.work.as_ptr()) < 0
        {
            fail(prepared, Stage::Streams);
        }
        let Limits { cpu, memory, processes, disk, .. } = launch.limits;
        // One more second after the signal that a program may catch. The first process counts too.
        let mut limits = [
            (libc::RLIMIT_CPU, cpu, cpu + 1),
            (libc::RLIMIT_AS, memory, memory),
            (libc::RLIMIT_FSIZE, disk, disk),
            (libc::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
            (libc::RLIMIT_CORE, 0, 0),
            (libc::RLIMIT_NPROC, processes + 1, processes + 1),
        ]
        .into_iter();
        if launch.isolation == Isolation::LimitsOnly {
            // It would count all processes of the user; new processes are refused by the filter.
            limits.next_back();
        }
        for (limit, soft, hard) in limits {
            let bounds = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            if libc::setrlimit(limit, &bounds) != 0 {
                fail(prepared, Stage::Limits);
            }
        }
        if prepared.is_root && launch.isolation == Isolation::Namespaces {
            become_nobody(prepared);
        }
        // Rust ignores it, and programs inherit that.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigprocmask(libc::SIG_SETMASK, &signals, ptr::null_mut());
        let filter = libc::sock_fprog { len: launch.filter.len() as u16, filter: launch.filter.as_ptr().cast_mut() };
        if libc::syscall(libc::SYS_close_range, 3, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, ptr::from_ref(&filter)) != 0
        {
            fail(prepared, Stage::Limits);
        }
        if prepared.only_try {
            libc::_exit(0);
        }
        libc::execve(launch.program.as_ptr(), prepared.arguments.as_ptr(), prepared.environment.as_ptr());
        fail(prepared, Stage::Program)
    }
}

/// Becomes another user than root, who may read what root may. The calls are made directly: those of the C library would signal
/// threads that the clone does not have.
unsafe fn become_nobody(prepared: &Prepared) {
    let header: [u32; 2] = [0x2008_0522, 0]; // version 3; this process
    let only = 1u32 << CAP_DAC_READ_SEARCH;
    // Effective, permitted, inheritable; the second three are for capabilities from number 32 on.
    let capabilities: [u32; 6] = [only, only, only, 0, 0, 0];
    unsafe {
        let id = INNER_USER as c_long;
        if libc::syscall(libc::SYS_setgroups, 0, 0) != 0
            || libc::syscall(libc::SYS_setresgid, id, id, id) != 0
            || libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_setresuid, id, id, id) != 0
            || libc::syscall(libc::SYS_capset, header.as_ptr(), capabilities.as_ptr()) != 0
            || libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0) != 0
        {
            fail(prepared, Stage::User);
        }
    }
}
