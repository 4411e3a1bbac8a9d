//! Random small graphs of all ops: whatever aliasing, writing in place or liveness get wrong on
//! their way through planner and device shows as NaN or as another number.

use super::rng::Rng;
use super::values::fill;
use aerogel_graph::ops::{
    Collective, Einsum, Exchange, Fold, Merge, Reduce, Scatter, ScatterMode, View,
};
use aerogel_graph::{
    AxisId, Build, Clock, Cutter, DType, Env, Expr, Graph, Init, Mesh, Op, OpError, Role, StateId,
    Tensor, Type, ValueId, verify::verify,
};

type Made = Result<ValueId, OpError>;

/// A closed set of axes: every view leads from some of them to others.
struct Axes {
    a: AxisId,
    /// As long as `a`.
    twin: AxisId,
    b: AxisId,
    c: AxisId,
    /// `a` × `b`.
    ab: AxisId,
    /// `a` + `c`.
    ac: AxisId,
    /// `b` + 3.
    long: AxisId,
    /// Where there are ranks: an axis, and the piece of it that a rank has.
    ends: Option<[AxisId; 2]>,
}

/// Where a graph runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// One machine, on whole axes.
    Whole,
    /// One rank, on pieces of axes.
    Pieces,
    /// All ranks, which exchange values.
    Ranks,
}

struct Maker {
    g: Graph,
    env: Env,
    rng: Rng,
    x: Axes,
    /// Values to build on, oldest first.
    pool: Vec<ValueId>,
    names: usize,
    over: Vec<u8>,
}

/// The mesh of graphs on pieces and on ranks.
const MESH: [usize; 2] = [2, 2];
/// Pieces in time of the axes that time cuts.
const TIMES: usize = 3;

/// A random way to cut an axis, of up to two cuts; by ranks alone where `ranks` asks for it.
fn cuts(rng: &mut Rng, ranks: bool) -> Vec<(Cutter, usize)> {
    let mut all = vec![(Cutter::Mesh(0), MESH[0]), (Cutter::Mesh(1), MESH[1])];
    if !ranks {
        all.extend([(Cutter::Time, TIMES), (Cutter::Fixed(rng.below(2)), 2)]);
    }
    rng.shuffle(&mut all);
    all.truncate(rng.below(3));
    all
}

/// An axis of which this size is left when it is cut.
fn cut_axis(
    g: &mut Graph,
    name: &str,
    size: usize,
    cuts: &[(Cutter, usize)],
) -> Result<AxisId, OpError> {
    let pieces: usize = cuts.iter().map(|c| c.1).product();
    let axis = g.axis(name, size * pieces)?;
    cuts.iter().try_for_each(|&(by, pieces)| g.cut_axis(name, by, pieces))?;
    Ok(axis)
}

