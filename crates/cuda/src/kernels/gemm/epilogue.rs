//! The epilogue of a product as CUDA C, by the contract of `lib/gemm_epilogue.cuh`, and the struct
//! that the host fills in for it.

use super::super::space;
use super::super::text::{arithmetic, drawn, index_of, indices, stream_text, streams, type_name};
use super::matrix::{FIRST, Matrices};
use crate::launch::{Address, Parameters};
use aerogel_graph::DType;
use aerogel_lower::{Draws, Instr, Program};
use std::fmt::Write as _;

/// How an operand's elements lie along the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// One after the other, in whole vectors of 16 bytes.
    Wide,
    /// One after the other, and the same in all rows, as a bias is: the first-level cache has them.
    Columns,
    /// One after the other.
    Unit,
    /// One for the whole row.
    Repeat,
    /// By a stride.
    Strided,
}

/// How the operands and the indices of a program lie along the columns; `align` are the bytes that
/// the addresses of the operands are multiples of.
pub(super) fn along(program: &Program, matrices: &Matrices, align: &[u64]) -> Vec<Along> {
    let n = &matrices.n;
    let operands = program.inputs.iter().chain(&program.outputs);
    let dtypes = operands.map(|o| Some(o.dtype)).chain(std::iter::repeat(None));
    let of = |(i, (stride, dtype)): (usize, (&isize, Option<DType>))| match (stride, dtype) {
        (0, _) => Along::Repeat,
        (1, None) => Along::Unit,
        (1, Some(dtype)) => {
            let vector = 16 / dtype.bytes() as isize;
            let others = || matrices.strides(FIRST + i, n);
            let whole = others().all(|stride| stride % vector == 0) && align[i] >= 16;
            match whole {
                true if i < program.inputs.len() && others().all(|s| s == 0) => Along::Columns,
                true => Along::Wide,
                false => Along::Unit,
            }
        }
        _ => Along::Strided,
    };
    let mut list: Vec<Along> = n.strides[FIRST..].iter().zip(dtypes).enumerate().map(of).collect();
    // Kernels have room for the columns of one.
    let columns = list.iter_mut().filter(|along| **along == Along::Columns);
    columns.skip(1).for_each(|along| *along = Along::Wide);
    list
}

/// The column stride as `Strides::offset` wants it.
fn column(along: Along) -> i32 {
    match along {
        Along::Wide | Along::Columns | Along::Unit => 1,
        Along::Repeat => 0,
        Along::Strided => -1,
    }
}

fn has(program: &Program, wanted: fn(&Instr) -> bool) -> bool {
    program.instrs.iter().any(wanted)
}

fn draws(program: &Program) -> bool {
    has(program, |i| matches!(i, Instr::Rand { .. }))
}

fn reads_clock(program: &Program) -> bool {
    draws(program) || has(program, |i| matches!(i, Instr::Piece { .. }))
}

/// The header.
pub(super) fn text(program: &Program, along: &[Along]) -> String {
    let mut lines = Lines { streams: streams([program]), ..Lines::default() };
    lines.operands(program, along);
    for instr in &program.instrs {
        lines.instr(program, along, instr);
    }
    let join = |list: &[String], indent: usize| -> String {
        list.iter().map(|line| format!("{:indent$}{line}\n", "")).collect()
    };
    let define = if lines.column.is_some() { "#define EPILOGUE_COLUMN 1\n" } else { "" };
    let mut out =
        format!("{define}#include \"lib/gemm_epilogue.cuh\"\n#include \"lib/math.cuh\"\n");
    if reads_clock(program) {
        out.push_str("#include \"lib/philox.cuh\"\n");
    }
    let words = if lines.words.is_empty() { "0".to_owned() } else { lines.words.join(" + ") };
    let call = "template <int V>\n__device__ __forceinline__ void";
    let _ = write!(
        out,
        "\nstruct Epi {{\n{}{}}};\n\ntemplate <int V>\nstruct Loads {{\n    \
         static constexpr int WORDS = {words};\n{}}};\n\n\
         {call} epilogue_load(const Epi& e, const At& at, Loads<V>& in) {{\n{}}}\n\n\
         {call} epilogue(const Epi& e, const At& at, const Loads<V>& in, float (&x)[V]) {{\n\
         {}#pragma unroll\n    for (int i = 0; i < V; i++) {{\n{}    }}\n{}}}\n",
        join(&lines.pointers, 4),
        join(&lines.numbers, 4),
        join(&lines.loads, 4),
        join(&lines.load, 4),
        join(&lines.before, 4),
        join(&lines.each, 8),
        join(&lines.after, 4),
    );
    if let Some(i) = lines.column {
        let _ = write!(
            out,
            "\n__device__ __forceinline__ float epilogue_column(const Epi& e, i64 col) {{\n    \
             return widen_any(e.in{i} + col);\n}}\n"
        );
    }
    out
}

