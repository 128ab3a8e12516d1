//! Limits what one rendering may use: steps, bytes held at once, nesting of values, and stack.
//!
//! A template can double a text in a loop, so a limit on steps alone would not bound the memory. Each value therefore
//! adds its bytes to a counter when it is made and subtracts them when it is dropped, and the limit is checked before
//! memory is allocated. The counters belong to the thread: one thread runs one rendering at a time.

use super::error::{TemplateError, TemplateErrorKind};
use std::cell::Cell;
use std::ops::Deref;

/// Steps of one rendering: enough for a conversation of 10,000 turns with a large template; an endless loop ends after
/// some seconds.
const MAX_STEPS: u64 = 10_000_000;
/// Bytes of text and lists that a rendering may hold at once.
const MAX_BYTES: usize = 256 << 20;
/// Bytes read or written that count as one step.
const BYTES_PER_STEP: usize = 128;
/// Levels of values nested in each other: dropping a deeper value would overflow the stack, as it recurses.
const MAX_DEPTH: usize = 400;

thread_local! {
    static STEPS_LEFT: Cell<u64> = const { Cell::new(MAX_STEPS) };
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// The stack address at which the rendering began, and the bytes that it may grow by.
    static STACK: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Resets the counters of this thread for a rendering that may use `stack` bytes of stack.
pub fn start_rendering(stack: usize) {
    STEPS_LEFT.set(MAX_STEPS);
    HELD.set(0);
    STACK.set((stack_address(), stack));
}

/// Returns the address of a local variable, which shows how far the stack has grown.
#[inline(never)]
fn stack_address() -> usize {
    let local = 0u8;
    std::ptr::from_ref(std::hint::black_box(&local)).addr()
}

/// Fails if the stack has grown beyond its limit.
pub fn check_depth() -> Result<(), TemplateError> {
    let (began, most) = STACK.get();
    if began.abs_diff(stack_address()) > most {
        return Err(TemplateError::new(TemplateErrorKind::StackExhausted, "it recurses too deeply"));
    }
    Ok(())
}

/// Takes steps from the budget; fails if none are left.
pub fn spend_steps(steps: u64) -> Result<(), TemplateError> {
    match STEPS_LEFT.get().checked_sub(steps) {
        Some(left) => {
            STEPS_LEFT.set(left);
            Ok(())
        }
        None => Err(TemplateError::new(TemplateErrorKind::LimitReached, "it does not come to an end")),
    }
}

/// Takes the steps that reading or writing `bytes` bytes costs.
pub fn spend_copy_steps(bytes: usize) -> Result<(), TemplateError> {
    spend_steps((bytes / BYTES_PER_STEP) as u64)
}

/// Fails if `bytes` more bytes would pass the memory limit; takes the steps for writing them. Allocates nothing.
pub fn check_memory(bytes: usize) -> Result<(), TemplateError> {
    check_output_length(bytes)?;
    spend_copy_steps(bytes)
}

/// Fails if a text that is still being written, and not counted yet, would pass the memory limit at `bytes` bytes.
pub fn check_output_length(bytes: usize) -> Result<(), TemplateError> {
    if HELD.get().saturating_add(bytes) > MAX_BYTES {
        return Err(TemplateError::new(
            TemplateErrorKind::LimitReached,
            "it asks for more memory than any conversation needs (256 MB)",
        ));
    }
    Ok(())
}

/// Returns `depth`, or fails if values may not be nested that deep.
pub fn check_nesting(depth: usize) -> Result<usize, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::new(
            TemplateErrorKind::LimitReached,
            format!("it nests values more than {MAX_DEPTH} deep"),
        ));
    }
    Ok(depth)
}

/// Fails if `count` more pieces of `each` bytes would pass the memory limit; takes the steps for writing them.
pub fn check_memory_for(count: usize, each: usize) -> Result<(), TemplateError> {
    check_memory(count.saturating_mul(each.max(1)))
}

/// A value whose bytes count against the memory limit while it lives, and its depth: levels of values nested in it.
#[derive(Debug)]
pub struct MeteredValue<T> {
    inner: T,
    bytes: usize,
    depth: usize,
}

impl<T> MeteredValue<T> {
    /// Counts `bytes` for `inner`. Fails at the limits on memory and nesting.
    pub fn new(inner: T, bytes: usize, depth: usize) -> Result<Self, TemplateError> {
        check_memory(bytes)?;
        Ok(Self::without_limit(inner, bytes, check_nesting(depth)?))
    }

    /// As `new`, for data from the caller of the rendering: it is counted, but never refused.
    pub fn without_limit(inner: T, bytes: usize, depth: usize) -> Self {
        HELD.set(HELD.get().saturating_add(bytes));
        Self { inner, bytes, depth }
    }

    /// Returns the levels of values nested in it.
    pub fn depth(&self) -> usize {
        self.depth
    }
}

impl<T> Deref for MeteredValue<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Drop for MeteredValue<T> {
    fn drop(&mut self) {
        let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(self.bytes)));
    }
}
