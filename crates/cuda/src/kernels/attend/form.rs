//! Which kernels run an attention: measured on an H100, see `lab/results/h100-attend.txt`.
//!
//! | pattern | forward | backward |
//! |---|---|---|
//! | sequences of up to 64, packed | `mma.sync`, packed | one kernel for all (`FUSED`) |
//! | sequences of up to 127, packed | `mma.sync`, packed | `mma.sync`, packed |
//! | long lists: causal, full | Hopper, else 128 rows | Hopper, else 128 rows |
//! | a window of 128 | 64 rows | `attend_band` |
//! | a window of 256, keys of width 32 | 64 rows | `attend_band` |
//! | a window of 256, keys of width 64 | 64 rows | Hopper, else 64 rows (values of 128: 128) |
//! | any, keys of width 128 | Hopper, else 128 rows | Hopper, else 128 rows |
//!
//! Hopper's kernels exist for widths (64, 64), (64, 128) and (128, 128), `attend_band` up to
//! (64, 128) and where no query heads share keys. Whatever else tensor cores do not take, the
//! plain kernels do.

use super::heads::Heads;
use super::seen::{Kept, UNIT};
use crate::gpu::Architecture;
use crate::kernels::{Chip, MULTIPROCESSORS};
use crate::source::Variant;
use std::sync::LazyLock;

/// Kernels of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// Any type, widths and strides.
    Plain,
    /// `mma.sync`, so many units of queries a block.
    Mma(usize),
    /// Hopper's `wgmma` and tensor copies.
    Hopper,
}

/// Kernels of a backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backward {
    /// Any type, widths and strides.
    Plain,
    /// `mma.sync`, so many units a block, dk and dv before dq.
    Mma(usize),
    /// All in one block of packed sequences.
    Fused,
    /// Stretches of so many units: all in one pass.
    Band(usize),
    /// Hopper's: dq, with the statistics, before dk and dv.
    Hopper,
}

/// What the choice looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    widths: [usize; 2],
    packed: bool,
    group: usize,
    /// Heads, and units of either side.
    heads: usize,
    units: [usize; 2],
    /// Units of keys that a unit of queries sees, on average.
    mean: f64,
    /// Whether lists are long: causal and full patterns, and wide windows.
    dense: bool,
    pairs: bool,
}

/// Lists of so many units are long.
const LONG: f64 = 8.0;
/// Up to so many units are a window of 128 positions, or of 256.
const WINDOW_128: f64 = 3.5;
const WINDOW_256: f64 = 5.5;
/// Stretches of `attend_band`, best first, and the blocks that a launch should have.
const STRETCHES: [usize; 5] = [16, 12, 8, 6, 4];
const BAND_BLOCKS: usize = 256;

impl Look {
    pub fn new(heads: &Heads, kept: &Kept) -> Look {
        let [queries, keys] = kept.units;
        let mean = kept.mean();
        // Three quarters of the causal half or more, of a sequence of 512 positions or more.
        let half = (keys + 1) as f64 / 2.0;
        let full = queries >= 512 / UNIT && mean >= 0.75 * half;
        Look {
            widths: heads.widths,
            packed: heads.cut.packed,
            group: heads.group,
            heads: heads.count(),
            units: kept.units,
            mean,
            dense: mean >= LONG || full,
            pairs: kept.in_pairs(),
        }
    }

    /// Units of a tile for `mma.sync`: two if `wanted`, and if there are blocks enough.
    fn tiles(&self, wanted: bool, units: usize) -> [usize; 2] {
        match wanted && self.heads * units.div_ceil(2) >= MULTIPROCESSORS as usize {
            true => [2, 1],
            false => [1, 2],
        }
    }

    /// Forms for operands that suit tensor cores, best first; the first that exists is taken.
    pub fn forward(&self, hopper: bool) -> Vec<Forward> {
        let wide = self.widths[0] == 128;
        let mut forms = vec![];
        if hopper && !self.packed && (self.dense || wide) {
            forms.push(Forward::Hopper);
        }
        forms.extend(self.tiles(self.dense || wide, self.units[0]).map(Forward::Mma));
        forms
    }

    /// Forms for operands that suit tensor cores, best first; the first that exists is taken.
    pub fn backward(&self, hopper: bool) -> Vec<Backward> {
        let mut forms = vec![];
        if self.packed && self.pairs && self.group == 1 {
            forms.push(Backward::Fused);
        }
        let window = if self.widths[0] == 32 { WINDOW_256 } else { WINDOW_128 };
        if !self.packed && self.group == 1 && self.mean <= window {
            forms.push(Backward::Band(self.stretch()));
        }
        if hopper && !self.packed {
            forms.push(Backward::Hopper);
        }
        let wide = self.widths[1] == 128;
        forms.extend(self.tiles(self.dense || wide, self.units[1]).map(Backward::Mma));
        forms
    }

    fn stretch(&self) -> usize {
        let units = self.units[0].max(self.units[1]);
        let fill = |&n: &usize| self.heads * units.div_ceil(n) >= BAND_BLOCKS;
        STRETCHES.into_iter().find(fill).unwrap_or(STRETCHES[STRETCHES.len() - 1])
    }
}

