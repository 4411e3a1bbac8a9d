//! The kernels, one file each.

pub mod attend;
pub mod attend_grad;
pub(crate) mod convert;
pub mod copy;
pub mod gather;
pub mod gemm;
pub mod linear_ce;
pub mod map;
pub(crate) mod micro;
pub mod norm;
pub(crate) mod ops;
pub(crate) mod pack;
pub mod pattern;
pub mod reduce;
pub mod tile;
