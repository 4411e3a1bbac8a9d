//! Attention: forward, backward, and decoding.
//!
//! Positions are cut in units of 64. What a pattern keeps of the score matrix (`seen.rs`) becomes
//! lists of units (`lists.rs`), which are made once for all layers (`cache.rs`). The operands'
//! axes become those of the kernels (`heads.rs`); by widths, types, strides and the length of the
//! lists a form is chosen (`form.rs`), and how many tiles a block takes (`runs.rs`); `launches.rs`
//! fills in parameters.

mod cache;
mod decode;
mod form;
mod heads;
mod launches;
mod lists;
mod runs;
mod seen;
#[cfg(test)]
mod tests;

use super::{Chip, unsupported};
use crate::gpu::Architecture;
use crate::launch::{Address, Kernel};
use aerogel_graph::{DType, Pattern};
use aerogel_lower::{AttendGradSpec, AttendMask, AttendSpec, LowerError};
use form::{Backward, Forward, Look, Start};
use heads::{DOUT, Heads, K, O, OPERANDS, Piece, Q, V};
use launches::{Launches, Side, Tables, map};
use lists::Of;
use seen::UNIT;

/// Blocks that share a tile in kernels without tensor cores: a warp for each row.
const PLAIN_ROWS: u32 = 16;

/// Heads and the places of launches.
type Placed = (Heads, Vec<Piece>);

/// The forward.
///
/// # Errors
/// Types are mixed, there are too many batch axes that cannot be merged, or rows are too wide.
pub(crate) fn attend(
    spec: &AttendSpec,
    mask: &AttendMask,
    align: &[u64],
    chip: Chip,
) -> Result<Kernel, LowerError> {
    let all = Heads::of(spec, mask)?;
    same_queries("attend", &all, mask)?;
    for (heads, pieces) in for_tensor_cores("attend", &all, align)? {
        let look = Look::new(&heads, &cache::kept(&mask.pattern, heads.kinds, heads.cut));
        for form in look.forward(chip.architecture.is_hopper()) {
            let maps = form != Forward::Hopper || has_maps(&heads, &[Q, K, V], &pieces);
            if maps && let Some(made) = forward(&heads, &pieces, &mask.pattern, form, chip)? {
                return Ok(made);
            }
        }
    }
    let (heads, pieces) = all.pieces("attend")?;
    forward(&heads, &pieces, &mask.pattern, Forward::Plain, chip)?
        .ok_or_else(|| too_wide("attend", &heads))
}

/// The backward.
///
/// # Errors
/// As the forward.
pub(crate) fn attend_grad(
    spec: &AttendGradSpec,
    mask: &AttendMask,
    align: &[u64],
    chip: Chip,
) -> Result<Kernel, LowerError> {
    let kernel = "attend_grad";
    let all = Heads::of_grad(spec, mask)?;
    same_queries(kernel, &all, mask)?;
    for (heads, pieces) in for_tensor_cores(kernel, &all, align)? {
        let look = Look::new(&heads, &cache::kept(&mask.pattern, heads.kinds, heads.cut));
        for form in look.backward(chip.architecture.is_hopper()) {
            let maps = form != Backward::Hopper || has_maps(&heads, &[Q, K, V, DOUT, O], &pieces);
            if maps && let Some(made) = backward(&heads, &pieces, &mask.pattern, form, chip)? {
                return Ok(made);
            }
        }
    }
    let (heads, pieces) = all.pieces(kernel)?;
    backward(&heads, &pieces, &mask.pattern, Backward::Plain, chip)?
        .ok_or_else(|| too_wide(kernel, &heads))
}

/// The forward of a window of queries whose first position is a scalar on the GPU.
///
/// # Errors
/// As the forward; or a number of the pattern has more than 32 bits.
pub(crate) fn decode(spec: &AttendSpec, mask: &AttendMask) -> Result<Kernel, LowerError> {
    let (heads, pieces) = Heads::of(spec, mask)?.pieces("decode")?;
    // No GPU gives a block less memory than this one.
    let chip = Chip { architecture: Architecture { capability: (8, 6) } };
    let start = plain("attend_decode", &heads, chip).ok_or_else(|| too_wide("decode", &heads))?;
    let mut launches = Launches::new("decode", &heads);
    launches.position = Address::Position;
    let [first, terms] = decode::terms(&mask.pattern, heads.kinds)?;
    let tables = Tables::terms(launches.table(&first), launches.table(&terms));
    let blocks = heads.count() * heads.cut.lengths[0];
    for piece in &pieces {
        launches.by_block(start, blocks, 1, piece, tables)?;
    }
    Ok(launches.made)
}

