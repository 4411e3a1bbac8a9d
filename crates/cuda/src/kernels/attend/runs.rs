//! How many tiles a block of Hopper's kernels takes, one after another.
//!
//! A multiprocessor holds one such block at a time. The first tile of a block is loaded, and the
//! results of its last one leave, with nothing beside them; between tiles both are hidden. So runs
//! pay where lists are short: a window of 256 has 6 units a tile. But where there are few tiles, or
//! where their lists differ in length, long runs leave multiprocessors without work in the end.

use super::lists::Lists;
use crate::kernels::MULTIPROCESSORS;

/// What the start of a block and its end cost, in units of a list.
const ENDS: f64 = 4.0;
/// What a tile costs beside its list, in a run.
const TILE: f64 = 1.0;
/// The longest run; 1 is one tile a block, everywhere.
const LONGEST: usize = 64;
/// A shorter run is taken if it costs no more than this beside the best: the fewer multiprocessors
/// a card has less than was counted on, the less it loses.
const NEAR: f64 = 1.05;

/// Tiles of a block, for lists of so many heads.
pub(super) fn run(lists: &Lists, heads: usize) -> usize {
    let first: Vec<u32> =
        lists.first.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let lengths = first.windows(2).map(|w| f64::from(w[1] - w[0]) + TILE);
    let (count, sum, longest) = lengths
        .fold((0.0f64, 0.0, 0.0f64), |(n, sum, most), own| (n + 1.0, sum + own, most.max(own)));
    best(heads * lists.tiles, sum / count.max(1.0), longest)
}

/// Of `all` tiles of that mean and greatest cost.
fn best(all: usize, mean: f64, longest: f64) -> usize {
    let at_once = MULTIPROCESSORS as usize;
    let even = longest <= 1.5 * mean + 1.0;
    let cost = |run: usize| {
        let (blocks, length) = (all.div_ceil(run), run as f64);
        if even {
            return blocks.div_ceil(at_once) as f64 * (length * mean + ENDS);
        }
        // The longest start first, so what is left in the end is short.
        let total = all as f64 * mean + blocks as f64 * ENDS;
        (length * longest + ENDS).max(total / at_once as f64 + length * mean / 2.0)
    };
    let runs = 1..=all.div_ceil(at_once).clamp(1, LONGEST);
    let least = runs.clone().map(cost).fold(f64::INFINITY, f64::min);
    runs.into_iter().find(|&run| cost(run) <= NEAR * least).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lists_run_and_long_ones_do_not() {
        // Windows of 256 over 65,536 positions of 4 heads, and over 16,384 of 8.
        assert_eq!(best(2048, 7.0, 7.0), 8);
        assert_eq!(best(1024, 7.0, 7.0), 8);
        // Causal: 16,384 positions of 8 heads; 3,072 of 32; 1,024 of 768.
        assert_eq!(best(1024, 130.0, 257.0), 1);
        assert_eq!(best(768, 26.0, 49.0), 1);
        assert!((3..=6).contains(&best(6144, 10.0, 17.0)));
        // Every multiprocessor has a block before any has two tiles.
        assert_eq!(best(132, 3.0, 4.0), 1);
        assert_eq!(best(133, 3.0, 4.0), 2);
        assert_eq!(best(0, 0.0, 0.0), 1);
    }
}
