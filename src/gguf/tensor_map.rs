//! Gives each tensor of a GGUF file its name, shape and layout in a Hugging Face directory.
//!
//! A tensor that is missing, has another shape or is unknown to the architecture is an error that names it: a model
//! that was only partly understood is never written.

use super::file::Gguf;
use super::header::TensorInfo;
use super::layout::{ExpertUse, Family, Layout, WindowUse};
use super::shape::{PlacedTensor, Shape};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Describes how a tensor's values are arranged in the file, unlike in a Hugging Face directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutChange {
    /// Values stay as they are.
    None,
    /// Undoes llama.cpp's order of rows. It stores the rows of each head as pairs (0, h/2), (1, h/2 + 1), …; Hugging
    /// Face stores the first half, then the second.
    Unpermute {
        /// Number of heads whose rows are reordered.
        heads: usize,
    },
    /// Undoes the order of queries, keys and values in one matrix: all queries, all keys, all values. Hugging Face stores, for
    /// each key head, its queries, its key and its value.
    Group {
        /// Number of query heads.
        heads: usize,
        /// Number of key heads.
        kv_heads: usize,
    },
    /// Transposes to GPT-2's `Conv1D` layout, (in, out).
    Transpose,
    /// The tensor has every second row, from this one on; another tensor has the others.
    EveryOther {
        /// 0 or 1.
        from: usize,
    },
    /// The tensor has, of the rows of each head, those of its key, transposed; another tensor has those of its value.
    HeadKeys(HeadRows),
    /// The tensor has, of the rows of each head, those of its value.
    HeadValues(HeadRows),
    /// Subtracts 1: the file has a norm's weight, Hugging Face its difference from 1.
    Centre,
}

/// The rows of a matrix that makes keys and values: for each head those of its key, then those of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadRows {
    /// Number of heads.
    pub heads: usize,
    /// Rows of a head's key.
    pub key: usize,
    /// Rows of a head's value.
    pub value: usize,
}

impl HeadRows {
    fn of_keys(self) -> Vec<i64> {
        (0..self.heads).flat_map(|h| (0..self.key).map(move |i| (h * (self.key + self.value) + i) as i64)).collect()
    }

    fn of_values(self) -> Vec<i64> {
        let first = |h: usize| h * (self.key + self.value) + self.key;
        (0..self.heads).flat_map(|h| (0..self.value).map(move |i| (first(h) + i) as i64)).collect()
    }
}

impl LayoutChange {
    /// Returns, for each of the `rows` rows of a matrix in Hugging Face's layout, the row of the file that it is; `None`
    /// if the rows stay in their order, are transposed, or are some of a matrix.
    pub fn row_order(self, rows: usize) -> Option<Vec<i64>> {
        match self {
            Self::Unpermute { heads } => {
                let head = rows / heads;
                let within = |i: usize| if i < head / 2 { 2 * i } else { 2 * (i - head / 2) + 1 };
                Some((0..heads * head).map(|row| (row / head * head + within(row % head)) as i64).collect())
            }
            Self::Group { heads, kv_heads } => {
                let (head, shared) = (rows / (heads + 2 * kv_heads), heads / kv_heads);
                let first = |group: usize, part: usize| match part {
                    part if part < shared => group * shared + part,
                    part => heads + (part - shared) * kv_heads + group,
                };
                let parts = (0..kv_heads).flat_map(|group| (0..shared + 2).map(move |part| first(group, part)));
                Some(parts.flat_map(|at| (at * head..(at + 1) * head).map(|row| row as i64)).collect())
            }
            _ => None,
        }
    }

    /// Returns true if the tensor has some rows of a matrix, and others are in another tensor.
    pub fn is_part(self) -> bool {
        matches!(self, Self::EveryOther { .. } | Self::HeadKeys(_) | Self::HeadValues(_))
    }

    /// Returns, for each row of the file, the row of the matrix of `rows` rows in Hugging Face's layout that it is.
    pub fn file_order(self, rows: usize) -> Option<Vec<i64>> {
        match self {
            Self::EveryOther { from } => return Some((from as i64..rows as i64).step_by(2).collect()),
            Self::HeadKeys(of) => return Some(of.of_keys()),
            Self::HeadValues(of) => return Some(of.of_values()),
            _ => {}
        }
        let order = self.row_order(rows)?;
        let mut back = vec![0; order.len()];
        for (row, at) in order.iter().enumerate() {
            back[*at as usize] = row as i64;
        }
        Some(back)
    }
}

