//! The backward of a stretch of keys: its dk and dv, and what it adds to dq.
//!
//! Queries are taken in wide tiles; their q and do are packed as right factors, once over the width
//! for the scores and once over the queries for dk and dv. Scores are held with keys down, so that
//! P and dS are the left factors of dv and dk as they are, and dS by columns that of dq.

use super::gradient::{self, Rounded, Tile};
use super::parts::{BF16_ROW, DK, DLSE, DO, DV, K, LSE, O, Parts, Q, ROW, TURNED_ROW, V, WIDE};
use super::plan::STRETCH;
use crate::kernel::Ptr;
use crate::kernels::attend::{Heads, Matrix, softmax};
use crate::kernels::micro::{COLS, Left, Out, Right, Store, Word, multiply};
use crate::kernels::pack::{self, transpose::transpose};
use crate::kernels::pattern::{BlockList, Entry, TILE};
use crate::simd::Simd;
use aerogel_graph::DType;
use aerogel_lower::Attention;
use std::ops::Range;

/// No pair of the tile is allowed.
const EMPTY: u32 = Entry::FULL - 1;

/// What all stretches of a run share.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub simd: Simd,
    pub word: Word,
    pub spec: &'a Attention,
    pub pattern: &'a BlockList,
    pub heads: &'a Heads,
    pub parts: &'a Parts,
    pub ptrs: &'a [Ptr],
    /// The worker's scratch.
    pub work: *mut u32,
}

/// A stretch of keys of one kv head, packed.
pub(super) struct Stretch<'a> {
    context: Context<'a>,
    outer: usize,
    /// Tiles of keys, and the keys in them.
    tiles: Range<usize>,
    keys: usize,
    left: [[Left; 2]; STRETCH],
    k_down: Right,
}

/// A wide tile of queries, packed.
struct Queries {
    tiles: Range<usize>,
    rows: usize,
    /// Over the width.
    across: [Right; 2],
    /// Over the queries.
    down: [Right; 2],
    /// Masks by tile of keys and of queries.
    masks: [[u32; WIDE]; STRETCH],
}

/// The stretch of a list that holds all tiles that are kept.
fn hull(masks: impl IntoIterator<Item = u32>) -> Range<usize> {
    let mut range = 0..0;
    for (at, _) in masks.into_iter().enumerate().filter(|&(_, mask)| mask != EMPTY) {
        range = if range.is_empty() { at } else { range.start }..at + 1;
    }
    range
}

impl<'a> Context<'a> {
    fn floats(&self, at: usize) -> *mut f32 {
        self.work.wrapping_add(at).cast()
    }

    /// Packs the keys and values of a stretch and clears its gradients.
    ///
    /// # Safety
    /// Operands and scratch are valid, as the kernel's run asks.
    pub unsafe fn stretch(self, outer: usize, tiles: Range<usize>) -> Stretch<'a> {
        let Context { simd, word, spec, parts, work, .. } = self;
        let first = tiles.start * TILE;
        let keys = (tiles.end * TILE).min(self.pattern.keys) - first;
        let [d, w] = [spec.key_width, spec.value_width];
        let at = |operand| self.heads.at(self.ptrs, operand, [outer, 0], first);
        let (k, v) = (at(K), at(V));
        let none = Left { data: work, row: 0, step: 0 };
        let mut left = [[none; 2]; STRETCH];
        // SAFETY: forwarded; parts are sized by `Parts`.
        unsafe {
            for (r, left) in left.iter_mut().enumerate().take(tiles.len()) {
                let rows = TILE.min(keys - r * TILE);
                let to = [parts.k_left + r * parts.left[0], parts.v_left + r * parts.left[1]];
                let factor = |matrix: Matrix| matrix.from(r * TILE).across();
                *left = [
                    pack::left_rows(simd, word, factor(k), [rows, d], work.add(to[0])),
                    pack::left_rows(simd, word, factor(v), [rows, w], work.add(to[1])),
                ];
            }
            let k_down = pack::right(simd, word, k.down(), [d, keys], work.add(parts.k_down));
            self.floats(parts.dk).write_bytes(0, keys * parts.widths[0]);
            self.floats(parts.dv).write_bytes(0, keys * parts.widths[1]);
            Stretch { context: self, outer, tiles, keys, left, k_down }
        }
    }
}

