//! Which files a source means: a file, a folder of them, or a pattern.

use super::{EXTENSIONS, extension};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use std::path::{Path, PathBuf};

/// The files of a path, sorted by name: the file itself, those in a folder (not in folders below it, nor hidden ones),
/// or those that a pattern with `*`, `?`, `[…]` or `**` matches.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return folder(path);
    }
    let text = path.to_string_lossy();
    if path.exists() || !text.contains(['*', '?', '[']) {
        return Ok(vec![path.to_path_buf()]);
    }
    // As shells do: a name that begins with a dot is matched by a dot only.
    let as_shells =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let matches =
        glob::glob_with(&text, as_shells).map_err(|e| Error::user(format!("{text}: no pattern of file names: {e}")))?;
    let mut found = Vec::new();
    for entry in matches {
        let entry = entry.map_err(|e| {
            let path = e.path().to_path_buf();
            io_error("reading", &path, e.into())
        })?;
        if entry.is_file() {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(Error::user(format!("{text}: no file matches")).hint("* stands for any name, ** for folders below"));
    }
    found.sort();
    Ok(found)
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).map_err(|e| io_error("reading", path, e))?;
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(|e| io_error("reading", path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !entry.path().is_file() {
            continue;
        }
        match EXTENSIONS.contains(&extension(&entry.path()).as_str()) {
            true => found.push(entry.path()),
            false => others.push(name),
        }
    }
    if found.is_empty() {
        others.sort();
        let what = if others.is_empty() { "no file".into() } else { others[..others.len().min(5)].join(", ") };
        return Err(Error::user(format!("{}: a folder without a file of rows; found {what}", path.display()))
            .hint(format!("files of rows end in .{}", EXTENSIONS.join(", ."))));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_patterns_are_sorted_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.jsonl", "a.jsonl", "notes.md", ".hidden.jsonl", "c.parquet"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir_all(folder.path().join("deep/er.jsonl")).unwrap();
        std::fs::write(folder.path().join("deep/d.jsonl"), "").unwrap();
        let names = |path: &str| -> Result<Vec<String>> {
            let strip = |p: PathBuf| p.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned();
            Ok(files(&folder.path().join(path))?.into_iter().map(strip).collect())
        };
        assert_eq!(names("").unwrap(), ["a.jsonl", "b.jsonl", "c.parquet"]);
        assert_eq!(names("*.jsonl").unwrap(), ["a.jsonl", "b.jsonl"]);
        assert_eq!(names("**/[ad].jsonl").unwrap(), ["a.jsonl", "deep/d.jsonl"]);
        assert_eq!(names("absent.jsonl").unwrap(), ["absent.jsonl"]);
        assert!(names("*.txt").unwrap_err().message().contains("no file matches"));
        assert!(names("deep/er.jsonl").unwrap_err().message().contains("without a file of rows; found no file"));
    }
}
