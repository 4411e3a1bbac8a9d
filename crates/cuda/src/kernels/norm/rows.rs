//! What both directions of a norm share: rows over which programs are walked, and by how many
//! threads.

use crate::kernels::elements::{self, Numbers, common_power, defines};
use crate::kernels::space::{self, Units};
use crate::kernels::text::{self, Part, indices};
use crate::kernels::unsupported;
use crate::launch::{Address, Parameters};
use aerogel_lower::space::by_stride;
use aerogel_lower::{Instr, LowerError, Normalisation, Operand, Output, Program, Value};

/// Widest rows: beyond them a thread would have far more of a row than it has registers.
const WIDEST: usize = 1 << 16;

/// A program that stands around a norm, and which operands of the spec it works on.
pub(in crate::kernels) struct RowPart<'a> {
    /// Name of the struct.
    pub name: &'static str,
    /// The program.
    pub program: &'a Program,
    /// The value that it hands on.
    pub result: Option<Value>,
    /// Its inputs, then its outputs.
    pub operands: Vec<usize>,
}

/// A program that reads an operand and hands it on.
pub(in crate::kernels) fn load(norm: &Normalisation, operand: &Operand) -> Program {
    Program {
        sizes: norm.sizes.clone(),
        inputs: vec![operand.clone()],
        outputs: vec![],
        instrs: vec![Instr::Load { dst: 0, input: 0 }],
    }
}

/// The program that gets the finished rows.
pub(in crate::kernels) fn finish(norm: &Normalisation, output: &Output) -> Program {
    match output {
        Output::Epilogue(program) => program.clone(),
        Output::Store(operand) => Program {
            sizes: norm.sizes.clone(),
            inputs: vec![],
            outputs: vec![operand.clone()],
            instrs: vec![Instr::Product { dst: 0 }, Instr::Store { output: 0, src: 0 }],
        },
    }
}

/// Rows, and the programs over them.
pub(in crate::kernels) struct Rows<'a> {
    parts: Vec<RowPart<'a>>,
    /// The axes of the rows, with lanes along the width.
    pub units: Units,
    /// Elements of a row.
    pub width: usize,
    /// Lanes of a unit.
    pub v: usize,
}

impl<'a> Rows<'a> {
    /// Merges the axes of the rows in the order of the first operand.
    ///
    /// # Errors
    /// Strides do not fit the axes, too many axes are left, or rows are too wide.
    pub fn new(
        kernel: &'static str,
        norm: &Normalisation,
        parts: Vec<RowPart<'a>>,
    ) -> Result<Rows<'a>, LowerError> {
        let rank = norm.sizes.len();
        let Some((&width, outer)) = norm.sizes.split_last() else {
            return Err(unsupported(kernel, "needs at least one axis"));
        };
        if width > WIDEST {
            let what = format!("rows of {width} elements, at most {WIDEST}");
            return Err(unsupported(kernel, what));
        }
        for part in &parts {
            let operands = part.program.inputs.iter().chain(&part.program.outputs);
            for (own, &operand) in operands.zip(&part.operands) {
                let got = own.strides.len();
                if got != rank {
                    return Err(LowerError::Rank { kernel, operand, wanted: rank, got });
                }
            }
        }
        let operands = parts.iter().flat_map(|p| p.program.inputs.iter().chain(&p.program.outputs));
        let numbers = parts.iter().flat_map(|p| indices(p.program));
        let strides: Vec<Vec<isize>> = operands.map(|o| o.strides.clone()).chain(numbers).collect();
        let axes: Vec<usize> = (0..rank - 1).collect();
        let order = by_stride(&axes, &[&strides[0]]);
        let over_rows = strides.iter().map(|own| elements::ordered(own, &order)).collect();
        let space = space::merged(kernel, &elements::ordered(outer, &order), over_rows)?;
        let lanes = strides.iter().map(|own| own[rank - 1]).collect();
        let x = &parts[0].program.inputs[0];
        let v = common_power([width], if x.dtype.bytes() == 2 { 8 } else { 4 });
        Ok(Rows { units: Units::whole(&space, lanes), parts, width, v })
    }

    /// Units of a row.
    pub fn row_units(&self) -> usize {
        self.width / self.v
    }

    /// The structs of the text; `align` is of the spec's operands.
    pub fn texts(&self, align: &[u64]) -> Vec<Part<'_>> {
        let mut operand = 0;
        let mut index = self.parts.iter().map(|p| p.operands.len()).sum();
        let each = self.parts.iter().map(|part| {
            let own: Vec<u64> = part.operands.iter().map(|at| align[*at]).collect();
            let program = (part.name, part.program, part.result);
            let first = Numbers { operand, index };
            operand += part.operands.len();
            index += indices(part.program).len();
            elements::part(program, first, &own, &[&self.units], self.v)
        });
        each.collect()
    }

    /// Writes the addresses of all programs' operands.
    pub fn write_operands(&self, p: &mut Parameters) {
        for operand in self.parts.iter().flat_map(|part| &part.operands) {
            p.address(Address::operand(*operand));
        }
    }

    /// Bytes of an element of everything that the programs read and that does not repeat along the
    /// width: what a thread holds of it before it can compute.
    pub fn held_bytes(&self) -> usize {
        let inputs = self.parts.iter().flat_map(|p| &p.program.inputs);
        let moved = inputs.filter(|o| o.strides[o.strides.len() - 1] != 0);
        moved.map(|o| o.dtype.bytes()).sum()
    }

    /// The constants that both directions have. `constants` are gain and bias, with what their
    /// addresses are multiples of.
    ///
    /// # Errors
    /// Gain or bias do not lie side by side.
    pub fn defines(
        &self,
        kernel: &'static str,
        center: bool,
        shape: RowShape,
        constants: &[(&str, Option<&Operand>, u64)],
    ) -> Result<Vec<String>, LowerError> {
        let mut const_align = self.v;
        let mut types = vec![];
        for (name, operand, align) in constants {
            let Some(operand) = operand else { continue };
            let stride = operand.strides.last().copied().unwrap_or(1);
            if stride != 1 && self.width > 1 {
                let what = format!(
                    "{} lies {stride} elements apart; copy it to where it is contiguous",
                    name.to_lowercase()
                );
                return Err(unsupported(kernel, what));
            }
            const_align = const_align.min(elements::alignment(operand, *align, &[self.v as isize]));
            types.push(format!("{name}={}", text::type_name(operand.dtype)));
        }
        let mut list = defines(&[
            ("V", self.v),
            ("LANES", shape.lanes),
            ("UNITS", self.row_units().div_ceil(shape.lanes)),
            ("THREADS", shape.threads),
            ("AXES", self.units.axes()),
            ("CENTER", usize::from(center)),
        ]);
        if !types.is_empty() {
            list.push(format!("CONST_ALIGN={const_align}"));
        }
        list.extend(types);
        // Where a thread has most of the registers that there are, or many addresses, the compiler
        // is not to save any of them for other blocks.
        if shape.threads >= 512 || self.v == 1 {
            list.push("MIN_BLOCKS=1".to_owned());
        }
        Ok(list)
    }
}

/// How many threads there are, and how many of them have a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct RowShape {
    /// Threads of a row.
    pub lanes: usize,
    /// Threads of a block.
    pub threads: usize,
}
