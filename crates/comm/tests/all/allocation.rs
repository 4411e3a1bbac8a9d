//! Calls that repeat allocate nothing.

use super::common::*;
use aerogel_machine::{Call, Collectives, Merge, Pattern};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may have lost its counter already.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller answers for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller answers for both, and the memory came from there.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn calls_that_repeat_allocate_nothing() {
    let patterns = [
        Pattern::AllReduce(Merge::Sum),
        Pattern::AllGather,
        Pattern::ReduceScatter,
        Pattern::AllToAll,
        Pattern::Broadcast { root: 1 },
        Pattern::Permute { by: 1 },
    ];
    let counts = run(ties(&[2, 2], 20_000), |tie| {
        let calls: Vec<Call> =
            patterns.iter().map(|&p| call(p, &[1], 1000, "a rather long site in a step")).collect();
        let all = sum(&[0, 1], 1, "end of a step");
        let (input, mut output) = (vec![0; 4000], vec![0; 8000]);
        let mut bytes = vec![0; 500];
        let mut step = || {
            for call in &calls {
                let out_bytes = match call.pattern {
                    Pattern::AllGather => 8000,
                    Pattern::ReduceScatter => 2000,
                    _ => 4000,
                };
                tie.progress(&call.site);
                tie.exchange(call, &input, &mut output[..out_bytes]).unwrap();
            }
            tie.send((tie.rank() + 1) % 4, 0, "a rather long site", &input[..500]).unwrap();
            tie.receive((tie.rank() + 3) % 4, 0, "a rather long site", &mut bytes).unwrap();
            // All, so that no rank sends again before its message was read.
            exchange(&tie, &all).unwrap();
        };
        step();
        step();
        let before = COUNT.get();
        (0..20).for_each(|_| step());
        COUNT.get() - before
    });
    // The helper of the tests makes two buffers each time, and this is what counts them.
    assert_eq!(counts, [40; 4]);
}
