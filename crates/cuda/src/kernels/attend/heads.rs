//! The heads of an attention, as kernels walk them: at most three batch axes, heads of keys, heads
//! of queries that share them, packed columns, positions, widths.

use super::seen::{Cut, UNIT};
use crate::kernels::unsupported;
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use aerogel_lower::{AttendGradSpec, AttendMask, AttendSpec, Attention, LowerError, Operand};

/// Operands of the kernels, in the order of `Params`.
pub(super) const OPERANDS: usize = 10;
pub(super) const Q: usize = 0;
pub(super) const K: usize = 1;
pub(super) const V: usize = 2;
pub(super) const O: usize = 3;
pub(super) const LSE: usize = 4;
pub(super) const DOUT: usize = 5;
pub(super) const DLSE: usize = 6;
/// Those along keys: k, v, dk, dv.
const KEY_SIDE: [usize; 4] = [K, V, 8, 9];

/// Packed columns have at most so many positions, so that their lists stay small.
const MOST_PACKED: usize = 1 << 16;
/// Launches that axes beyond those of the kernels may cost.
const MOST_PIECES: usize = 4096;

/// An operand: which of the spec's, and its strides in elements. Where there is one place only, the
/// stride is 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub number: usize,
    pub dtype: DType,
    pub batch: Vec<isize>,
    pub kv: isize,
    pub group: isize,
    pub column: isize,
    pub row: isize,
    pub width: isize,
}

/// The heads, and where the operands have them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heads {
    pub batch: Vec<usize>,
    pub kv: usize,
    pub group: usize,
    /// Heads with patterns of their own: head h has pattern h mod this.
    pub kinds: usize,
    pub cut: Cut,
    /// Of keys and of values.
    pub widths: [usize; 2],
    pub scale: f32,
    pub operands: [Option<Place>; OPERANDS],
}

/// By how many elements each operand lies further on in a launch.
pub(super) type Piece = [isize; OPERANDS];

impl Heads {
    /// Of a forward. `queries` are as many as those of a run.
    pub fn of(spec: &AttendSpec, mask: &AttendMask) -> Result<Heads, LowerError> {
        let list = spec.operands().map(Some);
        let numbered: Vec<_> = list.into_iter().zip([0, 1, 2, 3, 4]).collect();
        Heads::new("attend", &spec.attention, mask, &numbered)
    }

    /// Of a backward.
    pub fn of_grad(spec: &AttendGradSpec, mask: &AttendMask) -> Result<Heads, LowerError> {
        let AttendGradSpec { q, k, v, o, lse, dout, dq, dk, dv, dlse, .. } = spec;
        let all = [q, k, v, o, lse, dout].map(Some).into_iter();
        let all = all.chain([dlse.as_ref()]).chain([dq, dk, dv].map(Some));
        let numbered: Vec<_> = all.zip([0, 1, 2, 3, 4, 5, 9, 6, 7, 8]).collect();
        Heads::new("attend_grad", &spec.attention, mask, &numbered)
    }

    fn new(
        kernel: &'static str,
        attention: &Attention,
        mask: &AttendMask,
        operands: &[(Option<&Operand>, usize)],
    ) -> Result<Heads, LowerError> {
        let Attention { kv, group, queries, .. } = *attention;
        if mask.heads != 1 && mask.heads != kv * group {
            let what = format!("a mask of {} heads for {kv} x {group}", mask.heads);
            return Err(unsupported(kernel, what));
        }
        let kinds = match mask.heads {
            1 => 1,
            heads => mask.pattern.head_kinds().min(heads).max(1),
        };
        let widths = [attention.key_width, attention.value_width];
        let lengths = [queries, mask.keys];
        let mut heads = Heads {
            batch: attention.batch.clone(),
            kv,
            group,
            kinds,
            cut: Cut::whole(lengths),
            widths,
            scale: attention.scale,
            operands: Default::default(),
        };
        for (at, (operand, number)) in operands.iter().enumerate() {
            let Some(own) = operand else { continue };
            let positions = if KEY_SIDE.contains(&at) { mask.keys } else { queries };
            let sizes = attention.sizes(positions, usize::MAX);
            heads.operands[at] = Some(place(kernel, own, *number, &sizes)?);
        }
        heads.check_types(kernel)?;
        if kinds == 1 {
            // Heads of keys are then an axis like any other.
            heads.batch.push(std::mem::replace(&mut heads.kv, 1));
            heads.places_mut().for_each(|p| p.batch.push(std::mem::take(&mut p.kv)));
        }
        heads.merge();
        Ok(heads)
    }

    fn check_types(&self, kernel: &'static str) -> Result<(), LowerError> {
        let wanted = self.dtype();
        for (at, own) in self.places() {
            let wanted = if [LSE, DLSE].contains(&at) { DType::F32 } else { wanted };
            if own.dtype != wanted || wanted == DType::U32 {
                let what = format!(
                    "operand {} holds {:?}; q, k, v, o and their gradients hold all f32, all \
                     bf16 or all f16, log-sum-exps f32",
                    own.number, own.dtype
                );
                return Err(unsupported(kernel, what));
            }
        }
        Ok(())
    }

    /// What q holds, and all others but the log-sum-exps.
    pub fn dtype(&self) -> DType {
        self.operands[Q].as_ref().map_or(DType::F32, |q| q.dtype)
    }

    /// The operands that there are.
    pub fn places(&self) -> impl Iterator<Item = (usize, &Place)> {
        self.operands.iter().enumerate().filter_map(|(at, own)| Some((at, own.as_ref()?)))
    }

