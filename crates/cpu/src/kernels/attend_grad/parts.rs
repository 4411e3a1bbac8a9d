//! Operands and scratch of the backward.

use super::plan::STRETCH;
use crate::kernels::attend::{Layout, padded};
use crate::kernels::micro::Word;
use crate::kernels::pack;
use crate::kernels::pattern::{BlockList, TILE};
use aerogel_lower::Attention;

pub(super) const Q: usize = 0;
pub(super) const K: usize = 1;
pub(super) const V: usize = 2;
pub(super) const O: usize = 3;
pub(super) const LSE: usize = 4;
pub(super) const DO: usize = 5;
pub(super) const DQ: usize = 6;
pub(super) const DK: usize = 7;
pub(super) const DV: usize = 8;
pub(super) const DLSE: usize = 9;

/// Tiles of queries that are taken at once: the depth of the products for dk and dv.
pub(super) const WIDE: usize = 4;
/// Words between rows of scores, and of bf16; no powers of two.
pub(super) const ROW: usize = WIDE * TILE + 16;
pub(super) const BF16_ROW: usize = WIDE * TILE / 2 + 16;
/// Words between queries of dS as matrix tiles read it.
pub(super) const TURNED_ROW: usize = STRETCH * TILE / 2 + 16;

/// Where the parts of a worker's scratch begin, in words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub dk: usize,
    pub dv: usize,
    /// Keys and values as left factors, tile by tile.
    pub k_left: usize,
    pub v_left: usize,
    /// Keys as a right factor over the keys.
    pub k_down: usize,
    /// q and do as right factors over the width, and over the queries.
    pub q_across: usize,
    pub do_across: usize,
    pub q_down: usize,
    pub do_down: usize,
    pub scores: usize,
    /// f32: dS of all tiles of keys. bf16: do v^T of one.
    pub ds: usize,
    pub p_bf16: usize,
    pub ds_bf16: usize,
    /// bf16: dS of all tiles of keys, words of two keys.
    pub pairs: usize,
    pub turned: usize,
    pub lse: usize,
    pub d: usize,
    /// dq of all queries of a head.
    pub dq: usize,
    pub words: usize,
    /// Words of a tile in `k_left` and `v_left`.
    pub left: [usize; 2],
    /// Padded widths of keys and values.
    pub widths: [usize; 2],
}

impl Parts {
    pub fn new(spec: &Attention, pattern: &BlockList, word: Word) -> Parts {
        let (d, w) = (spec.key_width, spec.value_width);
        let widths = [d, w].map(padded);
        let keys = STRETCH.min(pattern.key_tiles()) * TILE;
        let queries = WIDE * TILE;
        let bf16 = |words: usize| if word == Word::Bf16 { words } else { 0 };
        let left = [d, w].map(|width| pack::left_words(word, TILE, width));
        let mut layout = Layout::default();
        let mut parts = Parts {
            dk: layout.take(keys * widths[0]),
            dv: layout.take(keys * widths[1]),
            k_left: layout.take(keys / TILE * left[0]),
            v_left: layout.take(keys / TILE * left[1]),
            k_down: layout.take(pack::right_words(word, d, keys)),
            q_across: layout.take(pack::right_words(word, queries, d)),
            do_across: layout.take(pack::right_words(word, queries, w)),
            q_down: layout.take(pack::right_words(word, d, queries)),
            do_down: layout.take(pack::right_words(word, w, queries)),
            scores: layout.take((TILE * ROW).max(2 * w).max(d)),
            ds: layout.take(if word == Word::F32 { keys } else { TILE } * ROW),
            p_bf16: layout.take(bf16(TILE * BF16_ROW)),
            ds_bf16: layout.take(bf16(TILE * BF16_ROW)),
            pairs: layout.take(bf16(keys / 2 * ROW)),
            turned: layout.take(bf16(TILE * TURNED_ROW)),
            lse: layout.take(queries),
            d: layout.take(queries),
            dq: layout.take(spec.group * pattern.query_tiles() * TILE * widths[0]),
            words: 0,
            left,
            widths,
        };
        parts.words = layout.words;
        parts
    }
}
