//! The rows of a run for a teacher with another tokenizer: reads the rows in the teacher's tokens, and matches its
//! tokens with the student's.
//!
//! As in arXiv 2402.12030, the tokens of an answer are compared in order, the first with the first; if one side has
//! more tokens, the rest is compared with nothing.

use super::teacher::{TeacherModels, TeacherOutputs};
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::Dataset;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::methods::fixed::{BatchIndices, Split};
use crate::methods::rows::DataContext;
use crate::methods::sft::SupervisedBatch;
use crate::native::upload_slice;
use std::rc::Rc;
use tch::{Device, Tensor};

/// The rows of a run in the teacher's tokens.
pub struct TeacherRows {
    /// The teacher's tokenizer.
    pub tokenizer: Rc<ChatTokenizer>,
    train: Dataset,
    valid: Option<Dataset>,
}

impl TeacherRows {
    /// Reads the rows of `ground` with the teacher's tokenizer and template.
    pub fn open(
        teacher: &std::path::Path,
        ground: &DataContext,
        supervise: crate::data::encode::Supervise,
    ) -> Result<Self> {
        let tokenizer = Rc::new(ChatTokenizer::load(teacher, None)?);
        let ground = DataContext { tokenizer: tokenizer.clone(), model: teacher, ..ground.clone() };
        let (train, valid) = ground.open(supervise)?;
        Ok(Self { tokenizer, train, valid })
    }

    /// Returns an error if the rows are not the same items for teacher and student.
    pub fn check(&self, train: &Dataset, valid: Option<&Dataset>) -> Result<()> {
        let both = [(&self.train, Some(train)), (self.valid.as_ref().unwrap_or(&self.train), valid)];
        for (theirs, ours) in both.into_iter().filter_map(|(t, o)| Some((t, o?))) {
            let differs = |i: &usize| theirs.location(*i) != ours.location(*i);
            if theirs.len() != ours.len() || (0..ours.len()).any(|i| differs(&i)) {
                return Err(Error::user(format!(
                    "{}: {} items with the student's tokenizer, {} with the teacher's: some rows are too long for one \
                     of them",
                    ours.summary.name(),
                    ours.len(),
                    theirs.len()
                ))
                .hint("raise batch.max_len, or set data.on_overflow: truncate"));
            }
        }
        Ok(())
    }

    /// Runs the teachers for the supervised tokens of `ours` (the items of `which` as the student sees them): one
    /// output row per token. The tensor (N) float32 is 1 where the teacher has a token at this position, else 0.
    pub fn teach(
        &self,
        teachers: &TeacherModels,
        ours: &[Example],
        which: BatchIndices,
        device: Device,
    ) -> Result<(TeacherOutputs, Tensor)> {
        let rows = match which.split {
            Split::Train => &self.train,
            Split::Valid => self.valid.as_ref().ok_or_else(|| Error::bug("validation without rows"))?,
        };
        let theirs = which.items.iter().map(|i| rows.get(*i)).collect::<Result<Vec<Example>>>()?;
        let (mut at, mut mask, mut start) = (Vec::new(), Vec::new(), 0);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let (n, m) = (ours.target_count() as i64, theirs.target_count() as i64);
            at.extend((0..n).map(|t| start + t.min(m - 1).max(0)));
            mask.extend((0..n).map(|t| f32::from(u8::from(t < m))));
            start += m;
        }
        let mut outputs = teachers.outputs(&SupervisedBatch::new(&theirs.iter().collect::<Vec<_>>(), device))?;
        let at = upload_slice(&at, device);
        for output in &mut outputs.each {
            output.hidden = output.hidden.index_select(0, &at);
        }
        Ok((outputs, upload_slice(&mask, device)))
    }
}
