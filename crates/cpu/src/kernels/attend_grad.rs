//! Attention backward: dq, dk, dv from q, k, v, o, lse, do and, where lse itself has readers, dlse.
//!
//! With P recomputed from lse, D = rowsum(do * o) - dlse and dS = P * (do v^T - D) * scale:
//! dv = P^T do, dk = dS^T q, dq = dS k. A task owns one (batch, kv head) with all its query heads,
//! so dk and dv have one owner and sums run in query order. Tiles are transposed as in the forward.

use crate::axes::Space;
use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, Ptr, Scalars, per_worker_bytes, scratch_for,
};
use crate::kernels::attend::{Attention, Matrix, mask_words};
use crate::kernels::convert;
use crate::kernels::lanes::{Left, Rows, multiply, padded};
use crate::kernels::pattern::{Entry, MAX_TILE};
use crate::kernels::tile::check_output;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};

/// The operands of the backward in the order of the addresses.
#[derive(Clone, Copy, Debug)]
pub struct GradOperands<'a> {
    /// q, k, v, o, lse (f32), do.
    pub inputs: [&'a Operand; 6],
    /// dlse (f32), if lse has readers other than this backward.
    pub dlse: Option<&'a Operand>,
    /// dq, dk, dv.
    pub outputs: [&'a Operand; 3],
}

/// A prepared backward. Addresses: q, k, v, o, lse, do, dq, dk, dv, then dlse if there is one.
#[derive(Clone, Debug)]
pub struct AttendGrad {
    spec: Attention,
    space: Space,
    inner: Vec<[isize; 3]>,
    dtypes: Vec<Dtype>,
    keys: usize,
}

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const LSE: usize = 4;
const DO: usize = 5;
const DQ: usize = 6;
const DK: usize = 7;
const DV: usize = 8;
const DLSE: usize = 9;

impl AttendGrad {
    /// Checks shapes and storage.
    ///
    /// # Errors
    /// If strides do not match, an output repeats, or the pattern does not fit.
    pub fn new(spec: &Attention, operands: GradOperands<'_>) -> Result<AttendGrad, KernelError> {
        let all: Vec<_> =
            operands.inputs.into_iter().chain(operands.outputs).chain(operands.dlse).collect();
        let (space, inner) = spec.place(&all)?;
        let keys = spec.pattern.keys;
        if spec.queries != spec.pattern.queries {
            let what =
                format!("{} queries, but the pattern has {}", spec.queries, spec.pattern.queries);
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
        let dtypes = all.iter().map(|operand| operand.dtype).collect();
        Ok(AttendGrad { spec: spec.clone(), space, inner, dtypes, keys })
    }

    fn widths(&self) -> [usize; 2] {
        [padded(self.spec.key_width), padded(self.spec.value_width)]
    }

    /// Floats of a worker: dk and dv of a head, then what a tile needs.
    fn worker_floats(&self) -> usize {
        let [d, w] = self.widths();
        self.keys.next_multiple_of(MAX_TILE) * (d + w)
            + MAX_TILE * (5 * d + 4 * w + 2 * MAX_TILE + 2)
    }

    fn at(&self, run: &Run<'_>, operand: usize, group: usize, position: usize) -> Matrix {
        let [by_group, row, col] = self.inner[operand];
        let offset = self.space.offset(operand, run.outer)
            + group as isize * by_group
            + position as isize * row;
        Matrix { ptr: run.ptrs[operand], dtype: self.dtypes[operand], offset, row, col }
    }

    /// All query heads of one kv head.
    unsafe fn head(&self, run: &Run<'_>, work: *mut f32) {
        let [d, w] = self.widths();
        let part = Parts::new(work, self.keys.next_multiple_of(MAX_TILE), d, w);
        // SAFETY: the parts are sized by `worker_floats`; the caller of `run` vouches for operands.
        unsafe {
            std::slice::from_raw_parts_mut(part.dk, self.keys * d).fill(0.0);
            std::slice::from_raw_parts_mut(part.dv, self.keys * w).fill(0.0);
            for group in 0..self.spec.group {
                for tile in 0..self.spec.pattern.query_tiles() {
                    self.query_tile(run, group, tile, part);
                }
            }
            for j in 0..self.keys {
                let row =
                    |data: *mut f32, width| std::slice::from_raw_parts(data.add(j * width), width);
                let (dk, dv) = (row(part.dk, d), row(part.dv, w));
                self.at(run, DK, 0, j).store(run.simd, dk, self.spec.key_width);
                self.at(run, DV, 0, j).store(run.simd, dv, self.spec.value_width);
            }
        }
    }

    unsafe fn query_tile(&self, run: &Run<'_>, group: usize, tile: usize, part: Parts) {
        let (spec, simd) = (&self.spec, run.simd);
        let [d, _] = self.widths();
        let first = tile * spec.pattern.tile_queries;
        let rows = spec.pattern.tile_queries.min(spec.queries - first);
        let n = padded(rows);
        let head = (run.outer % spec.kv) * spec.group + group;
        // SAFETY: as `head`.
        unsafe {
            let q = self.at(run, Q, group, first);
            let grad = self.at(run, DO, group, first);
            q.transposed(simd, part.qt, [rows, spec.key_width], n);
            grad.transposed(simd, part.gt, [rows, spec.value_width], n);
            let q_rows = q.as_rows(simd, part.q, [rows, spec.key_width]);
            let g_rows = grad.as_rows(simd, part.g, [rows, spec.value_width]);
            self.statistics(run, group, first, rows, part);
            std::slice::from_raw_parts_mut(part.dq, rows * d).fill(0.0);
            for &entry in spec.pattern.row(head, tile) {
                let queries = Queries { group, rows, n, q_rows, g_rows };
                self.key_tile(run, entry, queries, part);
            }
            for i in 0..rows {
                let row = std::slice::from_raw_parts(part.dq.add(i * d), d);
                self.at(run, DQ, group, first + i).store(simd, row, spec.key_width);
            }
        }
    }

    /// lse and D of the queries of a tile, padded with values that give P = 0.
    unsafe fn statistics(
        &self,
        run: &Run<'_>,
        group: usize,
        first: usize,
        rows: usize,
        part: Parts,
    ) {
        let simd = run.simd;
        let width = self.spec.value_width;
        // SAFETY: as `head`; `gt` holds do^T with padded(rows) columns.
        unsafe {
            let lse = self.at(run, LSE, group, first);
            convert::load(simd, part.lse, (lse.ptr, lse.dtype), lse.offset, lse.row, rows);
            let n = padded(rows);
            let sums = std::slice::from_raw_parts_mut(part.sums, n);
            sums.fill(0.0);
            if self.dtypes.len() > DLSE {
                let dlse = self.at(run, DLSE, group, first);
                convert::load(simd, part.sums, (dlse.ptr, dlse.dtype), dlse.offset, dlse.row, rows);
                sums.iter_mut().for_each(|x| *x = -*x);
            }
            std::slice::from_raw_parts_mut(part.lse.add(rows), n - rows).fill(f32::NEG_INFINITY);
            // o^T goes where scores will go later, one column of o at a time.
            let o = self.at(run, O, group, first);
            for c in 0..width {
                let offset = o.offset + c as isize * o.col;
                convert::load(simd, part.p, (o.ptr, o.dtype), offset, o.row, rows);
                let grad = std::slice::from_raw_parts(part.gt.add(c * n), rows);
                let column = std::slice::from_raw_parts(part.p, rows);
                add_products(simd, &mut sums[..rows], grad, column);
            }
        }
    }

    unsafe fn key_tile(&self, run: &Run<'_>, entry: Entry, queries: Queries, part: Parts) {
        let (spec, simd) = (&self.spec, run.simd);
        let Queries { group, rows, n, q_rows, g_rows } = queries;
        let [d, w] = self.widths();
        let j0 = entry.keys as usize * spec.pattern.tile_keys;
        let keys = spec.pattern.tile_keys.min(self.keys - j0);
        // SAFETY: as `head`.
        unsafe {
            let key = self.at(run, K, group, j0);
            let value = self.at(run, V, group, j0);
            let p = Rows { data: part.p, row: n };
            let ds = Rows { data: part.ds, row: n };
            let left = key.as_left(simd, part.k, [keys, spec.key_width]);
            let qt = Rows { data: part.qt, row: n };
            multiply(simd, [keys, n, spec.key_width], left, qt, p, false);
            let left = value.as_left(simd, part.v, [keys, spec.value_width]);
            let gt = Rows { data: part.gt, row: n };
            multiply(simd, [keys, n, spec.value_width], left, gt, ds, false);
            let p_tile = std::slice::from_raw_parts_mut(part.p, keys * n);
            let ds_tile = std::slice::from_raw_parts_mut(part.ds, keys * n);
            let lse = std::slice::from_raw_parts(part.lse, n);
            let sums = std::slice::from_raw_parts(part.sums, n);
            p_tile.iter_mut().for_each(|x| *x *= spec.scale);
            if let Some(words) = spec.pattern.mask(entry.mask) {
                mask_words(simd, p_tile, n, &words[..keys], 0);
            }
            softmax_grad(simd, p_tile, ds_tile, lse, sums, spec.scale);
            let across = |data: *mut f32| Left { data, row: n as isize, col: 1 };
            let dv = Rows { data: part.dv.add(j0 * w), row: w };
            multiply(simd, [keys, w, rows], across(part.p), g_rows, dv, true);
            let dk = Rows { data: part.dk.add(j0 * d), row: d };
            multiply(simd, [keys, d, rows], across(part.ds), q_rows, dk, true);
            let k_rows = key.as_rows(simd, part.k, [keys, spec.key_width]);
            let down = Left { data: part.ds, row: 1, col: n as isize };
            multiply(simd, [rows, d, keys], down, k_rows, Rows { data: part.dq, row: d }, true);
        }
    }
}

struct Run<'a> {
    simd: Simd,
    ptrs: &'a [Ptr],
    outer: usize,
}

/// A tile of queries: how many, padded to `n`, and q and do as rows.
#[derive(Clone, Copy)]
struct Queries {
    group: usize,
    rows: usize,
    n: usize,
    q_rows: Rows,
    g_rows: Rows,
}

/// A worker's scratch.
#[derive(Clone, Copy)]
struct Parts {
    dk: *mut f32,
    dv: *mut f32,
    qt: *mut f32,
    q: *mut f32,
    k: *mut f32,
    dq: *mut f32,
    gt: *mut f32,
    g: *mut f32,
    v: *mut f32,
    p: *mut f32,
    ds: *mut f32,
    lse: *mut f32,
    sums: *mut f32,
}

impl Parts {
    fn new(work: *mut f32, keys: usize, d: usize, w: usize) -> Parts {
        let mut next = work;
        let mut take = |floats: usize| {
            let part = next;
            next = next.wrapping_add(floats);
            part
        };
        Parts {
            dk: take(keys * d),
            dv: take(keys * w),
            qt: take(MAX_TILE * d),
            q: take(MAX_TILE * d),
            k: take(MAX_TILE * d),
            dq: take(MAX_TILE * d),
            gt: take(MAX_TILE * w),
            g: take(MAX_TILE * w),
            v: take(MAX_TILE * w),
            p: take(MAX_TILE * MAX_TILE),
            ds: take(MAX_TILE * MAX_TILE),
            lse: take(MAX_TILE),
            sums: take(MAX_TILE),
        }
    }
}

multiversion! {
    fn add_products(sums: &mut [f32], a: &[f32], b: &[f32]) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(b, *sum);
        }
    }
}

