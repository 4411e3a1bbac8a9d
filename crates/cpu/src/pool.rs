//! A fixed pool of threads that works through numbered tasks.
//!
//! The caller is worker 0. Tasks are handed out by an atomic counter, so which worker runs a task
//! is not fixed: a kernel's result may depend on the task, never on the worker. Idle workers spin
//! briefly (kernels follow each other within microseconds), then park. A run allocates nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::simd::Simd;

type Body<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Rounds of spinning before an idle worker parks: some tens of microseconds.
const SPINS: u32 = 4_000;
/// Rounds of spinning before a waiting thread starts to yield its core to others.
const SPINS_BEFORE_YIELD: u32 = 1_000;

/// The gate counts the workers inside a run in its low bits, then one bit "open", then the epoch.
const INSIDE: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const EPOCH: u64 = 1 << 17;

struct Job {
    body: *const Body<'static>,
    tasks: usize,
}

struct Shared {
    gate: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Job>,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    /// Whether a task of this run has panicked: else nobody takes the lock.
    failed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only while the gate is closed and nobody is inside, and read only by
// workers that entered through the open gate; the gate's release/acquire pairs order the two.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only used between opening and draining the gate, while the
// closure it points to is borrowed by `Pool::run`.
unsafe impl Send for Shared {}

/// A fixed set of worker threads and the vector instructions that kernels use on them.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Ranks that share the pool take turns, kernel by kernel. A device that has it for itself
    /// never waits here.
    running: Mutex<()>,
    simd: Simd,
}

impl Pool {
    /// A pool of `threads` workers, the caller of [`Pool::run`] included, with the widest vector
    /// instructions of this machine. Zero counts as one; more than 65,535 are not started.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        Pool::with_simd(threads, Simd::best())
    }

    /// As [`Pool::new`], with the vector instructions named.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn with_simd(threads: usize, simd: Simd) -> std::io::Result<Pool> {
        let helpers = threads.clamp(1, INSIDE as usize) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { body: &|_, _| (), tasks: 0 }),
            parked: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, handles: Vec::new(), running: Mutex::new(()), simd };
        for helper in 0..helpers {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("aerogel-cpu-{}", helper + 1));
            pool.handles.push(thread.spawn(move || serve(&shared, helper))?);
        }
        Ok(pool)
    }

    /// The number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// The vector instructions that kernels use on this pool.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Calls `body(task, worker)` for every task in `0..tasks`, each exactly once, and returns when
    /// all are done. `worker` is below [`Pool::threads`] and no two tasks of one run that overlap
    /// in time have the same one, so it may index that run's scratch. Calls from several threads
    /// take turns; a task must not call `run` on its own pool.
    ///
    /// # Panics
    /// With the panic of a task; remaining tasks are then skipped.
    pub fn run(&self, tasks: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 {
            // Alone on its thread: nobody has to wait for it.
            (0..tasks).for_each(|task| body(task, 0));
            return;
        }
        let _turn = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.handles.is_empty() {
            (0..tasks).for_each(|task| body(task, 0));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. No worker touches the pointer after the gate has
        // been closed and drained below, which happens before `body`'s borrow ends.
        let body = unsafe { std::mem::transmute::<&Body<'_>, &'static Body<'static>>(body) };
        // SAFETY: the gate is closed and empty (`running` is held), so nobody reads the job.
        unsafe { *shared.job.get() = Job { body, tasks } };
        shared.next.store(0, Ordering::Relaxed);
        let epoch = (shared.gate.load(Ordering::Relaxed) & !INSIDE & !OPEN).wrapping_add(EPOCH);
        shared.gate.store(epoch | OPEN, Ordering::Release);
        self.wake();
        work(shared, body, tasks, 0);
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut round = 0;
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            pause(&mut round);
        }
        // Whoever set the flag has left the gate since.
        if shared.failed.swap(false, Ordering::Relaxed) {
            let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
            resume_unwind(panic.unwrap_or_else(|| Box::new("a task panicked")));
        }
    }

    fn wake(&self) {
        // Pairs with the fence in `rest`: either the helper sees the open gate, or we see its flag.
        fence(Ordering::SeqCst);
        for (handle, parked) in self.handles.iter().zip(&self.shared.parked) {
            if parked.load(Ordering::Relaxed) && parked.swap(false, Ordering::AcqRel) {
                handle.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches the panics of its tasks; it has nothing of its own to report.
            let _ = handle.join();
        }
    }
}

fn pause(round: &mut u32) {
    *round += 1;
    if *round < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// Takes tasks until none is left. A panic is kept for the caller and ends the run.
fn work(shared: &Shared, body: &Body<'_>, tasks: usize, worker: usize) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let task = shared.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            body(task, worker);
        }
    }));
    if let Err(panic) = outcome {
        shared.next.store(tasks, Ordering::Relaxed);
        *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        shared.failed.store(true, Ordering::Relaxed);
    }
}

/// The life of helper number `helper`, which is worker `helper + 1`.
fn serve(shared: &Shared, helper: usize) {
    let mut done = 0;
    while let Some(epoch) = enter(shared, helper, done) {
        // SAFETY: we are counted as inside the open gate, so the caller keeps the job as it is and
        // its closure alive until we leave.
        let (body, tasks) = unsafe {
            let job = &*shared.job.get();
            (&*job.body, job.tasks)
        };
        work(shared, body, tasks, helper + 1);
        shared.gate.fetch_sub(1, Ordering::Release);
        done = epoch;
    }
}

/// Waits for a run newer than epoch `done` and joins it; `None` when the pool is dropped.
fn enter(shared: &Shared, helper: usize, done: u64) -> Option<u64> {
    let mut spins = 0;
    loop {
        let gate = shared.gate.load(Ordering::Acquire);
        let epoch = gate & !INSIDE & !OPEN;
        if gate & OPEN != 0 && epoch != done {
            let joined =
                shared.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed);
            if joined.is_ok() {
                return Some(epoch);
            }
            continue;
        }
        if shared.stop.load(Ordering::Acquire) {
            return None;
        }
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
        } else {
            rest(shared, helper, done);
            spins = 0;
        }
    }
}

fn rest(shared: &Shared, helper: usize, done: u64) {
    let parked = &shared.parked[helper];
    parked.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let gate = shared.gate.load(Ordering::Acquire);
    let news = gate & OPEN != 0 && gate & !INSIDE & !OPEN != done;
    if !news && !shared.stop.load(Ordering::Acquire) {
        std::thread::park();
    }
    parked.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_thousands_of_runs() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..37).map(|_| AtomicUsize::new(0)).collect();
            let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
            for run in 0..3000 {
                pool.run(run % 38, &|task, worker| {
                    assert!(!busy[worker].swap(true, Ordering::SeqCst), "worker used twice");
                    counts[task].fetch_add(1, Ordering::Relaxed);
                    busy[worker].store(false, Ordering::SeqCst);
                });
                if run % 500 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(2)); // let helpers park
                }
            }
            for (task, count) in counts.iter().enumerate() {
                let wanted = (0..3000).filter(|run| run % 38 > task).count();
                assert_eq!(count.load(Ordering::Relaxed), wanted);
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..50 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, &|task, _| assert_ne!(task, 17, "task 17"));
            }));
            assert!(caught.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(10, &|task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(8, &|task, _| {
                            sum.fetch_add(task, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * 200 * 28);
    }
}
