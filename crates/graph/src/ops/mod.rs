//! The op table: one file per op, with all of its rules.
//!
//! To add an op: write its file, add its line to `ops!`, and add it to the gradient check.

mod attend;
mod attend_grad;
mod build;
mod collective;
mod einsum;
mod gather;
mod linear_ce;
mod linear_ce_grad;
mod linear_lse;
mod map;
mod merge_attend;
mod norm;
mod norm_grad;
mod reduce;
mod scatter;
mod view;

pub use attend::Attend;
pub use attend_grad::AttendGrad;
pub use build::Build;
pub use collective::{Collective, Exchange, Merge};
pub use einsum::Einsum;
pub use gather::Gather;
pub use linear_ce::LinearCe;
pub use linear_ce_grad::LinearCeGrad;
pub use linear_lse::LinearLse;
pub use map::Map;
pub use merge_attend::MergeAttend;
pub use norm::Norm;
pub use norm_grad::NormGrad;
pub use reduce::{Fold, Reduce};
pub use scatter::{Scatter, ScatterMode};
pub use view::View;

use crate::expr;
use crate::random::Clock;
use crate::tensor::Tensor;
use crate::types::{Axes, Axis, AxisId, AxisList, Cut, Cutter, DType, NodeId, Type, ValueId};

/// Why an op cannot stand where it was put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op}{}: {message}", if scope.is_empty() { String::new() } else { format!(" at {scope}") })]
pub struct OpError {
    /// Name of the op.
    pub op: String,
    /// Scope of the node, where it is known.
    pub scope: String,
    /// What was wanted, what was got, of which axis.
    pub message: String,
}

impl OpError {
    /// An error of the named op.
    pub fn new(op: &str, message: impl Into<String>) -> Self {
        OpError { op: op.to_owned(), scope: String::new(), message: message.into() }
    }
}

/// Work of one execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations, a fused multiply-add counted as two.
    pub flops: u64,
    /// Bytes read and written once each.
    pub bytes: u64,
}

/// A node as its gradient rule sees it.
pub struct GradSite<'a> {
    /// The node.
    pub node: NodeId,
    /// Its inputs.
    pub ins: &'a [ValueId],
    /// Its outputs.
    pub outs: &'a [ValueId],
    /// Cotangents of the outputs; `None` where nothing depends on one.
    pub douts: &'a [Option<ValueId>],
    /// Which inputs' cotangents are asked for.
    pub wanted: &'a [bool],
    /// The dtype that each input's cotangent is to have.
    pub dtypes: &'a [DType],
}

/// One cotangent per input, where it was wanted.
pub type Cotangents = Vec<Option<ValueId>>;

/// What a reference needs beside its inputs.
pub struct RefSite<'a> {
    /// The graph's axes.
    pub axes: &'a Axes,
    /// Seed, step, piece.
    pub clock: Clock,
    /// Types of the outputs.
    pub outs: &'a [Type],
}

/// Whether ranks can each run an op on a piece of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// Yes: of an output that has the axis each rank gets its piece; one that lacks it is the sum
    /// of what the ranks get. Inputs that lack the axis are read whole.
    Parallel,
    /// No: the op reads, or makes, all of the axis.
    Whole,
}

impl Sharding {
    fn whole_if(condition: bool) -> Sharding {
        if condition { Sharding::Whole } else { Sharding::Parallel }
    }
}

/// All rules of one op.
pub trait Rules: Sized {
    /// Name in the text form.
    const NAME: &'static str;

    /// Types of the outputs.
    ///
    /// # Errors
    /// The inputs do not fit the op: which axis, wanted and got.
    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError>;

    /// Cotangents of the inputs, as nodes appended through `b`.
    ///
    /// # Errors
    /// The op has no gradient for an input that wants one.
    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError>;

    /// Floating-point operations (bytes follow from the types).
    fn flops(&self, axes: &Axes, ins: &[&Type], outs: &[Type]) -> u64;

    /// What the op does with axis `label`, which an operand has and ranks may each hold a piece of.
    fn sharding(&self, axes: &Axes, ins: &[&Type], outs: &[Type], label: AxisId) -> Sharding;

    /// The slow, obvious meaning, in f64.
    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor>;

    /// The same in primitive ops; `None` for a primitive.
    ///
    /// # Errors
    /// As for building any graph.
    fn expand(
        &self,
        _ins: &[ValueId],
        _b: &mut dyn Build,
    ) -> Result<Option<Vec<ValueId>>, OpError> {
        Ok(None)
    }

    /// The dtype of the output's cotangent, where it is not the output's own.
    fn cotangent_dtype(&self) -> Option<DType> {
        None
    }

