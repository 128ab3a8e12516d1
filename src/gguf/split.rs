//! Models in several GGUF files, as llama.cpp's `llama-gguf-split` and `gguf` write them.
//!
//! Part k of n is called `NAME-0000k-of-0000n.gguf`. The first part has the metadata; every part says which one it is
//! (`split.no`, from 0), how many there are (`split.count`) and how many tensors all have together (`split.tensors.count`).
//! A tensor is in one part as a whole.

use super::file::Gguf;
use super::writer::{FileSize, MetaValue, TensorEntry};
use crate::error::{Error, Result};
use crate::report::bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The most parts that `split.count`, a number of 16 bits, can tell.
const MOST_PARTS: usize = u16::MAX as usize;

/// What the name of a part says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// The path up to the number.
    prefix: String,
    /// From 1 on.
    number: usize,
    /// Number of parts.
    count: usize,
}

impl PartName {
    /// Takes a path apart; `None` if it is not that of a part.
    pub fn of(path: &Path) -> Option<Self> {
        let rest = path.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        let (number, count) = (Some(number).filter(|n| digits(n))?, Some(count).filter(|n| digits(n))?);
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (1..=count).contains(&number).then(|| Self { prefix: prefix.into(), number, count })
    }

    /// Returns the path without number, count and ending.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the paths of all parts in order.
    fn all(&self) -> Vec<PathBuf> {
        (1..=self.count).map(|number| part_path(&self.prefix, number, self.count)).collect()
    }
}

fn part_path(prefix: &str, number: usize, count: usize) -> PathBuf {
    format!("{prefix}-{number:05}-of-{count:05}.gguf").into()
}

/// Returns the paths of the files that a model of `count` files is written to; `file` is that of one file.
pub fn part_paths(file: &Path, count: usize) -> Vec<PathBuf> {
    match file.to_string_lossy().strip_suffix(".gguf") {
        Some(prefix) if count > 1 => (1..=count).map(|number| part_path(prefix, number, count)).collect(),
        _ => vec![file.into()],
    }
}

/// Returns all files of the model in the file at `path`, by its name.
pub fn files(path: &Path) -> Vec<PathBuf> {
    PartName::of(path).map_or_else(|| vec![path.into()], |name| name.all())
}

/// What a file says about the model that it is a part of.
#[derive(Debug, PartialEq, Eq)]
struct PartKeys {
    /// From 0 on.
    number: u64,
    count: u64,
    /// Of all parts.
    tensors: u64,
}

impl PartKeys {
    /// Reads them; `None` for a model in one file.
    fn read(gguf: &Gguf) -> Result<Option<Self>> {
        let Some(count) = gguf.unsigned(COUNT)?.filter(|count| *count > 0) else { return Ok(None) };
        let of = |key: &str| {
            gguf.unsigned(key)?.ok_or_else(|| {
                Error::user(format!("{}: metadata {key} is missing beside {COUNT}", gguf.path().display())).hint(AGAIN)
            })
        };
        Ok(Some(Self { number: of(NUMBER)?, count, tensors: of(TENSORS)? }))
    }
}

const AGAIN: &str =
    "the download is incomplete or mixed up: fetch all parts again, into one folder, under their own names";

/// Returns the paths of the parts that belong to an opened file, without its own. Fails if it is not the first part, or if its
/// name and its metadata say different things.
pub(super) fn other_parts(first: &Gguf) -> Result<Vec<PathBuf>> {
    let wrong = |what: String| Error::user(format!("{}: {what}", first.path().display()));
    let (name, keys) = (PartName::of(first.path()), PartKeys::read(first)?);
    let Some(keys) = keys else {
        return match name.filter(|name| name.count > 1) {
            None => Ok(Vec::new()),
            Some(PartName { number, count, .. }) => {
                Err(wrong(format!("part {number} of {count} by its name, but its metadata has no {COUNT}")).hint(AGAIN))
            }
        };
    };
    if keys.number > 0 {
        let named = name.map(|name| name.all().remove(0).display().to_string());
        let named = named.unwrap_or_else(|| format!("the file that ends in -00001-of-{:05}.gguf", keys.count));
        return Err(wrong(format!("part {} of the {} parts of a model", keys.number + 1, keys.count))
            .hint(format!("name the first part: {named}; the others are found beside it")));
    }
    if keys.count == 1 {
        return Ok(Vec::new());
    }
    match name {
        Some(name) if name.number == 1 && name.count as u64 == keys.count => Ok(name.all().split_off(1)),
        _ => Err(wrong(format!(
            "part 1 of {} by its metadata, so its name should end in -00001-of-{:05}.gguf",
            keys.count, keys.count
        ))
        .hint("the other parts are found by these names: give all parts their own names again")),
    }
}

