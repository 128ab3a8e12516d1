//! Folders and files that tests copy or write.

use serde_json::{Value, json};
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

/// Writes a safetensors file of zeros in bfloat16. It is sparse and takes no disk space.
pub fn write_sparse<N: TryInto<u64> + Copy>(file: &Path, shapes: &[(String, Vec<N>)]) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let shape: Vec<u64> = shape.iter().map(|n| (*n).try_into().ok().unwrap()).collect();
        let begin = end;
        end += 2 * shape.iter().product::<u64>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = Value::Object(header).to_string();
    std::fs::write(file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}