multiversion! {
    /// Scores to P in `p`, do v^T to dS in `ds`; keys down, queries across.
    fn softmax_grad(p: &mut [f32], ds: &mut [f32], lse: &[f32], sums: &[f32], scale: f32) {
        let n = lse.len();
        let sums = &sums[..n];
        for (p, ds) in p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)) {
            for i in 0..n {
                // A query that sees no key has lse = -infinity; all its scores are masked.
                let open = lse[i] != f32::NEG_INFINITY;
                let value = if open { math::exp(p[i] - lse[i]) } else { 0.0 };
                p[i] = value;
                ds[i] = value * (ds[i] - sums[i]) * scale;
            }
        }
    }
}

impl Kernel for AttendGrad {
    fn operands(&self) -> usize {
        self.dtypes.len()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, self.worker_floats() * size_of::<f32>())])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.dtypes.len(), "attend_grad: one address per operand");
        let bytes = self.worker_floats() * size_of::<f32>();
        let workers = Carve::new(scratch).per_worker(pool.threads(), bytes);
        pool.run(self.spec.outer(), &|outer, worker| {
            let run = Run { simd: pool.simd(), ptrs, outer };
            // SAFETY: the caller vouches for the operands; tasks own disjoint heads.
            unsafe { self.head(&run, workers.of(worker).at(0)) }
        });
    }
}
