//! From maps of a graph to one program.

use crate::draws::{Draws, Origin, global_strides};
use crate::program::{Binary, Instr, Program, Unary, Value};
use crate::source::Source;
use aerogel_graph::expr::{Bin, Un};
use aerogel_graph::ops::Map;
use aerogel_graph::random::stream_id;
use aerogel_graph::{AxisId, Build, Cutter, DType, Expr, Node, ValueId};
use std::collections::HashMap;

/// A program under construction.
pub(crate) struct Compiler<'a> {
    source: Source<'a>,
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
    /// Roundings that a store does by itself.
    bypassed: Vec<Value>,
    /// Where a draw's piece begins in the whole tensor; `None` before the first draw.
    origin: Option<Origin>,
}

impl<'a> Compiler<'a> {
    pub fn new(source: &Source<'a>, space: &[AxisId]) -> Self {
        let sizes = source.sizes(space);
        Compiler {
            source: *source,
            space: space.to_vec(),
            program: Program { sizes, inputs: vec![], outputs: vec![], instrs: vec![] },
            known: HashMap::new(),
            seen: HashMap::new(),
            next: 0,
            inputs: vec![],
            outputs: vec![],
            bypassed: vec![],
            origin: None,
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
        self.program.inputs.push(self.source.operand(v, &self.space));
        let value = self.push(format!("load {input}"), |dst| Instr::Load { dst, input });
        self.known.insert(v, value);
        value
    }

    /// A value is rounded where it is declared in 16 bits, whether or not it is stored.
    fn rounded(&mut self, v: ValueId, value: Value) -> Value {
        match self.source.graph.ty(v).dtype {
            DType::Bf16 => self.unary(Unary::RoundBf16, value),
            DType::F16 => self.unary(Unary::RoundF16, value),
            DType::F32 | DType::U32 => value,
        }
    }

    /// What a value was rounded from.
    fn before_rounding(&self, value: Value) -> Option<Value> {
        self.program.instrs.iter().find_map(|instr| match *instr {
            Instr::Unary { op: Unary::RoundBf16 | Unary::RoundF16, dst, a } if dst == value => {
                Some(a)
            }
            _ => None,
        })
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
            Expr::Const(c) => self.constant(*c as f32),
            Expr::Un(f, x) => {
                let a = self.expr(x, node, map);
                self.unary(unary(*f), a)
            }
            Expr::Bin(f, a, b) => {
                let (a, b) = (self.expr(a, node, map), self.expr(b, node, map));
                self.binary(binary(*f), a, b)
            }
            Expr::Select(c, a, b) => {
                let cond = self.expr(c, node, map);
                let (a, b) = (self.expr(a, node, map), self.expr(b, node, map));
                let key = format!("select {cond} {a} {b}");
                self.push(key, |dst| Instr::Select { dst, cond, a, b })
            }
            Expr::Coord(axis) => self.coordinate(*axis),
            Expr::Rand(stream) => {
                let global = global_strides(self.source.graph.axes(), &map.out.axes);
                self.origin = Some(global.1);
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

    /// The global coordinate along an axis: after those of earlier pieces, if the axis is cut. The
    /// instructions are the same on every rank, so that a plan is.
    fn coordinate(&mut self, id: AxisId) -> Value {
        let axis = self.space.iter().position(|a| *a == id).unwrap_or(0);
        let mut value = self.push(format!("coord {axis}"), |dst| Instr::Coord { dst, axis });
        let own = &self.source.graph.axes()[id];
        if own.pieces_in_time() > 0 {
            let piece = self.push("piece".to_owned(), |dst| Instr::Piece { dst });
            let step = self.constant((own.pieces_in_time() * own.size as u64) as f32);
            let first = self.binary(Binary::Mul, piece, step);
            value = self.binary(Binary::Add, first, value);
        }
        if own.cuts.iter().any(|c| c.by != Cutter::Time) {
            let first = own.piece(0, self.source.place) * own.size as u64;
            // Not shared with other constants, for whether two are equal depends on the rank.
            let key = format!("first of {}", own.name);
            let first = self.push(key, |dst| Instr::Const { dst, value: first as f32 });
            value = self.binary(Binary::Add, first, value);
        }
        value
    }

    fn constant(&mut self, value: f32) -> Value {
        self.push(format!("const {:x}", value.to_bits()), |dst| Instr::Const { dst, value })
    }

    fn binary(&mut self, op: Binary, a: Value, b: Value) -> Value {
        self.push(format!("{op:?} {a} {b}"), |dst| Instr::Binary { op, dst, a, b })
    }

    /// Stores a value: the program's next output.
    pub fn store(&mut self, v: ValueId) {
        let mut src = self.value(v);
        if self.source.graph.ty(v).dtype.is_half() {
            // Storing rounds, so what is only stored need not be rounded before.
            if let Some(exact) = self.before_rounding(src) {
                self.bypassed.push(src);
                src = exact;
            }
        }
        let output = self.outputs.len();
        self.outputs.push(v);
        self.program.outputs.push(self.source.operand(v, &self.space));
        self.program.instrs.push(Instr::Store { output, src });
    }

    /// The program, what it reads and writes, and where its draws begin.
    pub fn finish(mut self) -> (Program, Vec<ValueId>, Vec<ValueId>, Draws) {
        let used: Vec<Value> = self.program.instrs.iter().flat_map(Instr::sources).collect();
        let idle = |v: &Value| self.bypassed.contains(v) && !used.contains(v);
        self.program.instrs.retain(|instr| !instr.target().as_ref().is_some_and(idle));
        let draws = self.origin.map_or(Draws::default(), |o| o.at(self.source.place));
        (self.program, self.inputs, self.outputs, draws)
    }
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
