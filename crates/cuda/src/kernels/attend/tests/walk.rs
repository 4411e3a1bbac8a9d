//! Kernels made of specs are walked as the GPU would: every query must meet its keys, at the
//! addresses that the spec says.

use super::lists::{PATTERNS, has, words};
use super::specs::Case;
use crate::gpu::Architecture;
use crate::kernels::Chip;
use crate::kernels::attend::heads::Heads;
use crate::kernels::attend::seen::UNIT;
use crate::kernels::attend::{attend, attend_grad};
use crate::launch::{Address, Kernel, Launch};
use aerogel_graph::DType;
use aerogel_lower::Operand;
use std::collections::{BTreeSet, HashMap};

/// Bytes of an operand's row.
type At = i64;
/// What a row meets, as addresses of two operands of the other side, rising.
type Meets = HashMap<At, Vec<(At, At)>>;

/// `Params` of a launch, with its tables.
struct Read<'a> {
    kernel: &'a Kernel,
    launch: &'a Launch,
    /// Where `Params` begins.
    base: usize,
}

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const LSE: usize = 4;
const DOUT: usize = 5;
const DQ: usize = 7;
const DK: usize = 8;
const DV: usize = 9;

impl Read<'_> {
    fn u32(&self, at: usize) -> usize {
        let bytes = &self.launch.parameters.bytes()[self.base + at..][..4];
        u32::from_le_bytes(bytes.try_into().unwrap()) as usize
    }

    fn address(&self, at: usize) -> Option<Address> {
        let all = self.launch.parameters.addresses();
        all.iter().find(|(byte, _)| *byte == self.base + at).map(|(_, address)| *address)
    }

    fn table(&self, at: usize) -> Vec<u32> {
        match self.address(at) {
            Some(Address::Table(n)) => words(&self.kernel.tables[n]),
            other => panic!("no table: {other:?}"),
        }
    }

    /// Address of a position of a head: the operand in the spec, and bytes.
    fn at(&self, operand: usize, head: [usize; 5], x: usize, bytes: i64) -> (usize, At) {
        let field = |n: usize| {
            let from = self.base + 72 * operand + 8 * n;
            let bytes = &self.launch.parameters.bytes()[from..from + 8];
            i64::from_le_bytes(bytes.try_into().unwrap())
        };
        let Some(Address::Operand { operand: number, bytes: first }) = self.address(72 * operand)
        else {
            panic!("operand {operand} is missing")
        };
        let length = self.u32(if [K, V, DK, DV].contains(&operand) { 800 } else { 796 });
        let magic = self.u32(if [K, V, DK, DV].contains(&operand) { 808 } else { 804 });
        let packed = self.launch.source.defines.iter().any(|d| d == "PACK=1");
        let column = if packed { (x * magic) >> 32 } else { 0 };
        let row = if packed { x - column * length } else { x };
        let axes: i64 = (0..5).map(|n| head[n] as i64 * field(1 + n)).sum();
        (number, first + bytes * (axes + column as i64 * field(6) + row as i64 * field(7)))
    }

    /// Heads as `head_of` numbers them.
    fn heads(&self, groups: usize) -> Vec<[usize; 5]> {
        let size = |n: usize| self.u32(768 + 4 * n);
        let mut all = vec![];
        for b in (0..size(0)).flat_map(|a| (0..size(1)).map(move |b| [a, b])) {
            for c in (0..size(2)).flat_map(|c| (0..size(3)).map(move |d| [c, d])) {
                (0..groups).for_each(|group| all.push([b[0], b[1], c[0], c[1], group]));
            }
        }
        all
    }

    /// Which list a head has.
    fn kind(&self, head: [usize; 5]) -> usize {
        let kinds = self.u32(828);
        if kinds == 1 { 0 } else { (head[3] * self.u32(784) + head[4]) % kinds }
    }

    /// All pairs of (own, far) positions of a list of tiles; `turned`: own are keys.
    fn pairs(&self, kind: usize, turned: bool) -> Vec<(usize, usize)> {
        let (first, entries, masks) = (self.table(728), self.table(736), self.table(752));
        let tiles = self.u32(824);
        let mut steps = [self.u32(812), self.u32(816)];
        let mut ends = [self.u32(788), self.u32(792)];
        if turned {
            (steps, ends) = ([steps[1], steps[0]], [ends[1], ends[0]]);
        }
        let wide = self.launch.source.defines.iter().any(|d| d == "ROW_TILES=2");
        let tile_units = if wide || self.base > 0 { 2 } else { 1 };
        let mut out = vec![];
        for tile in 0..tiles {
            let list = kind * tiles + tile;
            for entry in entries[4 * first[list] as usize..4 * first[list + 1] as usize].chunks(4) {
                for (half, row, column) in (0..tile_units * UNIT * UNIT)
                    .map(|n| (n / (UNIT * UNIT), n / UNIT % UNIT, n % UNIT))
                {
                    let (i, j) = if turned { (column, row) } else { (row, column) };
                    let own = (tile * tile_units + half) * steps[0] + row;
                    let far = entry[0] as usize * steps[1] + column;
                    let there = row < steps[0] && column < steps[1];
                    let there = there && own < ends[0] && far < ends[1];
                    if there && has(&masks, entry[1 + half], i, j) {
                        out.push((own, far));
                    }
                }
            }
        }
        out
    }
}

