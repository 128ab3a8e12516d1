//! The system calls between a clone of ft's process and the program that it becomes.
//!
//! Other threads of ft are not copied and may have held locks, such as that of the memory allocator. So nothing here allocates, and everything that
//! the calls need was prepared before. The first process of the namespaces mounts, starts the program as a second process, waits for
//! it, and says over a pipe how it ended; every failure is said in the same way, with its stage.

use super::process::Launch;
use super::{Isolation, Limits};
use libc::{c_char, c_int, c_long};
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::ptr;

/// The user that the program is in its namespace.
pub const INNER_USER: u32 = 1000;
/// Open files of a process.
const OPEN_FILES: u64 = 256;
/// Devices without a state that programs use.
const DEVICES: [&CStr; 5] = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom"];
/// The capability to read what belongs to root, which a program keeps if ft runs as root: its interpreter may be there.
const CAP_DAC_READ_SEARCH: u32 = 2;

/// What a message over the pipe is about: the end of the program, or what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
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
    pub const WORDS: [&str; 12] = [
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
pub struct Prepared<'a> {
    pub launch: &'a Launch,
    pub arguments: Vec<*const c_char>,
    pub environment: Vec<*const c_char>,
    /// Options of the file system in memory.
    pub memory_options: CString,
    pub is_root: bool,
    pub only_try: bool,
    /// Ends of pipes: the clone reads `go` and writes the others.
    pub go: RawFd,
    pub output: RawFd,
    pub status: RawFd,
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
pub unsafe fn begin(prepared: &Prepared) {
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
        // If the machine's memory ends, the program is ended first, and not ft. Where that is forbidden, nothing is lost.
        let first = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
        libc::write(first, c"1000".as_ptr().cast(), 4);
        libc::close(first);
    }
}

/// The first process of the namespaces.
pub unsafe fn first_process(prepared: &Prepared) -> ! {
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
pub unsafe fn program(prepared: &Prepared) -> ! {
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
