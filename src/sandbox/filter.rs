//! The system calls that a program in the sandbox may not use, as a filter for the kernel (seccomp).
//!
//! A list of what is refused, not of what is allowed: interpreters differ, and the namespaces bound what is left. Refused are
//! sockets (also those of files, which a network namespace does not separate), new namespaces and mounts, other ways to the same
//! (io_uring), and what reaches into the kernel or other processes.

use super::Isolation;
use libc::{c_long, sock_filter};

// The layout of the kernel's `seccomp_data`: number of the call, architecture, low half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const OUR_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const OUR_ARCHITECTURE: u32 = 0xC000_00B7;

/// Numbers of calls from here on are those of another interface of the same processor (x32).
const OTHER_INTERFACE: u32 = 0x4000_0000;

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

const REFUSED: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Calls that start a process in the same way as `clone`.
#[cfg(target_arch = "x86_64")]
const FORKS: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(target_arch = "aarch64")]
const FORKS: &[c_long] = &[];

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// A comparison, and how many statements are left out if it holds and if not.
fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn failure(error: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | error as u32)
}

/// Writes the filter. Without namespaces, a program cannot start processes either.
pub fn program(isolation: Isolation) -> Vec<sock_filter> {
    let mut filter = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, OUR_ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(libc::BPF_JGE, OTHER_INTERFACE, 0, 1),
        failure(libc::ENOSYS),
        // Its flags lie in memory, which a filter cannot read; libraries then use `clone`.
        jump(libc::BPF_JEQ, libc::SYS_clone3 as u32, 0, 1),
        failure(libc::ENOSYS),
    ];
    let mut refuse = |call: c_long, error: i32| {
        filter.extend([jump(libc::BPF_JEQ, call as u32, 0, 1), failure(error)]);
    };
    REFUSED.iter().for_each(|call| refuse(*call, libc::EPERM));
    if isolation == Isolation::LimitsOnly {
        FORKS.iter().for_each(|call| refuse(*call, libc::EAGAIN));
    }
    let in_clone = match isolation {
        Isolation::Namespaces => [jump(libc::BPF_JSET, NEW_NAMESPACES, 0, 1), failure(libc::EPERM)],
        // Only threads.
        Isolation::LimitsOnly => [jump(libc::BPF_JSET, libc::CLONE_THREAD as u32, 1, 0), failure(libc::EAGAIN)],
    };
    filter.push(jump(libc::BPF_JEQ, libc::SYS_clone as u32, 0, 3));
    filter.push(load(FIRST_ARGUMENT));
    filter.extend(in_clone);
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    filter
}