fn read<'a>(kernel: &'a Kernel, entries: &[&str]) -> Vec<Read<'a>> {
    let own = kernel.launches.iter().filter(|l| entries.contains(&l.entry));
    own.map(|launch| {
        let base = if launch.entry.ends_with("sm90") { 640 } else { 0 };
        Read { kernel, launch, base }
    })
    .collect()
}

/// Coordinates [batch.., kv, group] of all query heads.
fn heads(case: &Case) -> Vec<Vec<usize>> {
    let sizes = [&case.batch[..], &[case.kv, case.group]].concat();
    let count: usize = sizes.iter().product();
    let of = |mut n: usize| {
        let mut at = vec![0; sizes.len()];
        for axis in (0..sizes.len()).rev() {
            at[axis] = n % sizes[axis];
            n /= sizes[axis];
        }
        at
    };
    (0..count).map(of).collect()
}

/// Bytes of a row, from the spec.
fn of_spec(own: &Operand, head: &[usize], position: usize) -> At {
    let axes: isize = head.iter().zip(&own.strides).map(|(&n, &s)| n as isize * s).sum();
    let elements = axes + position as isize * own.strides[head.len()];
    elements as i64 * own.dtype.bytes() as i64
}

/// For each row of the first operand, what rows of the other two its keys have.
fn wanted(case: &Case, own: &Operand, far: [&Operand; 2], turned: bool) -> Meets {
    let mask = case.mask();
    let mut meets = Meets::new();
    for at in heads(case) {
        let head = at[case.batch.len()] * case.group + at[case.batch.len() + 1];
        let ends = if turned { [case.keys, case.queries] } else { [case.queries, case.keys] };
        let rows = |of: &Operand, end: usize| -> Vec<At> {
            (0..end).map(|row| of_spec(of, &at, row)).collect()
        };
        let (own, far) = (rows(own, ends[0]), far.map(|far| rows(far, ends[1])));
        own.iter().for_each(|&row| _ = meets.entry(row).or_default());
        for (i, j) in (0..case.queries).flat_map(|i| (0..case.keys).map(move |j| (i, j))) {
            if mask.pattern.allows(head, i, j) {
                let (row, column) = if turned { (j, i) } else { (i, j) };
                meets.get_mut(&own[row]).unwrap().push((far[0][column], far[1][column]));
            }
        }
    }
    meets.values_mut().for_each(|of| of.sort_unstable());
    meets
}

