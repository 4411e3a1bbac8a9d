//! Ranks that fail on purpose, for tests of whatever runs on ties.
//!
//! [`Faulty`] wraps a rank's end and does one wrong thing at one of its exchanges; everything else
//! passes through. Dropping it drops what it wraps, so a rank that dies is seen as gone.

use aerogel_graph::Mesh;
use aerogel_machine::{Call, Collectives, CommError, Traffic};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Holds a rank that stopped, until it is released.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<(Mutex<bool>, Condvar)>);

impl Hold {
    /// One that holds until [`Hold::release`] is called on it or a clone.
    pub fn new() -> Hold {
        Hold::default()
    }

    /// Lets everybody go, now and later.
    pub fn release(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let held = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(held, |free| !*free));
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The rank blocks without a sign of life, for ever or until released; then it goes on with the
    /// exchange.
    Stop(Hold),
    /// The exchange does not happen and gives [`CommError::Gone`], naming the rank itself; others
    /// learn of it when the rank drops its end.
    Die,
    /// The rank panics.
    Panic,
    /// The exchange does not happen, but seems to; the output stays as it was.
    Skip,
    /// The exchange happens twice.
    Duplicate,
}

/// A rank's end that fails at one exchange.
pub struct Faulty<T> {
    inner: T,
    fault: Fault,
    at: u64,
    exchanges: AtomicU64,
}

impl<T: Collectives> Faulty<T> {
    /// Fails at the exchange number `at` of this rank, counted from 0.
    pub fn new(inner: T, at: u64, fault: Fault) -> Faulty<T> {
        Faulty { inner, fault, at, exchanges: AtomicU64::new(0) }
    }

    /// Whether the fault has happened, or is happening.
    pub fn happened(&self) -> bool {
        self.exchanges.load(Ordering::SeqCst) > self.at
    }
}

impl<T: Collectives> Collectives for Faulty<T> {
    fn mesh(&self) -> &Mesh {
        self.inner.mesh()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn exchange(&self, call: &Call, input: &[u8], output: &mut [u8]) -> Result<(), CommError> {
        if self.exchanges.fetch_add(1, Ordering::SeqCst) == self.at {
            let rank = self.rank();
            match &self.fault {
                Fault::Stop(hold) => hold.wait(),
                Fault::Die => {
                    let reason = "an injected fault".to_owned();
                    let call = format!("{} at {}", call.pattern.name(), call.site);
                    return Err(CommError::Gone { rank, reason, waiting: rank, call });
                }
                Fault::Panic => panic!("an injected fault of rank {rank} at {}", call.site),
                Fault::Skip => return Ok(()),
                Fault::Duplicate => self.inner.exchange(call, input, output)?,
            }
        }
        self.inner.exchange(call, input, output)
    }

    fn send(&self, to: usize, tag: u64, site: &str, bytes: &[u8]) -> Result<(), CommError> {
        self.inner.send(to, tag, site, bytes)
    }

    fn receive(
        &self,
        from: usize,
        tag: u64,
        site: &str,
        bytes: &mut [u8],
    ) -> Result<(), CommError> {
        self.inner.receive(from, tag, site, bytes)
    }

    fn leave(&self, reason: &str) {
        self.inner.leave(reason);
    }

    fn progress(&self, site: &Arc<str>) {
        self.inner.progress(site);
    }

    fn traffic(&self) -> Vec<Traffic> {
        self.inner.traffic()
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }
}