    fn places_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.operands.iter_mut().flatten()
    }

    /// Query heads over all of the batch.
    pub fn count(&self) -> usize {
        self.batch.iter().product::<usize>() * self.kv * self.group
    }

    /// Merges batch axes that all operands walk evenly, and drops those of one place.
    fn merge(&mut self) {
        let strides = self.places().map(|(_, p)| p.batch.clone()).collect();
        let mut space = Space { sizes: self.batch.clone(), strides };
        let boundary = space.sizes.len();
        space.collapse(boundary);
        self.batch = space.sizes;
        self.places_mut().zip(space.strides).for_each(|(place, own)| place.batch = own);
    }

    /// Short sequences, packed: along the batch axis that fills units best, the longest of those.
    /// None where sequences are long, or cannot be packed.
    pub fn packed(&self) -> Option<Heads> {
        let lengths = self.cut.lengths;
        let (least, longest) = (lengths[0].min(lengths[1]), lengths[0].max(lengths[1]));
        // Sequences that are longer than a unit straddle units, which pays up to two.
        let straddle = longest > UNIT;
        if least < 2 || longest >= 2 * UNIT || straddle && lengths[0] != lengths[1] {
            return None;
        }
        let usable = |axis: usize| {
            let most = (MOST_PACKED / longest).min(self.batch[axis]);
            (1..=most).rev().find(|n| self.batch[axis].is_multiple_of(*n)).unwrap_or(1)
        };
        let filled = |n: usize| n * 1024 / Cut::packed(n, lengths).units()[0];
        let axes = (0..self.batch.len()).filter(|_| straddle || 2 * longest <= UNIT);
        let best = axes.max_by_key(|&axis| (filled(usable(axis)), usable(axis)));
        let columns = best.map_or(1, usable);
        if straddle && columns == 1 {
            return None;
        }
        let mut heads = self.clone();
        heads.cut = Cut::packed(columns, lengths);
        if let Some(axis) = best.filter(|_| columns > 1) {
            heads.batch[axis] /= columns;
            for place in heads.places_mut() {
                place.column = place.batch[axis];
                place.batch[axis] *= columns as isize;
            }
            heads.merge();
        }
        Some(heads)
    }

    /// Long sequences in the form of packed ones, one column each: its blocks need less memory.
    pub fn as_column(&self) -> Option<Heads> {
        let [queries, keys] = self.cut.lengths;
        let fits = (2..1 << 16).contains(&queries) && (2..1 << 16).contains(&keys);
        let cut = Cut { packed: true, ..Cut::whole(self.cut.lengths) };
        fits.then(|| Heads { cut, ..self.clone() })
    }

    /// At most three batch axes, and the places of the launches that this takes: axes beyond them
    /// are walked by launches, the shortest ones first.
    pub fn pieces(mut self, kernel: &'static str) -> Result<(Heads, Vec<Piece>), LowerError> {
        if self.kinds == 1
            && let Some(kv) = self.batch.pop()
        {
            self.kv = kv;
            self.places_mut().for_each(|p| p.kv = p.batch.pop().unwrap_or(0));
        }
        let mut pieces = vec![[0; OPERANDS]];
        while self.batch.len() > 3 {
            let axis = (0..self.batch.len()).min_by_key(|&a| self.batch[a]).unwrap_or(0);
            let size = self.batch.remove(axis);
            let mut step = [0; OPERANDS];
            for (to, own) in step.iter_mut().zip(&mut self.operands) {
                *to = own.as_mut().map_or(0, |own| own.batch.remove(axis));
            }
            let moved = |piece: &Piece, n: usize| -> Piece {
                std::array::from_fn(|at| piece[at] + n as isize * step[at])
            };
            pieces = pieces.iter().flat_map(|p| (0..size).map(move |n| moved(p, n))).collect();
            if pieces.len() > MOST_PIECES {
                let what = format!(
                    "batch axes that cannot be merged ask for {} launches, at most {MOST_PIECES} \
                     are made; store the operands in one order of axes",
                    pieces.len()
                );
                return Err(unsupported(kernel, what));
            }
        }
        let missing = 3 - self.batch.len();
        self.batch.splice(0..0, vec![1; missing]);
        self.places_mut().for_each(|p| drop(p.batch.splice(0..0, vec![0; missing])));
        Ok((self, pieces))
    }

    /// Whether tensor cores can take the operands: 16-bit rows of contiguous elements that begin at
    /// multiples of 16 bytes.
    pub fn suit_tensor_cores(&self, align: &[u64]) -> bool {
        let suits = |p: &Place| {
            let strides = p.batch.iter().chain([&p.kv, &p.group, &p.column, &p.row]);
            let known = align.get(p.number).copied().unwrap_or(1);
            p.width == 1 && known >= 16 && strides.into_iter().all(|s| s % 8 == 0)
        };
        let wide = |at: usize| ![LSE, DLSE].contains(&at);
        self.dtype().is_half()
            && self.scale > 0.0
            && self.scale.is_finite()
            && self.places().all(|(at, p)| !wide(at) || suits(p))
    }
}

/// An operand with strides over [batch.., kv, group, position, width].
fn place(
    kernel: &'static str,
    own: &Operand,
    number: usize,
    sizes: &[usize],
) -> Result<Place, LowerError> {
    let (wanted, got) = (sizes.len(), own.strides.len());
    if got != wanted {
        return Err(LowerError::Rank { kernel, operand: number, wanted, got });
    }
    let stride = |(&size, &stride): (&usize, &isize)| if size == 1 { 0 } else { stride };
    let strides: Vec<isize> = sizes.iter().zip(&own.strides).map(stride).collect();
    let (batch, rest) = strides.split_at(wanted - 4);
    Ok(Place {
        number,
        dtype: own.dtype,
        batch: batch.to_vec(),
        kv: rest[0],
        group: rest[1],
        column: 0,
        row: rest[2],
        width: rest[3],
    })
}
