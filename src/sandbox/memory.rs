//! Adds up the memory of all processes of a program. The kernel limits that of each process; a program that starts many would
//! have their multiple.

use std::fs;

/// Returns the resident bytes of the descendants of a process without those of files; pages that several of them share count for each. A
/// process with more than `address_space` bytes of it is left out: the limit holds for all that became the program, so it is a clone
/// of ft that has not done so yet.
pub fn of_descendants(pid: libc::pid_t, address_space: u64) -> u64 {
    let mut open = children(pid);
    let mut sum = 0;
    while let Some(pid) = open.pop() {
        let [size, resident] = sizes(pid);
        sum += if size > address_space { 0 } else { resident };
        open.extend(children(pid));
    }
    sum
}

/// Returns the processes that the threads of a process started; none if it has ended.
fn children(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Returns the address space and the resident memory of a process in bytes, without pages of files; 0 if it has ended.
fn sizes(pid: libc::pid_t) -> [u64; 2] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let [size, own, shared] = ["VmSize:", "RssAnon:", "RssShmem:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.unwrap_or(0) << 10
    });
    [size, own + shared]
}
