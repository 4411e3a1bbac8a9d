//! Which arrangement of a product's axes is the fastest, by how its operands are aligned.

use super::super::Chip;
use super::choice::{self, Choice, Factor, Question};
use super::epilogue::{self, Along};
use super::matrix::{A, B, FIRST, Matrices};
use super::sums::{Known, Sums};
use crate::launch::Address;
use aerogel_graph::DType;
use aerogel_lower::{Draws, Program};

/// Parts of the workspace begin at multiples of so many bytes.
pub(super) const PART: u64 = 256;

/// Of an operand's alignments, that which is known.
pub(super) const KNOWN: usize = 0;
/// The most that a plan may hope for.
pub(super) const BEST: usize = 1;
/// The least.
pub(super) const WORST: usize = 2;

/// Where an operand lies, and what powers of two its address is a multiple of: as far as is known,
/// then what a plan has to reckon with at best and at worst. What scratch a product takes is
/// bounded by those two, whatever the first is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    /// The element at the origin.
    pub address: Address,
    align: [u64; 3],
}

impl Place {
    /// An operand of the spec whose address is a multiple of so many bytes.
    pub fn operand(operand: usize, align: u64, dtype: DType) -> Place {
        Place { address: Address::operand(operand), align: [align, 64, dtype.bytes() as u64] }
    }

    /// A part of the workspace.
    pub fn workspace(at: u64) -> Place {
        Place { address: Address::Workspace(at), align: [PART; 3] }
    }

    pub(super) fn known(self) -> Known {
        Known { address: self.address, align: self.align[0] }
    }

    /// As if the best, or the worst, were known.
    pub fn known_as(self, which: usize) -> Place {
        let [_, best, worst] = self.align;
        Place { align: [self.align[which], best, worst], ..self }
    }

    /// So many bytes further.
    pub fn plus(self, bytes: i64) -> Place {
        let power = if bytes == 0 { u64::MAX } else { 1 << bytes.trailing_zeros() };
        Place { address: self.address.plus(bytes), align: self.align.map(|a| a.min(power)) }
    }
}

/// What all parts of a product share.
pub(super) struct Product {
    pub alpha: f32,
    pub dtypes: [DType; 2],
    pub draws: Draws,
    pub chip: Chip,
}

impl Product {
    /// What a choice for an arrangement depends on, for one of the three alignments of the places,
    /// and how the program's operands lie.
    pub fn question<'a>(
        &self,
        matrices: &'a Matrices,
        program: &Program,
        places: &[Place],
        which: usize,
        sums: Option<&Sums<'_>>,
        most_bytes: u64,
    ) -> (Question<'a>, Vec<Along>) {
        let aligned: Vec<u64> = places.iter().map(|place| place.align[which]).collect();
        let factor = |i: usize| Factor { dtype: self.dtypes[i], align: aligned[i] };
        let factors = if matrices.swapped { [B, A] } else { [A, B] };
        let along = epilogue::along(program, matrices, &aligned[FIRST..]);
        let question = Question {
            matrices,
            factors: factors.map(factor),
            hopper: self.chip.architecture.is_hopper(),
            traffic: epilogue::traffic(program, &along, matrices),
            plain: program.inputs.is_empty() && program.outputs.len() == 1,
            beside: sums.map_or(0, Sums::count),
            most_bytes,
        };
        (question, along)
    }

    /// The fastest arrangement for one of the three alignments of the places, with the sums of a
    /// factor if there are any, in so many bytes of workspace.
    pub fn arrange<'a>(
        &self,
        all: &'a [Matrices],
        program: &Program,
        places: &[Place],
        which: usize,
        sums: Option<&Sums<'_>>,
        most_bytes: u64,
    ) -> (&'a Matrices, Choice, Vec<Along>) {
        let asked = all.iter().map(|matrices| {
            let (question, along) =
                self.question(matrices, program, places, which, sums, most_bytes);
            let mut choice = choice::choose(&question);
            choice.seconds += sums.map_or(0.0, |sums| sums.seconds(matrices, &choice));
            (matrices, choice, along)
        });
        asked
            .min_by(|x, y| x.1.seconds.total_cmp(&y.1.seconds))
            .expect("there is always an arrangement: roles without axes have one of size 1")
    }
}