/// One tensor: where it is in the GGUF file, and the name and shape of its parameter.
#[derive(Debug, Clone)]
pub struct MappedTensor {
    /// The tensor in the GGUF file.
    pub source: TensorInfo,
    /// Name of the parameter, of which the tensor may be a [part](LayoutChange::is_part).
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<usize>,
    /// How values are rearranged.
    pub change: LayoutChange,
}

/// Maps the file's tensors one by one and keeps account of those not mapped yet, so that an error can name them.
pub struct TensorMapper<'a> {
    /// The file that is imported.
    pub gguf: &'a Gguf,
    /// Its architecture, the prefix of metadata keys.
    pub arch: &'static str,
    unmapped: HashMap<&'a str, &'a TensorInfo>,
    mapped: Vec<MappedTensor>,
}

impl<'a> TensorMapper<'a> {
    /// Starts with no mapped tensor. Fails if the metadata asks for what config.json cannot express.
    pub fn new(gguf: &'a Gguf, family: &'static Family) -> Result<Self> {
        let left = gguf.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
        let source = Self { gguf, arch: family.arch, unmapped: left, mapped: Vec::new() };
        let known = |key: &str| match key {
            "expert_count" => family.experts != ExpertUse::None,
            "attention.sliding_window" => family.windows != WindowUse::None,
            key => family.settings.iter().any(|setting| setting.gguf == key),
        };
        // These keys change what a model computes, and config.json cannot express them.
        for (key, neutral) in [
            ("expert_count", &[0.0][..]),
            ("attention.sliding_window", &[0.0]),
            ("attention.max_alibi_bias", &[0.0]),
            ("attention.clamp_kqv", &[0.0]),
            ("attn_logit_softcapping", &[0.0]),
            ("final_logit_softcapping", &[0.0]),
            ("logit_scale", &[0.0, 1.0]),
            ("residual_scale", &[0.0, 1.0]),
            ("embedding_scale", &[0.0, 1.0]),
            ("attention.scale", &[0.0, 1.0]),
        ] {
            if known(key) {
                continue;
            }
            if let Some(x) = gguf.float(&source.key(key))?.filter(|x| !neutral.contains(x)) {
                return Err(source.unsupported(format!("{} is {x}: such models are not supported", source.key(key))));
            }
        }
        Ok(source)
    }

