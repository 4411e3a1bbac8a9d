//! Reductions.

use super::copy;
use super::elements::{self, Numbers, defines};
use super::space::{self, Units};
use super::text;
use super::{MULTIPROCESSORS, unsupported};
use crate::launch::{Address, Kernel, Parameters};
use crate::source::Source;
use aerogel_graph::ops::Fold;
use aerogel_lower::space::Space;
use aerogel_lower::{Draws, FillSpec, LowerError, Operand, ReduceSpec};

#[cfg(test)]
mod tests;

const NAME: &str = "reduce";

pub(crate) fn reduce(spec: &ReduceSpec, draws: Draws, align: &[u64]) -> Result<Kernel, LowerError> {
    let (sizes, rank) = (&spec.program.sizes, spec.program.sizes.len());
    let operands = spec.program.inputs.iter().chain([&spec.output]);
    elements::check_ranks(NAME, rank, operands)?;
    if spec.reduced.len() != rank {
        let what = format!("{} flags for {rank} axes; give one per axis", spec.reduced.len());
        return Err(unsupported(NAME, what));
    }
    if !spec.program.outputs.is_empty() {
        return Err(unsupported(NAME, "the program must not store; let a map do it"));
    }
    let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..rank).partition(|a| spec.reduced[*a]);
    if kept.iter().any(|a| sizes[*a] == 0) {
        return Ok(Kernel::default());
    }
    if reduced.iter().any(|a| sizes[*a] == 0) {
        let strides = elements::ordered(&spec.output.strides, &kept);
        let to = Operand { dtype: spec.output.dtype, strides };
        let value = if spec.fold == Fold::Sum { 0.0 } else { f32::NEG_INFINITY };
        let fill = FillSpec { sizes: elements::ordered(sizes, &kept), to, value };
        let at = align.len() - 1;
        return copy::fill_at(&fill, Address::operand(at), align[at]);
    }
    if spec.program.inputs.is_empty() {
        // C has no arrays of no elements: such a program is given one to read, and does not.
        let mut spec = spec.clone();
        spec.program.inputs.push(Operand { strides: vec![0; rank], ..spec.output.clone() });
        let form = Form::new(&spec, reduced, kept)?;
        return form.kernel(&spec, draws, align);
    }
    let form = Form::new(spec, reduced, kept)?;
    form.kernel(spec, draws, align)
}

/// How the space is cut, and by how many threads it is walked: the constants and counts that stand
/// at the head of `reduce.cu`.
struct Form {
    /// Whether the outer axes are the ones that go.
    columns: bool,
    outer: Units,
    inner: Units,
    v: usize,
    /// Elements of the inner axis after its units.
    tail: usize,
    lanes: usize,
    threads: usize,
    unroll: usize,
    chunks: usize,
    chunk: usize,
}

impl Form {
    fn new(spec: &ReduceSpec, reduced: Vec<usize>, kept: Vec<usize>) -> Result<Form, LowerError> {
        let program = &spec.program;
        let sizes = &program.sizes;
        let inputs: Vec<&Operand> = program.inputs.iter().collect();
        let axes: Vec<usize> = (0..sizes.len()).collect();
        // The axis along which most bytes lie side by side, the longest of equals.
        let bytes = |axis: usize| -> usize {
            inputs.iter().filter(|o| o.strides[axis] == 1).map(|o| o.dtype.bytes()).sum()
        };
        let wide = axes.iter().copied().filter(|a| sizes[*a] > 1 && bytes(*a) > 0);
        let columns = wide.max_by_key(|a| (bytes(*a), sizes[*a])).is_some_and(|a| !spec.reduced[a]);
        let mut strides = elements::strides(program);
        let step = |(stride, gone): (&isize, &bool)| if *gone { 0 } else { *stride };
        strides.push(spec.output.strides.iter().zip(&spec.reduced).map(step).collect());
        let group = |axes: &[usize]| -> Result<Space, LowerError> {
            let order = elements::order(sizes, axes, &inputs);
            let own = strides.iter().map(|own| elements::ordered(own, &order)).collect();
            space::merged(NAME, &elements::ordered(sizes, &order), own)
        };
        let (outer, inner) = if columns { (reduced, kept) } else { (kept, reduced) };
        let (outer, inner) = (group(&outer)?, group(&inner)?);
        let (last, flat) = (inner.sizes.len() - 1, inner.sizes.len() == 1 && !columns);
        let along: Vec<isize> = inner.strides.iter().map(|own| own[last]).collect();
        let v = elements::lanes(&program.inputs, &along, inner.sizes[last], flat);
        let tail = if flat { inner.sizes[0] % v } else { 0 };
        let none = vec![0; along.len()];
        let (outer, inner) = (Units::whole(&outer, none), Units::new(&inner, v));
        // Operands that repeat take neither time nor registers.
        let moved = along[..program.inputs.len()].iter().filter(|s| **s != 0).count().max(1);
        let most = (8 / moved).max(1);
        Ok(Form {
            columns,
            outer,
            inner,
            v,
            tail,
            lanes: 0,
            threads: 0,
            unroll: 0,
            chunks: 0,
            chunk: 0,
        }
        .cut(most))
    }