impl Maker {
    fn new(seed: u64, on: On) -> Result<Maker, OpError> {
        let mut rng = Rng(seed);
        let mut g = Graph::new();
        // Now and then an axis is longer than a tile of registers or a block of a product.
        let mut size = |most| if rng.one_in(6) { 20 + rng.below(20) } else { 1 + rng.below(most) };
        let (a, b, c) = (size(5), size(6), size(4));
        let (mut tall, mut wide, mut table, mut over, mut ends) =
            (vec![], vec![], vec![], vec![], None);
        if on != On::Whole {
            let names = ["outer", "inner"].map(str::to_owned);
            g.set_mesh(Mesh(names.into_iter().zip(MESH).collect()));
            (tall, wide, table) =
                (cuts(&mut rng, false), cuts(&mut rng, false), cuts(&mut rng, true));
        }
        if on == On::Ranks {
            over = rng.pick(&[&[0][..], &[1], &[0, 1], &[1, 0]]).to_vec();
            let members = MESH[0].pow(over.len() as u32);
            let whole = g.axis("whole", members * (1 + rng.below(4)))?;
            let mut piece = whole;
            for &m in &over {
                piece = g.piece_of(piece, &format!("piece.{m}"), Cutter::Mesh(m), 2)?;
            }
            ends = Some([whole, piece]);
        }
        let x = Axes {
            a: cut_axis(&mut g, "a", a, &tall)?,
            twin: cut_axis(&mut g, "twin", a, &tall)?,
            b: g.axis("b", b)?,
            c: cut_axis(&mut g, "c", c, &wide)?,
            ab: cut_axis(&mut g, "ab", a * b, &tall)?,
            ac: g.axis("ac", a + c)?,
            long: cut_axis(&mut g, "long", b + 3, &table)?,
            ends,
        };
        let mut maker = Maker { g, env: Env::new(), rng, x, pool: vec![], names: 0, over };
        for _ in 0..2 + maker.rng.below(3) {
            let v = maker.leaf()?;
            maker.pool.push(v);
        }
        Ok(maker)
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}.{}", self.names)
    }

    fn dtype(&mut self) -> DType {
        match self.rng.below(8) {
            0 => DType::Bf16,
            1 => DType::F16,
            _ => DType::F32,
        }
    }

    fn axes(&mut self, most: usize) -> Vec<AxisId> {
        let x = &self.x;
        let mut list = vec![x.a, x.twin, x.b, x.c, x.ab, x.ac, x.long];
        list.extend(x.ends.into_iter().flatten());
        self.rng.shuffle(&mut list);
        list.truncate(self.rng.below(most + 1));
        list
    }

    /// An input or a state of random axes.
    fn leaf(&mut self) -> Made {
        let axes = self.axes(3);
        let dtype = self.dtype();
        if self.rng.one_in(2) {
            let name = self.name("input");
            return self.g.input(&name, dtype, &axes);
        }
        let name = self.name("state");
        self.g.state(&name, Type::new(dtype, axes), Role::Optimizer, None, Init::Constant(0.0))
    }

    /// A value to build on: most often a late one, so that chains get long.
    fn some(&mut self) -> ValueId {
        let n = self.pool.len();
        let back = if self.rng.one_in(3) { self.rng.below(n) } else { self.rng.below(n.min(4)) };
        self.pool[n - 1 - back]
    }

    fn shuffled(&mut self, list: &[AxisId]) -> Vec<AxisId> {
        let mut list = list.to_vec();
        self.rng.shuffle(&mut list);
        list
    }

    fn union(&mut self, ins: &[ValueId]) -> Vec<AxisId> {
        let mut list: Vec<AxisId> = ins.iter().flat_map(|v| self.g.ty(*v).axes.clone()).collect();
        list.sort_unstable();
        list.dedup();
        if self.rng.one_in(2) { self.shuffled(&list) } else { list }
    }

    /// One to three values, element by element.
    fn map(&mut self) -> Made {
        let ins: Vec<ValueId> = (0..1 + self.rng.below(3)).map(|_| self.some()).collect();
        let mut axes = match self.rng.below(3) {
            // The order of an operand, so that chains share one space and may run in place.
            0 | 1 => self.g.ty(ins[0]).axes.to_vec(),
            _ => self.union(&ins),
        };
        if ins.iter().any(|v| self.g.ty(*v).axes.iter().any(|a| !axes.contains(a))) {
            axes = self.union(&ins);
        }
        let out = Type::new(self.dtype(), axes.iter().copied());
        let stream = self.name("drop");
        let (kind, axis) = (self.rng.below(8), self.rng.below(axes.len().max(1)));
        let axis = axes.get(axis).copied();
        self.g.map_to(&ins, out, &|v| {
            let (x, y) = (&v[0], &v[v.len() - 1]);
            let all = v[1..].iter().fold(x.clone(), |s, t| s + t);
            match (kind, axis) {
                (0, _) => x * y,
                (1, _) => all.tanh() + 0.25 * y,
                (2, _) => x - 0.5 * y,
                (3, _) => Expr::rand(&stream).lt(0.3).select(0.0, all / 0.7),
                (4, Some(axis)) => Expr::Coord(axis).lt(2.0).select(x.clone(), 0.5 * y),
                (5, _) => x * y.sigmoid(),
                (6, _) => 0.9 * x + 0.1 * y,
                _ => all,
            }
        })
    }

    fn einsum(&mut self) -> Made {
        let (x, y) = (self.some(), self.some());
        let all = self.union(&[x, y]);
        if self.g.axes().count(&all) > 100_000 {
            return self.map();
        }
        let both = |a: &AxisId| self.g.ty(x).has(*a) && self.g.ty(y).has(*a);
        let shared: Vec<AxisId> = all.iter().copied().filter(both).collect();
        let gone: Vec<AxisId> = shared.into_iter().filter(|_| !self.rng.one_in(3)).collect();
        let out: Vec<AxisId> = all.into_iter().filter(|a| !gone.contains(a)).collect();
        let terms = self.g.axes().count(&gone) as f64;
        let dtype = self.dtype();
        let product = self.g.einsum_to(&[x, y], &out, dtype)?;
        match self.rng.one_in(3) {
            true => Ok(product),
            false => self.g.map(&[product], &|v| &v[0] / terms.sqrt()),
        }
    }

    fn permutation(&mut self) -> Made {
        let x = self.some();
        let axes = self.g.ty(x).axes.clone();
        let out = Type::new(self.g.ty(x).dtype, self.shuffled(&axes));
        Ok(self.g.emit(Einsum { out }.into(), &[x])?[0])
    }

    fn reduce(&mut self) -> Made {
        let x = self.some();
        let axes = self.g.ty(x).axes.clone();
        let mut over = self.shuffled(&axes);
        over.truncate(self.rng.below(axes.len() + 1));
        let fold = if self.rng.one_in(3) { Fold::Max } else { Fold::Sum };
        let dtype = self.dtype();
        let op = Reduce { fold, over: over.into_iter().collect(), dtype };
        Ok(self.g.emit(op.into(), &[x])?[0])
    }

    fn norm(&mut self) -> Made {
        let x = self.some();
        let axes = self.g.ty(x).axes.clone();
        if axes.is_empty() {
            return self.map();
        }
        let axis = axes[self.rng.below(axes.len())];
        let fits = |v: &&ValueId| self.g.ty(**v) == &Type::new(DType::F32, [axis]);
        let gain = self.pool.iter().find(fits).copied();
        let center = self.rng.one_in(2);
        self.g.norm(x, axis, center, 0.1, gain, gain)
    }

    fn view(&mut self) -> Made {
        let x = self.some();
        let y = self.some();
        let list = |axes: &[AxisId]| axes.iter().copied().collect();
        let (b_size, c_size) = (self.g.axes().size(self.x.a), self.g.axes().size(self.x.c));
        let n = &self.x;
        let op: Op = match self.rng.below(10) {
            0 => View::Split { axis: n.ab, into: list(&[n.a, n.b]) },
            1 => View::Merge { axes: list(&[n.a, n.b]), into: n.ab },
            2 => View::Rename { from: n.a, to: n.twin },
            3 => View::Rename { from: n.twin, to: n.a },
            4 => View::Slice { axis: n.long, start: self.rng.below(4), into: n.b },
            5 => View::Slice { axis: n.ac, start: self.rng.below(c_size + 1), into: n.a },
            6 => View::Slice { axis: n.ac, start: self.rng.below(b_size + 1), into: n.c },
            7 => View::Pad { axis: n.b, before: self.rng.below(4), into: n.long },
            8 => View::Split { axis: n.ab, into: list(&[n.twin, n.b]) },
            _ => {
                let axes = list(&[n.a, n.c]);
                let op = View::Concat { axes, into: n.ac };
                return Ok(self.g.emit(op.into(), &[x, y])?[0]);
            }
        }
        .into();
        Ok(self.g.emit(op, &[x])?[0])
    }

    /// Rows of `long`, by ids along `b`: read, added up, or replaced.
    fn rows(&mut self) -> Made {
        let (x, y) = (self.some(), self.some());
        let (long, b) = (self.x.long, self.x.b);
        // Ids count along the whole table: some of them name rows of other ranks.
        let (rows, count) = (self.g.axes()[long].global_size(), self.g.axes().size(b));
        let name = self.name("ids");
        let ids = self.g.input(&name, DType::U32, &[b])?;
        let mut list: Vec<f64> = (0..rows).map(|i| i as f64).collect();
        self.rng.shuffle(&mut list);
        list.truncate(count);
        self.env.insert(name, Tensor::from_vec(self.g.axes(), &[b], list));
        match self.rng.below(3) {
            0 => self.g.gather(x, long, ids),
            1 => self.g.scatter_set(x, long, ids, y),
            _ => {
                let axes = self.g.ty(y).axes.iter().map(|&a| if a == b { long } else { a });
                // The device adds rows in f32 and refuses tables of less.
                let out = Type::new(DType::F32, axes);
                let op = Scatter { axis: long, mode: ScatterMode::Add, out };
                Ok(self.g.emit(op.into(), &[ids, y])?[0])
            }
        }
    }

    /// What all ranks exchange.
    fn exchange(&mut self, [whole, piece]: [AxisId; 2]) -> Made {
        let x = self.some();
        let [gather, scatter, keep] = [
            Exchange::AllGather { axis: piece, into: whole },
            Exchange::ReduceScatter { axis: whole, into: piece },
            Exchange::Keep { axis: whole, into: piece },
        ];
        let mut fits =
            vec![Exchange::AllReduce(self.rng.pick(&[Merge::Sum, Merge::Max, Merge::Lse]))];
        match [whole, piece].map(|a| self.g.ty(x).has(a)) {
            [true, false] => fits = vec![scatter, keep],
            [false, true] => fits = vec![gather],
            _ => {}
        }
        let exchange = fits.swap_remove(self.rng.below(fits.len()));
        let over = self.over.iter().copied().collect();
        Ok(self.g.emit(Collective { exchange, over }.into(), &[x])?[0])
    }

    fn step(&mut self) -> Made {
        if let Some(ends) = self.x.ends.filter(|_| self.rng.one_in(5)) {
            return self.exchange(ends);
        }
        match self.rng.below(16) {
            0..6 => self.map(),
            6..8 => self.einsum(),
            8 => self.permutation(),
            9 => self.reduce(),
            10 => self.norm(),
            11..15 => self.view(),
            _ => self.rows(),
        }
    }

    /// New values of most states: an update of the old value, or any value of the same type,
    /// be it an input, a window or another state's.
    fn assigns(&mut self) -> Result<(), OpError> {
        for id in 0..self.g.states().len() as u32 {
            let old = self.g.states()[id as usize].value;
            let ty = self.g.ty(old).clone();
            let same: Vec<ValueId> =
                self.pool.iter().copied().filter(|v| *self.g.ty(*v) == ty && *v != old).collect();
            let kind = self.rng.below(5);
            let new = if kind == 0 {
                continue;
            } else if kind <= 2 && !same.is_empty() {
                self.rng.pick(&same)
            } else {
                let fits = |v: &ValueId| self.g.ty(*v).axes.iter().all(|a| ty.has(*a));
                let others: Vec<ValueId> = self.pool.iter().copied().filter(fits).collect();
                let other = self.rng.pick(&others);
                let new = self.g.map_to(&[old, other], ty, &|v| 0.9 * &v[0] + 0.1 * &v[1])?;
                self.pool.push(new);
                new
            };
            self.g.assign(StateId(id), new)?;
        }
        Ok(())
    }
}

