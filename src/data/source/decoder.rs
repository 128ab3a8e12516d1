//! Runs polars' decoders, which may panic on the content of a damaged file, and words their errors.

use crate::error::Error;
use polars::prelude::PolarsError;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

pub(super) fn polars_error(path: &Path, e: PolarsError) -> Error {
    unreadable(path, &e.to_string())
}

pub(super) fn unreadable(path: &Path, why: &str) -> Error {
    Error::user(format!("{}: {}", path.display(), why.lines().next().unwrap_or_default()))
        .hint("is the file complete, and of the kind that its extension says?")
}

thread_local! {
    /// Whether panics of this thread are being converted to errors and must not be printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder and converts panics to errors: decoders may panic on the content of a damaged file.
pub(super) fn catch_decoder_panic<T, E: ToString>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(outer);
    done.map(|result| result.map_err(|e| e.to_string())).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        Err(format!("not a file that can be decoded ({said})"))
    })
}
