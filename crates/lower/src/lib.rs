//! From claimed regions to descriptions of kernels, the same for every device.
//!
//! A [`Target`](aerogel_machine::Target) asks [`regions`] which nodes may run as one kernel, and
//! [`lower`] what these kernels are; [`claims`] makes its offer of both. The one type to know is
//! [`Spec`]: sizes, operands with strides, options and programs of element-wise arithmetic, as
//! plain data. What is left to a backend is to turn a spec into something that runs on the
//! operands of its [`Call`].
//!
//! The invariant: a spec is a function of the graph, the strides and the rank's place. It knows no
//! device, and how a kernel cuts its work, what it keeps where and in which order it adds is not
//! its business; between ranks only what it reads first and constants differ, so that one plan
//! serves all of them.
//!
//! Tests: `tests/all/regions.rs` for which nodes run together, `tests/all/specs.rs` for what they
//! become; that a backend computes what specs say is tested in the backend.

mod compile;
mod draws;
mod error;
mod lower;
mod offer;
mod operand;
mod program;
pub mod regions;
mod source;
pub mod space;
mod spec;

pub use draws::Draws;
pub use error::LowerError;
pub use lower::lower;
pub use offer::claims;
pub use operand::Operand;
pub use program::{Binary, Instr, Program, Unary, Value};
pub use source::{Source, Strides, section_strides};
pub use spec::{
    AttendGradSpec, AttendMask, AttendSpec, Attention, Axis, Call, Contraction, CopySpec, FillSpec,
    GatherSpec, LinearCeSpec, NormGradSpec, NormSpec, Normalisation, OperandSums, Output, Products,
    ReduceSpec, Role, RowsShape, ScatterSpec, Spec,
};
