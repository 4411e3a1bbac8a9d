//! Attention forward: `o = softmax(scale q k^T, masked) v` and `lse`, tile by tile.
//!
//! A task is a stretch of query tiles of one (batch, kv head), with all query heads that share it;
//! it packs the keys and values that its queries see, once. For 32 queries at a time, scores of up
//! to 512 keys are products in registers, go through an online softmax by rows ([`softmax`]), and
//! as exponentials are the left factor of the product with the values. Where q, k and v are bf16,
//! products are of bf16 and exponentials are rounded to it; f16 are multiplied as f32, and nothing
//! is rounded in between. Sums, maxima and `lse` are f32. How the queries are cut into tasks
//! changes no bits.

pub(crate) mod exponent;
mod few;
mod heads;
mod packed;
pub(crate) mod softmax;

use crate::kernel::{
    Carve, Kernel, KernelError, Ptr, Scalars, check_output, per_worker_bytes, scratch_for,
};
use crate::kernels::micro::{Left, Out, Store, Word, multiply};
use crate::kernels::pack;
use crate::kernels::pattern::{BlockList, Mask, TILE};
use crate::pool::Pool;
use crate::simd::Simd;
use aerogel_lower::{AttendSpec, Attention};
use packed::Packed;
use softmax::{Scores, Stats};
use std::ops::Range;
use std::sync::Arc;

pub(crate) use heads::{Heads, Layout, Matrix, padded};

/// A prepared forward. Addresses: q, k, v, o, lse.
///
/// `Scalars::position` is the place of the first query in the pattern. If it is set, or if the
/// pattern has more queries than a run, keys after a query's own position are never seen, and keys
/// after the last query never read.
///
/// Scratch of a worker: keys and values of one head (keys x (key width + value width) elements, f32
/// or bf16 as they are multiplied), and some 150 KiB for a tile of queries.
#[derive(Clone, Debug)]
pub struct Attend {
    spec: Attention,
    /// The allowed tiles.
    pattern: Arc<BlockList>,
    heads: Heads,
    word: Word,
    parts: Parts,
}

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const LSE: usize = 4;

/// Tiles of keys whose scores are held at once, 64 KiB of them: products with the values are deep,
/// and rows long enough for what each costs once.
const SPAN: usize = 16;
/// Words between rows of scores, and of their exponentials as bf16; no power of two.
const SCORES_ROW: usize = SPAN * TILE + 16;
const BF16_ROW: usize = SPAN * TILE / 2 + 16;
/// Runs of at most this many queries read keys and values where they lie.
const FEW: usize = 2;
/// A task has at least this many tiles of queries, if there are, to pay for packing.
const LEAST_TILES: usize = 4;

/// Where the parts of a worker's scratch begin, in words.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    done: usize,
    k: usize,
    v: usize,
    q: usize,
    scores: usize,
    bf16: usize,
    o: usize,
    stats: usize,
    words: usize,
}

impl Parts {
    fn new(spec: &Attention, pattern: &BlockList, word: Word) -> Parts {
        let tiles = pattern.key_tiles();
        let (d, width) = (spec.key_width, padded(spec.value_width));
        let mut layout = Layout::default();
        Parts {
            done: layout.take(tiles.div_ceil(4)),
            k: layout.take(pack::right_words(word, tiles * TILE, d)),
            v: layout.take(pack::right_words(word, width, tiles * TILE)),
            q: layout.take(pack::left_words(word, TILE, d).max(d)),
            scores: layout.take((TILE * SCORES_ROW).max(TILE * d.max(width))),
            bf16: layout.take(TILE * BF16_ROW),
            o: layout.take(TILE * width),
            stats: layout.take(size_of::<Stats>() / 4),
            words: layout.words,
        }
    }
}