fn same_queries(kernel: &'static str, heads: &Heads, mask: &AttendMask) -> Result<(), LowerError> {
    let got = heads.cut.lengths[0];
    match got == mask.queries {
        true => Ok(()),
        false => {
            let what = format!("{got} queries, but the mask has {}", mask.queries);
            Err(unsupported(kernel, what))
        }
    }
}

fn too_wide(kernel: &'static str, heads: &Heads) -> LowerError {
    let [dq, dv] = heads.widths;
    unsupported(
        kernel,
        format!("keys of width {dq} and values of {dv} do not fit a block's memory"),
    )
}

/// How tensor cores may see the heads, best first; nothing if they do not take the operands.
fn for_tensor_cores(
    kernel: &'static str,
    all: &Heads,
    align: &[u64],
) -> Result<Vec<Placed>, LowerError> {
    if !form::has_widths(all.widths) || !all.suit_tensor_cores(align) {
        return Ok(vec![]);
    }
    let first = all.packed().unwrap_or_else(|| all.clone());
    let second = if first.cut.packed { None } else { all.as_column() };
    [first].into_iter().chain(second).map(|heads| heads.pieces(kernel)).collect()
}

fn has_maps(heads: &Heads, operands: &[usize], pieces: &[Piece]) -> bool {
    let piece = pieces.first().unwrap_or(&[0; OPERANDS]);
    operands.iter().all(|&at| map(heads, at, piece).is_some())
}

/// A kernel without tensor cores.
fn plain(entry: &'static str, heads: &Heads, chip: Chip) -> Option<Start> {
    let bf16 = usize::from(heads.dtype() == DType::Bf16);
    Start::find(entry, heads, 1, &[("BF16", bf16)], chip)
}

/// A kernel of Hopper's, with as many tiles a block as suit its lists.
fn hopper(
    entry: &'static str,
    heads: &Heads,
    pattern: &Pattern,
    side: Side,
    chip: Chip,
) -> Option<Start> {
    let of = if side == Side::Keys { Of::Columns(2) } else { Of::Rows(2) };
    // Widths without such a kernel need no lists.
    Start::hopper(entry, heads, 1, chip)?;
    let lists = cache::lists(pattern, heads.kinds, heads.cut, of);
    let run = runs::run(lists.as_ref().as_ref()?, side.heads(heads));
    Start::hopper(entry, heads, run, chip)
}

/// The forward in a form; none if there is no kernel for it.
fn forward(
    heads: &Heads,
    pieces: &[Piece],
    pattern: &Pattern,
    form: Forward,
    chip: Chip,
) -> Result<Option<Kernel>, LowerError> {
    let found = match form {
        Forward::Plain => plain("attend_plain_fwd", heads, chip).map(|s| (s, 1)),
        Forward::Mma(tile) => Start::find("attend_fwd", heads, tile, &[], chip).map(|s| (s, tile)),
        Forward::Hopper => {
            hopper("attend_fwd_sm90", heads, pattern, Side::Queries, chip).map(|s| (s, 2))
        }
    };
    let Some((start, tile)) = found else { return Ok(None) };
    let mut launches = Launches::new("attend", heads);
    let Some(tables) = tables(&mut launches, pattern, Of::Rows(tile)) else { return Ok(None) };
    for piece in pieces {
        match form {
            Forward::Plain => {
                launches.by_tile(start, Side::Queries, piece, tables.0, PLAIN_ROWS)?;
            }
            Forward::Mma(_) => launches.by_tile(start, Side::Queries, piece, tables.0, 1)?,
            Forward::Hopper => launches.hopper(start, Side::Queries, piece, tables.0)?,
        }
    }
    Ok(Some(launches.made))
}

/// Lists as tables of the kernel, and the slots of a band; the masks are set as well.
fn tables(launches: &mut Launches<'_>, pattern: &Pattern, of: Of) -> Option<(Tables, usize)> {
    let heads = launches.heads;
    let kept = cache::kept(pattern, heads.kinds, heads.cut);
    let lists = cache::lists(pattern, heads.kinds, heads.cut, of);
    let lists = lists.as_ref().as_ref()?;
    let tables = launches.lists(lists);
    launches.masks = launches.table(&kept.masks);
    Some((tables, lists.slots))
}

