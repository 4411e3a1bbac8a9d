//! Element-wise programs as CUDA C: what stands between the `//@program` markers of a kernel.
//!
//! A [`Part`] becomes a struct with `load`, which reads a unit of every operand, and `run`, which
//! computes and stores it: `lib/strided.cuh` has what they see of a place.

use aerogel_graph::DType;
use aerogel_lower::{Binary, Instr, Operand, Program, Unary, Value};
use std::fmt::Write as _;

/// How an operand, or a number that is linear in the coordinates, goes from lane to lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Along {
    /// One element further; every unit begins at a multiple of so many elements.
    Unit(usize),
    /// It does not.
    Repeat,
    /// By a stride.
    Strided,
}

/// A program as one struct of the text.
pub(crate) struct Part<'a> {
    /// Name of the struct.
    pub name: &'a str,
    /// The program.
    pub program: &'a Program,
    /// Of its inputs, then its outputs.
    pub along: Vec<Along>,
    /// Of its [`indices`].
    pub indices_along: Vec<Along>,
    /// The value that becomes `result`.
    pub result: Option<Value>,
}

/// The numbers that a program wants of a position, linear in the coordinates: those along axes, and
/// the elements that it draws for. Each is its strides over the axes.
pub(crate) fn indices(program: &Program) -> Vec<Vec<isize>> {
    let mut list: Vec<Vec<isize>> = vec![];
    for strides in program.instrs.iter().filter_map(|i| index(i, program.sizes.len())) {
        if !list.contains(&strides) {
            list.push(strides);
        }
    }
    list
}

/// Streams that are arguments of a kernel: `Draws` of `lib/clock.cuh` has room for so many. Those
/// of longer programs are constants in their text.
pub(crate) const STREAMS: usize = 4;

/// The streams that programs draw from, each once, as far as there is room.
pub(crate) fn streams<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Vec<u64> {
    let mut list = vec![];
    for instr in programs.into_iter().flat_map(|p| &p.instrs) {
        if let Instr::Rand { stream, .. } = instr
            && !list.contains(stream)
            && list.len() < STREAMS
        {
            list.push(*stream);
        }
    }
    list
}

/// A stream as it is written in the text, where `draws` is the struct.
pub(crate) fn stream_text(streams: &[u64], stream: u64, draws: &str) -> String {
    match streams.iter().position(|s| *s == stream) {
        Some(n) => format!("{draws}.stream[{n}]"),
        None => format!("{stream:#x}ull"),
    }
}

/// The one that an instruction wants.
fn index(instr: &Instr, axes: usize) -> Option<Vec<isize>> {
    match instr {
        Instr::Coord { axis, .. } => Some((0..axes).map(|a| isize::from(a == *axis)).collect()),
        Instr::Rand { strides, .. } => Some(strides.clone()),
        _ => None,
    }
}

/// C's name of a type.
pub(crate) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::U32 => "u32",
    }
}

