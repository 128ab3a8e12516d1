//! Writes a file of answers line by line, so that an interrupted command can be continued.
//!
//! Answering many prompts takes long, and a crash must not cost the answers so far. They are appended to FILE.partial
//! in the order of the prompts and synced every two seconds; at the end, FILE is written from it in one rename. The
//! first line of FILE.partial is a fingerprint: everything that the answers depend on, such as model and settings. The
//! next call continues after the last prompt whose answers are all there, or fails if its fingerprint differs.

use ft::error::{Error, Result};
use ft::fsutil::{self, io_error};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Interval of syncs to disk: the most work that a crash of the machine can lose.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// Key of the first line, whose value is the fingerprint.
const FINGERPRINT_KEY: &str = "ft answers";

/// Line of an answer that the finished file leaves out.
const LEFT_OUT: &[u8] = b"null";

/// A file of answers that can be continued after an interruption.
pub struct AnswerFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    /// Number of prompts whose answers are in the file.
    done: usize,
    synced: Instant,
}

impl AnswerFile {
    /// Creates the file, or continues one that has the same `fingerprint`. `lines` is the number of answers to a
    /// prompt. Fails if `path` is a folder or FILE.partial was started with another fingerprint.
    pub fn open(path: &Path, fingerprint: &Value, lines: usize) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::user(format!(
                "{}: is a folder, but the answers are written to one file",
                path.display()
            ))
            .hint("give a file, such as answers.jsonl"));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if let Some(folder) = partial.parent().filter(|p| !p.as_os_str().is_empty()) {
            fsutil::create_dir_all(folder)?;
        }
        let fail = |e| io_error("writing", &partial, e);
        let mut options = fsutil::no_follow_options();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(&partial).map_err(fail)?;
        let first = json!({ FINGERPRINT_KEY: fingerprint });
        let (done, keep) = match complete_lines(&file).map_err(fail)? {
            None => (0, 0),
            Some((begun, ends)) => {
                check_fingerprint(&partial, &begun, fingerprint)?;
                let done = (ends.len() - 1) / lines;
                (done, ends[done * lines])
            }
        };
        file.set_len(keep).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        if keep == 0 {
            writeln!(file, "{first}").map_err(fail)?;
        }
        Ok(Self { path: path.into(), partial, file, done, synced: Instant::now() })
    }

    /// Returns the number of prompts whose answers are in the file.
    pub fn prompts_done(&self) -> usize {
        self.done
    }

    /// Appends all answers to the next prompt. A `null` keeps the place of an answer that the finished file leaves out.
    pub fn push(&mut self, rows: &[Value]) -> Result<()> {
        let text: String = rows.iter().map(|row| ft::json::to_text(row) + "\n").collect();
        self.file.write_all(text.as_bytes()).map_err(|e| io_error("writing", &self.partial, e))?;
        self.done += 1;
        if self.synced.elapsed() > SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        self.file.sync_data().map_err(|e| io_error("writing", &self.partial, e))
    }

    /// Syncs the file and returns the error with which an interrupted command ends: how many of `prompts` are answered.
    pub fn interrupted(&mut self, prompts: usize) -> Error {
        match self.sync() {
            Ok(()) => {
                let kept = format!("{} of {prompts} prompts are answered, in {}", self.done, self.partial.display());
                Error::interrupted(kept).hint("run the same command again to continue from there")
            }
            Err(e) => e,
        }
    }

    /// Removes FILE.partial if it has no answers, because the work failed before the first.
    pub fn discard_empty(&self) {
        if self.done == 0 {
            let _ = std::fs::remove_file(&self.partial);
        }
    }

    /// Returns the path of FILE.partial.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Reads the lines after the fingerprint, without their newlines.
    fn lines(&self) -> Result<impl Iterator<Item = std::io::Result<Vec<u8>>> + use<>> {
        let file = File::open(&self.partial).map_err(|e| io_error("reading", &self.partial, e))?;
        Ok(BufReader::new(file).split(b'\n').skip(1))
    }

    /// Counts the answers that the finished file would have, that is, those that are not `null`.
    pub fn kept(&self) -> Result<usize> {
        let mut kept = 0;
        for line in self.lines()? {
            let line = line.map_err(|e| io_error("reading", &self.partial, e))?;
            kept += usize::from(line != LEFT_OUT);
        }
        Ok(kept)
    }

    /// Writes the finished file, removes FILE.partial, and returns the number of lines written.
    pub fn finish(mut self) -> Result<usize> {
        self.sync()?;
        let lines = self.lines()?;
        let mut kept = 0;
        fsutil::write_atomic(&self.path, |w| {
            for line in lines {
                let mut line = line?;
                if line != LEFT_OUT {
                    line.push(b'\n');
                    w.write_all(&line)?;
                    kept += 1;
                }
            }
            Ok(())
        })?;
        std::fs::remove_file(&self.partial).map_err(|e| io_error("removing", &self.partial, e))?;
        Ok(kept)
    }
}