    /// Attributes for the text form; what the output types say is left out.
    fn attrs(&self, axes: &Axes) -> Attrs;

    /// The op from its attributes and the declared output types.
    ///
    /// # Errors
    /// An attribute is missing or malformed.
    fn from_attrs(attrs: &Attrs, axes: &Axes, outs: &[Type]) -> Result<Self, OpError>;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// An operation, with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op { $($(#[$doc])* $name($name)),* }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op { Op::$name(op) }
        })*

        #[allow(missing_docs)] // forwards to the rules
        impl Op {
            /// Names of all ops.
            pub const NAMES: &'static [&'static str] = &[$($name::NAME),*];

            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => $name::NAME),* }
            }
            pub fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
                match self { $(Op::$name(op) => op.infer(axes, ins)),* }
            }
            pub fn grad(
                &self,
                site: &GradSite<'_>,
                b: &mut dyn Build,
            ) -> Result<Cotangents, OpError> {
                match self { $(Op::$name(op) => op.grad(site, b)),* }
            }
            pub fn flops(&self, axes: &Axes, ins: &[&Type], outs: &[Type]) -> u64 {
                match self { $(Op::$name(op) => op.flops(axes, ins, outs)),* }
            }
            pub fn sharding(
                &self,
                axes: &Axes,
                ins: &[&Type],
                outs: &[Type],
                label: AxisId,
            ) -> Sharding {
                match self { $(Op::$name(op) => op.sharding(axes, ins, outs, label)),* }
            }
            pub fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
                match self { $(Op::$name(op) => op.reference(site, ins)),* }
            }
            pub fn expand(
                &self,
                ins: &[ValueId],
                b: &mut dyn Build,
            ) -> Result<Option<Vec<ValueId>>, OpError> {
                match self { $(Op::$name(op) => op.expand(ins, b)),* }
            }
            pub fn cotangent_dtype(&self) -> Option<DType> {
                match self { $(Op::$name(op) => op.cotangent_dtype()),* }
            }
            pub fn attrs(&self, axes: &Axes) -> Attrs {
                match self { $(Op::$name(op) => op.attrs(axes)),* }
            }
            pub fn from_attrs(
                name: &str,
                attrs: &Attrs,
                axes: &Axes,
                outs: &[Type],
            ) -> Result<Op, OpError> {
                match name {
                    $($name::NAME => $name::from_attrs(attrs, axes, outs).map(Op::from),)*
                    _ => Err(OpError::new(name, format!(
                        "no such op; there are: {}", Op::NAMES.join(", "))))
                }
            }
        }
    };
}

ops! {
    /// Contraction of one or two values over axis names.
    Einsum,
    /// Element-wise expression of any number of values.
    Map,
    /// Sum or maximum over axes.
    Reduce,
    /// Layer or RMS normalisation.
    Norm,
    /// Gradient of `Norm`.
    NormGrad,
    /// Masked softmax attention under a pattern.
    Attend,
    /// Gradient of `Attend`.
    AttendGrad,
    /// Union of two disjoint attentions by their log-sum-exp.
    MergeAttend,
    /// Rows of a table by index.
    Gather,
    /// Rows added to, or set in, a table by index.
    Scatter,
    /// Output layer and cross entropy, with the gradient made in the forward.
    LinearCe,
    /// Log-sum-exp of the output layer over a piece of the vocabulary.
    LinearLse,
    /// Gradient of the output layer and cross entropy, of a piece of the vocabulary.
    LinearCeGrad,
    /// Split, merge, rename, slice, pad, concatenate.
    View,
    /// Communication between the ranks of a mesh.
    Collective,
}

impl Op {
    /// FLOPs of the op, and the bytes of its operands read and written once.
    pub fn cost(&self, axes: &Axes, ins: &[&Type], outs: &[Type]) -> Cost {
        let read: u64 = ins.iter().map(|t| t.bytes(axes)).sum();
        let written: u64 = outs.iter().map(|t| t.bytes(axes)).sum();
        Cost { flops: self.flops(axes, ins, outs), bytes: read + written }
    }
}

/// Attributes of an op in the text form: `{key=value ...}`, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub Vec<(String, String)>);