    /// Chooses threads and chunks; of a thread's units at most so many are in flight.
    fn cut(mut self, most: usize) -> Form {
        let (outer, units) = (self.outer.count(), self.inner.count());
        let (length, chunks) = if self.columns {
            let idle = |lanes: &usize| units.div_ceil(*lanes) * lanes;
            self.lanes = [32, 16, 8].into_iter().min_by_key(idle).unwrap_or(32);
            // A few columns: fewer threads, so that a block has no more groups than with 8 lanes.
            self.lanes = self.lanes.min(units.next_power_of_two());
            self.threads = 512.min(64 * self.lanes);
            self.unroll = most.min(4);
            let across = units.div_ceil(self.lanes);
            let blocks = MULTIPROCESSORS as usize * 1024 / self.threads;
            let waves = if across > 32 { 4 } else { 1 };
            let groups = self.threads / self.lanes;
            let chunks = (waves * blocks / across).min(outer.div_ceil(self.unroll * groups));
            (outer, chunks)
        } else {
            self.threads = 256;
            // Few long rows get a block each, and chunks of it.
            let whole = outer < 2048 && units >= 1024;
            self.lanes = if whole { self.threads } else { units.next_power_of_two().min(32) };
            let own = units.div_ceil(self.lanes).max(1);
            let own = if whole { own.min(4) } else { own };
            self.unroll = own.div_ceil(own.div_ceil(most));
            let chunks = 1024usize.div_ceil(outer).min(units / (self.lanes * self.unroll * 4));
            (units, chunks)
        };
        self.chunk = length.div_ceil(chunks.max(1)).max(1);
        self.chunks = length.div_ceil(self.chunk).max(1);
        self
    }

    /// Elements of the result.
    fn kept(&self) -> usize {
        if self.columns { self.inner.count() * self.v } else { self.outer.count() }
    }

    fn parameters(
        &self,
        spec: &ReduceSpec,
        output: usize,
        draws: Draws,
    ) -> Result<Parameters, LowerError> {
        let mut p = Parameters::new();
        for operand in 0..spec.program.inputs.len() {
            p.address(Address::operand(operand));
        }
        p.address(elements::clock([&spec.program])).address(Address::operand(output));
        p.address(if self.chunks > 1 { Address::Workspace(0) } else { Address::Null });
        space::draws(draws, &text::streams([&spec.program]), &mut p);
        self.outer.write(&mut p);
        self.inner.write(&mut p);
        let (outer, units) = (self.outer.count(), self.inner.count());
        for n in [outer, units, self.tail, self.chunks, self.chunk] {
            p.u32(space::count(NAME, n)?);
        }
        Ok(p)
    }

    fn kernel(&self, spec: &ReduceSpec, draws: Draws, align: &[u64]) -> Result<Kernel, LowerError> {
        space::count(NAME, self.kept())?;
        let numbers = Numbers { operand: 0, index: spec.program.inputs.len() };
        let program = ("Program", &spec.program, Some(spec.value));
        let spaces = [&self.outer, &self.inner];
        let part = elements::part(program, numbers, align, &spaces, self.v);
        let text = text::with_programs(Source::text("reduce.cu"), &[part]);
        let mut constants = defines(&[
            ("COLUMNS", usize::from(self.columns)),
            ("V", self.v),
            ("LANES", self.lanes),
            ("THREADS", self.threads),
            ("UNROLL", self.unroll),
            ("OUTER", self.outer.axes()),
            ("INNER", self.inner.axes()),
        ]);
        let fold = if spec.fold == Fold::Sum { "Sum" } else { "Max" };
        constants.push(format!("FOLD={fold}"));
        constants.push(format!("OUT={}", text::type_name(spec.output.dtype)));
        let p = self.parameters(spec, align.len() - 1, draws)?;
        let across = match self.columns {
            true => self.inner.count().div_ceil(self.lanes),
            false => self.outer.count().div_ceil(self.threads / self.lanes),
        };
        let start = |entry, grid, threads| {
            let (text, constants) = (Some(text.clone()), constants.clone());
            elements::launch(("reduce.cu", entry), text, constants, (grid, threads), &p)
        };
        let grid = [across as u32, self.chunks as u32, 1];
        let mut launches = vec![start("reduce", grid, self.threads as u32)];
        let mut scratch = 0;
        if self.chunks > 1 {
            let blocks = self.kept().div_ceil(32) as u32;
            launches.push(start("reduce_finish", [blocks, 1, 1], 1024));
            scratch = 4 * (self.chunks * self.kept()) as u64;
        }
        Ok(elements::kernel(launches, scratch))
    }
}
