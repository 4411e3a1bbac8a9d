//! From maps of a graph to one tile program.

use crate::kernel::{Dtype, Operand};
use crate::kernels::ops::{Binary, Unary};
use crate::kernels::tile::{Instr, Program, Value};
use aerogel_graph::expr::{Bin, Un};
use aerogel_graph::ops::Map;
use aerogel_graph::random::stream_id;
use aerogel_graph::{Axes, AxisId, Build, DType, Expr, Graph, Node, ValueId};
use smallvec::SmallVec;
use std::collections::HashMap;

/// Strides of every value, by id.
pub(crate) type Strides = [SmallVec<[isize; 6]>];

/// The kernels' name of a dtype.
pub(crate) fn dtype(d: DType) -> Dtype {
    match d {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::Bf16,
        DType::U32 => Dtype::U32,
    }
}

/// Strides of a value along a list of axes; 0 where it lacks one.
pub(crate) fn along(g: &Graph, strides: &Strides, v: ValueId, list: &[AxisId]) -> Vec<isize> {
    let own = &g.ty(v).axes;
    let at = |a: &AxisId| own.iter().position(|x| x == a).map_or(0, |p| strides[v.index()][p]);
    list.iter().map(at).collect()
}

/// A value as an operand of a kernel over the axes.
pub(crate) fn operand(g: &Graph, strides: &Strides, v: ValueId, list: &[AxisId]) -> Operand {
    Operand { dtype: dtype(g.ty(v).dtype), strides: along(g, strides, v, list) }
}

/// A tile program under construction.
pub(crate) struct Compiler<'a> {
    graph: &'a Graph,
    strides: &'a Strides,
    /// The iteration space.
    space: Vec<AxisId>,
    program: Program,
    /// Values of the graph that are in a register.
    known: HashMap<ValueId, Value>,
    /// Instructions by what they compute, so that nothing is computed twice.
    seen: HashMap<String, Value>,
    next: Value,
    /// What `Load` reads, in order.
    pub inputs: Vec<ValueId>,
    /// What `Store` writes, in order.
    pub outputs: Vec<ValueId>,
    /// Elements of a draw's tensor in one piece of a cut axis; `None` before the first draw.
    piece: Option<u64>,
}

impl<'a> Compiler<'a> {
    pub fn new(graph: &'a Graph, strides: &'a Strides, space: &[AxisId]) -> Self {
        let sizes = graph.axes().sizes(space);
        Compiler {
            graph,
            strides,
            space: space.to_vec(),
            program: Program { sizes, inputs: vec![], outputs: vec![], instrs: vec![] },
            known: HashMap::new(),
            seen: HashMap::new(),
            next: 0,
            inputs: vec![],
            outputs: vec![],
            piece: None,
        }
    }

    /// The instruction's value: an earlier one if the same was computed before.
    fn push(&mut self, key: String, instr: impl FnOnce(Value) -> Instr) -> Value {
        if let Some(&v) = self.seen.get(&key) {
            return v;
        }
        let dst = self.next;
        self.next += 1;
        self.program.instrs.push(instr(dst));
        self.seen.insert(key, dst);
        dst
    }

    /// Declares that a value is the finished product of a contraction.
    pub fn product(&mut self, v: ValueId) {
        let value = self.push("product".to_owned(), |dst| Instr::Product { dst });
        let value = self.rounded(v, value);
        self.known.insert(v, value);
    }

    /// The register of a value, loaded if it comes from outside.
    pub fn value(&mut self, v: ValueId) -> Value {
        if let Some(&known) = self.known.get(&v) {
            return known;
        }
        let input = self.inputs.len();
        self.inputs.push(v);
        self.program.inputs.push(operand(self.graph, self.strides, v, &self.space));
        let value = self.push(format!("load {input}"), |dst| Instr::Load { dst, input });
        self.known.insert(v, value);
        value
    }

    /// A value is rounded where it is declared bf16, whether or not it is stored.
    fn rounded(&mut self, v: ValueId, value: Value) -> Value {
        if self.graph.ty(v).dtype != DType::Bf16 {
            return value;
        }
        self.unary(Unary::RoundBf16, value)
    }

    fn unary(&mut self, op: Unary, a: Value) -> Value {
        self.push(format!("{op:?} {a}"), |dst| Instr::Unary { op, dst, a })
    }

    /// Appends a map node.
    pub fn map(&mut self, node: &Node, map: &Map) {
        let value = self.expr(&map.expr, node, map);
        let value = self.rounded(node.outs[0], value);
        self.known.insert(node.outs[0], value);
    }

