//! The files that an export writes: their names, what they may replace, and how they get to their place.

use super::GgufExportOptions;
use crate::error::{Error, Result};
use crate::fsutil::{self, UnfinishedFolder};
use crate::gguf::split::{self, PartName};
use crate::model_files::gguf_files;
use std::path::{Path, PathBuf};

/// Returns the folder of a file.
pub(super) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the file to write: `out` itself, or a file with `name` in the folder `out`. A model in several files has names made of
/// this one.
pub(super) fn out_file(out: &Path, name: &str) -> Result<PathBuf> {
    let folder = out.is_dir() || out.to_string_lossy().ends_with('/');
    let wrong = |what: &str| Error::user(format!("--out {}: {what}", out.display()));
    if !folder && PartName::of(out).is_some() {
        return Err(wrong("is the name of a part of a model")
            .hint("leave the numbers out: with --split-size, the files get them behind the name"));
    }
    match out.extension() {
        _ if folder => Ok(out.join(name)),
        Some(extension) if extension == "gguf" => Ok(out.into()),
        _ => Err(wrong("a file that ends in .gguf, or a folder expected")
            .hint(format!("in a folder the file is called {name}"))),
    }
}

/// Returns the files that the export would replace: that of this name, or if it is to be `several`, all parts with its name.
fn replaced(out: &Path, several: bool) -> Vec<PathBuf> {
    if !several {
        return Some(out.to_path_buf()).filter(|out| out.exists()).into_iter().collect();
    }
    let entries = std::fs::read_dir(folder_of(out)).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_part_of(path, out)).collect();
    parts.sort();
    parts
}

/// Returns true for a part of the model whose file would be `out` if it were one.
fn is_part_of(path: &Path, out: &Path) -> bool {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = path.file_name().map(Path::new).and_then(PartName::of);
    name.is_some_and(|name| name.prefix() == stem)
}

/// Fails if a file, or one of `several`, exists and must not be replaced, or would replace what is read.
pub(super) fn check_out(out: &Path, several: bool, options: &GgufExportOptions) -> Result<()> {
    let named = |path: &Path, what: &str| Error::user(format!("--out {}: {what}", path.display()));
    if out.is_dir() {
        return Err(named(out, "is a folder").hint("choose another name"));
    }
    let exist = replaced(out, several);
    let Some(first) = exist.first() else { return Ok(()) };
    if !options.force {
        return Err(named(first, "the file exists").hint("choose another name, or replace it with --force"));
    }
    let real = |path: &Path| path.canonicalize().ok();
    let read: Vec<PathBuf> = gguf_files(options.model).iter().filter_map(|file| real(file)).collect();
    match exist.iter().find(|path| real(path).is_some_and(|path| read.contains(&path))) {
        Some(path) => Err(named(path, "is the model that is exported").hint("choose another name")),
        None => Ok(()),
    }
}

/// Fails if the Modelfile exists and must not be replaced.
pub(super) fn check_modelfile(path: &Path, options: &GgufExportOptions) -> Result<()> {
    match path.exists() && !options.force {
        true => Err(Error::user(format!("{}: the file exists", path.display()))
            .hint("choose another folder with --out, or replace both files with --force")),
        false => Ok(()),
    }
}

/// Lets `make` write and check the `count` files of a model in a temporary folder, and moves them to their places, the first file last:
/// what can be named is whole. Parts of a model that is replaced are removed. Returns the files in order.
pub(super) fn publish<T>(
    out: &Path,
    count: usize,
    make: impl FnOnce(&[PathBuf]) -> Result<T>,
) -> Result<(Vec<PathBuf>, T)> {
    let folder = folder_of(out);
    fsutil::create_dir_all(folder)?;
    let temp = fsutil::temporary_name(&out.file_name().unwrap_or_default().to_string_lossy());
    let temp = UnfinishedFolder::create(folder.join(temp))?;
    let places = split::part_paths(out, count);
    let drafts: Vec<PathBuf> = places.iter().filter_map(|path| Some(temp.path().join(path.file_name()?))).collect();
    let made = make(&drafts)?;
    // A file alone takes the place of the old one in one step.
    for path in if count > 1 { replaced(out, true) } else { Vec::new() } {
        std::fs::remove_file(&path).map_err(|e| fsutil::io_error("removing", &path, e))?;
    }
    for (draft, place) in drafts.iter().zip(&places).rev() {
        std::fs::rename(draft, place).map_err(|e| fsutil::io_error("moving", place, e))?;
    }
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| fsutil::io_error("writing", folder, e))?;
    Ok((places, made))
}