/// A graph that verifies, the data of each rank, and when and where it runs.
///
/// # Errors
/// Its first axes or values cannot be made.
pub fn make(seed: u64, on: On) -> Result<(Graph, Vec<Env>, Clock), OpError> {
    let mut maker = Maker::new(seed, on)?;
    let steps = 4 + maker.rng.below(24);
    for _ in 0..steps {
        // What does not fit the values at hand, or is too much for the interpreter, is left out.
        let before = maker.g.clone();
        match maker.step() {
            Ok(v) if maker.g.axes().count(&maker.g.ty(v).axes) <= 5_000 => maker.pool.push(v),
            _ => maker.g = before,
        }
    }
    for _ in 0..1 + maker.rng.below(3) {
        let (v, name) = (maker.some(), maker.name("out"));
        maker.g.output(&name, v);
    }
    maker.assigns()?;
    let Maker { g, env, mut rng, .. } = maker;
    debug_assert!(verify(&g).is_ok(), "a graph of the builder verifies");
    let mut clock = Clock { seed, step: 3, micro: 0, ..Clock::default() };
    let ranks = if on == On::Ranks { g.axes().mesh.ranks() } else { 1 };
    let mut envs = vec![env; ranks];
    envs.iter_mut().for_each(|env| fill(&g, env, &mut rng, 1));
    if on != On::Whole {
        clock.micro = rng.below(TIMES) as u64;
    }
    if on == On::Pieces {
        clock.place = g.axes().mesh.place(rng.below(4));
    }
    Ok((g, envs, clock))
}