/// C's name of what is read and written: integers travel as the bits of floats.
fn type_of(dtype: DType) -> &'static str {
    if dtype.is_half() { type_name(dtype) } else { "float" }
}

/// The lines of a header under construction.
#[derive(Default)]
struct Lines {
    pointers: Vec<String>,
    numbers: Vec<String>,
    words: Vec<String>,
    loads: Vec<String>,
    load: Vec<String>,
    before: Vec<String>,
    each: Vec<String>,
    after: Vec<String>,
    streams: Vec<u64>,
    /// The input that kernels may keep in shared memory.
    column: Option<usize>,
}

impl Lines {
    fn operands(&mut self, program: &Program, along: &[Along]) {
        for (i, input) in program.inputs.iter().enumerate() {
            let t = type_of(input.dtype);
            self.pointers.push(format!("const {t}* in{i};"));
            self.numbers.push(format!("Strides at_in{i};"));
            let place = format!("e.in{i} + e.at_in{i}.offset<{}>(at)", column(along[i]));
            if along[i] == Along::Repeat {
                self.words.push("1".to_owned());
                self.loads.push(format!("float in{i};"));
                self.load.push(format!("in.in{i} = widen_any({place});"));
                continue;
            }
            if along[i] == Along::Columns {
                self.before.push(format!("float columns{i}[V];"));
                self.before.push(format!("column_read(at, e.in{i} + at.col, columns{i});"));
                self.column = Some(i);
                continue;
            }
            self.words.push(format!("Packed<{t}, V>::WORDS"));
            self.loads.push(format!("Packed<{t}, V> in{i};"));
            self.load.push(match along[i] {
                Along::Wide => format!("in.in{i}.load({place}, at.count);"),
                Along::Unit => format!("in.in{i}.load_strided({place}, 1, at.count);"),
                _ => format!("in.in{i}.load_strided({place}, e.at_in{i}.col, at.count);"),
            });
        }
        for (o, output) in program.outputs.iter().enumerate() {
            let t = type_of(output.dtype);
            self.pointers.push(format!("{t}* out{o};"));
            self.numbers.push(format!("Strides at_out{o};"));
        }
        for i in 0..indices(program).len() {
            self.numbers.push(format!("i64 first{i};"));
            self.numbers.push(format!("Strides at{i};"));
        }
        if reads_clock(program) {
            self.numbers.push("const Clock* clock;".to_owned());
            self.numbers.push("Draws draws;".to_owned());
        }
    }

    fn instr(&mut self, program: &Program, along: &[Along], instr: &Instr) {
        match *instr {
            Instr::Product { dst } => self.each.push(format!("f32 v{dst} = x[i];")),
            Instr::Piece { dst } => self.each.push(format!("f32 v{dst} = f32(e.clock->micro);")),
            Instr::Load { dst, input } => {
                let read = match along[input] {
                    Along::Repeat => format!("in.in{input}"),
                    Along::Columns => format!("columns{input}[i]"),
                    _ => format!("in.in{input}[i]"),
                };
                let value = match program.inputs[input].dtype {
                    DType::U32 => format!("f32(__float_as_uint({read}))"),
                    _ => read,
                };
                self.each.push(format!("f32 v{dst} = {value};"));
            }
            Instr::Store { output, src } => self.output(program, along, output, src),
            Instr::Coord { dst, .. } | Instr::Rand { dst, .. } => {
                let own = index_of(instr, &indices(program), program.sizes.len());
                let operands = program.inputs.len() + program.outputs.len();
                self.number(instr, dst, own, along[operands + own]);
            }
            _ => self.each.extend(arithmetic(program, instr)),
        }
    }