/// Fails if `part` is not part `number` (from 1 on) of the model that `first` is the first part of.
pub(super) fn check_part(first: &Gguf, part: &Gguf, number: usize) -> Result<()> {
    let expected = PartKeys::read(first)?.map(|keys| PartKeys { number: number as u64 - 1, ..keys });
    let found = PartKeys::read(part)?;
    if expected == found {
        return Ok(());
    }
    let say = |keys: Option<PartKeys>| match keys {
        None => "a model in one file".into(),
        Some(PartKeys { number, count, tensors }) => format!("part {} of {count} with {tensors} tensors", number + 1),
    };
    Err(Error::user(format!(
        "{}: {} expected, by its metadata it is {}",
        part.path().display(),
        say(expected),
        say(found)
    ))
    .hint(AGAIN))
}

/// Fails if a tensor is in two parts, or if all parts together have another number of tensors than they say.
pub(super) fn check_tensors(gguf: &Gguf) -> Result<()> {
    let Some(keys) = PartKeys::read(gguf)? else { return Ok(()) };
    let wrong = |what: String| Error::user(format!("{}: {what}", gguf.path().display())).hint(AGAIN);
    let mut parts: HashMap<&str, usize> = HashMap::new();
    for tensor in gguf.tensors() {
        if let Some(other) = parts.insert(&tensor.name, tensor.part()) {
            let (name, part) = (&tensor.name, tensor.part() + 1);
            return Err(wrong(format!("tensor {name} is in part {} and in part {part}", other + 1)));
        }
    }
    match parts.len() as u64 {
        found if found == keys.tensors => Ok(()),
        found => Err(wrong(format!("{found} tensors in all parts, {} by {TENSORS}", keys.tensors))),
    }
}

/// How much a file of a model may have. Without limits a model is one file.
#[derive(Debug, Clone, Copy, Default)]
pub struct SplitLimits {
    /// The size of a file in bytes.
    pub bytes: Option<u64>,
    /// Number of tensors in a file.
    pub tensors: Option<usize>,
}

impl SplitLimits {
    /// Returns true if there is a limit.
    pub fn are_set(&self) -> bool {
        self.bytes.is_some() || self.tensors.is_some()
    }

    /// Divides the tensors of a model, in order, into as few files as the limits allow. The first part has no tensor if there is no
    /// room for one beside the metadata. Fails if a tensor, or the metadata, is larger than a file may be.
    pub fn divide(&self, metadata: &[(String, MetaValue)], tensors: &[TensorEntry]) -> Result<Vec<Range<usize>>> {
        let most = self.bytes.unwrap_or(u64::MAX);
        let too_large = |what: String, size: &FileSize| {
            Error::user(format!("--split-size {}: {what} makes a file of {}", bytes(most), bytes(size.bytes())))
                .hint(format!("a tensor is not divided; choose at least {} bytes", size.bytes()))
        };
        let empty = |metadata: &[(String, MetaValue)]| FileSize::of(&metadata_of_part(metadata, 0, 1, 0));
        let (mut parts, mut start, mut size) = (Vec::new(), 0, empty(metadata));
        if size.bytes() > most {
            return Err(too_large("the metadata alone".into(), &size));
        }
        for (i, tensor) in tensors.iter().enumerate() {
            let full = self.tensors.is_some_and(|most| i - start >= most);
            if full || size.with(tensor).bytes() > most {
                parts.push(start..i);
                (start, size) = (i, empty(&[]));
            }
            size = size.with(tensor);
            if size.bytes() > most {
                return Err(too_large(format!("tensor {}", tensor.name), &size));
            }
        }
        parts.push(start..tensors.len());
        match parts.len() {
            0..=MOST_PARTS => Ok(parts),
            n => Err(Error::user(format!("{n} parts, of which the format allows {MOST_PARTS}"))
                .hint("choose a larger --split-size or --split-tensors")),
        }
    }
}

