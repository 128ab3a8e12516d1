//! The control groups of this process (containers).

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the folders of this process's control groups for `controller`, of versions 2 and 1, innermost first.
pub(super) fn of(controller: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            names if names.split(',').any(|name| name == controller) => Path::new("/sys/fs/cgroup").join(controller),
            _ => continue,
        };
        let group = mount.join(path.trim_start_matches('/'));
        folders.extend(group.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_path_buf));
    }
    folders
}

/// Returns the number that a file contains.
pub(super) fn number_in(path: PathBuf) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
