//! The argument of commands that may launch decoding steps as CUDA graphs.

use clap::Args;
use ft::error::{Error, Result};
use ft::models::Model;
use ft::native::OwnStream;

/// Whether decoding steps are recorded.
#[derive(Args)]
pub struct CudaGraphsArgs {
    /// On a GPU: record the step of a batch as a CUDA graph and launch it as one, so that the host keeps up with the GPU where
    /// a model is small
    #[arg(long)]
    cuda_graphs: bool,
}

impl CudaGraphsArgs {
    /// Returns true if steps are to be recorded.
    pub fn asked(&self) -> bool {
        self.cuda_graphs
    }

    /// Lets the model record its steps if that is asked for, as long as the result lives. Fails if it cannot.
    pub fn begin(&self, model: &Model) -> Result<Option<OwnStream>> {
        if !self.cuda_graphs {
            return Ok(None);
        }
        if let Some(why) = model.hindrance_to_recording(model.device()) {
            return Err(Error::user(format!("--cuda-graphs: steps of this model cannot be recorded: {why}"))
                .hint("leave out --cuda-graphs"));
        }
        model.set_records_passes(true);
        Ok(OwnStream::begin(model.device())?)
    }
}
