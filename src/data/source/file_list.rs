//! Lists the files of a source, which may be a file, a folder or a pattern.

use super::file::{EXTENSIONS, extension};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Returns the files of a path, sorted by name: the file itself, the files in a folder (without subfolders and hidden
/// files), or the files that match a pattern with `*`, `?`, `[…]` or `**`. A folder of `Dataset.save_to_disk` gives its
/// data files.
///
/// Errors: no file matches, or a folder has no files of rows.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return folder(path);
    }
    let text = path.to_string_lossy();
    if path.exists() || !text.contains(['*', '?', '[']) {
        return Ok(vec![path.to_path_buf()]);
    }
    // As in shells, a leading dot of a name is matched only by a dot in the pattern.
    let as_shells =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let matches = glob::glob_with(&text, as_shells)
        .map_err(|e| Error::user(format!("{text}: not a valid pattern of file names: {e}")))?;
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
        return Err(Error::user(format!("{text}: no file matches")).hint("* matches any name, ** any subfolders"));
    }
    found.sort();
    Ok(found)
}

/// JSON files next to rows that contain no rows.
const METADATA_FILES: [&str; 2] = ["dataset_info.json", "dataset_infos.json"];

/// Returns the files of a folder that `Dataset.save_to_disk` wrote, in its order; `None` for other folders.
///
/// Errors: the folder has several splits, or a file is missing.
fn saved_dataset_files(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    #[derive(Deserialize)]
    struct SavedFile {
        filename: String,
    }
    #[derive(Deserialize)]
    struct SavedState {
        #[serde(rename = "_data_files")]
        files: Vec<SavedFile>,
    }
    #[derive(Deserialize)]
    struct SavedSplits {
        splits: Vec<String>,
    }
    let read = |name: &str| std::fs::read(path.join(name)).ok();
    if let Some(SavedSplits { splits }) = read("dataset_dict.json").and_then(|text| serde_json::from_slice(&text).ok())
    {
        return match splits.as_slice() {
            [one] => folder(&path.join(one)).map(Some),
            several => {
                Err(Error::user(format!("{}: the data set has several splits: {}", path.display(), several.join(", ")))
                    .hint(format!(
                        "choose one, such as {}",
                        path.join(several.first().map_or("train", |s| s)).display()
                    )))
            }
        };
    }
    let state = read("state.json").and_then(|text| serde_json::from_slice::<SavedState>(&text).ok());
    let Some(SavedState { files }) = state else { return Ok(None) };
    let files: Vec<PathBuf> = files.iter().map(|file| path.join(&file.filename)).collect();
    match files.iter().find(|file| !file.is_file()) {
        Some(missing) => {
            Err(Error::user(format!("{}: the file is missing, but state.json lists it", missing.display()))
                .hint("copy the complete folder that save_to_disk wrote"))
        }
        None => Ok(Some(files)),
    }
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    if let Some(files) = saved_dataset_files(path)? {
        return Ok(files);
    }
    let entries = std::fs::read_dir(path).map_err(|e| io_error("reading", path, e))?;
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(|e| io_error("reading", path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || METADATA_FILES.contains(&name.as_str()) || !entry.path().is_file() {
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
        return Err(Error::user(format!("{}: the folder has no files of rows; found {what}", path.display()))
            .hint(format!("files of rows end in .{}", EXTENSIONS.join(", ."))));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_datasets_library_are_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let saved = |name: &str, files: &[&str]| {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
            let list = files.iter().map(|f| serde_json::json!({ "filename": f })).collect::<Vec<_>>();
            let state = serde_json::json!({ "_data_files": list, "_split": name });
            std::fs::write(folder.path().join(name).join("state.json"), state.to_string()).unwrap();
            std::fs::write(folder.path().join(name).join("dataset_info.json"), "{}").unwrap();
            files.iter().for_each(|f| std::fs::write(folder.path().join(name).join(f), "").unwrap());
        };
        let shards = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"];
        saved("train", &shards);
        saved("test", &["data-00000-of-00001.arrow"]);
        let train = files(&folder.path().join("train")).unwrap();
        assert_eq!(train, shards.map(|f| folder.path().join("train").join(f)), "in the order that is written there");
        let dict = |splits: &str| std::fs::write(folder.path().join("dataset_dict.json"), splits).unwrap();
        dict(r#"{"splits": ["train", "test"]}"#);
        let e = files(folder.path()).unwrap_err();
        assert!(e.message().contains("several splits: train, test") && e.to_string().contains("/train"), "{e}");
        dict(r#"{"splits": ["train"]}"#);
        assert_eq!(files(folder.path()).unwrap(), train);
        std::fs::remove_file(&train[0]).unwrap();
        assert!(files(folder.path()).unwrap_err().message().contains("the file is missing"));
    }

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
        assert!(names("deep/er.jsonl").unwrap_err().message().contains("has no files of rows; found no file"));
    }
}
