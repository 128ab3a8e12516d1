//! Writes TensorBoard event files, with the layout and tags of transformers' Trainer.
//!
//! A file is a sequence of TFRecords (length, its masked CRC-32C, data, its masked CRC-32C), each of which contains one
//! `tensorflow.Event`. Field numbers are those of
//! event.proto, summary.proto and tensor.proto. A resumed run adds a file to the same folder; its first events make
//! TensorBoard discard the steps that are repeated.

use crate::error::Result;
use crate::fsutil::{create_dir_all, io_error};
use crate::protobuf::ProtobufMessage;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Environment variable for another folder of event files; transformers reads it, too.
pub const FOLDER: &str = "TENSORBOARD_LOGGING_DIR";

/// An event file that is being written.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Creates an event file for the run folder `run`. `resumed`: the step after which the run continues; events of
    /// later steps in earlier files are discarded by TensorBoard.
    pub fn create(run: &Path, resumed: Option<u64>) -> Result<Self> {
        let folder = match std::env::var_os(FOLDER).filter(|f| !f.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => match resumed.and_then(|_| newest_folder(run)) {
                Some(folder) => folder,
                None => run.join("runs").join(format!(
                    "{}_{}",
                    jiff::Zoned::now().strftime("%b%d_%H-%M-%S"),
                    super::facts::host()
                )),
            },
        };
        create_dir_all(&folder)?;
        // TensorBoard reads the files of a folder in the order of their names.
        let unix = unix_time().max(newest_time(&folder).map_or(0.0, |t| t as f64 + 1.0)) as u64;
        let name = |n: u32| format!("events.out.tfevents.{unix}.{}.{}.{n}", super::facts::host(), std::process::id());
        let path = (0..).map(|n| folder.join(name(n))).find(|p| !p.exists()).expect("there are enough numbers");
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut events = Self { file: file.map_err(|e| io_error("writing", &path, e))?, path };
        events.write(&event(0, |m| m.bytes(3, b"brain.Event:2")))?;
        if let Some(step) = resumed {
            // SessionLog { status: START }: events from this step on that came before are purged.
            events.write(&event(step + 1, |m| m.message(7, |log| log.varint(1, 1))))?;
        }
        Ok(events)
    }

    /// Writes the numbers of a step under their tags.
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut records = Vec::new();
        for (tag, value) in values {
            let event = event(step, |m| {
                m.message(5, |summary| {
                    summary.message(1, |v| {
                        v.bytes(1, tag.as_bytes());
                        v.fixed32(2, (value as f32).to_bits());
                    })
                })
            });
            record(&event, &mut records);
        }
        self.put(&records)
    }

    /// Writes a text, which TensorBoard shows on its text page under `NAME/text_summary`.
    pub fn text(&mut self, name: &str, text: &str) -> Result<()> {
        self.write(&event(0, |m| {
            m.message(5, |summary| {
                summary.message(1, |v| {
                    v.bytes(1, format!("{name}/text_summary").as_bytes());
                    v.message(8, |tensor| {
                        tensor.varint(1, 7); // DT_STRING
                        tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
                        tensor.bytes(8, text.as_bytes());
                    });
                    v.message(9, |meta| meta.message(1, |plugin| plugin.bytes(1, b"text")));
                })
            })
        }))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let mut records = Vec::new();
        record(event, &mut records);
        self.put(&records)
    }

    /// Writes records with one system call, so that a reader never sees an incomplete record.
    fn put(&mut self, records: &[u8]) -> Result<()> {
        self.file.write_all(records).map_err(|e| io_error("writing", &self.path, e))
    }
}

/// Returns the tag of a training metric: that of transformers or TRL if they have one, else the metric's name.
pub fn train_tag(method: &str, name: &str) -> String {
    let name = match (method, name) {
        (_, "lr") => "learning_rate",
        (_, "tokens") => "num_tokens",
        (_, "tokens_per_s") => "tokens_per_second",
        ("sft", "accuracy") => "mean_token_accuracy",
        (_, other) => other,
    };
    format!("train/{name}")
}

/// Returns the tag of a validation metric.
pub fn eval_tag(method: &str, name: &str) -> String {
    train_tag(method, name).replacen("train/", "eval/", 1)
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Returns the folder below `run/runs` with the newest event file.
fn newest_folder(run: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(run.join("runs")).ok()?.flatten().map(|e| e.path()).filter(|p| p.is_dir());
    entries.filter_map(|p| Some((newest_time(&p)?, p))).max().map(|(_, p)| p)
}

/// Returns the latest time in the names of a folder's event files, in Unix seconds.
fn newest_time(folder: &Path) -> Option<u64> {
    let time = |name: &str| name.strip_prefix("events.out.tfevents.")?.split('.').next()?.parse().ok();
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries.filter_map(|e| time(e.file_name().to_str()?)).max()
}

/// Removes the folders of event files below `run/runs`.
pub fn clear(run: &Path) -> Result<()> {
    let Some(folder) = newest_folder(run) else { return Ok(()) };
    let runs = folder.parent().expect("a folder below runs");
    for entry in std::fs::read_dir(runs).map_err(|e| io_error("reading", runs, e))?.flatten() {
        if newest_time(&entry.path()).is_some() {
            std::fs::remove_dir_all(entry.path()).map_err(|e| io_error("removing", &entry.path(), e))?;
        }
    }
    Ok(())
}

/// Encodes a `tensorflow.Event` with the current time, the step and the fields that `what` adds.
fn event(step: u64, what: impl FnOnce(&mut ProtobufMessage)) -> Vec<u8> {
    let mut m = ProtobufMessage::default();
    m.fixed64(1, unix_time().to_bits());
    m.varint(2, step);
    what(&mut m);
    m.into_bytes()
}

/// Appends data to `into` as a TFRecord.
fn record(data: &[u8], into: &mut Vec<u8>) {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8);
    let length = (data.len() as u64).to_le_bytes();
    into.extend(length);
    into.extend(masked(&length).to_le_bytes());
    into.extend(data);
    into.extend(masked(data).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_reference_writer() {
        // tensorboard.summary.writer.record_writer.RecordWriter, 2.21.
        let mut framed = Vec::new();
        record(b"abc", &mut framed);
        assert_eq!(crate::fsutil::hex(&framed), "0300000000000000b099490e6162636e57f121");
    }

    #[test]
    fn a_resumed_run_goes_on_in_the_same_folder_with_a_later_file() {
        let run = tempfile::tempdir().unwrap();
        let first = EventFile::create(run.path(), None).unwrap().path;
        let second = EventFile::create(run.path(), Some(4)).unwrap().path;
        assert_eq!(first.parent(), second.parent());
        assert!(second.file_name() > first.file_name(), "{first:?} {second:?}");
        let folder = first.parent().unwrap().file_name().unwrap().to_str().unwrap();
        assert!(folder.ends_with(&format!("_{}", super::super::facts::host())), "{folder}");
        clear(run.path()).unwrap();
        assert_eq!(std::fs::read_dir(run.path().join("runs")).unwrap().count(), 0);
    }
}