/// The text of all parts. Operands are numbered through the parts, and after all of them the
/// indices.
pub(crate) fn programs(parts: &[Part<'_>]) -> String {
    let operands: usize = parts.iter().map(|p| p.along.len()).sum();
    let numbers: usize = parts.iter().map(|p| p.indices_along.len()).sum();
    let mut text = format!("constexpr int OPERANDS = {operands};\n");
    let _ = writeln!(text, "constexpr int INDICES = {numbers};");
    let streams = streams(parts.iter().map(|p| p.program));
    let (mut operand, mut index) = (0, operands);
    for part in parts {
        part.write(&mut text, Numbered { operand, index, streams: &streams });
        operand += part.along.len();
        index += part.indices_along.len();
    }
    text
}

/// A kernel's text with the parts in the place of its sample.
pub(crate) fn with_programs(template: &str, parts: &[Part<'_>]) -> String {
    const MARKS: [&str; 2] = ["//@program begin\n", "//@program end\n"];
    let (before, rest) = template.split_once(MARKS[0]).unwrap_or((template, ""));
    let (_, after) = rest.split_once(MARKS[1]).unwrap_or(("", rest));
    [before, &programs(parts), after].concat()
}

const SITE: &str = "const Site<OPERANDS + INDICES>& s";
const FUNCTION: &str = "    template <int N>\n    static __device__ __forceinline__ void";

/// What a part's first operand and index are called, and the streams of all parts.
#[derive(Clone, Copy)]
struct Numbered<'a> {
    operand: usize,
    index: usize,
    streams: &'a [u64],
}

/// The lines of a struct under construction.
#[derive(Default)]
struct Lines {
    fields: Vec<String>,
    loads: Vec<String>,
    before: Vec<String>,
    each: Vec<String>,
    after: Vec<String>,
}

impl Part<'_> {
    fn write(&self, text: &mut String, first: Numbered<'_>) {
        let lines = self.lines(first);
        let join = |list: &[String], indent: usize| -> String {
            list.iter().map(|line| format!("{:indent$}{line}\n", "")).collect()
        };
        let Part { name, .. } = self;
        let _ = write!(
            text,
            "struct {name} {{\n    template <int N>\n    struct Loads {{\n{}    }};\n\n\
             {FUNCTION} load({SITE}, Loads<N>& l) {{\n{}    }}\n\n\
             {FUNCTION} run({SITE}, const Loads<N>& l,\n        \
             const f32 (&product)[N], f32 (&result)[N]) {{\n{}#pragma unroll\n        \
             for (int i = 0; i < N; ++i) {{\n{}        }}\n{}    }}\n}};\n",
            join(&lines.fields, 8),
            join(&lines.loads, 8),
            join(&lines.before, 8),
            join(&lines.each, 12),
            join(&lines.after, 8),
        );
    }

    fn lines(&self, first: Numbered<'_>) -> Lines {
        let operand = first.operand;
        let mut lines = Lines::default();
        let Program { inputs, outputs, .. } = self.program;
        for (i, input) in inputs.iter().enumerate() {
            self.input(&mut lines, i, input, operand + i);
        }
        let wanted = indices(self.program);
        for instr in &self.program.instrs {
            match instr {
                Instr::Store { output, src } => {
                    let at = inputs.len() + output;
                    lines.before.push(format!("f32 y{output}[N];"));
                    lines.each.push(format!("y{output}[i] = v{src};"));
                    self.output(&mut lines, *output, &outputs[*output], at, operand + at);
                }
                Instr::Load { dst, input } => {
                    let lane = if self.along[*input] == Along::Repeat { "0" } else { "i" };
                    lines.each.push(format!("f32 v{dst} = get(l.x{input}, {lane});"));
                }
                Instr::Product { dst } => lines.each.push(format!("f32 v{dst} = product[i];")),
                Instr::Piece { dst } => lines.each.push(format!("f32 v{dst} = s.piece();")),
                Instr::Coord { dst, .. } | Instr::Rand { dst, .. } => {
                    let own = index_of(instr, &wanted, self.program.sizes.len());
                    self.number(&mut lines, instr, *dst, own, first);
                }
                _ => lines.each.extend(arithmetic(self.program, instr)),
            }
        }
        lines.each.extend(self.result.map(|v| format!("result[i] = v{v};")));
        lines
    }

    fn input(&self, lines: &mut Lines, i: usize, input: &Operand, k: usize) {
        let t = type_name(input.dtype);
        let (lanes, call) = match self.along[i] {
            Along::Unit(align) => ("N", format!("::load<{t}, N, {align}>(s.ptr[{k}], s.at[{k}])")),
            Along::Repeat => ("1", format!("::load<{t}, 1>(s.ptr[{k}], s.at[{k}])")),
            Along::Strided => {
                ("N", format!("::load_strided<{t}, N>(s.ptr[{k}], s.at[{k}], s.lane[{k}])"))
            }
        };
        lines.fields.push(format!("Vec<{t}, {lanes}> x{i};"));
        lines.loads.push(format!("l.x{i} = {call};"));
    }

    fn output(&self, lines: &mut Lines, o: usize, output: &Operand, at: usize, k: usize) {
        let t = type_name(output.dtype);
        lines.after.push(match self.along[at] {
            Along::Unit(align) => format!("::store<{t}, N, {align}>(s.ptr[{k}], s.at[{k}], y{o});"),
            // Nothing that is written repeats; with one lane any stride will do.
            Along::Repeat | Along::Strided => {
                format!("::store_strided<{t}, N>(s.ptr[{k}], s.at[{k}], s.lane[{k}], y{o});")
            }
        });
    }

    fn number(
        &self,
        lines: &mut Lines,
        instr: &Instr,
        dst: Value,
        own: usize,
        first: Numbered<'_>,
    ) {
        let k = first.index + own;
        let Instr::Rand { stream, .. } = instr else {
            lines.each.push(format!("f32 v{dst} = s.coordinate({k}, i);"));
            return;
        };
        lines.before.push(format!("u32 d{dst}[N];"));
        let stream = stream_text(first.streams, *stream, "s.draws");
        let key = format!("s.clock->seed, s.clock->step, {stream}");
        lines.before.push(format!("Stream t{dst}({key});"));
        lines.before.push(match self.indices_along[own] {
            Along::Unit(_) => format!("draw_unit<N>(t{dst}, s.element({k}), d{dst});"),
            _ => format!("draw_strided<N>(t{dst}, s.element({k}), s.lane[{k}], d{dst});"),
        });
        lines.each.push(drawn(dst));
    }
}

/// Which of the indices an instruction wants; 0 for those that want none.
pub(crate) fn index_of(instr: &Instr, wanted: &[Vec<isize>], axes: usize) -> usize {
    index(instr, axes).and_then(|own| wanted.iter().position(|w| *w == own)).unwrap_or(0)
}

