//! Which kernel makes a product, with which tiles, and how many blocks share the depth of a tile:
//! by a model of what each takes on an H100. Rates of the Hopper kernels and of the largest tile of
//! tensor cores follow `lab/results/h100-gemm.txt`; those of the other tiles are estimates.

use super::super::MULTIPROCESSORS;
use super::matrix::{A, B, Matrices};
use aerogel_graph::DType;

/// How a factor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// K is contiguous, in steps of 16 bytes.
    K = 0,
    /// M or N is.
    Side = 1,
    /// Any other way.
    Any = 2,
}

/// A factor: its type, and the bytes that its address is a multiple of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    pub dtype: DType,
    pub align: u64,
}

/// The tile of a block of `gemm.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub bm: usize,
    pub bn: usize,
    pub bk: usize,
    pub stages: usize,
    pub warps: [usize; 2],
}

const fn tile(bm: usize, bn: usize, bk: usize, stages: usize, warps: [usize; 2]) -> Tile {
    Tile { bm, bn, bk, stages, warps }
}

/// Tiles of tensor cores, with the rate of a whole device in operations a second.
const TENSOR: [(Tile, f64); 3] = [
    (tile(128, 128, 64, 3, [2, 4]), 295e12),
    (tile(128, 64, 64, 3, [2, 2]), 230e12),
    (tile(64, 64, 64, 4, [2, 2]), 170e12),
];
/// The one for factors of any strides.
const ANY: (Tile, f64) = (tile(64, 64, 64, 4, [2, 2]), 30e12);
/// Tiles of f32.
const FLOAT: [(Tile, f64); 2] =
    [(tile(128, 128, 16, 3, [2, 4]), 40e12), (tile(64, 64, 16, 4, [2, 4]), 25e12)];

/// Of the kernels of Hopper, by columns of a tile. Not measured: 320, set so that it is taken where
/// fewer columns or rounds are lost with it.
const HOPPER: [(usize, f64); 3] = [(256, 700e12), (320, 690e12), (128, 650e12)];
/// Of tiles of 128 columns out of more, where the depth is contiguous in neither factor: they read
/// a third more for each operation than tiles of 256, and wait for it (weight gradients of GPT-2
/// 1.5B, by `aerogel bench cuda --only gemm`).
const NARROW: f64 = 490e12;
/// Products of so few rows or columns do not fill their tiles.
const SMALL: usize = 64;
/// Bytes a second that products move.
const TRAFFIC: f64 = 2.5e12;
/// Bytes a second from the second-level cache.
const CACHED: f64 = 4e12;
/// Starting a second kernel.
pub(super) const START_SECONDS: f64 = 3e-6;
/// Shares of the depth at most.
const MOST_SPLITS: usize = 96;
/// K of a panel that stays in shared memory.
const RESIDENT_K: usize = 256;

/// Columns of as many panels as a grid has in its second dimension.
pub(super) const RESIDENT_N: usize = 65_535 * 128;

/// A kernel and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// `gemm.cu`
    General { tile: Tile, float: bool, layouts: [Layout; 2] },
    /// `gemm_sm90.cu`
    Ring { bn: usize, cluster: usize, layouts: [Layout; 2], permuted: bool },
    /// `gemm_resident_sm90.cu`
    Resident { bn: usize, layouts: [Layout; 2], permuted: bool },
}

/// A form, the blocks that share the depth of a tile, and what it is thought to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub form: Form,
    pub splits: usize,
    pub seconds: f64,
}

/// Bytes of partial sums, where each share has so many `beside` its own.
pub(super) fn part_bytes(x: &Matrices, splits: usize, beside: usize) -> u64 {
    let floats = x.batches() * x.m.size * x.n.size.next_multiple_of(8) + beside;
    if splits > 1 { 4 * (splits * floats) as u64 } else { 0 }
}

/// What a kernel takes that reads so many bytes, and one that adds up what its blocks found.
pub(super) fn reading_seconds(bytes: f64) -> f64 {
    bytes / TRAFFIC + 2.0 * START_SECONDS
}

/// Shares of so many slices, of which none is empty, if so many are wanted.
pub(super) fn shares(slices: usize, wanted: usize) -> usize {
    let share = slices.div_ceil(wanted.clamp(1, slices.max(1))).max(1);
    slices.div_ceil(share).max(1)
}

/// How a factor lies, for vectors of 16 bytes.
fn layout(x: &Matrices, which: usize, factor: Factor) -> Layout {
    let side = if which == A { &x.m } else { &x.n };
    let along = |axis: &super::matrix::Axis| {
        let contiguous = axis.size == 1 || axis.strides[which] == 1;
        contiguous && x.strides(which, axis).all(|stride| stride % 8 == 0)
    };
    match () {
        () if !factor.dtype.is_half() || factor.align < 16 => Layout::Any,
        () if along(&x.k) => Layout::K,
        () if along(side) => Layout::Side,
        () => Layout::Any,
    }
}

