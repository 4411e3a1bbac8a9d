//! Attention backward: dq, dk, dv from q, k, v, o, lse, do and, where lse itself has readers, dlse.
//!
//! With P recomputed from lse, D = rowsum(do * o) - dlse and dS = P * (do v^T - D) * scale:
//! dv = P^T do, dk = dS^T q, dq = dS k. Keys are cut into [stretches](plan), whose dk and dv have
//! one owner; dq is the sum of what the stretches give, in their order. A task is one (batch, kv
//! head) that takes its stretches one after another; where there are too few heads to go round, it
//! is one stretch, and the parts of dq are added up at the end, with the same bits. Where q, k, v
//! and do are bf16, products are of bf16 and P and dS are rounded to it; f16 are multiplied as f32,
//! with P and dS in f32. Sums are f32.

mod gradient;
mod parts;
mod plan;
mod stretch;

use crate::kernel::{
    Carve, Kernel, KernelError, PerWorker, Ptr, Scalars, check_output, per_worker_bytes,
    scratch_for,
};
use crate::kernels::attend::Heads;
use crate::kernels::micro::Word;
use crate::kernels::pack;
use crate::kernels::pattern::{BlockList, TILE};
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};
use aerogel_lower::{AttendGradSpec, Attention};
use parts::{DK, DO, DQ, DV, K, Parts, Q, V};
use plan::Plan;
use std::sync::Arc;
use stretch::Context;

/// A prepared backward. Addresses: q, k, v, o, lse, do, dq, dk, dv, then dlse if there is one.
///
/// Scratch of a worker: dq of a kv head (group x queries x key width f32), and what a stretch of
/// 256 keys and 128 queries take, about 0.7 MiB at widths of 64. Where heads are too few to go
/// round, the parts of dq in addition: one for every 32 queries of a head and every stretch that
/// they see.
#[derive(Clone, Debug)]
pub struct AttendGrad {
    spec: Attention,
    /// The allowed tiles.
    pattern: Arc<BlockList>,
    heads: Heads,
    word: Word,
    parts: Parts,
    plan: Plan,
}

impl AttendGrad {
    /// Checks shapes and storage; `pattern` is what the mask allows.
    ///
    /// # Errors
    /// If strides do not match, an output repeats, or the pattern does not fit.
    pub fn new(spec: &AttendGradSpec, pattern: Arc<BlockList>) -> Result<AttendGrad, KernelError> {
        let (all, spec): (Vec<_>, _) = (spec.operands().collect(), &spec.attention);
        let heads = Heads::new(spec, &pattern, &all)?;
        let keys = pattern.keys;
        if spec.queries != pattern.queries {
            let what = format!("{} queries, but the pattern has {}", spec.queries, pattern.queries);
            return Err(KernelError::Unsupported { kernel: "attend_grad", what });
        }
        let per_kv = |mut sizes: Vec<usize>| {
            let group = spec.batch.len() + 1;
            sizes[group] = 1;
            sizes
        };
        check_output("attend_grad", DQ, all[DQ], &spec.sizes(spec.queries, spec.key_width))?;
        check_output("attend_grad", DK, all[DK], &per_kv(spec.sizes(keys, spec.key_width)))?;
        check_output("attend_grad", DV, all[DV], &per_kv(spec.sizes(keys, spec.value_width)))?;
        let word = pack::word([Q, K, V, DO].map(|operand| all[operand].dtype));
        let (parts, plan) = (Parts::new(spec, &pattern, word), Plan::new(&pattern));
        Ok(AttendGrad { spec: spec.clone(), pattern, heads, word, parts, plan })
    }

    /// Whether heads are cut into stretches: if so many workers would idle at the end otherwise
    /// that it pays to add up parts of dq. It changes no bits.
    fn cut(&self, threads: usize) -> bool {
        let heads = self.spec.outer();
        let rounds = heads.div_ceil(threads) * threads;
        self.plan.stretches > 1 && rounds * 6 > heads * 7
    }

    /// Floats of dq of one tile of queries.
    fn tile_floats(&self) -> usize {
        TILE * self.parts.widths[0]
    }

    /// Floats of the parts of dq of one query head.
    fn slot_floats(&self) -> usize {
        self.plan.most_slots() * self.tile_floats()
    }