/// What a backward launches for a piece: statistics, unless the one of dq makes them or there are
/// none, and gradients.
struct Gradients {
    stats: Option<(Start, usize, u32)>,
    /// dk and dv, in the one-pass forms all of it; then dq.
    by_key: (Start, Of),
    by_query: Option<(Start, Of)>,
}

impl Gradients {
    fn find(heads: &Heads, pattern: &Pattern, form: Backward, chip: Chip) -> Option<Gradients> {
        let units = heads.count() * heads.cut.units()[0];
        let stats = || {
            let found = Start::find("attend_stats", heads, 1, &[], chip)?;
            let per_block = [4, 2, 1, 1][(heads.widths[1] / 32).clamp(1, 4) - 1];
            let blocks = heads.count() * heads.cut.units()[0].div_ceil(per_block);
            Some(Some((found, blocks, 1)))
        };
        let find =
            |entry, tile, more: &[(&str, usize)]| Start::find(entry, heads, tile, more, chip);
        let of = |entry, side| hopper(entry, heads, pattern, side, chip);
        Some(match form {
            Backward::Plain => Gradients {
                stats: Some((plain("attend_plain_stats", heads, chip)?, units, PLAIN_ROWS)),
                by_key: (plain("attend_plain_dkv", heads, chip)?, Of::Columns(1)),
                by_query: Some((plain("attend_plain_dq", heads, chip)?, Of::Rows(1))),
            },
            Backward::Mma(tile) => Gradients {
                stats: stats()?,
                by_key: (find("attend_dkv", tile, &[("FUSED", 0)])?, Of::Columns(tile)),
                by_query: Some((find("attend_dq", tile, &[])?, Of::Rows(tile))),
            },
            Backward::Fused => Gradients {
                stats: None,
                by_key: (find("attend_dkv", 1, &[("FUSED", 1)])?, Of::Columns(1)),
                by_query: None,
            },
            Backward::Band(stretch) => {
                let visits = Of::Band(stretch);
                let lists = cache::lists(pattern, heads.kinds, heads.cut, visits);
                let slots = lists.as_ref().as_ref()?.slots;
                Gradients {
                    stats: stats()?,
                    by_key: (find("attend_band", slots, &[])?, visits),
                    by_query: None,
                }
            }
            Backward::Hopper => Gradients {
                stats: None,
                by_key: (of("attend_dkv_sm90", Side::Keys)?, Of::Columns(2)),
                by_query: Some((of("attend_dq_sm90", Side::Queries)?, Of::Rows(2))),
            },
        })
    }
}

/// The backward in a form; none if there are no kernels for it.
fn backward(
    heads: &Heads,
    pieces: &[Piece],
    pattern: &Pattern,
    form: Backward,
    chip: Chip,
) -> Result<Option<Kernel>, LowerError> {
    let Some(parts) = Gradients::find(heads, pattern, form, chip) else { return Ok(None) };
    let mut launches = Launches::new("attend_grad", heads);
    if form != Backward::Fused {
        // float2[units + 1][64]; launches over pieces take turns.
        let units = heads.count() * heads.cut.units()[0] + 1;
        launches.stats = Address::Workspace(0);
        launches.made.workspace_bytes = (units * UNIT * 8).next_multiple_of(256) as u64;
    }
    let mut with_tables = |part: (Start, Of)| {
        let (of, _) = tables(&mut launches, pattern, part.1)?;
        Some((part.0, of))
    };
    let Some(by_key) = with_tables(parts.by_key) else { return Ok(None) };
    let by_query = match parts.by_query {
        None => None,
        Some(part) => match with_tables(part) {
            None => return Ok(None),
            found => found,
        },
    };
    let rows = if form == Backward::Plain { PLAIN_ROWS } else { 1 };
    for piece in pieces {
        if let Some((start, blocks, rows)) = parts.stats {
            launches.by_block(start, blocks, rows, piece, Tables::NONE)?;
        }
        let mut of_both = [(Some(by_key), Side::Keys), (by_query, Side::Queries)];
        if form == Backward::Hopper {
            // The one of dq makes the statistics.
            of_both.reverse();
        }
        for (part, side) in of_both {
            let Some((start, tables)) = part else { continue };
            match form {
                Backward::Hopper => launches.hopper(start, side, piece, tables)?,
                _ => launches.by_tile(start, side, piece, tables, rows)?,
            }
        }
    }
    Ok(Some(launches.made))
}
