//! Passes that a CUDA device is given as one launch (`native::Graph`), because their operations are always the same: on a fast GPU the
//! host takes longer to launch the operations of a small model one by one than the GPU to compute them.
//!
//! decoding: a step of one token for each sequence of a cache. learning: forward and backward of a micro-batch.
//!
//! A recorded pass reads and writes fixed addresses. So its inputs are copied into the tensors that it was recorded with, and whoever
//! launches one makes sure that everything else lies where it lay.

mod decoding;
mod learning;

pub use decoding::RecordedStep;
pub use learning::{RecordedLearning, padded_length, padded_segments, padded_targets};

use super::model::Model;
use crate::nn::{attends_cached, attends_whole_rows};
use tch::Device;

impl Model {
    /// Sets whether passes whose operations are always the same are recorded, and launched as one from then on.
    pub fn set_records_passes(&self, records: bool) {
        self.records_passes.set(records);
    }

    /// Returns true if such passes are recorded.
    pub fn records_passes(&self) -> bool {
        self.records_passes.get()
    }

    /// Has casts of factors made by the next pass again, so that they are a part of it.
    fn forget_casts(&self) {
        self.switches.casts.forget();
    }

    /// Returns why forward and backward of rows cannot be recorded on a device, beside what [`Model::hindrance_to_recording`] says.
    pub fn hindrance_to_recorded_learning(&self, device: Device) -> Option<&'static str> {
        if !attends_whole_rows(device, self.kind(), self.config().head_dim) {
            return Some(
                "attention needs half precision, heads of at most 256 numbers and compute capability 8.0 or newer",
            );
        }
        if self.params().trained_in_run().any(|p| p.transposed) {
            return Some("weights that are trained are stored transposed, as GPT-2's are");
        }
        None
    }

    /// Returns why passes of this model cannot be recorded on a device: what the host must know or send in the middle of them.
    /// `None` if they can.
    pub fn hindrance_to_recording(&self, device: Device) -> Option<&'static str> {
        match device {
            Device::Cuda(_) if attends_cached(self.kind(), device) => {}
            Device::Cuda(_) => return Some("the GPU has no attention kernels for bfloat16"),
            _ => return Some("only a GPU records passes"),
        }
        if self.recurrence().is_some() {
            return Some("its layers are recurrent");
        }
        if self.config().experts.is_some() {
            return Some("the host must know how many tokens each expert gets");
        }
        if !self.attentions().all(|attention| attention.has_plain_softmax()) {
            return Some("the scores of its attention are bounded, biased or have sinks");
        }
        if !self.rotates_alike() {
            return Some("the rotation of a token depends on how long its sequence is");
        }
        None
    }
}