/// Returns the first line and the offset after each line that ends in a newline; `None` if there is no such line.
fn complete_lines(file: &File) -> std::io::Result<Option<(Vec<u8>, Vec<u64>)>> {
    let mut reader = BufReader::new(file.take(u64::MAX));
    let (mut first, mut ends, mut at, mut line) = (None, Vec::new(), 0, Vec::new());
    loop {
        line.clear();
        at += reader.read_until(b'\n', &mut line)? as u64;
        if line.last() != Some(&b'\n') {
            return Ok(first.map(|first| (first, ends)));
        }
        first.get_or_insert_with(|| line.clone());
        ends.push(at);
    }
}

/// Fails if the file was started with another fingerprint, and names the values that differ.
fn check_fingerprint(partial: &Path, begun: &[u8], fingerprint: &Value) -> Result<()> {
    let old = serde_json::from_slice::<Value>(begun).ok().and_then(|v| v.get(FINGERPRINT_KEY).cloned());
    let anew = format!("delete {} to start again", partial.display());
    let Some(old) = old else {
        return Err(Error::user(format!("{}: not a file of answers written by ft", partial.display())).hint(anew));
    };
    let keys =
        |of: &Value| -> BTreeSet<String> { of.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect() };
    let changed: Vec<String> = (&keys(&old) | &keys(fingerprint))
        .iter()
        .filter(|key| old.get(key) != fingerprint.get(key))
        .map(|key| format!("{key} was {}, now {}", old[key], fingerprint[key]))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::user(format!("{} was started with other settings: {}", partial.display(), changed.join("; ")))
        .hint(format!("repeat the command that started it, or {anew}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_half_written_file_goes_on_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, partial) = (folder.path().join("a.jsonl"), folder.path().join("a.jsonl.partial"));
        let how = json!({ "seed": 1, "model": "m" });
        let rows = |i: usize| vec![json!({ "i": i, "k": 0 }), json!({ "i": i, "k": 1 })];
        let mut file = AnswerFile::open(&path, &how, 2).unwrap();
        assert_eq!(file.prompts_done(), 0);
        file.push(&rows(0)).unwrap();
        file.push(&rows(1)).unwrap();
        drop(file);
        // A crash in the second answer to the third prompt.
        let mut torn = OpenOptions::new().append(true).open(&partial).unwrap();
        torn.write_all(b"{\"i\":2,\"k\":0}\n{\"i\":2,").unwrap();
        assert!(!path.exists());

        let other = AnswerFile::open(&path, &json!({ "seed": 2, "model": "m" }), 2).err().unwrap();
        assert!(other.message().contains("seed was 1, now 2") && !other.message().contains("model"), "{other}");
        // A file of the model that is gone.
        let other = AnswerFile::open(&path, &json!({ "seed": 1 }), 2).err().unwrap();
        assert!(other.message().contains("model was \"m\", now null"), "{other}");
        let mut file = AnswerFile::open(&path, &how, 2).unwrap();
        assert_eq!(file.prompts_done(), 2);
        file.push(&rows(2)).unwrap();
        file.push(&[Value::Null, Value::Null]).unwrap();
        assert_eq!(file.kept().unwrap(), 6);
        assert_eq!(file.finish().unwrap(), 6);
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: String = (0..3).flat_map(rows).map(|row| format!("{row}\n")).collect();
        assert_eq!(text, expected);
        assert!(!partial.exists());

        std::fs::write(&partial, "something else\n").unwrap();
        assert!(AnswerFile::open(&path, &how, 2).err().unwrap().message().contains("not a file of answers"));
    }
}
