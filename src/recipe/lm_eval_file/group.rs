//! Finds the tasks of a group among the files of its folder.

use super::{LmEvalTask, TaskValue, apply, keys_of, read};
use crate::error::{Error, Result};
use crate::fsutil;
use std::path::{Path, PathBuf};

/// Most files that are looked at for the tasks of a group.
const MOST_FILES: usize = 5_000;
/// Most groups within each other.
const DEEPEST: usize = 8;

/// Reads the task of a file, or all tasks of a group, and sets the keys of `sets` (`KEY=VALUE`) in each.
///
/// Errors: a file cannot be read or is no task file; a task of a group is in no file of its folder.
pub fn read_all(path: &Path, sets: &[String]) -> Result<Vec<LmEvalTask>> {
    let mut found = Vec::new();
    add(read(path)?, &mut None, 0, &mut found)?;
    for task in &mut found {
        for set in sets {
            apply(task, set)?;
        }
    }
    Ok(found)
}

/// A file of the folder with the names that it answers to.
struct IndexedFile {
    path: PathBuf,
    /// The name of its task or group.
    name: Option<String>,
    tags: Vec<String>,
}

/// Adds a task, or the tasks of a group. `index`: the files of the first group's folder, once they are read.
fn add(
    task: LmEvalTask,
    index: &mut Option<Vec<IndexedFile>>,
    depth: usize,
    found: &mut Vec<LmEvalTask>,
) -> Result<()> {
    let Some((place, TaskValue::List(items))) = task.get("task").map(|key| (key.place.clone(), key.value.clone()))
    else {
        found.push(task);
        return Ok(());
    };
    if depth == DEEPEST {
        return Err(Error::user(format!("{place}: the groups contain each other")));
    }
    let folder = task.path.parent().unwrap_or(Path::new("")).to_path_buf();
    if index.is_none() {
        *index = Some(files_below(&folder)?);
    }
    for item in items {
        let name = item.text().or(item.get("task").and_then(TaskValue::text)).unwrap_or_default().to_string();
        let of_name = |file: &&IndexedFile| file.name.as_deref() == Some(&name) || file.tags.contains(&name);
        let mut paths: Vec<PathBuf> = index
            .iter()
            .flatten()
            .filter(of_name)
            .map(|file| file.path.clone())
            .filter(|path| *path != task.path)
            .collect();
        paths.sort();
        if paths.is_empty() {
            return Err(Error::user(format!("{place}: no file in {} has the task or tag `{name}`", folder.display()))
                .hint("give the files of its tasks instead of that of the group"));
        }
        for path in paths {
            let mut member = read(&path)?;
            // A task in a list may have keys of its own.
            if let TaskValue::Map(entries) = &item {
                for (key, value) in entries.iter().filter(|(key, _)| key != "task") {
                    member.set(super::TaskKey { name: key.clone(), place: place.clone(), value: value.clone() });
                }
            }
            add(member, index, depth + 1, found)?;
        }
    }
    Ok(())
}

/// Returns the task files of a folder and those below it. Files that cannot be read as such are left out.
fn files_below(folder: &Path) -> Result<Vec<IndexedFile>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|e| fsutil::io_error("reading", &folder, e))?;
        for entry in entries {
            let path = entry.map_err(|e| fsutil::io_error("reading", &folder, e))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
                if found.len() == MOST_FILES {
                    return Err(Error::user(format!("{}: more than {MOST_FILES} YAML files", folder.display()))
                        .hint("give the files of the tasks instead of that of the group"));
                }
                let Ok(keys) = keys_of(&path) else { continue };
                let value = |name: &str| keys.iter().find(|key| key.name == name).map(|key| &key.value);
                let name = value("group").or(value("task")).and_then(TaskValue::text).map(str::to_string);
                let tags = match value("tag") {
                    Some(TaskValue::List(items)) => {
                        items.iter().filter_map(TaskValue::text).map(str::to_string).collect()
                    }
                    Some(one) => one.text().map(str::to_string).into_iter().collect(),
                    None => Vec::new(),
                };
                found.push(IndexedFile { path: path.strip_prefix("./").unwrap_or(&path).to_path_buf(), name, tags });
            }
        }
    }
    Ok(found)
}
