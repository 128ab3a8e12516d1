//! A file of answers that grows line by line and appears whole.
//!
//! Answers go to FILE.partial, whose first line says what they depend on, prompt by prompt in the order of the prompts;
//! they are on disk within seconds. The end makes FILE of it. An interrupted file goes on where it ended, or is refused
//! where something it depends on has changed.

use ft::error::{Error, Result};
use ft::fsutil::{self, io_error};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a crash of the machine may cost.
const SYNC: Duration = Duration::from_secs(2);

const KEY: &str = "ft answers";

pub struct Answers {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    /// Prompts answered.
    done: usize,
    synced: Instant,
}

impl Answers {
    /// Begins a file, or goes on with one that has the same `fingerprint`; `lines` a prompt.
    pub fn open(path: &Path, fingerprint: &Value, lines: usize) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::user(format!("{}: is a folder, and the answers are one file", path.display()))
                .hint("give a file, such as answers.jsonl"));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if let Some(folder) = partial.parent().filter(|p| !p.as_os_str().is_empty()) {
            fsutil::create_dir_all(folder)?;
        }
        let fail = |e| io_error("writing", &partial, e);
        let mut options = fsutil::without_links();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(&partial).map_err(fail)?;
        let first = json!({ KEY: fingerprint });
        let (done, keep) = match whole_lines(&file).map_err(fail)? {
            None => (0, 0),
            Some((begun, ends)) => {
                compare(&partial, &begun, fingerprint)?;
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

    /// Prompts whose answers the file has.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Adds all answers to the next prompt; `null` stands for one that is no part of the file in the end.
    pub fn push(&mut self, rows: &[Value]) -> Result<()> {
        let text: String = rows.iter().map(|row| ft::data::json::text(row) + "\n").collect();
        self.file.write_all(text.as_bytes()).map_err(|e| io_error("writing", &self.partial, e))?;
        self.done += 1;
        if self.synced.elapsed() > SYNC { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        self.file.sync_data().map_err(|e| io_error("writing", &self.partial, e))
    }

    /// What to say when the work is stopped.
    pub fn interrupt(&mut self, prompts: usize) -> Error {
        match self.sync() {
            Ok(()) => {
                let kept = format!("{} of {prompts} prompts are answered, in {}", self.done, self.partial.display());
                Error::interrupted(kept).hint("the same command goes on from there")
            }
            Err(e) => e,
        }
    }

    /// Removes a file without answers: the work failed before the first.
    pub fn discard_empty(&self) {
        if self.done == 0 {
            let _ = std::fs::remove_file(&self.partial);
        }
    }

    /// Makes the file of it; how many lines it has.
    pub fn finish(mut self) -> Result<usize> {
        self.sync()?;
        let fail = |e| io_error("reading", &self.partial, e);
        let lines = BufReader::new(File::open(&self.partial).map_err(fail)?).split(b'\n').skip(1);
        let mut kept = 0;
        fsutil::write_atomic(&self.path, |w| {
            for line in lines {
                let mut line = line?;
                if line != b"null" {
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

/// The first line, if it is whole, and the offset behind each whole line.
fn whole_lines(file: &File) -> std::io::Result<Option<(Vec<u8>, Vec<u64>)>> {
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

/// An error that names what changed since the file was begun.
fn compare(partial: &Path, begun: &[u8], fingerprint: &Value) -> Result<()> {
    let old = serde_json::from_slice::<Value>(begun).ok().and_then(|v| v.get(KEY).cloned());
    let anew = format!("delete {} to begin anew", partial.display());
    let Some(old) = old else {
        return Err(Error::user(format!("{}: not the beginning of answers by ft", partial.display())).hint(anew));
    };
    let changed: Vec<String> = fingerprint
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, new)| old.get(key) != Some(new))
        .map(|(key, new)| format!("{key} was {}, now {new}", old.get(key).unwrap_or(&Value::Null)))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::user(format!("{} was begun otherwise: {}", partial.display(), changed.join("; ")))
        .hint(format!("give the command it was begun with, or {anew}")))
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
        let mut file = Answers::open(&path, &how, 2).unwrap();
        assert_eq!(file.done(), 0);
        file.push(&rows(0)).unwrap();
        file.push(&rows(1)).unwrap();
        drop(file);
        // A crash in the second answer to the third prompt.
        let mut torn = OpenOptions::new().append(true).open(&partial).unwrap();
        torn.write_all(b"{\"i\":2,\"k\":0}\n{\"i\":2,").unwrap();
        assert!(!path.exists());

        let other = Answers::open(&path, &json!({ "seed": 2, "model": "m" }), 2).err().unwrap();
        assert!(other.message().contains("seed was 1, now 2") && !other.message().contains("model"), "{other}");
        let mut file = Answers::open(&path, &how, 2).unwrap();
        assert_eq!(file.done(), 2);
        file.push(&rows(2)).unwrap();
        file.push(&[Value::Null, Value::Null]).unwrap();
        file.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: String = (0..3).flat_map(rows).map(|row| format!("{row}\n")).collect();
        assert_eq!(text, expected);
        assert!(!partial.exists());

        std::fs::write(&partial, "something else\n").unwrap();
        assert!(Answers::open(&path, &how, 2).err().unwrap().message().contains("not the beginning"));
    }
}