    fn expr(&mut self, e: &Expr, node: &Node, map: &Map) -> Value {
        match e {
            Expr::In(i) => self.value(node.ins[*i]),
            Expr::Const(c) => {
                let value = *c as f32;
                let key = format!("const {:x}", value.to_bits());
                self.push(key, |dst| Instr::Const { dst, value })
            }
            Expr::Un(f, x) => {
                let a = self.expr(x, node, map);
                self.unary(unary(*f), a)
            }
            Expr::Bin(f, a, b) => {
                let (a, b) = (self.expr(a, node, map), self.expr(b, node, map));
                let op = binary(*f);
                self.push(format!("{op:?} {a} {b}"), |dst| Instr::Binary { op, dst, a, b })
            }
            Expr::Select(c, a, b) => {
                let cond = self.expr(c, node, map);
                let (a, b) = (self.expr(a, node, map), self.expr(b, node, map));
                let key = format!("select {cond} {a} {b}");
                self.push(key, |dst| Instr::Select { dst, cond, a, b })
            }
            Expr::Coord(axis) => self.coordinate(*axis),
            Expr::Rand(stream) => {
                let global = global_strides(self.graph.axes(), &map.out.axes);
                self.piece = Some(global.1);
                let list = &map.out.axes;
                let stride =
                    |a: &AxisId| list.iter().position(|x| x == a).map_or(0, |p| global.0[p]);
                let strides: Vec<isize> = self.space.iter().map(stride).collect();
                let stream = stream_id(stream);
                let key = format!("rand {stream} {strides:?}");
                self.push(key, |dst| Instr::Rand { dst, stream, strides })
            }
        }
    }

    /// The global coordinate along an axis: after those of earlier pieces, if the axis is cut.
    fn coordinate(&mut self, id: AxisId) -> Value {
        let axis = self.space.iter().position(|a| *a == id).unwrap_or(0);
        let local = self.push(format!("coord {axis}"), |dst| Instr::Coord { dst, axis });
        let own = &self.graph.axes()[id];
        if own.pieces == 1 {
            return local;
        }
        let value = own.size as f32;
        let piece = self.push("piece".to_owned(), |dst| Instr::Piece { dst });
        let size =
            self.push(format!("const {:x}", value.to_bits()), |dst| Instr::Const { dst, value });
        let op = Binary::Mul;
        let first = self.push(format!("{op:?} {piece} {size}"), |dst| Instr::Binary {
            op,
            dst,
            a: piece,
            b: size,
        });
        let op = Binary::Add;
        self.push(format!("{op:?} {first} {local}"), |dst| Instr::Binary {
            op,
            dst,
            a: first,
            b: local,
        })
    }

    /// Stores a value: the program's next output.
    pub fn store(&mut self, v: ValueId) {
        let src = self.value(v);
        let output = self.outputs.len();
        self.outputs.push(v);
        self.program.outputs.push(operand(self.graph, self.strides, v, &self.space));
        self.program.instrs.push(Instr::Store { output, src });
    }

    /// The program, and the elements by which draws advance from one piece to the next.
    pub fn finish(self) -> (Program, Vec<ValueId>, Vec<ValueId>, u64) {
        (self.program, self.inputs, self.outputs, self.piece.unwrap_or(0))
    }
}

/// Row-major strides in the whole tensor, of which this may be a piece; and the elements between
/// the same element of one piece and the next.
pub(crate) fn global_strides(axes: &Axes, list: &[AxisId]) -> (Vec<isize>, u64) {
    let mut strides = vec![1isize; list.len()];
    let mut piece = 0;
    for i in (0..list.len()).rev() {
        if i + 1 < list.len() {
            let inner = &axes[list[i + 1]];
            strides[i] = strides[i + 1] * (inner.size * inner.pieces) as isize;
        }
        let own = &axes[list[i]];
        if own.pieces > 1 {
            piece += (own.size as isize * strides[i]) as u64;
        }
    }
    (strides, piece)
}

fn unary(f: Un) -> Unary {
    match f {
        Un::Neg => Unary::Neg,
        Un::Exp => Unary::Exp,
        Un::Ln => Unary::Ln,
        Un::Tanh => Unary::Tanh,
        Un::Sqrt => Unary::Sqrt,
        Un::Rsqrt => Unary::Rsqrt,
        Un::Recip => Unary::Recip,
        Un::Sigmoid => Unary::Sigmoid,
        Un::Erf => Unary::Erf,
        Un::Abs => Unary::Abs,
        Un::Floor => Unary::Floor,
        Un::Sin => Unary::Sin,
        Un::Cos => Unary::Cos,
    }
}

fn binary(f: Bin) -> Binary {
    match f {
        Bin::Add => Binary::Add,
        Bin::Sub => Binary::Sub,
        Bin::Mul => Binary::Mul,
        Bin::Div => Binary::Div,
        Bin::Min => Binary::Min,
        Bin::Max => Binary::Max,
        Bin::Pow => Binary::Pow,
        Bin::Lt => Binary::Lt,
        Bin::Le => Binary::Le,
        Bin::Eq => Binary::Eq,
    }
}