/// The same from launches.
fn walked(reads: &[Read<'_>], bytes: i64, own: usize, far: [usize; 2], turned: bool) -> Meets {
    let mut meets = Meets::new();
    for read in reads {
        let group = read.u32(784);
        let pairs: Vec<_> = (0..read.u32(828)).map(|kind| read.pairs(kind, turned)).collect();
        let ends = [read.u32(788), read.u32(792)];
        for head in read.heads(group) {
            let rows = |operand, end: usize| -> Vec<At> {
                (0..end).map(|x| read.at(operand, head, x, bytes).1).collect()
            };
            let own = rows(own, ends[usize::from(turned)]);
            let far = far.map(|far| rows(far, ends[usize::from(!turned)]));
            own.iter().for_each(|&x| _ = meets.entry(x).or_default());
            for &(x, y) in &pairs[read.kind(head)] {
                meets.get_mut(&own[x]).unwrap().push((far[0][y], far[1][y]));
            }
        }
    }
    meets.values_mut().for_each(|of| of.sort_unstable());
    meets
}

fn check(case: &Case, chip: Chip, align: u64) {
    let bytes = case.dtype.bytes() as i64;
    let (spec, mask) = (case.forward(), case.mask());
    let kernel = attend(&spec, &mask, &[align; 5], chip).unwrap();
    let forward = read(&kernel, &["attend_fwd", "attend_fwd_sm90", "attend_plain_fwd"]);
    assert_eq!(forward.len(), kernel.launches.len());
    let got = walked(&forward, bytes, O, [K, V], false);
    assert!(got == wanted(case, &spec.o, [&spec.k, &spec.v], false), "{case:?}");
    let mut queries = BTreeSet::new();
    for read in &forward {
        for head in read.heads(read.u32(784)) {
            for x in 0..read.u32(788) {
                let row = read.at(O, head, x, bytes).1;
                queries.insert((row, read.at(Q, head, x, bytes).1, read.at(LSE, head, x, 4).1));
            }
        }
    }
    let own = |at: &Vec<usize>, i| [&spec.o, &spec.q, &spec.lse].map(|of| of_spec(of, at, i));
    let all = heads(case);
    let of_spec = all.iter().flat_map(|at| (0..case.queries).map(move |i| own(at, i)));
    assert_eq!(queries, of_spec.map(|[o, q, lse]| (o, q, lse)).collect());
    check_grad(case, chip, align);
}

fn check_grad(case: &Case, chip: Chip, align: u64) {
    let (bytes, grad, mask) = (case.dtype.bytes() as i64, case.backward(), case.mask());
    let kernel = attend_grad(&grad, &mask, &[align; 10], chip).unwrap();
    let by_key = read(&kernel, &["attend_dkv", "attend_dkv_sm90", "attend_plain_dkv"]);
    let by_query = read(&kernel, &["attend_dq", "attend_dq_sm90", "attend_plain_dq"]);
    let any = &read(&kernel, &[kernel.launches[0].entry])[0];
    for (operand, number) in [0, 1, 2, 3, 4, 5, 9, 6, 7, 8].into_iter().enumerate() {
        let wanted = (number < 9 || grad.dlse.is_some()).then_some(Address::operand(number));
        assert_eq!(any.address(72 * operand), wanted);
    }
    if by_key.is_empty() {
        assert!(!read(&kernel, &["attend_band"]).is_empty());
        return;
    }
    let got = walked(&by_key, bytes, DK, [Q, DOUT], true);
    assert!(got == wanted(case, &grad.dk, [&grad.q, &grad.dout], true), "{case:?}");
    let got = walked(&by_key, bytes, DV, [Q, DOUT], true);
    assert!(got == wanted(case, &grad.dv, [&grad.q, &grad.dout], true), "{case:?}");
    if by_query.is_empty() {
        assert!(by_key.iter().all(|r| r.launch.source.defines.iter().any(|d| d == "FUSED=1")));
        assert_eq!(kernel.workspace_bytes, 0);
        return;
    }
    let got = walked(&by_query, bytes, DQ, [K, V], false);
    assert!(got == wanted(case, &grad.dq, [&grad.k, &grad.v], false), "{case:?}");
    let units = by_query[0].u32(820) * by_query[0].heads(case.group).len();
    assert!(kernel.workspace_bytes >= ((units + 1) * UNIT * 8) as u64);
}

/// Layouts, lengths and patterns, in every form that they lead to.
#[test]
fn queries_meet_their_keys() {
    let chips = [Architecture::SM80, Architecture::SM90A].map(|architecture| Chip { architecture });
    for (n, pattern) in PATTERNS.iter().enumerate() {
        let batch = [vec![], vec![3], vec![2, 3]][n % 3].clone();
        let order = match n % 4 {
            0 => vec![],
            1 => (batch.len() + 2..batch.len() + 3).collect(),
            2 => (0..batch.len() + 1).rev().collect(),
            _ => vec![batch.len() + 2, 0],
        };
        let case = Case { pattern, batch, order, pad: 8 * (n % 2), ..Case::default() };
        let shape =
            |queries, keys, group, widths| Case { queries, keys, group, widths, ..case.clone() };
        let cases = [
            shape(32, 32, 1, [64, 128]),
            shape(24, 24, 2, [32, 32]),
            shape(12, 20, 1, [32, 64]),
            shape(96, 96, 1, [128, 128]),
            shape(150, 100, 2, [64, 64]),
            shape(130, 130, 3, [96, 96]),
            shape(130, 150, 2, [128, 128]),
            shape(1, 65, 1, [32, 64]),
            Case { dtype: DType::F32, ..shape(70, 40, 2, [20, 12]) },
        ];
        for case in &cases {
            check(case, chips[n % 2], 64);
            check(case, chips[1 - n % 2], if n % 3 == 0 { 4 } else { 64 });
        }
    }
}

/// Axes in an order of its own for each operand cannot be merged: launches walk the rest.
#[test]
fn many_axes_take_several_launches() {
    let chip = Chip { architecture: Architecture::SM90A };
    let order = vec![4, 2, 0, 3, 1];
    let batch = vec![2, 3, 2, 2, 3];
    for (pattern, queries) in [("causal", 40), ("per_head(local(3),full)", 9), ("causal", 16)] {
        let case = Case {
            pattern,
            batch: batch.clone(),
            order: order.clone(),
            queries,
            keys: queries,
            ..Case::default()
        };
        check(&case, chip, 64);
        check(&case, chip, 2);
        let kernel = attend(&case.forward(), &case.mask(), &[2; 5], chip).unwrap();
        assert!(kernel.launches.len() > 1);
    }
}

/// A long axis is packed in parts, so that lists stay small.
#[test]
fn a_long_axis_is_packed_in_parts() {
    let case = Case { batch: vec![6000], kv: 1, queries: 16, keys: 16, ..Case::default() };
    let heads = Heads::of(&case.forward(), &case.mask()).unwrap().packed().unwrap();
    assert_eq!((&heads.batch[..], heads.cut.columns), (&[2][..], 3000));
    let row = 16 * 64;
    for (at, place) in heads.places().filter(|(at, _)| *at != LSE) {
        assert_eq!((&place.batch[..], place.column), (&[3000 * row][..], row), "operand {at}");
    }
}
