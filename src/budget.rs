//! An end to memory that someone else's program asks for: a chat template can double a string in a loop, and its fuel
//! counts instructions, not bytes.
//!
//! The process's allocator counts what a thread asks for while it holds a [`Budget`]. Beyond it the process ends with
//! an error and exit code 1, as Rust has no way to refuse an allocation that a library makes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes left to this thread; negative: no limit is set.
    static LEFT: Cell<i64> = const { Cell::new(-1) };
    /// Who is to be named, a string that lives as long as the budget.
    static NAME: Cell<(*const u8, usize)> = const { Cell::new((std::ptr::null(), 0)) };
}

/// System memory with the thread's budget.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promised us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promised us.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as the caller promised us.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        give(layout.size());
        take(size);
        // SAFETY: as the caller promised us.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn take(bytes: usize) {
    let _ = LEFT.try_with(|left| {
        let now = left.get();
        if now < 0 {
            return;
        }
        let rest = now.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        if rest < 0 {
            left.set(-1);
            end();
        }
        left.set(rest);
    });
}

fn give(bytes: usize) {
    let _ = LEFT.try_with(|left| {
        if left.get() >= 0 {
            left.set(left.get().saturating_add(bytes as i64));
        }
    });
}

/// Says why and ends the process. Nothing here allocates.
fn end() -> ! {
    let write = |text: &[u8]| {
        // SAFETY: the pointer and the length are those of a live slice.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    };
    let (at, length) = NAME.with(Cell::get);
    write(b"error: ");
    // SAFETY: set by a `Budget` that still lives, from a string that outlives it.
    write(unsafe { std::slice::from_raw_parts(at, length) });
    write(b": asks for more memory than any conversation needs (1 GB)\n");
    write(b"hint: the template is broken or hostile; give one of your own with data.template or --template\n");
    // SAFETY: ends the process without unwinding; files under their temporary names are all that may stay.
    unsafe { libc::_exit(1) }
}

/// While it lives, this thread may ask for 1 GB more than it gives back.
pub struct Budget<'a> {
    _name: &'a str,
}

impl<'a> Budget<'a> {
    const BYTES: i64 = 1_000_000_000;

    /// `name` (a file) stands in the error.
    pub fn start(name: &'a str) -> Self {
        NAME.with(|n| n.set((name.as_ptr(), name.len())));
        LEFT.with(|left| left.set(Self::BYTES));
        Self { _name: name }
    }
}

impl Drop for Budget<'_> {
    fn drop(&mut self) {
        LEFT.with(|left| left.set(-1));
    }
}
