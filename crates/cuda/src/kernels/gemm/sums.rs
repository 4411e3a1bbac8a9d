//! Sums of a factor over the depth, beside a product: in its kernel, where the tiles of its first
//! columns hold all of the factor's elements, else by a reduction of its own.

use super::super::reduce::reduce;
use super::super::unsupported;
use super::choice::{Choice, Form, Layout, reading_seconds};
use super::matrix::{A, B, Matrices};
use crate::launch::{Address, Launch};
use aerogel_graph::DType;
use aerogel_graph::ops::Fold;
use aerogel_lower::{
    Axis, Contraction, Draws, Instr, LowerError, Operand, OperandSums, Program, ReduceSpec, Role,
};

/// What is summed, and where the sums go.
pub(super) struct Sums<'a> {
    spec: &'a Contraction,
    own: &'a OperandSums,
    to: Known,
}

/// An address, and the bytes that it is a multiple of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub address: Address,
    pub align: u64,
}

/// Sums that a product's kernel makes: `Sums` of `lib/gemm_sums.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Beside {
    /// That of the first row.
    pub address: Address,
    /// Elements from row to row.
    pub stride: isize,
}

impl<'a> Sums<'a> {
    /// Those of a contraction, to this address.
    ///
    /// # Errors
    /// The sums are of no factor, or have another number of strides than there are axes.
    pub fn new(
        spec: &'a Contraction,
        own: &'a OperandSums,
        to: Known,
    ) -> Result<Sums<'a>, LowerError> {
        let (wanted, got) = (spec.axes.len(), own.output.strides.len());
        if got != wanted {
            let operand = 3;
            return Err(LowerError::Rank { kernel: "product", operand, wanted, got });
        }
        if own.factor > B {
            let what = format!("sums of factor {}; there are 0 and 1", own.factor);
            return Err(unsupported("product", what));
        }
        Ok(Sums { spec, own, to })
    }

    /// Which factor is summed.
    pub fn factor(&self) -> usize {
        self.own.factor
    }

    /// The axes of the factor, each with the factor's stride and that of the sums.
    fn axes(&self) -> impl Iterator<Item = (&Axis, isize, isize)> {
        let lacks = if self.own.factor == A { Role::N } else { Role::M };
        let factor = |axis: &Axis| if self.own.factor == A { axis.a } else { axis.b };
        let all = self.spec.axes.iter().zip(&self.own.output.strides);
        all.filter(move |(axis, _)| axis.role != lacks).map(move |(a, s)| (a, factor(a), *s))
    }

    /// Sums, as many as there are.
    pub fn count(&self) -> usize {
        self.axes().filter(|x| x.0.role != Role::K).map(|x| x.0.size).product()
    }

    /// The sums as part of a product's kernel, if they can be: the factor is on the left, its rows
    /// lie side by side, and the sums one after the other in the same order.
    pub fn beside(&self, matrices: &Matrices, choice: &Choice) -> Option<Beside> {
        let left = if matrices.swapped { B } else { A };
        let rows = matches!(choice.form, Form::Ring { layouts: [Layout::Side, _], .. });
        let plain = self.own.output.dtype == DType::F32 && matrices.batches() == 1;
        if left != self.own.factor || !rows || !plain || matrices.k_outer.size != 1 {
            return None;
        }
        let mut stride = None;
        for (axis, factor, sums) in self.axes().filter(|x| x.0.size != 1) {
            match axis.role {
                Role::K => {}
                Role::Batch => return None,
                // Row r of the factor is its element r.
                _ if factor == 0 || sums % factor != 0 => return None,
                _ if *stride.get_or_insert(sums / factor) != sums / factor => return None,
                _ => {}
            }
        }
        Some(Beside { address: self.to.address, stride: stride.unwrap_or(0) })
    }

    /// What they take besides the product.
    pub fn seconds(&self, matrices: &Matrices, choice: &Choice) -> f64 {
        if self.beside(matrices, choice).is_some() {
            return 0.0;
        }
        let reduction = self.reduction();
        let elements: usize = reduction.program.sizes.iter().product();
        reading_seconds((elements * reduction.program.inputs[0].dtype.bytes()) as f64)
    }

    /// The reduction of the factor by itself.
    pub fn reduction(&self) -> ReduceSpec {
        let dtype = if self.own.factor == A { self.spec.a } else { self.spec.b };
        let (mut sizes, mut reduced) = (vec![], vec![]);
        let (mut from, mut to) = (vec![], vec![]);
        for (axis, own, sums) in self.axes() {
            sizes.push(axis.size);
            reduced.push(axis.role == Role::K);
            from.push(own);
            to.push(sums);
        }
        let program = Program {
            sizes,
            inputs: vec![Operand { dtype, strides: from }],
            outputs: vec![],
            instrs: vec![Instr::Load { dst: 0, input: 0 }],
        };
        let output = Operand { dtype: self.own.output.dtype, strides: to };
        ReduceSpec { program, value: 0, reduced, output, fold: Fold::Sum }
    }

    /// The launches of that reduction, and the scratch that they take from this byte of the
    /// workspace on.
    pub fn alone(&self, factor: Known, work: u64) -> Result<(Vec<Launch>, u64), LowerError> {
        let aligned = [factor.align, self.to.align];
        let mut kernel = reduce(&self.reduction(), Draws::default(), &aligned)?;
        for launch in &mut kernel.launches {
            launch.parameters.rename(|address| match address {
                Address::Operand { operand: 0, bytes } => factor.address.plus(bytes),
                Address::Operand { bytes, .. } => self.to.address.plus(bytes),
                Address::Workspace(at) => Address::Workspace(work + at),
                other => other,
            });
        }
        Ok((kernel.launches, kernel.workspace_bytes))
    }
}
