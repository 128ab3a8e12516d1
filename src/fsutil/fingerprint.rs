//! Fingerprints of files, taken while they are written, with which they are compared when they are read back.

use super::{hex, io_error};
use crate::error::Result;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Bytes of a piece of a file that has a hash of its own.
const PIECE: usize = 1 << 20;

/// What was written into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFingerprint {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// XXH3 of each piece.
    pieces: Vec<u64>,
}

impl FileFingerprint {
    /// Reads the file and returns the first place, in bytes from its start, of a piece that differs from what was written; `None` if
    /// the whole file is the same.
    pub fn first_difference(&self, path: &Path) -> Result<Option<u64>> {
        let failed = |e| io_error("reading", path, e);
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let differs = |buffer: &mut Vec<u8>, i: usize| -> std::io::Result<Option<u64>> {
            let start = (i * PIECE) as u64;
            let length = (self.bytes - start).min(PIECE as u64);
            if size < start + length {
                return Ok(Some(start));
            }
            let piece = &mut buffer[..length as usize];
            file.read_exact_at(piece, start)?;
            Ok((xxh3_64(piece) != self.pieces[i]).then_some(start))
        };
        let pieces = (0..self.pieces.len()).into_par_iter().map_init(|| vec![0; PIECE], differs);
        let places = pieces.collect::<std::io::Result<Vec<Option<u64>>>>().map_err(failed)?;
        Ok(places.into_iter().flatten().next().or((size > self.bytes).then_some(self.bytes)))
    }
}

/// Takes the fingerprint of what is written through it.
pub struct FingerprintWriter<W> {
    out: W,
    whole: Sha256,
    piece: Xxh3,
    bytes: u64,
    pieces: Vec<u64>,
}

impl<W: Write> FingerprintWriter<W> {
    /// Begins a file.
    pub fn new(out: W) -> Self {
        Self { out, whole: Sha256::new(), piece: Xxh3::new(), bytes: 0, pieces: Vec::new() }
    }

    /// Returns the fingerprint of all that was written.
    pub fn finish(mut self) -> FileFingerprint {
        if self.bytes % PIECE as u64 > 0 {
            self.pieces.push(self.piece.digest());
        }
        FileFingerprint { bytes: self.bytes, sha256: hex(&self.whole.finalize()), pieces: self.pieces }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let room = PIECE - (self.bytes % PIECE as u64) as usize;
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            self.piece.update(part);
            self.bytes += part.len() as u64;
            if part.len() == room {
                self.pieces.push(self.piece.digest());
                self.piece.reset();
            }
            bytes = rest;
        }
    }
}

impl<W: Write> Write for FingerprintWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for size in [0, 10, PIECE, 2 * PIECE + 77] {
            let content: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut writer = FingerprintWriter::new(File::create(&path).unwrap());
            content.chunks(300_001).for_each(|part| writer.write_all(part).unwrap());
            let found = writer.finish();
            assert_eq!((found.bytes, found.sha256.clone()), (size as u64, super::super::sha256(&path).unwrap()));
            assert_eq!(found.first_difference(&path).unwrap(), None);
            for place in [0, 9, PIECE - 1, PIECE, 2 * PIECE + 76].into_iter().filter(|place| *place < size) {
                let mut changed = content.clone();
                changed[place] ^= 1;
                std::fs::write(&path, &changed).unwrap();
                assert_eq!(found.first_difference(&path).unwrap(), Some((place / PIECE * PIECE) as u64), "{place}");
            }
            std::fs::write(&path, [&content[..], b"x"].concat()).unwrap();
            assert_eq!(found.first_difference(&path).unwrap(), Some(size as u64));
            if size > 0 {
                std::fs::write(&path, &content[..size - 1]).unwrap();
                assert!(found.first_difference(&path).unwrap().is_some());
            }
        }
    }
}