    fn context<'a>(
        &'a self,
        simd: Simd,
        ptrs: &'a [Ptr],
        workers: PerWorker,
        worker: usize,
    ) -> Context<'a> {
        let AttendGrad { spec, pattern, heads, word, parts, .. } = self;
        let work = workers.of(worker).at(0);
        Context { simd, word: *word, spec, pattern, heads, parts, ptrs, work }
    }

    /// All stretches of one kv head.
    unsafe fn head(&self, context: Context<'_>, outer: usize) {
        let (spec, plan) = (&self.spec, &self.plan);
        let query_tiles = self.pattern.query_tiles();
        let dq = |group: usize, tile: usize| {
            let at = (group * query_tiles + tile) * self.tile_floats();
            context.work.wrapping_add(self.parts.dq + at).cast::<f32>()
        };
        // SAFETY: the caller of `run` vouches for the operands and the scratch.
        unsafe {
            for number in 0..plan.stretches {
                let stretch = context.stretch(outer, plan.tiles(number, &self.pattern));
                for group in 0..spec.group {
                    let head = spec.head(outer, group);
                    stretch.queries(group, plan.queries(head, number), &|tile| {
                        let row = self.pattern.row(head, tile);
                        (dq(group, tile), Plan::seen_before(row, number) > 0)
                    });
                }
                stretch.store();
            }
            for group in 0..spec.group {
                for tile in 0..query_tiles {
                    let seen = !self.pattern.row(spec.head(outer, group), tile).is_empty();
                    let parts = seen.then(|| dq(group, tile));
                    self.store(context, [outer, group], tile, parts);
                }
            }
        }
    }

    /// One stretch of one kv head; the parts of dq go to `slots` of each query head.
    unsafe fn piece(
        &self,
        context: Context<'_>,
        [outer, number]: [usize; 2],
        slots: &(dyn Fn(usize) -> *mut f32 + Sync),
    ) {
        let (spec, plan) = (&self.spec, &self.plan);
        // SAFETY: as `head`.
        unsafe {
            let stretch = context.stretch(outer, plan.tiles(number, &self.pattern));
            for group in 0..spec.group {
                let head = spec.head(outer, group);
                stretch.queries(group, plan.queries(head, number), &|tile| {
                    let before = Plan::seen_before(self.pattern.row(head, tile), number);
                    let at = plan.slots(head, tile).start + before;
                    (slots(group).wrapping_add(at * self.tile_floats()), false)
                });
            }
            stretch.store();
        }
    }

    /// Adds up the parts of dq of one tile of queries, the first of them in place.
    unsafe fn gather(&self, context: Context<'_>, head: [usize; 2], tile: usize, slots: *mut f32) {
        let range = self.plan.slots(self.spec.head(head[0], head[1]), tile);
        let (floats, count) = (self.tile_floats(), range.len());
        let sum = slots.wrapping_add(range.start * floats);
        // SAFETY: as `head`; slots lie one after another.
        unsafe {
            for part in 1..count {
                let part = std::slice::from_raw_parts(sum.add(part * floats), floats);
                add(context.simd, std::slice::from_raw_parts_mut(sum, floats), part);
            }
            self.store(context, head, tile, (count > 0).then_some(sum));
        }
    }

    /// Writes dq of a tile of queries; zeros, if they see no key.
    unsafe fn store(
        &self,
        context: Context<'_>,
        head: [usize; 2],
        tile: usize,
        from: Option<*mut f32>,
    ) {
        let (first, width) = (tile * TILE, self.spec.key_width);
        let to = self.heads.at(context.ptrs, DQ, head, first);
        let zeros = context.work.wrapping_add(self.parts.scores).cast::<f32>();
        // SAFETY: as `head`; the scores have room for a row, and are not in use.
        unsafe {
            if from.is_none() {
                zeros.write_bytes(0, width);
            }
            for row in 0..TILE.min(self.spec.queries - first) {
                let from = from.map_or(zeros, |from| from.add(row * self.parts.widths[0]));
                to.from(row).store(context.simd, std::slice::from_raw_parts(from, width));
            }
        }
    }
}

multiversion! {
    fn add(sum: &mut [f32], part: &[f32]) {
        for (sum, &part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
}

impl Kernel for AttendGrad {
    fn operands(&self) -> usize {
        self.heads.dtypes.len()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let slots = if self.cut(threads) {
            self.spec.outer() * self.spec.group * self.slot_floats() * size_of::<f32>()
        } else {
            0
        };
        scratch_for(&[per_worker_bytes(threads, self.parts.words * 4), slots])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "attend_grad: one address per operand");
        let (spec, simd, stretches) = (&self.spec, pool.simd(), self.plan.stretches);
        let mut scratch = Carve::new(scratch);
        let workers = scratch.per_worker(pool.threads(), self.parts.words * 4);
        let outer = spec.outer();
        if !self.cut(pool.threads()) {
            pool.run(outer, &|outer, worker| {
                // SAFETY: the caller vouches for the operands; tasks own disjoint heads.
                unsafe { self.head(self.context(simd, ptrs, workers, worker), outer) }
            });
            return;
        }
        let bytes = outer * spec.group * self.slot_floats() * size_of::<f32>();
        let slots = scratch.take(bytes);
        let slots = |outer: usize, group: usize| {
            let at = (outer * spec.group + group) * self.slot_floats();
            slots.at::<f32>(at as isize)
        };
        pool.run(outer * stretches, &|task, worker| {
            // Early keys of a causal pattern are seen by most queries: they come first.
            let (number, outer) = (task / outer, task % outer);
            let context = self.context(simd, ptrs, workers, worker);
            // SAFETY: as above; tasks own disjoint keys and slots.
            unsafe { self.piece(context, [outer, number], &|group| slots(outer, group)) }
        });
        let query_tiles = self.pattern.query_tiles();
        pool.run(outer * spec.group * query_tiles, &|task, worker| {
            let (head, tile) = (task / query_tiles, task % query_tiles);
            let (outer, group) = (head / spec.group, head % spec.group);
            let context = self.context(simd, ptrs, workers, worker);
            // SAFETY: as above; tasks own disjoint queries.
            unsafe { self.gather(context, [outer, group], tile, slots(outer, group)) }
        });
    }
}
