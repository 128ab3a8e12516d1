//! Bounds on what one rendering may use: steps, bytes it holds, depth of the stack.
//!
//! They are counted per thread: values account for themselves when they are made and dropped ([`Held`]), so that a loop
//! that doubles a text ends with an error before the memory is asked for.

use super::fault::{Fault, FaultKind};
use std::cell::Cell;
use std::ops::Deref;

/// Steps of one rendering: some 10,000 turns of a large template, and some seconds of an endless loop.
const STEPS: u64 = 10_000_000;
/// Bytes of text and lists that a rendering may hold at once.
const BYTES: usize = 256 << 20;
/// Bytes that cost as much as one step.
const BYTES_PER_STEP: usize = 128;
/// Lists inside each other: dropping a deeper value would use up the stack.
const DEPTH: usize = 400;

thread_local! {
    static STEPS_LEFT: Cell<u64> = const { Cell::new(STEPS) };
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// Where the stack was when the rendering began, and how far it may grow.
    static STACK: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Begins a rendering that may use `stack` bytes of this thread's stack.
pub fn start(stack: usize) {
    STEPS_LEFT.set(STEPS);
    HELD.set(0);
    STACK.set((here(), stack));
}

/// The address of a local variable: how far the stack has grown.
#[inline(never)]
fn here() -> usize {
    let local = 0u8;
    std::ptr::from_ref(std::hint::black_box(&local)).addr()
}

/// Ends the rendering where the stack has grown too far.
pub fn check_depth() -> Result<(), Fault> {
    let (began, most) = STACK.get();
    if began.abs_diff(here()) > most {
        return Err(Fault::new(FaultKind::Deep, "it recurses too deeply"));
    }
    Ok(())
}

/// Takes some steps.
pub fn spend(steps: u64) -> Result<(), Fault> {
    match STEPS_LEFT.get().checked_sub(steps) {
        Some(left) => {
            STEPS_LEFT.set(left);
            Ok(())
        }
        None => Err(Fault::new(FaultKind::Runaway, "it does not come to an end")),
    }
}

/// Takes the steps that it costs to read or write so many bytes.
pub fn spend_bytes(bytes: usize) -> Result<(), Fault> {
    spend((bytes / BYTES_PER_STEP) as u64)
}

/// Whether so many bytes more may be held.
pub fn room(bytes: usize) -> Result<(), Fault> {
    check_length(bytes)?;
    spend_bytes(bytes)
}

/// Whether a text that is being written may become so long.
pub fn check_length(bytes: usize) -> Result<(), Fault> {
    if HELD.get().saturating_add(bytes) > BYTES {
        return Err(Fault::new(FaultKind::Runaway, "it asks for more memory than any conversation needs (256 MB)"));
    }
    Ok(())
}

/// Whether values may lie so deep in each other.
pub fn check_nesting(depth: usize) -> Result<usize, Fault> {
    if depth > DEPTH { Err(Fault::new(FaultKind::Runaway, "it nests values without an end")) } else { Ok(depth) }
}

/// Whether `count` pieces of `each` bytes may be held.
pub fn room_for(count: usize, each: usize) -> Result<(), Fault> {
    room(count.saturating_mul(each.max(1)))
}

/// Something whose bytes are counted while it lives, and how deep values lie in each other inside it.
#[derive(Debug)]
pub struct Held<T> {
    inner: T,
    bytes: usize,
    depth: usize,
}

impl<T> Held<T> {
    pub fn new(inner: T, bytes: usize, depth: usize) -> Result<Self, Fault> {
        room(bytes)?;
        Ok(Self::given(inner, bytes, check_nesting(depth)?))
    }

    /// As `new`, for what the caller of the rendering gave: it is counted and never refused.
    pub fn given(inner: T, bytes: usize, depth: usize) -> Self {
        HELD.set(HELD.get().saturating_add(bytes));
        Self { inner, bytes, depth }
    }

    pub fn depth(&self) -> usize {
        self.depth
    }
}

impl<T> Deref for Held<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(self.bytes)));
    }
}