/// A compiled form of a kernel, and what it is started with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub entry: &'static str,
    pub file: &'static str,
    pub defines: &'static [String],
    pub threads: u32,
    pub shared_bytes: usize,
    /// Tiles that a block takes one after another; Hopper's kernels alone take more than one.
    pub run: usize,
}

static VARIANTS: LazyLock<Vec<Variant>> = LazyLock::new(|| {
    // What is asked for in f16 is the form for bf16, with one constant more.
    let listed = |v: &Variant| {
        v.entry.starts_with("attend") && !v.source.defines.iter().any(|d| d == "F16=1")
    };
    Variant::all().into_iter().filter(listed).collect()
});

/// Shared memory of a multiprocessor of an H100.
const SM_BYTES: usize = 227 << 10;

/// Shared memory that a block may ask for.
fn block_bytes(architecture: Architecture) -> usize {
    match architecture.capability {
        (8, 0 | 7) => 163 << 10,
        (9 | 10, _) => 227 << 10,
        _ => 99 << 10,
    }
}

impl Start {
    /// The first legal variant that fits; none if there is none, or if its blocks are too large.
    ///
    /// `tile` is units of a tile, and for `attend_band` the slots.
    pub fn find(
        entry: &'static str,
        heads: &Heads,
        tile: usize,
        more: &[(&str, usize)],
        chip: Chip,
    ) -> Option<Start> {
        let [dq, dv] = heads.widths;
        let packed = usize::from(heads.cut.packed);
        let mut wanted = vec![("DQ", dq), ("DV", dv), ("ROW_TILES", tile), ("PACK", packed)];
        wanted.extend(more);
        // `sm_90a` code runs on Hopper alone, `sm_80` lines are for all others.
        let hopper = chip.architecture.is_hopper();
        let lines = if hopper { Architecture::SM90A } else { Architecture::SM80 };
        let fits = |v: &&Variant| {
            v.entry == entry
                && v.architectures.contains(&lines)
                && v.source.defines.iter().all(|d| {
                    let Some((name, value)) = d.split_once('=') else { return false };
                    wanted.iter().all(|&(n, wanted)| n != name || value == wanted.to_string())
                })
        };
        let variant = VARIANTS.iter().find(fits)?;
        let shared_bytes = shared_bytes(entry, heads.widths, tile, &variant.source.defines);
        let most = match entry {
            // A band waits for memory unless as many blocks as it is made for are there.
            "attend_band" => (SM_BYTES / number(&variant.source.defines, "BLOCKS"))
                .min(block_bytes(chip.architecture)),
            _ => block_bytes(chip.architecture),
        };
        (shared_bytes <= most).then_some(Start {
            entry,
            file: &variant.source.file,
            defines: &variant.source.defines,
            threads: threads(entry),
            shared_bytes,
            run: 1,
        })
    }

    /// A kernel of Hopper's, in which a block takes `run` tiles.
    pub fn hopper(entry: &'static str, heads: &Heads, run: usize, chip: Chip) -> Option<Start> {
        let owns = if run > 1 { 2 } else { 1 };
        let start = Start::find(entry, heads, 2, &[("OWNS", owns)], chip)?;
        Some(Start { run, ..start })
    }
}

/// Whether there are kernels of these widths for tensor cores.
pub(super) fn has_widths([dq, dv]: [usize; 2]) -> bool {
    let of = |v: &Variant, name| number(&v.source.defines, name);
    VARIANTS.iter().any(|v| v.entry == "attend_fwd" && (of(v, "DQ"), of(v, "DV")) == (dq, dv))
}

fn number(defines: &[String], name: &str) -> usize {
    let value = |d: &String| d.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    defines.iter().find_map(value).unwrap_or(0)
}

fn threads(entry: &str) -> u32 {
    match entry {
        "attend_stats" | "attend_dkv" | "attend_decode" => 256,
        "attend_fwd_sm90" | "attend_dq_sm90" | "attend_dkv_sm90" => 384,
        _ => 128,
    }
}

/// As the heads of the kernels' files say.
fn shared_bytes(entry: &str, [dq, dv]: [usize; 2], tile: usize, defines: &[String]) -> usize {
    let (both, of) = (dq + dv, |name| number(defines, name));
    match entry {
        "attend_fwd" => 2 * (64 * tile * dq + of("STAGES") * 64 * both),
        "attend_dq" => 2 * (64 * tile + of("STAGES") * of("CHUNK")) * both,
        "attend_dkv" => {
            let stages = of("STAGES");
            2 * (64 * tile + 64 * stages) * both + 16384 * tile + 512 * stages + 8192 * of("FUSED")
        }
        "attend_band" => (of("KEY_STAGES") + 2) * 128 * both + 9216 + tile * 256 * dq,
        "attend_fwd_sm90" => 1024 + of("OWNS") * 256 * dq + 2 * 256 * both,
        "attend_dq_sm90" => {
            let stages = if of("OWNS") == 2 && both == 256 { 3 } else { 4 };
            1024 + (of("OWNS") * 256 + stages * 128) * both
        }
        "attend_dkv_sm90" => 1024 + (of("OWNS") * 256 + 3 * 128) * both + 3 * 528,
        "attend_plain_fwd" => 16 * both,
        "attend_plain_dq" => 16 * (2 * dq + dv),
        "attend_plain_dkv" => 32 * both,
        "attend_decode" => 4 * (dq + 8 * (dv + 2)),
        _ => 0,
    }
}
