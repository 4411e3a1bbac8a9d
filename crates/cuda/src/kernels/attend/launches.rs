//! From heads, lists and forms to launches: `Params` and `HopperParams` of `lib/attend*.cuh`.

use super::form::Start;
use super::heads::{DOUT, Heads, K, O, Piece, Q, V};
use super::lists::Lists;
use super::seen::UNIT;
use crate::kernels::space::count;
use crate::launch::{Address, Kernel, Launch, MAP_BYTES, Parameters, TensorMap};
use crate::source::Source;
use aerogel_graph::DType;
use aerogel_lower::LowerError;
use std::sync::Arc;

/// Heads whose keys and values are this many bytes are worked on together: half of L2.
const SECTION_BYTES: usize = 24 << 20;

/// A kernel on its way: launches, and the tables that they read.
pub(super) struct Launches<'a> {
    /// Which kernel, for refusals.
    pub kernel: &'static str,
    pub heads: &'a Heads,
    /// `stats` of the backward.
    pub stats: Address,
    /// Bit masks; nothing for decoding.
    pub masks: Address,
    /// Of the first query, for decoding.
    pub position: Address,
    pub made: Kernel,
}

/// Lists, as addresses.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    first: Address,
    entries: Address,
    order: Address,
    tiles: usize,
}

impl Tables {
    /// For kernels that read none.
    pub const NONE: Tables =
        Tables { first: Address::Null, entries: Address::Null, order: Address::Null, tiles: 0 };

    /// Terms of decoding.
    pub fn terms(first: Address, entries: Address) -> Tables {
        Tables { first, entries, ..Tables::NONE }
    }
}

/// Whose tiles a launch has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Those of query heads.
    Queries,
    /// Those of heads of keys.
    Keys,
}

impl Side {
    /// How many heads there are.
    pub fn heads(self, of: &Heads) -> usize {
        match self {
            Side::Queries => of.count(),
            Side::Keys => of.batch.iter().product::<usize>() * of.kv,
        }
    }
}

impl<'a> Launches<'a> {
    pub fn new(kernel: &'static str, heads: &'a Heads) -> Launches<'a> {
        let (stats, masks, position) = (Address::Null, Address::Null, Address::Null);
        Launches { kernel, heads, stats, masks, position, made: Kernel::default() }
    }

    /// A table of the kernel's, equal ones once.
    pub fn table(&mut self, bytes: &Arc<[u8]>) -> Address {
        let known = self.made.tables.iter().position(|table| Arc::ptr_eq(table, bytes));
        Address::Table(known.unwrap_or_else(|| {
            self.made.tables.push(bytes.clone());
            self.made.tables.len() - 1
        }))
    }

    /// The tables of lists.
    pub fn lists(&mut self, lists: &Lists) -> Tables {
        let [first, entries, order] =
            [&lists.first, &lists.entries, &lists.order].map(|table| self.table(table));
        Tables { first, entries, order, tiles: lists.tiles }
    }

    /// One block, or `rows` of them, for each tile of a head.
    pub fn by_tile(
        &mut self,
        start: Start,
        side: Side,
        piece: &Piece,
        tables: Tables,
        rows: u32,
    ) -> Result<(), LowerError> {
        let blocks = side.heads(self.heads) * tables.tiles;
        self.push(start, blocks, rows, self.params(piece, tables, side))
    }

    /// So many blocks, which are no tiles.
    pub fn by_block(
        &mut self,
        start: Start,
        blocks: usize,
        rows: u32,
        piece: &Piece,
        tables: Tables,
    ) -> Result<(), LowerError> {
        self.push(start, blocks, rows, self.params(piece, tables, Side::Queries))
    }

    /// A kernel of Hopper's, one block for each run of tiles: `HopperParams`.
    pub fn hopper(
        &mut self,
        start: Start,
        side: Side,
        piece: &Piece,
        tables: Tables,
    ) -> Result<(), LowerError> {
        let blocks = (side.heads(self.heads) * tables.tiles).div_ceil(start.run);
        let mut all = Parameters::new();
        let mapped = [Q, K, V, DOUT, O].map(|at| map(self.heads, at, piece));
        for of in &mapped {
            match of {
                Some((map, _)) => _ = all.map(map.clone()),
                None => (0..MAP_BYTES / 8).for_each(|_| _ = all.u64(0)),
            }
        }
        all.append(&self.params(piece, tables, side));
        let axes = mapped.iter().flat_map(|of| of.as_ref().map_or([5; 3], |(_, axes)| *axes));
        axes.for_each(|axis| _ = all.u32(axis));
        all.u32(count(self.kernel, start.run)?).align(64);
        self.push(start, blocks, 1, all)
    }

    fn push(
        &mut self,
        start: Start,
        blocks: usize,
        rows: u32,
        parameters: Parameters,
    ) -> Result<(), LowerError> {
        if blocks == 0 {
            return Ok(());
        }
        let argument = if start.entry.ends_with("sm90") { "HopperParams" } else { "Params" };
        let bytes = parameters.bytes().len();
        let mut defines = start.defines.to_vec();
        defines.extend((self.heads.dtype() == DType::F16).then(|| "F16=1".to_owned()));
        let source = Source::launched(start.file, None, defines, (argument, bytes));
        self.made.launches.push(Launch {
            source,
            entry: start.entry,
            grid: [count(self.kernel, blocks)?, rows, 1],
            threads: start.threads,
            shared_bytes: count(self.kernel, start.shared_bytes)?,
            parameters,
        });
        Ok(())
    }

    /// `Params`.
    fn params(&self, piece: &Piece, tables: Tables, side: Side) -> Parameters {
        let heads = self.heads;
        let mut p = Parameters::new();
        for (own, &further) in heads.operands.iter().zip(piece) {
            let Some(own) = own else {
                (0..9).for_each(|_| _ = p.u64(0));
                continue;
            };
            let bytes = further as i64 * own.dtype.bytes() as i64;
            p.address(Address::operand(own.number).plus(bytes));
            let rest = [own.kv, own.group, own.column, own.row, own.width];
            own.batch.iter().chain(&rest).for_each(|&stride| _ = p.i64(stride as i64));
        }
        p.address(self.stats).address(tables.first).address(tables.entries);
        p.address(tables.order).address(self.masks).address(self.position);
        let cut = &heads.cut;
        let ([queries, keys], [query_units, _]) = (cut.positions(), cut.units());
        let [query_length, key_length] = cut.lengths;
        let [query_step, key_step] = cut.steps;
        let mut u32s = |all: &[usize]| all.iter().for_each(|&n| _ = p.u32(n as u32));
        u32s(&heads.batch);
        u32s(&[heads.kv, heads.group, queries, keys, query_length, key_length]);
        u32s(&[magic(query_length), magic(key_length), query_step, key_step, query_units]);
        u32s(&[tables.tiles, heads.kinds, section(heads, side)]);
        u32s(&heads.widths);
        p.f32(heads.scale).f32((f64::from(heads.scale) * std::f64::consts::LOG2_E) as f32);
        p.align(8);
        p
    }
}