impl Attend {
    /// Checks shapes and storage; `pattern` is what the mask allows.
    ///
    /// # Errors
    /// If strides do not match, an output repeats, or the pattern does not fit.
    pub fn new(spec: &AttendSpec, pattern: Arc<BlockList>) -> Result<Attend, KernelError> {
        let (operands, spec) = (spec.operands(), &spec.attention);
        let heads = Heads::new(spec, &pattern, &operands)?;
        if spec.queries > pattern.queries {
            let what = format!("{} queries, but the pattern has {}", spec.queries, pattern.queries);
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        check_output("attend", O, operands[O], &spec.sizes(spec.queries, spec.value_width))?;
        check_output("attend", LSE, operands[LSE], &spec.sizes(spec.queries, 1))?;
        let word = pack::word([Q, K, V].map(|operand| operands[operand].dtype));
        let parts = Parts::new(spec, &pattern, word);
        Ok(Attend { spec: spec.clone(), pattern, heads, word, parts })
    }

    /// The queries of a run in tile `number` of those that it touches.
    fn piece(&self, position: usize, number: usize) -> Piece {
        let tile = position / TILE + number;
        let begin = (tile * TILE).max(position);
        let end = ((tile + 1) * TILE).min(position + self.spec.queries);
        let decoding = position > 0 || self.spec.queries < self.pattern.queries;
        Piece {
            first: begin - position,
            rows: end - begin,
            tile,
            bit: begin % TILE,
            causal_from: decoding.then_some(begin),
        }
    }

    /// Keys that a run reads.
    fn visible(&self, position: usize) -> usize {
        let pattern = &self.pattern;
        let decoding = position > 0 || self.spec.queries < pattern.queries;
        if decoding { pattern.keys.min(position + self.spec.queries) } else { pattern.keys }
    }

    /// A stretch of query tiles of one kv head, last tiles first.
    unsafe fn stretch(&self, run: &Run<'_>, outer: usize, pieces: Range<usize>, work: *mut u32) {
        let (spec, parts) = (&self.spec, &self.parts);
        let matrix = |operand| self.heads.at(run.ptrs, operand, [outer, 0], 0);
        // SAFETY: the parts of scratch are disjoint and sized by `Parts`; the caller of `run`
        // vouches for the operands.
        unsafe {
            let done = work.add(parts.done).cast::<bool>();
            done.write_bytes(0, self.pattern.key_tiles());
            let mut packed = Packed {
                simd: run.simd,
                word: self.word,
                keys: self.visible(run.position),
                matrices: [matrix(K), matrix(V)],
                widths: [spec.key_width, spec.value_width],
                to: [work.add(parts.k), work.add(parts.v)],
                done: std::slice::from_raw_parts_mut(done, self.pattern.key_tiles()),
            };
            for number in pieces.rev() {
                let piece = self.piece(run.position, number);
                for group in 0..spec.group {
                    self.tile(run, [outer, group], piece, &mut packed, work);
                }
            }
        }
    }

    /// One tile of queries of one head.
    unsafe fn tile(
        &self,
        run: &Run<'_>,
        head: [usize; 2],
        piece: Piece,
        packed: &mut Packed<'_>,
        work: *mut u32,
    ) {
        let (spec, parts) = (&self.spec, &self.parts);
        // SAFETY: as `stretch`.
        unsafe {
            let stats = &mut *work.add(parts.stats).cast::<Stats>();
            stats.clear();
            let q = self.heads.at(run.ptrs, Q, head, piece.first).across();
            let size = [piece.rows, spec.key_width];
            let q = pack::left_rows(run.simd, self.word, q, size, work.add(parts.q));
            let last = packed.keys.div_ceil(TILE);
            let row = self.pattern.row(spec.head(head[0], head[1]), piece.tile);
            let tiles = || {
                let entries = row.iter();
                entries.flat_map(|e| e.tiles().map(|t| (t, e.mask))).take_while(|&(t, _)| t < last)
            };
            let count = tiles().count();
            // Spans of even length: a short last one would cost almost as much as a long one.
            let most = count.div_ceil(count.div_ceil(SPAN).max(1));
            let mut span = Span { tiles: [(0, 0); SPAN], len: 0, fresh: true };
            for tile in tiles() {
                span.tiles[span.len] = tile;
                span.len += 1;
                if span.len == most {
                    self.span(run, q, piece, &mut span, packed, work);
                }
            }
            if span.len > 0 {
                self.span(run, q, piece, &mut span, packed, work);
            }
            if span.fresh {
                work.add(parts.o).write_bytes(0, TILE * padded(spec.value_width));
            }
            self.finish(run, head, [piece.first, piece.rows], stats, work);
        }
    }

    /// Takes in the keys of a span, and empties it.
    unsafe fn span(
        &self,
        run: &Run<'_>,
        q: Left,
        piece: Piece,
        span: &mut Span,
        packed: &mut Packed<'_>,
        work: *mut u32,
    ) {
        let (spec, parts, simd) = (&self.spec, &self.parts, run.simd);
        let (rows, width) = (piece.rows, padded(spec.value_width));
        // SAFETY: as `stretch`.
        unsafe {
            let scores = Out { data: work.add(parts.scores).cast(), row: SCORES_ROW };
            let depth = self.word.words(simd, spec.key_width);
            // Scores times log2(e), for powers of two.
            let scaled = Store { alpha: spec.scale * std::f32::consts::LOG2_E, accumulate: false };
            for at in 0..span.len {
                packed.ensure(span.tiles[at].0);
            }
            for (at, tile, tiles) in span.runs() {
                let (size, out) = ([rows, tiles * TILE, depth], scores.at(0, at * TILE));
                multiply(simd, self.word, size, q, packed.keys_at(tile), out, scaled);
            }
            for (at, &(tile, mask)) in span.tiles[..span.len].iter().enumerate() {
                let words = piece.words(self.pattern.mask(mask), tile * TILE);
                if let Some(words) = words {
                    let data = scores.at(0, at * TILE).data;
                    softmax::hide(simd, data, SCORES_ROW, &words[..rows]);
                }
            }
            let stats = &mut *work.add(parts.stats).cast::<Stats>();
            let tile = Scores { data: scores.data, row: SCORES_ROW, rows, blocks: span.len };
            let p = match self.word {
                Word::F32 => {
                    softmax::in_place(simd, tile, stats);
                    Left { data: scores.data.cast(), row: SCORES_ROW as isize, step: 1 }
                }
                Word::Bf16 => {
                    let data = work.add(parts.bf16);
                    softmax::to_bf16(simd, tile, data.cast(), 2 * BF16_ROW, stats);
                    Left { data, row: BF16_ROW as isize, step: 1 }
                }
            };
            let o = Out { data: work.add(parts.o).cast(), row: width };
            if !span.fresh {
                let o = std::slice::from_raw_parts_mut(o.data, rows * width);
                softmax::rescale(simd, o, width, &stats.factor);
            }
            for (at, tile, tiles) in span.runs() {
                let (values, words) = packed.values_at(tile, tiles);
                let p = Left { data: p.data.add(at * TILE / self.word.elements()), ..p };
                let store = if span.fresh { Store::REPLACE } else { Store::ADD };
                multiply(simd, self.word, [rows, width, words], p, values, o, store);
                span.fresh = false;
            }
            span.len = 0;
        }
    }

    /// Writes output and lse of `rows` queries from `first` on.
    unsafe fn finish(
        &self,
        run: &Run<'_>,
        head: [usize; 2],
        [first, rows]: [usize; 2],
        stats: &Stats,
        work: *mut u32,
    ) {
        let (width, row) = (self.spec.value_width, padded(self.spec.value_width));
        let at = |operand| self.heads.at(run.ptrs, operand, head, first);
        let (to, lse_to) = (at(O), at(LSE));
        let mut lse = [0.0; TILE];
        // SAFETY: the caller of `run` vouches for the operands; `o` has room for a tile.
        unsafe {
            let o = std::slice::from_raw_parts_mut(work.add(self.parts.o).cast(), rows * row);
            softmax::finish(run.simd, o, row, stats, &mut lse);
            for (i, o) in o.chunks_exact(row).enumerate() {
                to.from(i).store(run.simd, &o[..width]);
            }
            lse_to.store_column(run.simd, &lse[..rows]);
        }
    }

    /// All queries of one kv head, one by one.
    unsafe fn one_by_one(&self, run: &Run<'_>, outer: usize, work: *mut u32) {
        let (spec, parts) = (&self.spec, &self.parts);
        let visible = self.visible(run.position);
        for (group, query) in (0..spec.group).flat_map(|g| (0..spec.queries).map(move |i| (g, i))) {
            let position = run.position + query;
            let mut piece = self.piece(run.position, position / TILE - run.position / TILE);
            piece.bit = position % TILE;
            piece.causal_from = piece.causal_from.map(|_| position);
            let at = |operand, i| self.heads.at(run.ptrs, operand, [outer, group], i);
            // SAFETY: as `stretch`.
            unsafe {
                let floats = |at, len| std::slice::from_raw_parts_mut(work.add(at).cast(), len);
                let q = floats(parts.q, spec.key_width);
                at(Q, query).load(run.simd, q);
                let scale = spec.scale * std::f32::consts::LOG2_E;
                q.iter_mut().for_each(|x| *x *= scale);
                let o = floats(parts.o, spec.value_width);
                o.fill(0.0);
                let stats = &mut *work.add(parts.stats).cast::<Stats>();
                stats.clear();
                let stage = floats(parts.scores, TILE * spec.key_width.max(spec.value_width));
                let mut one = few::Query { simd: run.simd, q, o, stats: &mut *stats, stage };
                for entry in self.pattern.row(spec.head(outer, group), piece.tile) {
                    for first in entry.tiles().map(|tile| tile * TILE) {
                        if first >= visible {
                            break;
                        }
                        let words = piece.words(self.pattern.mask(entry.mask), first);
                        let word = words.map_or(u32::MAX, |words| words[0]);
                        one.tile(at(K, first), at(V, first), TILE.min(visible - first), word);
                    }
                }
                self.finish(run, [outer, group], [query, 1], stats, work);
            }
        }
    }
}

struct Run<'a> {
    simd: Simd,
    ptrs: &'a [Ptr],
    position: usize,
}

