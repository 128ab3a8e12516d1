//! What a signal does: it sets a flag, so that a command keeps what it has done and stops, or ends a command that leaves nothing behind.

use ft::error::{Error, Result};
use ft::{fsutil, report, runtime};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Returns a flag that Ctrl-C sets. Fails if the system refuses to install a signal handler.
pub fn flag_on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, flag.clone()).map_err(|e| Error::user(format!("listening for Ctrl-C: {e}")))?;
    Ok(flag)
}

/// Lets Ctrl-C and SIGTERM end the command at once, without the folders that it has not finished. Fails if the system refuses to install
/// a signal handler.
pub fn end_without_remains() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::user(format!("listening for Ctrl-C: {e}")))?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            fsutil::remove_unfinished_folders();
            let stopped = Error::interrupted("stopped; what was not finished is removed");
            report::error(&stopped);
            // Without the handlers of other libraries: their threads still compute.
            signal_hook::low_level::exit(stopped.exit_code().into());
        }
    });
    Ok(())
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