impl Attrs {
    /// Appends an attribute.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.0.push((key.to_owned(), value.to_string()));
        self
    }

    /// Appends an attribute unless it is at its default.
    pub fn with_if(self, condition: bool, key: &str, value: impl ToString) -> Self {
        if condition { self.with(key, value) } else { self }
    }

    /// The attribute's text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn text(&self, op: &str, key: &str) -> Result<&str, OpError> {
        self.get(key).ok_or_else(|| OpError::new(op, format!("attribute `{key}` is missing")))
    }

    fn parsed<T: std::str::FromStr>(&self, op: &str, key: &str) -> Result<T, OpError> {
        let text = self.text(op, key)?;
        text.parse().map_err(|_| OpError::new(op, format!("attribute `{key}={text}` is malformed")))
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("true")
    }

    fn axis(&self, op: &str, axes: &Axes, key: &str) -> Result<AxisId, OpError> {
        find_axis(op, axes, self.text(op, key)?)
    }

    fn axis_list(&self, op: &str, axes: &Axes, key: &str) -> Result<AxisList, OpError> {
        let text = self.text(op, key)?;
        let inner = text.trim_start_matches('[').trim_end_matches(']');
        inner.split_whitespace().map(|n| find_axis(op, axes, n)).collect()
    }

    fn expr(&self, op: &str, axes: &Axes, key: &str) -> Result<expr::Expr, OpError> {
        expr::parse(self.text(op, key)?, axes).map_err(|e| OpError::new(op, e.to_string()))
    }
}

fn find_axis(op: &str, axes: &Axes, name: &str) -> Result<AxisId, OpError> {
    axes.find(name).ok_or_else(|| OpError::new(op, format!("axis `{name}` is not declared")))
}

fn list_attr(axes: &Axes, list: &[AxisId]) -> String {
    format!("[{}]", axes.names(list))
}

/// `list` without `axis`.
fn without(list: &[AxisId], axis: AxisId) -> AxisList {
    list.iter().copied().filter(|&a| a != axis).collect()
}

/// `list` with `from` replaced by `to` (which may be none or several axes).
fn replaced(list: &[AxisId], from: AxisId, to: &[AxisId]) -> AxisList {
    list.iter().flat_map(|&a| if a == from { to.to_vec() } else { vec![a] }).collect()
}

/// The row that an id names; the references stop at an id beyond the table.
fn row_of(op: &str, id: f64, rows: usize) -> usize {
    assert!(id >= 0.0 && id < rows as f64, "{op}: id {id} of a table of {rows} rows");
    id as usize
}

/// The row of this piece of a table that a global id names; `None` where another rank has it.
fn local_row(op: &str, site: &RefSite<'_>, axis: AxisId, id: f64) -> Option<usize> {
    let (clock, axis) = (&site.clock, &site.axes[axis]);
    let first = axis.piece(clock.micro, clock.place) as usize * axis.size;
    row_of(op, id, axis.global_size()).checked_sub(first).filter(|&row| row < axis.size)
}

/// A table is whole, or its pieces lie on ranks: ids count along the whole of it.
fn want_table(op: &str, axes: &Axes, axis: AxisId) -> Result<(), OpError> {
    let name = &axes[axis].name;
    let by_rank = |cut: &Cut| matches!(cut.by, Cutter::Mesh(_));
    if axes[axis].cuts.iter().all(by_rank) {
        return Ok(());
    }
    let message = format!("rows along `{name}` have ids; a mesh may cut it, time may not");
    Err(OpError::new(op, message))
}

fn same_set(a: &[AxisId], b: &[AxisId]) -> bool {
    a.len() == b.len() && a.iter().all(|x| b.contains(x))
}

fn want_ins(
    op: &str,
    ins: &[&Type],
    wanted: std::ops::RangeInclusive<usize>,
) -> Result<(), OpError> {
    if wanted.contains(&ins.len()) {
        return Ok(());
    }
    Err(OpError::new(op, format!("takes {wanted:?} inputs, got {}", ins.len())))
}

fn want_axis(op: &str, axes: &Axes, ty: &Type, axis: AxisId, what: &str) -> Result<(), OpError> {
    if ty.has(axis) {
        return Ok(());
    }
    let got = ty.show(axes);
    Err(OpError::new(op, format!("{what} needs axis `{}`, got {got}", axes[axis].name)))
}

fn want_same_axes(
    op: &str,
    axes: &Axes,
    got: &[AxisId],
    wanted: &[AxisId],
    what: &str,
) -> Result<(), OpError> {
    if same_set(got, wanted) {
        return Ok(());
    }
    let (w, g) = (axes.names(wanted), axes.names(got));
    Err(OpError::new(op, format!("{what} needs axes [{w}], got [{g}]")))
}

fn want_dtype(op: &str, ty: &Type, dtype: DType, what: &str) -> Result<(), OpError> {
    if ty.dtype == dtype {
        return Ok(());
    }
    Err(OpError::new(op, format!("{what} needs dtype {dtype}, got {}", ty.dtype)))
}

fn want_float(op: &str, ty: &Type, what: &str) -> Result<(), OpError> {
    if ty.dtype.is_float() {
        return Ok(());
    }
    Err(OpError::new(op, format!("{what} needs a float dtype, got {}", ty.dtype)))
}