impl Stretch<'_> {
    /// Takes in query tiles of one head. `dq` says where a tile's dq goes, and whether something
    /// is there already.
    ///
    /// # Safety
    /// As [`Context::stretch`].
    pub unsafe fn queries(
        &self,
        group: usize,
        tiles: Range<usize>,
        dq: &dyn Fn(usize) -> (*mut f32, bool),
    ) {
        for first in tiles.clone().step_by(WIDE) {
            let wide = first..(first + WIDE).min(tiles.end);
            let masks = self.masks(group, wide.clone());
            if masks.iter().all(|row| hull(*row).is_empty()) {
                continue;
            }
            // SAFETY: forwarded.
            unsafe {
                let queries = self.pack(group, wide, masks);
                for (r, row) in masks.iter().enumerate() {
                    let across = hull(*row);
                    if !across.is_empty() {
                        self.tile(&queries, r, across);
                    }
                }
                for c in 0..queries.tiles.len() {
                    let down = hull(masks.map(|row| row[c]));
                    if !down.is_empty() {
                        let (to, accumulate) = dq(first + c);
                        self.query_gradient(&queries, c, down, to, accumulate);
                    }
                }
            }
        }
    }

    /// Which tiles the pattern keeps.
    fn masks(&self, group: usize, wide: Range<usize>) -> [[u32; WIDE]; STRETCH] {
        let Context { spec, pattern, .. } = self.context;
        let head = spec.head(self.outer, group);
        let mut masks = [[EMPTY; WIDE]; STRETCH];
        for (c, tile) in wide.enumerate() {
            let row = pattern.row(head, tile);
            let begin = row.partition_point(|entry| entry.tiles().end <= self.tiles.start);
            for entry in row[begin..].iter().take_while(|e| e.tiles().start < self.tiles.end) {
                let seen = entry.tiles();
                for key in seen.start.max(self.tiles.start)..seen.end.min(self.tiles.end) {
                    masks[key - self.tiles.start][c] = entry.mask;
                }
            }
        }
        masks
    }

    /// q, do, lse and D of a wide tile.
    unsafe fn pack(
        &self,
        group: usize,
        tiles: Range<usize>,
        masks: [[u32; WIDE]; STRETCH],
    ) -> Queries {
        let Context { simd, word, spec, heads, parts, ptrs, work, .. } = self.context;
        let first = tiles.start * TILE;
        let rows = (tiles.end * TILE).min(spec.queries) - first;
        let [d, w] = [spec.key_width, spec.value_width];
        let at = |operand| heads.at(ptrs, operand, [self.outer, group], first);
        let (q, grad) = (at(Q), at(DO));
        let to = |part| work.wrapping_add(part);
        // SAFETY: as `Context::stretch`.
        unsafe {
            let across = [
                pack::right(simd, word, q.across(), [rows, d], to(parts.q_across)),
                pack::right(simd, word, grad.across(), [rows, w], to(parts.do_across)),
            ];
            let down = [
                pack::right(simd, word, q.down(), [d, rows], to(parts.q_down)),
                pack::right(simd, word, grad.down(), [w, rows], to(parts.do_down)),
            ];
            let dlse = (heads.dtypes.len() > DLSE).then(|| at(DLSE));
            self.statistics(rows, [at(LSE), at(O), grad], dlse);
            Queries { tiles, rows, across, down, masks }
        }
    }

    /// lse, times log2(e), and D = rowsum(do * o) - dlse; what stands for no query gives P = 0.
    unsafe fn statistics(
        &self,
        rows: usize,
        [lse_from, o, grad]: [Matrix; 3],
        dlse: Option<Matrix>,
    ) {
        let Context { simd, spec, parts, .. } = self.context;
        let width = spec.value_width;
        // SAFETY: as `Context::stretch`; two rows of values fit where scores will be.
        unsafe {
            let part = |at| std::slice::from_raw_parts_mut(self.context.floats(at), WIDE * TILE);
            let (lse, d) = (part(parts.lse), part(parts.d));
            lse_from.load_column(simd, &mut lse[..rows]);
            for lse in &mut lse[..rows] {
                // A query that sees no key has no P at all.
                let seen = *lse != f32::NEG_INFINITY;
                *lse = if seen { *lse * std::f32::consts::LOG2_E } else { f32::INFINITY };
            }
            lse[rows..].fill(f32::INFINITY);
            d.fill(0.0);
            let sums = &mut d[..rows];
            if let Some(dlse) = dlse {
                dlse.load_column(simd, sums);
                sums.iter_mut().for_each(|x| *x = -*x);
            }
            match (o.dtype, grad.dtype) {
                (DType::F32, DType::F32) if o.col == 1 && grad.col == 1 => {
                    let (a, b) = (o.ptr.at(o.offset), grad.ptr.at(grad.offset));
                    gradient::products_f32(simd, a, o.row, b, grad.row, width, sums);
                }
                (DType::Bf16, DType::Bf16) if o.col == 1 && grad.col == 1 => {
                    let (a, b) = (o.ptr.at(o.offset), grad.ptr.at(grad.offset));
                    gradient::products_bf16(simd, a, o.row, b, grad.row, width, sums);
                }
                _ => {
                    let stage = self.context.floats(parts.scores);
                    let (a, b) = (stage, stage.add(width));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        o.from(i).load(simd, std::slice::from_raw_parts_mut(a, width));
                        grad.from(i).load(simd, std::slice::from_raw_parts_mut(b, width));
                        let sum = std::slice::from_mut(sum);
                        gradient::products_f32(simd, a, 0, b, 0, width, sum);
                    }
                }
            }
        }
    }

    /// One tile of keys with the queries of tiles `across`: P, dS, and what they add to dv and dk.
    unsafe fn tile(&self, queries: &Queries, r: usize, across: Range<usize>) {
        let Context { simd, word, spec, pattern, parts, .. } = self.context;
        let keys = TILE.min(self.keys - r * TILE);
        let cols = across.len() * TILE;
        let first = across.start * TILE;
        let dp_row = if word == Word::F32 { r * TILE } else { 0 };
        let scores = Out { data: self.context.floats(parts.scores), row: ROW }.at(0, first);
        let dp = Out { data: self.context.floats(parts.ds), row: ROW }.at(dp_row, first);
        let scaled = Store { alpha: spec.scale * std::f32::consts::LOG2_E, accumulate: false };
        let widths = [spec.key_width, spec.value_width];
        // SAFETY: as `Context::stretch`; the parts hold the tiles.
        unsafe {
            for (i, (out, store)) in
                [(scores, scaled), (dp, Store::REPLACE)].into_iter().enumerate()
            {
                let right = queries.across[i];
                let data = right.data.add(across.start * right.panel);
                let size = [keys, cols, word.words(simd, widths[i])];
                multiply(simd, word, size, self.left[r][i], Right { data, ..right }, out, store);
            }
            for (c, tile) in across.clone().enumerate() {
                let data = scores.data.add(c * TILE);
                match queries.masks[r][tile] {
                    Entry::FULL => {}
                    EMPTY => softmax::hide(simd, data, ROW, &[0; TILE][..keys]),
                    mask => {
                        let words = &pattern.mask(mask).expect("not a full tile").by_key;
                        softmax::hide(simd, data, ROW, &words[..keys]);
                    }
                }
            }
            let part = |at| std::slice::from_raw_parts(self.context.floats(at + first), cols);
            let (lse, d) = (part(parts.lse), part(parts.d));
            let tile = Tile { scores: scores.data, dp: dp.data, row: ROW, rows: keys, lse, d };
            let left = self.gradients(tile, r, first);
            let end = (across.end * TILE).min(queries.rows);
            let words = word.words(simd, end - first);
            let skip = first / word.elements() * COLS;
            for (i, part) in [parts.dv, parts.dk].into_iter().enumerate() {
                let width = parts.widths[1 - i];
                let right = queries.down[1 - i];
                let right = Right { data: right.data.add(skip), ..right };
                let out = Out { data: self.context.floats(part), row: width }.at(r * TILE, 0);
                // Scores were scaled, so their gradients are.
                let store = Store { alpha: [1.0, spec.scale][i], accumulate: true };
                multiply(simd, word, [keys, width, words], left[i], right, out, store);
            }
        }
    }

    /// Scores to P, and do v^T to dS, as left factors.
    unsafe fn gradients(&self, tile: Tile<'_>, r: usize, first: usize) -> [Left; 2] {
        let Context { simd, word, parts, work, .. } = self.context;
        if word == Word::F32 {
            gradient::in_place(simd, tile);
            let left = |data: *mut f32| Left { data: data.cast(), row: ROW as isize, step: 1 };
            return [left(tile.scores), left(tile.dp)];
        }
        // SAFETY: as `Context::stretch`; the tile has room for all its rows.
        unsafe {
            for row in tile.rows..TILE {
                let part = |data: *mut f32| {
                    std::slice::from_raw_parts_mut(data.add(row * ROW), tile.lse.len())
                };
                part(tile.scores).fill(f32::NEG_INFINITY);
                part(tile.dp).fill(0.0);
            }
            let [p, ds] = [parts.p_bf16, parts.ds_bf16].map(|part| work.add(part));
            let pairs = work.add(parts.pairs + r * TILE / 2 * ROW + first);
            let (row, pairs_row) = (2 * BF16_ROW, ROW);
            let to = Rounded { p: p.cast(), ds: ds.cast(), row, pairs, pairs_row };
            gradient::to_bf16(simd, Tile { rows: TILE, ..tile }, to);
            [p, ds].map(|data| Left { data, row: BF16_ROW as isize, step: 1 })
        }
    }

    /// Adds dS k over the tiles `down` of keys to dq of one tile of queries.
    unsafe fn query_gradient(
        &self,
        queries: &Queries,
        c: usize,
        down: Range<usize>,
        to: *mut f32,
        accumulate: bool,
    ) {
        let Context { simd, word, spec, parts, work, .. } = self.context;
        let rows = TILE.min(queries.rows - c * TILE);
        let part = if word == Word::F32 { parts.ds } else { parts.pairs };
        let lines = TILE / word.elements();
        let end = (down.end * TILE).min(self.keys);
        let words = word.words(simd, end - down.start * TILE);
        // SAFETY: as `Context::stretch`.
        unsafe {
            let ds = work.add(part + c * TILE);
            for r in down.clone().filter(|&r| queries.masks[r][c] == EMPTY) {
                for line in r * lines..(r + 1) * lines {
                    ds.add(line * ROW).write_bytes(0, TILE);
                }
            }
            let ds = ds.add(down.start * lines * ROW);
            let left = if word.tiles(simd) {
                let turned = work.add(parts.turned);
                for (line, row) in (0..words).step_by(16).flat_map(|l| [(l, 0), (l, 16)]) {
                    let from = ds.add(line * ROW + row).cast::<u8>();
                    let to = turned.add(row * TURNED_ROW + line);
                    transpose(simd, from, 4 * ROW as isize, 16, to, TURNED_ROW);
                }
                Left { data: turned, row: TURNED_ROW as isize, step: 1 }
            } else {
                Left { data: ds, row: 1, step: ROW as isize }
            };
            let data = self.k_down.data.add(down.start * lines * COLS);
            let right = Right { data, ..self.k_down };
            let out = Out { data: to, row: parts.widths[0] };
            let store = Store { alpha: spec.scale, accumulate };
            let size = [rows, parts.widths[0], words];
            multiply(simd, word, size, left, right, out, store);
        }
    }

    /// Writes dk and dv.
    ///
    /// # Safety
    /// As [`Context::stretch`].
    pub unsafe fn store(self) {
        let Context { simd, spec, heads, parts, ptrs, .. } = self.context;
        let first = self.tiles.start * TILE;
        let rows = [
            (DK, parts.dk, parts.widths[0], spec.key_width),
            (DV, parts.dv, parts.widths[1], spec.value_width),
        ];
        for (operand, part, padded, width) in rows {
            let to = heads.at(ptrs, operand, [self.outer, 0], first);
            for row in 0..self.keys {
                // SAFETY: forwarded.
                unsafe {
                    let from = self.context.floats(part + row * padded);
                    to.from(row).store(simd, std::slice::from_raw_parts(from, width));
                }
            }
        }
    }
}