/// Consecutive queries within one tile of the pattern.
#[derive(Clone, Copy)]
struct Piece {
    /// First query, counted in the run.
    first: usize,
    rows: usize,
    tile: usize,
    /// Place of the first query in its tile.
    bit: usize,
    /// Position of the first query, if later keys are to be hidden from each query.
    causal_from: Option<usize>,
}

impl Piece {
    /// What each query sees of the tile of keys from `first` on, one bit a key; none if all do all.
    fn words(self, mask: Option<&Mask>, first: usize) -> Option<[u32; TILE]> {
        let hides = self.causal_from.is_some_and(|query| first + TILE > query + 1);
        if mask.is_none() && !hides {
            return None;
        }
        let mut words = [u32::MAX; TILE];
        if let Some(mask) = mask {
            words[..TILE - self.bit].copy_from_slice(&mask.by_query[self.bit..]);
        }
        if let Some(query) = self.causal_from {
            for (i, word) in words.iter_mut().enumerate() {
                let seen = (query + i + 1).saturating_sub(first).min(TILE);
                *word &= ((1u64 << seen) - 1) as u32;
            }
        }
        Some(words)
    }
}

/// Tiles of keys, and their masks, that go through the softmax together.
struct Span {
    tiles: [(usize, u32); SPAN],
    len: usize,
    /// Nothing was added to the output yet.
    fresh: bool,
}

