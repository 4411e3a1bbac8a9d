//! Every collective on devices that are threads of one process: along the first, a middle and the
//! last axis, of operands that lie in every way a planner can put them, and read in every way.

use crate::harness::{Rng, fill};
use crate::ranks::check_mesh;
use aerogel_graph::ops::{Collective, Einsum, Exchange, Merge};
use aerogel_graph::{
    AxisId, Build, Clock, Cutter, DType, Env, Graph, Init, Mesh, OpError, Role, StateId, Type,
    ValueId, verify::verify,
};

type Made = Result<ValueId, OpError>;

/// Meshes, and the groups of ranks that exchange in them.
const MESHES: [(&[usize], &[&[u8]]); 3] =
    [(&[2], &[&[0]]), (&[4], &[&[0]]), (&[2, 2], &[&[0], &[1], &[0, 1], &[1, 0]])];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Sum,
    Max,
    Lse,
    Gather,
    Scatter,
    Keep,
}

const KINDS: [Kind; 6] = [Kind::Sum, Kind::Max, Kind::Lse, Kind::Gather, Kind::Scatter, Kind::Keep];

/// Ways in which an operand is made; see `Maker::operand`.
const OPERANDS: usize = 9;
/// Ways in which a result is read; see `Maker::read`.
const READERS: usize = 9;

struct Maker {
    g: Graph,
    rng: Rng,
    dtype: DType,
    /// The axes of the operand.
    axes: Vec<AxisId>,
    /// The place in them of the axis that is exchanged, or belongs to one rank.
    at: usize,
    /// The axis as it comes, and as it goes.
    ends: [AxisId; 2],
}

impl Maker {
    fn new(
        seed: u64,
        mesh: &[usize],
        over: &[u8],
        (kind, dtype, at): (Kind, DType, usize),
    ) -> Result<Maker, OpError> {
        let mut rng = Rng(seed);
        let mut g = Graph::new();
        let names = ["outer", "inner"];
        g.set_mesh(Mesh(names.iter().zip(mesh).map(|(n, &s)| ((*n).to_owned(), s)).collect()));
        // Now and then rows are long: large exchanges take another way than small ones.
        let long = rng.below(8);
        let mut size = |i| if long == i { 150 + rng.below(9) } else { 1 + rng.below(5) };
        let members: usize = over.iter().map(|&m| mesh[m as usize]).product();
        let whole = g.axis("whole", size(0) * members)?;
        let mut piece = whole;
        for (i, &m) in over.iter().enumerate() {
            let name = if i + 1 == over.len() { "piece" } else { "half" };
            piece = g.piece_of(piece, name, Cutter::Mesh(m), mesh[m as usize])?;
        }
        let mut axes = vec![g.axis("a", size(1))?, g.axis("b", size(2))?];
        let ends = match kind {
            Kind::Gather => [piece, whole],
            Kind::Scatter | Kind::Keep => [whole, piece],
            Kind::Sum | Kind::Max | Kind::Lse => [piece, piece],
        };
        axes.insert(at, ends[0]);
        Ok(Maker { g, rng, dtype, axes, at, ends })
    }

    fn ty(&self) -> Type {
        Type::new(self.dtype, self.axes.iter().copied())
    }

    /// The value that is exchanged.
    fn operand(&mut self, how: usize) -> Made {
        let (axes, dtype, ty) = (self.axes.clone(), self.dtype, self.ty());
        let mut turned = axes.clone();
        self.rng.shuffle(&mut turned);
        let g = &mut self.g;
        match how {
            0 => g.input("x", dtype, &axes),
            1 => g.state("x", ty, Role::Optimizer, None, Init::Constant(0.0)),
            2 => {
                let x = g.input("x", dtype, &axes)?;
                g.map(&[x], &|v| v[0].tanh())
            }
            3 => {
                let x = g.input("x", dtype, &turned)?;
                Ok(g.emit(Einsum { out: ty }.into(), &[x])?[0])
            }
            4 => {
                let x = g.input("x", dtype, &turned)?;
                g.map_to(&[x], ty, &|v| 0.5 * &v[0])
            }
            5 => {
                // A window with gaps, unless the axis is the first one.
                let axis = axes[self.rng.below(3)];
                if axis == self.ends[0] {
                    return self.operand(2);
                }
                let long = g.axis("long", g.axes().size(axis) + 3)?;
                let wide: Vec<AxisId> =
                    axes.iter().map(|&x| if x == axis { long } else { x }).collect();
                let x = g.input("x", dtype, &wide)?;
                let x = if self.rng.one_in(2) { g.map(&[x], &|v| v[0].tanh())? } else { x };
                g.slice(x, long, 2, axis)
            }
            6 => {
                let k = g.axis("k", 5)?;
                let last = axes[2];
                let left: Vec<AxisId> = axes[..2].iter().copied().chain([k]).collect();
                let x = g.input("x", dtype, &left)?;
                let w = g.input("w", dtype, &[last, k])?;
                g.einsum(&[x, w], &axes)
            }
            7 => {
                let gain = g.input("gain", DType::F32, &axes[2..])?;
                let x = g.input("x", dtype, &axes)?;
                let y = g.norm(x, axes[2], true, 0.1, Some(gain), None)?;
                g.output("norm", y);
                Ok(y)
            }
            _ => {
                // Two plain axes that were one.
                let plain: Vec<AxisId> =
                    axes.iter().copied().filter(|&a| a != self.ends[0]).collect();
                if self.at == 1 {
                    return self.operand(4);
                }
                let ab = g.axis("ab", g.axes().count(&plain))?;
                let list = if self.at == 0 { [axes[0], ab] } else { [ab, axes[2]] };
                let x = g.input("x", dtype, &list)?;
                let y = g.map(&[x], &|v| 0.7 * &v[0])?;
                g.split(y, ab, &plain)
            }
        }
    }

