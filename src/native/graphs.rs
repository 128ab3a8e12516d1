//! CUDA graphs: work that is recorded once and then launched as a whole, which takes the host the time of one launch.

use super::{Result, check, last_error};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use tch::Device;

unsafe extern "C" {
    fn ft_stream_switch(index: c_int, stream: i64, out: *mut i64) -> c_int;
    fn ft_graph_begin(index: c_int, pool: *const u64) -> *mut c_void;
    fn ft_graph_end(graph: *mut c_void) -> c_int;
    fn ft_graph_replay(graph: *mut c_void) -> c_int;
    fn ft_graph_pool(graph: *mut c_void, out: *mut u64) -> c_int;
    fn ft_graph_drop(graph: *mut c_void);
}

/// Lets the calling thread queue its operations on a stream of its own, until it is dropped: the default stream cannot be
/// recorded. Each stream waits for what the other was given before.
pub struct OwnStream {
    index: usize,
    before: i64,
    /// The current stream is a thread's.
    _of_thread: PhantomData<*const ()>,
}

impl OwnStream {
    /// Switches to a stream of the device's own. `None` for the CPU, which has no streams.
    pub fn begin(device: Device) -> Result<Option<Self>> {
        let Device::Cuda(index) = device else { return Ok(None) };
        Ok(Some(Self { index, before: switch(index, -1)?, _of_thread: PhantomData }))
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        if switch(self.index, self.before).is_err() && !std::thread::panicking() {
            panic!("the stream from before can be used again: {}", last_error());
        }
    }
}

fn switch(index: usize, stream: i64) -> Result<i64> {
    let mut before = 0;
    // SAFETY: `before` has room for a number.
    check(unsafe { ft_stream_switch(index as c_int, stream, &mut before) })?;
    Ok(before)
}

/// Recorded work. It reads and writes the addresses of the tensors that it was recorded with: those must live as long, and
/// whoever changes an input writes into its tensor. Memory of tensors that were made while it was recorded belongs to it.
pub struct Graph(*mut c_void);

/// Names the memory of a graph, so that others can share it: their tensors may lie in the same place, unless they are alive.
#[derive(Debug, Clone, Copy)]
pub struct GraphMemory([u64; 2]);

impl Graph {
    /// Records what `f` gives the device, on the calling thread's current stream ([`OwnStream`]) and in backward passes of it.
    /// Nothing of it is computed: results are what [`Graph::replay`] makes of them. Fails if `f` does, if it waits for the
    /// device, copies from or to the host, or draws random numbers of libtorch's generator.
    pub fn record<R, E: From<tch::TchError>>(
        device: Device,
        memory: Option<GraphMemory>,
        f: impl FnOnce() -> Result<R, E>,
    ) -> Result<(Self, R), E> {
        let Device::Cuda(index) = device else { panic!("only a CUDA device records its work") };
        let shared = memory.as_ref().map_or(std::ptr::null(), |memory| memory.0.as_ptr());
        // SAFETY: null, or two numbers.
        let graph = unsafe { ft_graph_begin(index as c_int, shared) };
        if graph.is_null() {
            return Err(last_error().into());
        }
        let graph = Self(graph); // dropped on failure, which ends the record
        let result = f()?;
        // SAFETY: alive and recording.
        check(unsafe { ft_graph_end(graph.0) })?;
        Ok((graph, result))
    }

    /// Launches the work, after everything that the current stream was given.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: alive and recorded.
        check(unsafe { ft_graph_replay(self.0) })
    }

    /// Returns the name of its memory.
    pub fn memory(&self) -> Result<GraphMemory> {
        let mut name = [0; 2];
        // SAFETY: `name` has room for both numbers.
        check(unsafe { ft_graph_pool(self.0, name.as_mut_ptr()) })?;
        Ok(GraphMemory(name))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: owned, and dropped once.
        unsafe { ft_graph_drop(self.0) }
    }
}