impl Span {
    /// Runs of consecutive tiles: the place in the span, the first tile, how many.
    fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (tiles, len) = (self.tiles, self.len);
        let mut next = 0;
        std::iter::from_fn(move || {
            let at = next;
            (at < len).then(|| {
                next += 1;
                while next < len && tiles[next].0 == tiles[next - 1].0 + 1 {
                    next += 1;
                }
                (at, tiles[at].0, next - at)
            })
        })
    }
}

impl Kernel for Attend {
    fn operands(&self) -> usize {
        5
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, self.parts.words * 4)])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 5, "attend: q, k, v, o, lse");
        let (spec, position) = (&self.spec, scalars.position);
        let end = position + spec.queries;
        assert!(end <= self.pattern.queries, "attend: queries beyond the pattern");
        let run = Run { simd: pool.simd(), ptrs, position };
        let workers = Carve::new(scratch).per_worker(pool.threads(), self.parts.words * 4);
        let outer = spec.outer();
        if spec.queries <= FEW {
            pool.run(outer, &|task, worker| {
                // SAFETY: the caller vouches for the operands; tasks own disjoint heads.
                unsafe { self.one_by_one(&run, task, workers.of(worker).at(0)) }
            });
            return;
        }
        let pieces = (position % TILE + spec.queries).div_ceil(TILE);
        let fair = if pool.threads() == 1 { pieces } else { outer * pieces / (8 * pool.threads()) };
        let long = fair.max(LEAST_TILES).min(pieces);
        let stretches = pieces.div_ceil(long);
        // Long rows last in a causal pattern: hand them out first.
        pool.run(outer * stretches, &|task, worker| {
            let (number, outer) = (stretches - 1 - task / outer, task % outer);
            let pieces = number * long..((number + 1) * long).min(pieces);
            // SAFETY: the caller vouches for the operands; tasks own disjoint rows of o and lse.
            unsafe { self.stretch(&run, outer, pieces, workers.of(worker).at(0)) }
        });
    }
}
