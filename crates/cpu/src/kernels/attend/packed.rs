//! Keys and values of a head as the products read them, packed tile by tile when first needed.

use crate::kernels::micro::{COLS, Right, Word};
use crate::kernels::pack;
use crate::kernels::pattern::TILE;
use crate::simd::Simd;

use super::heads::Matrix;

/// The packed keys and values of one kv head.
pub(crate) struct Packed<'a> {
    pub simd: Simd,
    pub word: Word,
    /// Keys that there are.
    pub keys: usize,
    /// k and v of the head, from key 0.
    pub matrices: [Matrix; 2],
    /// Their widths.
    pub widths: [usize; 2],
    /// Where they go: panels of 32 keys, and panels of 32 value features over all keys.
    pub to: [*mut u32; 2],
    /// Per tile of keys, whether it is packed.
    pub done: &'a mut [bool],
}

impl Packed<'_> {
    /// Words along the depth that a tile of keys takes.
    fn tile_words(&self) -> usize {
        TILE / self.word.elements()
    }

    /// Words from one panel of values to the next.
    fn value_panel(&self) -> usize {
        self.done.len() * self.tile_words() * COLS
    }

    /// Packs a tile, once.
    ///
    /// # Safety
    /// The keys and values are valid for reads, the room for all tiles.
    pub unsafe fn ensure(&mut self, tile: usize) {
        if std::mem::replace(&mut self.done[tile], true) {
            return;
        }
        let (simd, word, first) = (self.simd, self.word, tile * TILE);
        let keys = TILE.min(self.keys - first);
        let [k, v] = self.matrices.map(|matrix| matrix.from(first));
        let [d, width] = self.widths;
        // SAFETY: forwarded.
        unsafe {
            pack::right(simd, word, k.across(), [keys, d], self.keys_at(tile).data.cast_mut());
            let to = self.to[1].add(tile * self.tile_words() * COLS);
            for (panel, col) in (0..width).step_by(COLS).enumerate() {
                let cols = COLS.min(width - col);
                let to = to.add(panel * self.value_panel());
                pack::right(simd, word, v.down().from(col, 0), [cols, keys], to);
            }
        }
    }

    /// The keys from a tile on as columns of a right factor.
    pub fn keys_at(&self, tile: usize) -> Right {
        let panel = self.word.words(self.simd, self.widths[0]) * COLS;
        Right { data: self.to[0].wrapping_add(tile * panel), panel, step: COLS }
    }

    /// The values from a tile on as a right factor whose depth is `tiles` of keys, and the words of
    /// that depth.
    pub fn values_at(&self, tile: usize, tiles: usize) -> (Right, usize) {
        let data = self.to[1].wrapping_add(tile * self.tile_words() * COLS);
        let keys = (tiles * TILE).min(self.keys - tile * TILE);
        let right = Right { data, panel: self.value_panel(), step: COLS };
        (right, self.word.words(self.simd, keys))
    }
}