/// Whether the tensor copy engine takes a factor of this layout.
fn mappable(x: &Matrices, which: usize, layout: Layout) -> bool {
    let side = if which == A { &x.m } else { &x.n };
    let (inner, outer) = match layout {
        Layout::K => (&x.k, side),
        Layout::Side => (side, &x.k),
        Layout::Any => return false,
    };
    let far = |stride: isize| stride < 1 << 38;
    let rows = outer.strides[which];
    let apart = outer.size == 1 || (rows >= inner.size as isize && far(rows));
    let batches = x.batch.iter().all(|axis| axis.strides[which] >= 0 && far(axis.strides[which]));
    apart && batches && x.k_outer.size == 1
}

/// Everything that the choice depends on.
pub(super) struct Question<'a> {
    pub matrices: &'a Matrices,
    /// Left and right, as the matrices have them.
    pub factors: [Factor; 2],
    pub hopper: bool,
    /// What the epilogue moves, in bytes, whether it stores but the product, and whether all of
    /// it is in whole vectors.
    pub traffic: f64,
    pub plain: bool,
    /// Sums that each share has beside those of the product.
    pub beside: usize,
    /// Workspace at most.
    pub most_bytes: u64,
}

/// The fastest, of equals the first.
pub(super) fn choose(question: &Question<'_>) -> Choice {
    let choices = question.forms().into_iter().map(|form| {
        let splits = question.splits(form);
        Choice { form, splits, seconds: question.seconds(form, splits) }
    });
    let first = |best: Choice, other: Choice| {
        if other.seconds < best.seconds { other } else { best }
    };
    let mut best = choices.reduce(first).expect("gemm.cu makes every product");
    if let Form::Ring { bn, cluster, layouts, .. } = &mut best.form {
        *cluster = question.cluster(*bn, *layouts, best.splits);
    }
    best
}