/// The line that makes a number of a drawn word. The compiler drops it where nobody looks at the
/// number.
pub(crate) fn drawn(dst: Value) -> String {
    format!("f32 v{dst} = unit_interval(d{dst}[i]);")
}

/// The line of an instruction that neither reads nor writes nor asks where it is: it defines `vN`
/// from others, with the functions of `lib/math.cuh` and the roundings of `lib/types.cuh`.
pub(crate) fn arithmetic(program: &Program, instr: &Instr) -> Option<String> {
    let value = match *instr {
        Instr::Binary { op: Binary::Lt, a, b, .. } => {
            under(program, a, b).unwrap_or_else(|| binary(Binary::Lt, a, b))
        }
        Instr::Const { value, .. } => format!("__uint_as_float({:#010x}u)", value.to_bits()),
        Instr::Unary { op, a, .. } => unary(op, a),
        Instr::Binary { op, a, b, .. } => binary(op, a, b),
        Instr::Fma { a, b, c, .. } => format!("fmaf(v{a}, v{b}, v{c})"),
        Instr::Select { cond, a, b, .. } => format!("v{cond} != 0.0f ? v{a} : v{b}"),
        _ => return None,
    };
    instr.target().map(|dst| format!("f32 v{dst} = {value};"))
}

/// Whether a draw is under a constant, asked of its word: a draw is the number of the upper 24
/// bits, in parts of 2^24, and making a float of it takes as long as a quarter of the drawing.
fn under(program: &Program, a: Value, b: Value) -> Option<String> {
    let defined = |v: Value| program.instrs.iter().find(|i| i.target() == Some(v));
    let (Some(Instr::Rand { .. }), Some(Instr::Const { value, .. })) = (defined(a), defined(b))
    else {
        return None;
    };
    let parts = (f64::from(*value) * f64::from(1 << 24)).ceil();
    Some(match parts {
        p if p <= 0.0 => "0.0f".to_owned(),
        p if p < f64::from(1 << 24) => {
            format!("math::truth(d{a}[i] < {:#x}u)", (parts as u32) << 8)
        }
        p if p.is_nan() => "0.0f".to_owned(),
        _ => "1.0f".to_owned(),
    })
}

fn unary(op: Unary, a: Value) -> String {
    let function = match op {
        Unary::Neg => return format!("-v{a}"),
        Unary::Not => return format!("math::truth(v{a} == 0.0f)"),
        Unary::RoundBf16 => return format!("round_bf16(v{a})"),
        Unary::RoundF16 => return format!("round_f16(v{a})"),
        Unary::Exp => "exp",
        Unary::Ln => "ln",
        Unary::Tanh => "tanh",
        Unary::Sqrt => "sqrt",
        Unary::Rsqrt => "rsqrt",
        Unary::Recip => "recip",
        Unary::Sigmoid => "sigmoid",
        Unary::Erf => "erf",
        Unary::Abs => "abs",
        Unary::Sin => "sin",
        Unary::Cos => "cos",
        Unary::Floor => "floor",
    };
    format!("math::{function}(v{a})")
}

fn binary(op: Binary, a: Value, b: Value) -> String {
    match op {
        Binary::Add => format!("v{a} + v{b}"),
        Binary::Sub => format!("v{a} - v{b}"),
        Binary::Mul => format!("v{a} * v{b}"),
        Binary::Div => format!("v{a} / v{b}"),
        Binary::Min => format!("math::min(v{a}, v{b})"),
        Binary::Max => format!("math::max(v{a}, v{b})"),
        Binary::Pow => format!("math::pow(v{a}, v{b})"),
        Binary::Lt => format!("math::truth(v{a} < v{b})"),
        Binary::Le => format!("math::truth(v{a} <= v{b})"),
        Binary::Eq => format!("math::truth(v{a} == v{b})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_under_a_constant_if_its_word_is() {
        let line = |value: f32| {
            let program = Program {
                sizes: vec![8],
                inputs: vec![],
                outputs: vec![],
                instrs: vec![
                    Instr::Rand { dst: 0, stream: 1, strides: vec![1] },
                    Instr::Const { dst: 1, value },
                    Instr::Binary { op: Binary::Lt, dst: 2, a: 0, b: 1 },
                ],
            };
            arithmetic(&program, &program.instrs[2]).unwrap()
        };
        assert_eq!(line(0.25), "f32 v2 = math::truth(d0[i] < 0x40000000u);");
        assert_eq!(line(0.0), "f32 v2 = 0.0f;");
        assert_eq!(line(1.0), "f32 v2 = 1.0f;");
        // 0.1f lies between two parts of 2^24: the draw of the lower one is under it.
        let parts = (f64::from(0.1f32) * f64::from(1 << 24)).floor();
        assert!(((parts / f64::from(1 << 24)) as f32) < 0.1);
        assert!(line(0.1).contains(&format!("{:#x}u", (parts as u32 + 1) << 8)));
    }
}
