//! The kernels, one file each.

pub mod convert;
pub mod gemm;
pub mod map;
pub mod ops;
pub(crate) mod product;
pub mod reduce;
pub mod tile;
