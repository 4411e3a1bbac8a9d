//! Signs of life: when and where a rank was last seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Seen {
    /// `at`, `in`, `after`; empty for a rank that was never seen.
    how: &'static str,
    what: &'static str,
    /// Its buffer is used again and again.
    site: String,
}

/// What is known of one rank. Apart from the state of the fabric, since devices may give signs at
/// every node.
#[derive(Debug)]
pub(crate) struct Sign {
    start: Instant,
    /// When it was last seen, in nanoseconds since `start`.
    seen_nanos: AtomicU64,
    seen: Mutex<Seen>,
}

impl Sign {
    pub(crate) fn new(start: Instant) -> Sign {
        Sign { start, seen_nanos: AtomicU64::new(0), seen: Mutex::default() }
    }

    /// The rank lives.
    pub(crate) fn touch(&self, now: Instant) {
        let nanos = now.saturating_duration_since(self.start).as_nanos() as u64;
        self.seen_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// The rank is somewhere: `how` is `at`, `in` or `after`, `what` a call, or nothing.
    pub(crate) fn set(&self, now: Instant, how: &'static str, what: &'static str, site: &str) {
        self.touch(now);
        let mut seen = self.seen();
        (seen.how, seen.what) = (how, what);
        seen.site.clear();
        seen.site.push_str(site);
    }

    /// How long it has not been seen.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        let seen = Duration::from_nanos(self.seen_nanos.load(Ordering::Relaxed));
        now.saturating_duration_since(self.start).saturating_sub(seen)
    }

    /// Where it was last seen.
    pub(crate) fn site(&self) -> String {
        self.seen().site.clone()
    }

    /// `in all_reduce at micro node 3, 5.1 s ago`.
    pub(crate) fn show(&self, now: Instant) -> String {
        let seconds = self.silence(now).as_secs_f64();
        let seen = self.seen();
        match (seen.how, seen.what) {
            ("", _) => format!("never, and the start was {seconds:.1} s ago"),
            (how, "") => format!("{how} {}, {seconds:.1} s ago", seen.site),
            (how, what) => format!("{how} {what} at {}, {seconds:.1} s ago", seen.site),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