impl Question<'_> {
    /// The forms that can make the product.
    pub fn forms(&self) -> Vec<Form> {
        let x = self.matrices;
        // Tensor cores multiply one type of 16 bits.
        let [a, b] = self.factors.map(|f| f.dtype);
        let float = a != b || !a.is_half();
        let layouts = [A, B].map(|which| layout(x, which, self.factors[which]));
        let mut all = vec![];
        let maps = [A, B].into_iter().all(|which| mappable(x, which, layouts[which]));
        if self.hopper && maps && x.k.size > 0 && !float {
            let unbatched = x.batch.iter().all(|axis| axis.strides[B] == 0);
            let lines = x.n.size.is_multiple_of(32) && unbatched && layouts[B] == Layout::K;
            // The widest tile has no registers for batches and ragged vectors.
            let widest = x.batches() == 1 && x.n.size.is_multiple_of(8);
            let widths = HOPPER.into_iter().map(|(bn, _)| bn).filter(|bn| *bn < 320 || widest);
            all.extend(widths.map(|bn| Form::Ring { bn, cluster: 1, layouts, permuted: lines }));
            if x.k.size <= RESIDENT_K && x.n.size <= RESIDENT_N {
                let bn = if x.n.size > 128 { 256 } else { 128 };
                all.push(Form::Resident { bn, layouts, permuted: lines && self.plain });
            }
        }
        if !all.is_empty() && x.m.size.min(x.n.size) > SMALL {
            return all;
        }
        let tiles: &[(Tile, f64)] = match float {
            true => &FLOAT,
            false if layouts.contains(&Layout::Any) => &[ANY],
            false => &TENSOR,
        };
        let layouts = if float { [Layout::Any; 2] } else { layouts };
        all.extend(tiles.iter().map(|&(tile, _)| Form::General { tile, float, layouts }));
        all
    }

    /// Slices of the depth that shares are made of.
    fn slices(&self, form: Form) -> usize {
        let x = self.matrices;
        match form {
            Form::General { tile, .. } => x.k.size.div_ceil(tile.bk) * x.k_outer.size,
            Form::Ring { .. } | Form::Resident { .. } => x.k.size.div_ceil(64),
        }
    }

    /// Two blocks share what they read of the right factor: that pays if it lies along its columns
    /// and there is much of it, and if pairs of tiles take no more rounds than tiles.
    pub fn cluster(&self, bn: usize, layouts: [Layout; 2], splits: usize) -> usize {
        let x = self.matrices;
        let [m, n, k] = [&x.m, &x.n, &x.k].map(|axis| axis.size);
        let much = if splits > 1 { n >= m } else { k >= 512 && n >= 2 * k };
        let rounds = |cluster: usize| {
            let tiles = m.div_ceil(128 * cluster) * n.div_ceil(bn) * x.batches() * splits;
            tiles.div_ceil(MULTIPROCESSORS as usize / cluster)
        };
        let pays = layouts[B] == Layout::Side && m > 128 && much && rounds(2) <= rounds(1);
        if pays { 2 } else { 1 }
    }

    /// Blocks that should share the depth of a tile: those that fill the device, against the
    /// traffic of their parts.
    pub fn splits(&self, form: Form) -> usize {
        let wide = self.matrices.n.size > 128;
        let most = match form {
            Form::Resident { .. } => 1,
            // Not measured: wider tiles read less.
            Form::Ring { bn: 128, .. } if wide => 1,
            Form::Ring { .. } | Form::General { .. } => MOST_SPLITS,
        };
        let slices = self.slices(form);
        let seconds = |splits: usize| self.blocks(form, splits).1 + self.parts(splits);
        let allowed = |splits: &usize| {
            let fits = part_bytes(self.matrices, *splits, self.beside) <= self.most_bytes;
            *splits == 1 || (fits && shares(slices, *splits) == *splits)
        };
        let all = (1..=most.min(slices.max(1))).filter(allowed);
        all.min_by(|x, y| seconds(*x).total_cmp(&seconds(*y))).unwrap_or(1)
    }

    /// What writing and reading the parts takes.
    fn parts(&self, splits: usize) -> f64 {
        let x = self.matrices;
        let bytes = (2 * 4 * splits * x.batches() * x.m.size * x.n.size) as f64;
        if splits > 1 { bytes / TRAFFIC + START_SECONDS } else { 0.0 }
    }

    /// How many blocks work, and how long, in whole rounds over the multiprocessors.
    pub fn blocks(&self, form: Form, splits: usize) -> (usize, f64) {
        let x = self.matrices;
        let [m, n, batches] = [x.m.size, x.n.size, x.batches()];
        let slices = self.slices(form);
        let each = |rate: f64| rate / f64::from(MULTIPROCESSORS);
        let work = |rows: usize, cols: usize, deep: usize| {
            2.0 * rows as f64 * cols as f64 * deep as f64 / each(rate_of(form, n))
        };
        let (blocks, block) = match form {
            Form::Resident { bn, .. } => {
                let columns = n.div_ceil(bn) * batches;
                let walkers = walkers(m, columns);
                let turns = m.div_ceil(64).div_ceil(walkers);
                let panel = (bn * x.k.size * 2) as f64 / each(CACHED);
                (columns * walkers, work(64 * turns, bn, 64 * slices) + panel)
            }
            Form::Ring { bn, .. } => {
                let tiles = m.div_ceil(128) * n.div_ceil(bn) * batches;
                (tiles * splits, work(128, bn, 64 * slices.div_ceil(splits)))
            }
            Form::General { tile, .. } => {
                let tiles = m.div_ceil(tile.bm) * n.div_ceil(tile.bn) * batches;
                (tiles * splits, work(tile.bm, tile.bn, tile.bk * slices.div_ceil(splits)))
            }
        };
        (blocks, blocks.div_ceil(MULTIPROCESSORS as usize) as f64 * block)
    }

    /// What a form takes: its blocks' work or its traffic, and a little of the other.
    pub fn seconds(&self, form: Form, splits: usize) -> f64 {
        let x = self.matrices;
        let (blocks, busy) = self.blocks(form, splits);
        let [a, b] = self.factors.map(|factor| factor.dtype.bytes());
        let depth = x.k.size * x.k_outer.size * x.batches();
        let factors = (a * x.m.size + b * x.n.size) as f64 * depth as f64;
        // Few blocks do not reach the memory's rate.
        let reached = (2.0 * blocks as f64 / f64::from(MULTIPROCESSORS)).min(1.0);
        let moving = (factors + self.traffic) / (TRAFFIC * reached);
        let whole = busy.max(moving) + 0.1 * busy.min(moving);
        // Results of short products leave faster past a panel that stays.
        let gain = if matches!(form, Form::Resident { .. }) { 0.9 } else { 1.0 };
        gain * whole + self.parts(splits)
    }
}

/// Blocks of `gemm_resident_sm90.cu` that share the rows, for so many panels.
pub(super) fn walkers(m: usize, panels: usize) -> usize {
    (MULTIPROCESSORS as usize / panels.max(1)).min(m.div_ceil(64)).max(1)
}

/// Operations a second of the whole device, for so many columns.
fn rate_of(form: Form, n: usize) -> f64 {
    let find = |list: &[(Tile, f64)], tile: Tile| {
        list.iter().find(|(own, _)| *own == tile).map_or(ANY.1, |(_, rate)| *rate)
    };
    match form {
        Form::General { tile, float: true, .. } => find(&FLOAT, tile),
        Form::General { layouts, .. } if layouts.contains(&Layout::Any) => ANY.1,
        Form::General { tile, .. } => find(&TENSOR, tile),
        Form::Ring { bn: 128, layouts: [Layout::Side, Layout::Side], .. } if n > 128 => NARROW,
        Form::Ring { bn, .. } | Form::Resident { bn, .. } => {
            HOPPER.iter().find(|(own, _)| *own == bn).map_or(HOPPER[0].1, |(_, rate)| *rate)
        }
    }
}
