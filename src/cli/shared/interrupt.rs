//! Flags that a signal sets, so that a command keeps what it has done and stops.

use ft::error::{Error, Result};
use ft::runtime;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Returns a flag that Ctrl-C sets. Fails if the system refuses to install a signal handler.
pub fn flag_on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, flag.clone()).map_err(|e| Error::user(format!("listening for Ctrl-C: {e}")))?;
    Ok(flag)
}

/// Returns a flag that the first Ctrl-C or SIGTERM sets, so that the run saves and stops. The second ends the process
/// at once.
pub fn stop_on_signal() -> Arc<AtomicBool> {
    runtime::survive_broken_pipes();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone());
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    stop
}