    /// Reads what all have exchanged.
    fn read(&mut self, how: usize, x: ValueId, y: ValueId) -> Result<(), OpError> {
        let axes = self.g.ty(y).axes.clone();
        let (dtype, own) = (self.dtype, self.ends[1]);
        let mut turned = axes.to_vec();
        self.rng.shuffle(&mut turned);
        let g = &mut self.g;
        let z = match how {
            0 => y,
            1 => g.map(&[y], &|v| 2.0 * &v[0])?,
            2 => {
                Ok::<_, OpError>(g.emit(Einsum { out: Type::new(dtype, turned) }.into(), &[y])?[0])?
            }
            3 => {
                let w = g.input("reader", dtype, &[own])?;
                let rest: Vec<AxisId> = axes.iter().copied().filter(|&a| a != own).collect();
                g.einsum(&[y, w], &rest)?
            }
            4 => {
                let out = g.axis("wide", 7)?;
                let w = g.input("reader", dtype, &[axes[2], out])?;
                g.einsum(&[y, w], &[axes[0], axes[1], out])?
            }
            5 => {
                let ty = g.ty(y).clone();
                let old = g.state("sum", ty, Role::Accumulator, None, Init::Constant(0.0))?;
                let new = g.add(old, y)?;
                let id = StateId(g.states().len() as u32 - 1);
                g.assign(id, new)?;
                return Ok(());
            }
            6 => {
                let ty = g.ty(y).clone();
                let old = g.state("sum", ty, Role::Accumulator, None, Init::Constant(0.0))?;
                let id = StateId(g.states().len() as u32 - 1);
                g.assign(id, y)?;
                g.output("old", old);
                return Ok(());
            }
            7 => g.sum(y, &axes[self.rng.below(3)..])?,
            // The operand is needed again, and the result twice.
            _ => {
                let square = g.map(&[y], &|v| &v[0] * &v[0])?;
                g.output("square", square);
                let total = g.map(&[x], &|v| &v[0] + 1.0)?;
                g.output("again", total);
                y
            }
        };
        g.output("z", z);
        Ok(())
    }
}

fn exchange(kind: Kind, [from, to]: [AxisId; 2]) -> Exchange {
    match kind {
        Kind::Sum => Exchange::AllReduce(Merge::Sum),
        Kind::Max => Exchange::AllReduce(Merge::Max),
        Kind::Lse => Exchange::AllReduce(Merge::Lse),
        Kind::Gather => Exchange::AllGather { axis: from, into: to },
        Kind::Scatter => Exchange::ReduceScatter { axis: from, into: to },
        Kind::Keep => Exchange::Keep { axis: from, into: to },
    }
}

/// Data of all ranks. They all have the same where one keeps its piece of it.
fn environments(g: &Graph, seed: u64, same: bool) -> Vec<Env> {
    let of = |rank: usize| {
        let mut env = Env::new();
        fill(g, &mut env, &mut Rng(1000 * seed + if same { 0 } else { rank as u64 }), 4);
        env
    };
    (0..g.axes().mesh.ranks()).map(of).collect()
}

/// Who exchanges what along which axis.
struct Case {
    mesh: &'static [usize],
    over: &'static [u8],
    kind: Kind,
    dtype: DType,
    at: usize,
}

fn cases() -> Vec<Case> {
    let groups = MESHES.iter().flat_map(|(mesh, groups)| groups.iter().map(|over| (*mesh, *over)));
    let kinds = groups.flat_map(|group| KINDS.map(|kind| (group, kind)));
    let ways = [DType::F32, DType::Bf16].into_iter().flat_map(|d| [0, 1, 2].map(|at| (d, at)));
    let ways: Vec<(DType, usize)> = ways.collect();
    let case = |((mesh, over), kind)| {
        ways.iter().map(move |&(dtype, at)| Case { mesh, over, kind, dtype, at })
    };
    kinds.flat_map(case).collect()
}

/// One exchange of a random operand for a random reader.
fn holds(case: &Case, seed: u64) {
    let Case { mesh, over, kind, dtype, at } = *case;
    let mut m = Maker::new(seed, mesh, over, (kind, dtype, at)).unwrap();
    let (operand, reader) = (m.rng.below(OPERANDS), m.rng.below(READERS));
    let what = format!(
        "graph {seed}: {kind:?} over {over:?} of {mesh:?}, {} along axis {at}, operand {operand}, \
         reader {reader}",
        dtype.name()
    );
    let x = m.operand(operand).unwrap_or_else(|e| panic!("{what}: {e}"));
    let over = over.iter().copied().collect();
    let op = Collective { exchange: exchange(kind, m.ends), over };
    let y = m.g.emit(op.into(), &[x]).unwrap()[0];
    m.read(reader, x, y).unwrap_or_else(|e| panic!("{what}: {e}"));
    verify(&m.g).unwrap_or_else(|e| panic!("{what}: {e}"));
    let envs = environments(&m.g, seed, kind == Kind::Keep);
    check_mesh(&what, &m.g, &envs, Clock { seed, step: 3, ..Clock::default() });
}

/// Every exchange over every group, along every axis, in both dtypes.
#[test]
fn one_by_one() {
    let cases = cases();
    assert_eq!(cases.len(), 6 * 6 * 2 * 3);
    let seeds = cases.iter().flat_map(|case| [case; 3]);
    (0..).zip(seeds).for_each(|(seed, case)| holds(case, seed));
}
