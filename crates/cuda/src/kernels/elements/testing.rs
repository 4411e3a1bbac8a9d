//! What tests of element-wise kernels share: programs of models, and a look at what the compiler
//! makes of launches.

use crate::gpu::Architecture;
use crate::launch::{Kernel, Launch};
use crate::nvrtc::compile;
use aerogel_graph::DType;
use aerogel_lower::{Binary, Instr, Operand, Program, Unary, Value};

/// Row-major strides.
pub(crate) fn whole(sizes: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; sizes.len()];
    for axis in (1..sizes.len()).rev() {
        strides[axis - 1] = strides[axis] * sizes[axis] as isize;
    }
    strides
}

/// A program under construction.
pub(crate) struct Builder {
    program: Program,
    next: Value,
}

impl Builder {
    pub fn new(sizes: &[usize]) -> Builder {
        let program =
            Program { sizes: sizes.to_vec(), inputs: vec![], outputs: vec![], instrs: vec![] };
        Builder { program, next: 0 }
    }

    fn push(&mut self, make: impl FnOnce(Value) -> Instr) -> Value {
        self.program.instrs.push(make(self.next));
        self.next += 1;
        self.next - 1
    }

    pub fn read(&mut self, dtype: DType, strides: impl Into<Vec<isize>>) -> Value {
        self.program.inputs.push(Operand { dtype, strides: strides.into() });
        let input = self.program.inputs.len() - 1;
        self.push(|dst| Instr::Load { dst, input })
    }

    /// Reads what lies in row-major order.
    pub fn load(&mut self, dtype: DType) -> Value {
        self.read(dtype, whole(&self.program.sizes.clone()))
    }

    pub fn product(&mut self) -> Value {
        self.push(|dst| Instr::Product { dst })
    }

    pub fn constant(&mut self, value: f32) -> Value {
        self.push(|dst| Instr::Const { dst, value })
    }

    pub fn unary(&mut self, op: Unary, a: Value) -> Value {
        self.push(|dst| Instr::Unary { op, dst, a })
    }

    pub fn binary(&mut self, op: Binary, a: Value, b: Value) -> Value {
        self.push(|dst| Instr::Binary { op, dst, a, b })
    }

    pub fn select(&mut self, cond: Value, a: Value, b: Value) -> Value {
        self.push(|dst| Instr::Select { dst, cond, a, b })
    }

    /// Draws in row-major order.
    pub fn rand(&mut self) -> Value {
        let strides = whole(&self.program.sizes);
        self.push(|dst| Instr::Rand { dst, stream: 0x9e37_79b9_7f4a_7c15, strides })
    }

    pub fn coord(&mut self, axis: usize) -> Value {
        self.push(|dst| Instr::Coord { dst, axis })
    }

    pub fn write(&mut self, dtype: DType, strides: impl Into<Vec<isize>>, src: Value) {
        self.program.outputs.push(Operand { dtype, strides: strides.into() });
        let output = self.program.outputs.len() - 1;
        self.program.instrs.push(Instr::Store { output, src });
    }

    pub fn store(&mut self, dtype: DType, src: Value) {
        self.write(dtype, whole(&self.program.sizes.clone()), src);
    }

    pub fn finish(self) -> Program {
        self.program
    }

    /// `dropout(x)`.
    pub fn dropout(&mut self, x: Value) -> Value {
        let (u, rate, zero, factor) =
            (self.rand(), self.constant(0.1), self.constant(0.0), self.constant(1.0 / 0.9));
        let gone = self.binary(Binary::Lt, u, rate);
        let kept = self.binary(Binary::Mul, x, factor);
        self.select(gone, zero, kept)
    }

