//! Memory and disk space that this process can still use.

use super::control_groups;
use serde::Serialize;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

/// Total and free memory for this process, in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct SystemMemory {
    /// Memory of the machine, or the limit of its control group.
    pub total: u64,
    /// Memory that can still be allocated.
    pub free: u64,
    /// Whether a control group, not the machine, limits the total.
    pub limited: bool,
}

impl SystemMemory {
    /// Reads the machine's memory and the limits of this process's control groups.
    pub fn read() -> SystemMemory {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |key: &str| -> u64 {
            let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let mut memory = SystemMemory { total: field("MemTotal"), free: field("MemAvailable"), limited: false };
        for (limit, used) in memory_limits() {
            if limit < memory.total {
                memory.total = limit;
                memory.limited = true;
            }
            memory.free = memory.free.min(limit.saturating_sub(used));
        }
        memory
    }
}

/// Returns (limit, used) in bytes for every control group of this process. Page cache that can be dropped is not
/// counted as used.
fn memory_limits() -> Vec<(u64, u64)> {
    let read = |folder: PathBuf| {
        let limit = control_groups::number_in(folder.join("memory.max"))
            .or_else(|| control_groups::number_in(folder.join("memory.limit_in_bytes")))?;
        let used = control_groups::number_in(folder.join("memory.current"))
            .or_else(|| control_groups::number_in(folder.join("memory.usage_in_bytes")))?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cache = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok());
        let droppable = cache("total_inactive_file ").or_else(|| cache("inactive_file ")).unwrap_or(0);
        Some((limit, used.saturating_sub(droppable)))
    };
    control_groups::of("memory").into_iter().filter_map(read).collect()
}

/// Returns the bytes that this user can still write on the disk of `folder` or its nearest existing parent.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let folder = crate::fsutil::absolute(folder);
    let there = folder.ancestors().find(|f| f.exists())?;
    let path = CString::new(there.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: a NUL-terminated path and a record that the kernel fills.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stat) == 0).then_some(stat.f_bavail as u64 * stat.f_frsize as u64)
    }
}
