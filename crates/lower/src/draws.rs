//! Where the random draws of a piece begin in the whole tensor.

use aerogel_graph::types::MESH_AXES;
use aerogel_graph::{Axes, AxisId, Cutter, Place};

/// The element of the whole tensor at which a rank's piece begins: a draw is a function of the
/// element's global index, whoever has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draws {
    /// The first element of micro-batch 0.
    pub first: u64,
    /// Elements from one micro-batch to the next.
    pub step: u64,
}

impl Draws {
    /// The first element of a micro-batch.
    pub fn element(self, micro: u64) -> u64 {
        self.first + micro * self.step
    }
}

/// The same for every rank, as a sum over who cut the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// For each micro-batch before this one.
    micro: u64,
    /// For each rank before this one, by mesh axis.
    mesh: [u64; MESH_AXES],
    /// Of a fixed piece.
    fixed: u64,
}

impl Origin {
    pub fn at(&self, place: Place) -> Draws {
        let ranks = self.mesh.iter().zip(place.0).map(|(n, x)| n * u64::from(x)).sum::<u64>();
        Draws { first: self.fixed + ranks, step: self.micro }
    }
}

/// Row-major strides in the whole tensor, of which this may be a piece; and where it begins.
pub(crate) fn global_strides(axes: &Axes, list: &[AxisId]) -> (Vec<isize>, Origin) {
    let mut strides = vec![1isize; list.len()];
    let mut origin = Origin::default();
    let mut stride = 1;
    for (&id, own) in list.iter().zip(&mut strides).rev() {
        let axis = &axes[id];
        *own = stride as isize;
        let mut step = axis.size as u64 * stride;
        for cut in axis.cuts.iter().rev() {
            match cut.by {
                Cutter::Time => origin.micro += step,
                Cutter::Mesh(m) => origin.mesh[m as usize] += step,
                Cutter::Fixed(piece) => origin.fixed += piece as u64 * step,
            }
            step *= cut.pieces as u64;
        }
        stride *= axis.global_size() as u64;
    }
    (strides, origin)
}