    /// Returns the metadata key of a setting of this architecture.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// Returns the error that this file cannot be imported.
    pub fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::user(format!("{}: {what}", self.gguf.path().display()))
            .hint("use the model's original Hugging Face directory, or another GGUF of it")
    }

    /// Reads a size that must be present and positive.
    pub fn number(&self, name: &str) -> Result<u64> {
        match self.gguf.unsigned(&self.key(name))? {
            Some(n @ 1..=0x7FFF_FFFF) => Ok(n),
            Some(n) => Err(self.unsupported(format!(
                "metadata {}: a number from 1 to 2147483647 expected, found {n}",
                self.key(name)
            ))),
            None => Err(self.unsupported(format!("metadata {} is missing", self.key(name)))),
        }
    }

    /// Reads a size that must be positive if it is present.
    pub fn number_or(&self, name: &str, default: u64) -> Result<u64> {
        if self.gguf.metadata_value(&self.key(name)).is_none() { Ok(default) } else { self.number(name) }
    }

    /// Reads a number that must be present.
    pub fn float(&self, name: &str) -> Result<f64> {
        self.gguf
            .float(&self.key(name))?
            .ok_or_else(|| self.unsupported(format!("metadata {} is missing", self.key(name))))
    }

    /// Returns true if the file has a tensor of this name that was not mapped yet.
    pub fn has(&self, name: &str) -> bool {
        self.unmapped.contains_key(name)
    }

    /// Leaves out a tensor whose values are used elsewhere, if the file has it.
    pub fn skip(&mut self, name: &str) {
        self.unmapped.remove(name);
    }

    /// Maps a tensor of a model of `shape`. Fails if it is missing or has another shape.
    pub fn map_tensor(&mut self, shape: &Shape, placed: &PlacedTensor) -> Result<()> {
        let from = placed.gguf.as_str();
        let Some(tensor) = self.unmapped.remove(from) else {
            return Err(self.unsupported(format!("tensor {from} is missing")));
        };
        let stored = &placed.stored;
        if !tensor.shape.iter().map(|&n| n as u64).eq(stored.iter().copied()) {
            return Err(self.unsupported(format!("tensor {from}: shape {stored:?} expected, found {:?}", tensor.shape)));
        }
        let change = layout_change(placed.layout, shape);
        let target: Vec<usize> = placed.shape.iter().map(|&n| n as usize).collect();
        for (i, name) in placed.hf.iter().enumerate() {
            let source = match placed.layout {
                Layout::Stacked | Layout::StackedRows(_) => tensor.matrix(i),
                _ => tensor.clone(),
            };
            self.mapped.push(MappedTensor { source, name: name.clone(), shape: target.clone(), change });
        }
        Ok(())
    }

    /// Returns the number of rows of the embedding. Fails if it is below `tokens`, the size of the vocabulary.
    pub fn embedding_rows(&self, tokens: usize) -> Result<u64> {
        let Some(tensor) = self.unmapped.get("token_embd.weight") else {
            return Err(self.unsupported("tensor token_embd.weight is missing"));
        };
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if rows < tokens {
            return Err(self.unsupported(format!("{tokens} tokens, but tensor token_embd.weight has only {rows} rows")));
        }
        Ok(rows as u64)
    }

    /// Maps the output head. Returns true if the embedding is the head: the file has no head tensor, or one of equal
    /// bytes.
    pub fn map_head(&mut self, shape: &Shape) -> Result<bool> {
        let (Some(head), Some(embedding)) =
            (self.unmapped.get("output.weight"), self.gguf.tensors().iter().find(|t| t.name == "token_embd.weight"))
        else {
            return Ok(true);
        };
        if head.kind == embedding.kind
            && head.shape == embedding.shape
            && self.gguf.data(head) == self.gguf.data(embedding)
        {
            self.unmapped.remove("output.weight");
            return Ok(true);
        }
        self.map_tensor(shape, &shape.head())?;
        Ok(false)
    }

    /// Returns all mapped tensors. Fails if the file has tensors that were not mapped.
    pub fn finish(&mut self) -> Result<Vec<MappedTensor>> {
        let mut left: Vec<&str> = self.unmapped.keys().copied().collect();
        left.sort();
        match left[..] {
            [] => Ok(std::mem::take(&mut self.mapped)),
            [first, ..] => Err(self.unsupported(format!(
                "{} tensors are unknown to a {} model, the first is {first}",
                left.len(),
                self.arch
            ))),
        }
    }
}

/// Returns how the values of a tensor of a model of `shape` are rearranged when they are read.
pub fn layout_change(layout: Layout, shape: &Shape) -> LayoutChange {
    let (heads, kv_heads) = (shape.heads as usize, shape.kv_heads as usize);
    match layout {
        Layout::Same | Layout::Flat | Layout::Stacked | Layout::Bare => LayoutChange::None,
        Layout::StackedRows(from) => LayoutChange::EveryOther { from },
        Layout::HeadKeys => LayoutChange::HeadKeys(head_rows(shape)),
        Layout::HeadValues => LayoutChange::HeadValues(head_rows(shape)),
        Layout::TurnedQueries => LayoutChange::Unpermute { heads },
        Layout::TurnedKeys => LayoutChange::Unpermute { heads: kv_heads },
        Layout::Ungrouped => LayoutChange::Group { heads, kv_heads },
        Layout::Transposed => LayoutChange::Transpose,
        Layout::Norm if shape.family.norm_shift() != 0.0 => LayoutChange::Centre,
        Layout::Norm => LayoutChange::None,
    }
}

fn head_rows(shape: &Shape) -> HeadRows {
    let value = shape.latent.map_or(0, |latent| latent.value) as usize;
    HeadRows { heads: shape.heads as usize, key: shape.plain_keys() as usize, value }
}
