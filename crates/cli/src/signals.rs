//! Being asked to stop: once to end in good order, twice to end at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that the first SIGINT or SIGTERM sets; the next ends the process with 128 + its number.
///
/// # Errors
/// The system gives no signal handler.
pub fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let flag = stop.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(128 + signal);
            }
            // The terminal may be gone, which is often the reason for the signal.
            let _ = writeln!(
                std::io::stderr(),
                "stopping after the work at hand; once more stops at once and loses it"
            );
        }
    });
    Ok(stop)
}