    fn output(&mut self, program: &Program, along: &[Along], o: usize, src: u16) {
        let along = along[program.inputs.len() + o];
        let value = match program.outputs[o].dtype {
            DType::U32 => format!("__uint_as_float(u32(v{src}))"),
            _ => format!("v{src}"),
        };
        self.before.push(format!("float y{o}[V];"));
        self.each.push(format!("y{o}[i] = {value};"));
        let place = format!("e.out{o} + e.at_out{o}.offset<{}>(at)", column(along));
        self.after.push(match along {
            Along::Wide => format!("store({place}, at.count, y{o});"),
            Along::Unit => format!("store_strided({place}, 1, at.count, y{o});"),
            // Nothing that is written repeats: there is but one column.
            _ => format!("store_strided({place}, e.at_out{o}.col, at.count, y{o});"),
        });
    }

    fn number(&mut self, instr: &Instr, dst: u16, own: usize, along: Along) {
        let first = format!("e.first{own} + e.at{own}.offset<{}>(at)", column(along));
        let step = match along {
            Along::Strided => format!("e.at{own}.col"),
            other => column(other).to_string(),
        };
        let Instr::Rand { stream, .. } = instr else {
            self.before.push(format!("const i64 n{dst} = {first};"));
            self.each.push(format!("f32 v{dst} = f32(i32(n{dst} + i * {step}));"));
            return;
        };
        let stream = stream_text(&self.streams, *stream, "e.draws");
        let key = format!("e.clock->seed, e.clock->step, {stream}");
        self.before.push(format!("u32 d{dst}[V];"));
        self.before.push(format!("const Stream t{dst}({key});"));
        let base = "e.draws.first + e.clock->micro * e.draws.step";
        self.before.push(format!("const u64 n{dst} = {base} + u64({first});"));
        self.before.push(match along {
            Along::Unit => format!("draw_unit<V>(t{dst}, n{dst}, d{dst});"),
            _ => format!("draw_strided<V>(t{dst}, n{dst}, {step}, d{dst});"),
        });
        self.each.push(drawn(dst));
    }
}

/// The struct: where the operands lie, and the numbers that the indices begin with.
pub(super) fn parameters(
    program: &Program,
    matrices: &Matrices,
    places: &[Address],
    first: &[isize],
    place: Draws,
) -> Parameters {
    let operands = program.inputs.len() + program.outputs.len();
    let mut out = Parameters::new();
    for address in places {
        out.address(*address);
    }
    let strides = |operand: usize, out: &mut Parameters| {
        let Matrices { batch, m, n, .. } = matrices;
        let missing = std::iter::repeat_n(0, 3 - batch.len());
        let own = batch.iter().chain([m, n]).map(|axis| axis.strides[FIRST + operand]);
        for stride in missing.chain(own) {
            out.i64(stride as i64);
        }
    };
    for operand in 0..operands {
        strides(operand, &mut out);
    }
    for (i, first) in first.iter().enumerate() {
        out.i64(*first as i64);
        strides(operands + i, &mut out);
    }
    if reads_clock(program) {
        out.address(Address::Clock);
        space::draws(place, &streams([program]), &mut out);
    }
    out
}

/// Bytes that the operands take through memory, counting those that are not read in whole vectors
/// for what they cost.
pub(super) fn traffic(program: &Program, along: &[Along], matrices: &Matrices) -> f64 {
    let operands = program.inputs.iter().chain(&program.outputs);
    let rows = (matrices.m.size * matrices.batches()) as f64;
    let each = operands.zip(along).enumerate().map(|(i, (operand, along))| {
        let repeats = |stride: isize, size: usize| if stride == 0 { 1 } else { size };
        let size = |axis: &super::matrix::Axis| repeats(axis.strides[FIRST + i], axis.size);
        let own: usize =
            matrices.batch.iter().chain([&matrices.m, &matrices.n]).map(size).product();
        let bytes = own as f64 * operand.dtype.bytes() as f64;
        match along {
            Along::Wide | Along::Columns | Along::Repeat => bytes,
            Along::Unit => 3.0 * bytes,
            Along::Strided => 8.0 * bytes + rows,
        }
    });
    each.sum()
}