/// `x / length = x magic >> 32`, for `x length < 2^32`.
fn magic(length: usize) -> usize {
    (1usize << 32).div_ceil(length.max(1)).min(u32::MAX as usize)
}

/// Heads that are worked on together.
fn section(heads: &Heads, side: Side) -> usize {
    let [queries, keys] = heads.cut.positions();
    let positions = match side {
        Side::Queries => keys.div_ceil(heads.group.max(1)),
        Side::Keys => queries * heads.group,
    };
    let bytes = positions * (heads.widths[0] + heads.widths[1]) * heads.dtype().bytes();
    (SECTION_BYTES / bytes.max(1)).clamp(1, side.heads(heads).max(1))
}

/// An operand as the tensor copy engine sees it, and which axes of the head the map's last three
/// are: 0, 1, 2 batch, 3 kv, 4 group, 5 none.
pub(super) fn map(heads: &Heads, at: usize, piece: &Piece) -> Option<(TensorMap, [u32; 3])> {
    let own = heads.operands[at].as_ref()?;
    let side = usize::from(at == K || at == V);
    let width = heads.widths[usize::from([V, DOUT, O].contains(&at))] as u64;
    let positions = heads.cut.lengths[side] as u64;
    let sizes = heads.batch.iter().chain([&heads.kv, &heads.group]);
    let strides = own.batch.iter().chain([&own.kv, &own.group]);
    let walked: Vec<(u32, u64, isize)> = (0..)
        .zip(sizes.zip(strides))
        .filter(|(_, (size, stride))| **size > 1 && **stride != 0)
        .map(|(axis, (&size, &stride))| (axis, size as u64, stride))
        .collect();
    // Any legal stride does where there is one place only.
    let row = if positions > 1 { own.row } else { width as isize };
    let legal = |stride: isize| stride > 0 && stride % 8 == 0 && stride < 1 << 39;
    let sane = walked.iter().all(|w| legal(w.2)) && legal(row) && positions > 0;
    if !own.dtype.is_half() || own.width != 1 || walked.len() > 3 || !sane {
        return None;
    }
    let mut axes = [5; 3];
    let (mut sizes, mut strides) = ([width, positions, 1, 1, 1], [row as u64, width, width, width]);
    for (n, &(axis, size, stride)) in walked.iter().enumerate() {
        axes[n] = axis;
        sizes[2 + n] = size;
        strides[1 + n] = stride as u64;
    }
    let bytes = piece[at] as i64 * own.dtype.bytes() as i64;
    let tile = [UNIT as u32, UNIT as u32, 1, 1, 1];
    let address = Address::operand(own.number).plus(bytes);
    Some((TensorMap { dtype: own.dtype, address, sizes, strides, tile }, axes))
}
