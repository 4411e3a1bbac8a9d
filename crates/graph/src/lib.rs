//! Values with named axes, the closed op table, autodiff, the verifier, a text form that parses
//! back, and the reference interpreter.
//!
//! The one type to know is [`Graph`]: nodes in a topological list, each an [`Op`] over values whose
//! axes have names. Everything that a training step does is such a graph; every technique is a
//! function from graphs to graphs.
//!
//! Invariant: the crate knows nothing of machines, files or threads, and it is the only crate that
//! matches on all ops. An op's rules (shape, gradient, cost, reference, text) stand in one file of
//! [`ops`]. Tests are in `tests/`: gradient checks, expansions, text round trips, masks.

pub mod autodiff;
pub mod expr;
pub mod graph;
pub mod interpret;
pub mod ops;
pub mod pattern;
pub mod random;
pub mod rewrite;
pub mod state;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use autodiff::gradients;
pub use expr::Expr;
pub use graph::{Def, Graph, Init, Input, Node, ParamClass, Part, Phase, Role, State, Value};
pub use interpret::{Env, Rounding, interpret, interpret_mesh};
pub use ops::{Build, Cost, Op, OpError};
pub use pattern::{Coverage, Pattern};
pub use random::Clock;
pub use tensor::Tensor;
pub use types::{
    Axes, Axis, AxisId, AxisList, Cut, Cutter, DType, Mesh, NodeId, Place, StateId, Type, ValueId,
};
