//! The folder that an export or import writes: what it may replace.

use crate::error::{Error, Result};
use crate::fsutil;
use std::path::{Path, PathBuf};

/// A folder that is about to be written, named by `--out`.
pub(in crate::convert) struct Destination<'a> {
    /// The folder.
    pub out: &'a Path,
    /// What it will be, with its article: `a model directory`.
    pub kind: &'static str,
    /// The file that tells such a folder from others.
    pub mark: &'static str,
    /// A name for it, as an example.
    pub example: &'static str,
}

impl Destination<'_> {
    /// Fails if the folder exists and must not be replaced: without `force`, if it is of another kind, or if one of the files and
    /// folders in `read` is in it.
    pub fn check(&self, force: bool, read: &[&Path]) -> Result<()> {
        let Self { out, kind, mark, example } = *self;
        let named = |what: &str| Error::user(format!("--out {}: {what}", out.display()));
        if out.file_name().is_none() {
            return Err(named("a folder with a name of its own expected").hint(format!("for example --out {example}")));
        }
        if !out.exists() {
            return Ok(());
        }
        if !out.is_dir() {
            return Err(named(&format!("is a file, and {kind} is a folder")).hint("choose another name"));
        }
        let mut inside = std::fs::read_dir(out).map_err(|e| fsutil::io_error("reading folder", out, e))?;
        if inside.next().is_none() {
            return Ok(());
        }
        if !force {
            return Err(
                named("the folder exists and is not empty").hint("choose another folder, or replace it with --force")
            );
        }
        if !out.join(mark).is_file() {
            return Err(named(&format!("--force replaces only {kind}, and this folder has no {mark}"))
                .hint("choose another folder, or remove this one yourself"));
        }
        let real = |path: &Path| -> PathBuf { path.canonicalize().unwrap_or_else(|_| fsutil::absolute(path)) };
        match read.iter().find(|path| real(path).starts_with(real(out))) {
            Some(path) => Err(named(&format!("{} is in the folder that --force would replace", path.display()))
                .hint("choose another folder")),
            None => Ok(()),
        }
    }
}
