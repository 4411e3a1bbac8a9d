//! From the description of a kernel to launches: one file for each spec.
//!
//! Each file chooses a form of its `.cu` files by shapes, strides and alignment, writes the
//! element-wise text if there is any, and fills in the parameters that stand at the head of the
//! `.cu` file. Choices are functions of the spec and of [`Chip`] alone, so equal programs sum in
//! equal orders.

pub(crate) mod elements;
pub(crate) mod space;
pub(crate) mod text;

mod attend;
mod copy;
mod gather;
mod gemm;
mod linear_ce;
mod map;
mod norm;
mod norm_grad;
mod reduce;
mod scatter;

use crate::gpu::Architecture;
use crate::launch::Kernel;
use aerogel_lower::{Call, LowerError, Spec};

/// What kernels are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chip {
    /// Which instructions there are.
    pub architecture: Architecture,
}

/// Multiprocessors that work is cut for: those of an H100. A constant, so that the order of sums
/// does not depend on the device.
pub(crate) const MULTIPROCESSORS: u32 = 132;

/// The launches of a call. `align` has for each operand the largest power of two, of bytes, that
/// its address at the origin is known to be a multiple of.
///
/// # Errors
/// No kernel takes the sizes, types or strides.
pub(crate) fn make(call: &Call, align: &[u64], chip: Chip) -> Result<Kernel, LowerError> {
    match &call.spec {
        Spec::Map(program) => map::map(program, call.draws, align),
        Spec::Reduce(spec) => reduce::reduce(spec, call.draws, align),
        Spec::Product(spec) => gemm::product(spec, call.draws, align, chip),
        Spec::Products(spec) => gemm::products(spec, align, chip),
        Spec::Summed(terms) => gemm::summed(terms, call.draws, align, chip),
        Spec::Norm(spec) => norm::norm(spec, call.draws, align),
        Spec::NormGrad(spec) => norm_grad::norm_grad(spec, call.draws, align),
        Spec::Attend(spec, mask) => match call.position {
            None => attend::attend(spec, mask, align, chip),
            Some(_) => attend::decode(spec, mask),
        },
        Spec::AttendGrad(spec, mask) => attend::attend_grad(spec, mask, align, chip),
        Spec::Gather(spec) => gather::gather(spec, align),
        Spec::Scatter(spec) => scatter::scatter(spec, align),
        Spec::LinearCe(spec) => linear_ce::linear_ce(spec, align, chip),
        Spec::Copy(spec) => copy::copy(spec, align),
        Spec::Fill(spec) => copy::fill(spec, align),
    }
}

/// A refusal.
pub(crate) fn unsupported(kernel: &'static str, what: impl Into<String>) -> LowerError {
    LowerError::Unsupported { kernel, what: what.into() }
}