    /// Gaussian error linear unit, as a hyperbolic tangent; and that tangent.
    pub fn gelu(&mut self, x: Value) -> (Value, Value) {
        let square = self.binary(Binary::Mul, x, x);
        let cube = self.binary(Binary::Mul, square, x);
        let (small, root, half, one) = (
            self.constant(0.044_715),
            self.constant(0.797_884_6),
            self.constant(0.5),
            self.constant(1.0),
        );
        let scaled = self.binary(Binary::Mul, cube, small);
        let inner = self.binary(Binary::Add, scaled, x);
        let inner = self.binary(Binary::Mul, inner, root);
        let tangent = self.unary(Unary::Tanh, inner);
        let above = self.binary(Binary::Add, tangent, one);
        let part = self.binary(Binary::Mul, x, half);
        (self.binary(Binary::Mul, above, part), tangent)
    }
}

/// AdamW over a bucket: gradient, master, m and v of f32, four scalars; then master, m, v, and the
/// weight in bf16.
pub(crate) fn adamw(n: usize) -> Program {
    let mut b = Builder::new(&[n]);
    let [g, p, m, v] = [0; 4].map(|_| b.load(DType::F32));
    let [factor, rate, root, finite] = [0; 4].map(|_| b.read(DType::F32, [0]));
    let g = b.binary(Binary::Mul, g, factor);
    let mix = |b: &mut Builder, old: Value, new: Value, beta: f32| {
        let (keep, take) = (b.constant(beta), b.constant(1.0 - beta));
        let (old, new) = (b.binary(Binary::Mul, old, keep), b.binary(Binary::Mul, new, take));
        b.binary(Binary::Add, old, new)
    };
    let first = mix(&mut b, m, g, 0.9);
    let square = b.binary(Binary::Mul, g, g);
    let second = mix(&mut b, v, square, 0.95);
    let deviation = b.unary(Unary::Sqrt, second);
    let deviation = b.binary(Binary::Mul, deviation, root);
    let eps = b.constant(1e-8);
    let deviation = b.binary(Binary::Add, deviation, eps);
    let step = b.binary(Binary::Div, first, deviation);
    let step = b.binary(Binary::Mul, step, rate);
    let new = b.binary(Binary::Sub, p, step);
    let [new, first, second] =
        [(new, p), (first, m), (second, v)].map(|(new, old)| b.select(finite, new, old));
    [new, first, second].into_iter().for_each(|x| b.store(DType::F32, x));
    b.store(DType::Bf16, new);
    b.finish()
}

/// What follows a norm in a model: the residual is added, with dropout, and the sum kept as well.
pub(crate) fn residual(sizes: &[usize], drops: bool) -> Program {
    let mut b = Builder::new(sizes);
    let y = b.product();
    let mut y = b.unary(Unary::RoundBf16, y);
    if drops {
        y = b.dropout(y);
    }
    let x = b.load(DType::Bf16);
    let sum = b.binary(Binary::Add, x, y);
    b.store(DType::Bf16, sum);
    if drops {
        b.store(DType::F32, sum);
    }
    b.finish()
}

/// Compiles all sources once for each architecture, and tells of every kernel that keeps registers
/// in memory.
pub(crate) fn spills(kernels: impl IntoIterator<Item = Kernel>) -> Vec<String> {
    let mut launches: Vec<Launch> = kernels.into_iter().flat_map(|k| k.launches).collect();
    launches.sort_by(|a, b| a.source.cmp(&b.source));
    launches.dedup_by(|a, b| a.source == b.source);
    let mut found = vec![];
    for architecture in [Architecture::SM80, Architecture::SM90A] {
        for source in launches.iter().map(|l| &l.source) {
            let compiled = compile(source, architecture).unwrap_or_else(|e| panic!("{e}"));
            for usage in compiled.usage.iter().filter(|u| u.spill_bytes > 0) {
                let (file, defines) = (&source.file, source.defines.join(" "));
                let (entry, bytes) = (&usage.entry, usage.spill_bytes);
                found.push(format!("{architecture} {file} {entry} {bytes} bytes: {defines}"));
            }
        }
    }
    found
}