/// Returns the metadata of part `i` (from 0 on) of `count`; `tensors` is the number of all tensors. The first part has that of the
/// model.
pub fn metadata_of_part(
    model: &[(String, MetaValue)],
    i: usize,
    count: usize,
    tensors: usize,
) -> Vec<(String, MetaValue)> {
    let own = [
        (NUMBER, MetaValue::Short(i as u16)),
        (COUNT, MetaValue::Short(count as u16)),
        (TENSORS, MetaValue::Signed(tensors as i32)),
    ];
    let own = own.map(|(key, value)| (key.to_string(), value));
    let model = if i == 0 { model } else { &[] };
    model.iter().cloned().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::super::quant::GgmlType;
    use super::*;

    fn tensor(i: usize, elements: u64) -> TensorEntry {
        TensorEntry { name: format!("blk.{i}.weight"), shape: vec![elements], kind: GgmlType::F32 }
    }

    #[test]
    fn names_of_parts_are_taken_apart_and_made() {
        let name = PartName::of(Path::new("a/b-00001-of-00003.gguf")).unwrap();
        assert_eq!((name.prefix.as_str(), name.number, name.count), ("a/b", 1, 3));
        assert_eq!(files(Path::new("x-00001-of-00002.gguf")), part_paths(Path::new("x.gguf"), 2));
        for path in
            ["x.gguf", "x-1-of-3.gguf", "x-00000-of-00002.gguf", "x-00003-of-00002.gguf", "x-00001-of-00002.bin"]
        {
            assert_eq!((PartName::of(Path::new(path)), files(Path::new(path))), (None, vec![path.into()]), "{path}");
        }
        assert_eq!(part_paths(Path::new("x.gguf"), 1), [PathBuf::from("x.gguf")]);
    }

    #[test]
    fn every_file_is_below_its_limit_and_no_part_could_have_one_tensor_more() {
        let metadata = vec![("tokens".to_string(), MetaValue::Texts(vec!["x".repeat(100); 20]))];
        let tensors: Vec<TensorEntry> = (0..40).map(|i| tensor(i, 10 + (i as u64 * 37) % 200)).collect();
        for most in [4000, 5000, 9876] {
            let parts = SplitLimits { bytes: Some(most), tensors: None }.divide(&metadata, &tensors).unwrap();
            let size = |i: usize, range: Range<usize>| {
                let own = metadata_of_part(&metadata, i, parts.len(), tensors.len());
                super::super::writer::file_size(&own, &tensors[range])
            };
            let mut next = 0;
            for (i, range) in parts.iter().enumerate() {
                assert_eq!(range.start, next);
                next = range.end;
                assert!(size(i, range.clone()) <= most, "{most}: {i}");
                assert!(next == tensors.len() || size(i, range.start..next + 1) > most, "{most}: {i}");
            }
            assert!(next == tensors.len() && parts.len() > 2, "{parts:?}");
        }
        let parts = SplitLimits { bytes: None, tensors: Some(16) }.divide(&metadata, &tensors).unwrap();
        assert_eq!(parts, [0..16, 16..32, 32..40]);
        assert_eq!(SplitLimits::default().divide(&metadata, &tensors).unwrap(), [0..40]);
    }

    #[test]
    fn a_first_part_may_have_no_tensor_and_what_is_too_large_is_named() {
        let metadata = vec![("tokens".to_string(), MetaValue::Text("x".repeat(1000)))];
        let divide = |most| SplitLimits { bytes: Some(most), tensors: None }.divide(&metadata, &[tensor(0, 300)]);
        assert_eq!(divide(1500).unwrap(), [0..0, 0..1]);
        assert!(divide(1300).unwrap_err().to_string().contains("blk.0.weight"));
        assert!(divide(900).unwrap_err().to_string().contains("metadata"));
    }
}
