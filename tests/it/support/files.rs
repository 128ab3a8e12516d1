//! Folders and files that tests copy or write.

use serde_json::Value;
use std::path::Path;

/// Copies a folder with everything in it; `to` is created.
pub fn copy_folder(from: &Path, to: &Path) {
    copy_files(from, to, |_| true);
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        }
    }
}

/// Copies a folder to a temporary one.
pub fn copied(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(from, folder.path());
    folder
}

/// Copies the files of a folder whose names are `wanted`, without its folders; `to` is created.
pub fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && wanted(&entry.file_name().to_string_lossy()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Returns rows as the text of a JSONL file.
pub fn jsonl(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}
