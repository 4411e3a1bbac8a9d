//! collective: communication between the ranks of a mesh.
//!
//! The ranks that differ along the mesh axes in `over` alone form a group; they all come to the
//! node, each with its own value, and leave with what the exchange makes of all of them. Members
//! count row-major along `over`, its first axis outermost. Sums and the like are taken over a
//! balanced tree of members (that of a binary counter), so they do not depend on who comes first.
//! Passes insert collectives after autodiff, which therefore knows no gradient of them.

use super::*;
use crate::tensor::for_each;
use crate::types::{Mesh, Place};

/// How values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Merge {
    /// Addition, in f32 at least.
    Sum,
    /// The largest.
    Max,
    /// The log of the sum of exponentials.
    Lse,
}

impl Merge {
    /// The word of the text form.
    pub fn name(self) -> &'static str {
        match self {
            Merge::Sum => "sum",
            Merge::Max => "max",
            Merge::Lse => "lse",
        }
    }

    /// Of two numbers.
    pub fn of(self, a: f64, b: f64) -> f64 {
        match self {
            Merge::Sum => a + b,
            Merge::Max => a.max(b),
            Merge::Lse => {
                let top = a.max(b);
                if top == f64::NEG_INFINITY { top } else { top + (-(a - b).abs()).exp().ln_1p() }
            }
        }
    }
}

/// What is exchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// Everybody gets all values merged.
    AllReduce(Merge),
    /// Everybody gets all pieces of an axis, in the members' order.
    AllGather {
        /// The piece, as it comes.
        axis: AxisId,
        /// The axis as it goes, `members` times as long.
        into: AxisId,
    },
    /// Each gets its piece of the sum of all.
    ReduceScatter {
        /// The axis as it comes.
        axis: AxisId,
        /// The piece.
        into: AxisId,
    },
    /// Everybody has the same, and keeps its own piece; no bytes are moved between ranks.
    Keep {
        /// The axis as it comes.
        axis: AxisId,
        /// The piece.
        into: AxisId,
    },
}

/// One input, one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collective {
    /// What is exchanged.
    pub exchange: Exchange,
    /// The mesh axes along which members differ, outermost first, by position in the mesh.
    pub over: smallvec::SmallVec<[u8; 4]>,
}

impl Collective {
    /// The kind, as a report names it.
    pub fn kind_name(&self) -> &'static str {
        match self.exchange {
            Exchange::AllReduce(_) => "all_reduce",
            Exchange::AllGather { .. } => "all_gather",
            Exchange::ReduceScatter { .. } => "reduce_scatter",
            Exchange::Keep { .. } => "keep",
        }
    }

    /// How many ranks take part.
    pub fn members(&self, mesh: &Mesh) -> usize {
        self.over.iter().map(|&m| mesh.size(m)).product()
    }

    /// This rank's number among them.
    pub fn member(&self, mesh: &Mesh, place: Place) -> usize {
        mesh.member(place, &self.over)
    }

    /// Bytes that a rank sends, and as many that it receives, with the cheapest algorithm: those
    /// of a ring (Chan et al., Collective communication: theory, practice, and experience, 2007).
    pub fn wire_bytes(&self, axes: &Axes, input: &Type) -> u64 {
        let members = self.members(&axes.mesh) as u64;
        let bytes = input.bytes(axes);
        match self.exchange {
            Exchange::AllReduce(_) => 2 * bytes * (members - 1) / members,
            Exchange::AllGather { .. } => bytes * (members - 1),
            Exchange::ReduceScatter { .. } => bytes * (members - 1) / members,
            Exchange::Keep { .. } => 0,
        }
    }

    /// The meaning for one member, from the inputs of all.
    pub fn reference_of(&self, axes: &Axes, member: usize, ins: &[&Tensor]) -> Tensor {
        let own = ins[member];
        match &self.exchange {
            Exchange::AllReduce(by) => merged(*by, ins),
            Exchange::ReduceScatter { axis, into } => {
                piece(axes, &merged(Merge::Sum, ins), *axis, *into, member)
            }
            Exchange::Keep { axis, into } => piece(axes, own, *axis, *into, member),
            Exchange::AllGather { axis, into } => joined(axes, ins, *axis, *into),
        }
    }

    fn check_piece(&self, axes: &Axes, piece: AxisId, whole: AxisId) -> Result<(), OpError> {
        let members = self.members(&axes.mesh);
        let (p, w) = (&axes[piece], &axes[whole]);
        if p.size * members == w.size {
            return Ok(());
        }
        let (p, w) = ((&p.name, p.size), (&w.name, w.size));
        let message = format!(
            "{members} members need `{}` of {} to be one of {members} pieces of `{}` of {}",
            p.0, p.1, w.0, w.1
        );
        Err(OpError::new(Self::NAME, message))
    }
}

/// By the tree of a binary counter: neighbours first.
fn merged(by: Merge, ins: &[&Tensor]) -> Tensor {
    let mut out = ins[0].clone();
    for (i, x) in out.data.iter_mut().enumerate() {
        let all: Vec<f64> = ins.iter().map(|t| t.data[i]).collect();
        *x = tree(by, &all);
    }
    out
}

fn tree(by: Merge, x: &[f64]) -> f64 {
    let [one] = x else {
        let (left, right) = x.split_at(x.len().next_power_of_two() / 2);
        let (a, b) = (tree(by, left), tree(by, right));
        return by.of(a, b);
    };
    *one
}

fn piece(axes: &Axes, t: &Tensor, axis: AxisId, into: AxisId, member: usize) -> Tensor {
    let list = replaced(&t.axes, axis, &[into]);
    let mut out = Tensor::full(axes, &list, 0.0);
    let from = t.strides(&replaced(&list, into, &[axis]));
    let start = member * axes.size(into) * t.strides(&[axis])[0];
    let sizes = out.sizes.clone();
    for_each(&sizes, &[&from], |i, at| out.data[i] = t.data[start + at[0]]);
    out
}

fn joined(axes: &Axes, ins: &[&Tensor], axis: AxisId, into: AxisId) -> Tensor {
    let list = replaced(&ins[0].axes, axis, &[into]);
    let mut out = Tensor::full(axes, &list, 0.0);
    let step = out.strides(&[into])[0] * axes.size(axis);
    let to = out.strides(&list);
    for (member, t) in ins.iter().enumerate() {
        for_each(&t.sizes, &[&to], |i, at| out.data[member * step + at[0]] = t.data[i]);
    }
    out
}

impl Rules for Collective {
    const NAME: &'static str = "collective";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 1..=1)?;
        if let Some(m) = self.over.iter().find(|&&m| m as usize >= axes.mesh.0.len()) {
            return Err(OpError::new(Self::NAME, format!("the mesh has no axis number {m}")));
        }
        let ty = ins[0];
        let swap = |from: AxisId, to: AxisId| Type::new(ty.dtype, replaced(&ty.axes, from, &[to]));
        let has = |axis| want_axis(Self::NAME, axes, ty, axis, "the input");
        let out = match &self.exchange {
            Exchange::AllReduce(_) => ty.clone(),
            Exchange::AllGather { axis, into } => {
                has(*axis)?;
                self.check_piece(axes, *axis, *into)?;
                swap(*axis, *into)
            }
            Exchange::ReduceScatter { axis, into } | Exchange::Keep { axis, into } => {
                has(*axis)?;
                self.check_piece(axes, *into, *axis)?;
                swap(*axis, *into)
            }
        };
        Ok(vec![out])
    }

    fn grad(&self, _site: &GradSite<'_>, _b: &mut dyn Build) -> Result<Cotangents, OpError> {
        Err(OpError::new(Self::NAME, "gradients are taken before ranks are; partition comes later"))
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], outs: &[Type]) -> u64 {
        let members = self.members(&axes.mesh) as u64;
        match self.exchange {
            Exchange::AllReduce(_) => (members - 1) * axes.count(&ins[0].axes) as u64 / members,
            Exchange::ReduceScatter { .. } => (members - 1) * axes.count(&outs[0].axes) as u64,
            _ => 0,
        }
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], _label: AxisId) -> Sharding {
        Sharding::Whole
    }

    /// Of a group of one; [`interpret_mesh`](crate::interpret_mesh) runs larger ones.
    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        assert_eq!(self.members(&site.axes.mesh), 1, "one rank alone cannot run a collective");
        vec![self.reference_of(site.axes, 0, ins)]
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let names: Vec<&str> =
            self.over.iter().map(|&m| axes.mesh.0[m as usize].0.as_str()).collect();
        let name = |a: &AxisId| &axes[*a].name;
        let attrs = Attrs::default()
            .with("kind", self.kind_name())
            .with("over", format!("[{}]", names.join(" ")));
        match &self.exchange {
            Exchange::AllReduce(by) => attrs.with("by", by.name()),
            Exchange::AllGather { axis, into }
            | Exchange::ReduceScatter { axis, into }
            | Exchange::Keep { axis, into } => {
                attrs.with("axis", name(axis)).with("into", name(into))
            }
        }
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        let axis = |key: &str| attrs.axis(Self::NAME, axes, key);
        let exchange = match attrs.text(Self::NAME, "kind")? {
            "all_reduce" => {
                let word = attrs.text(Self::NAME, "by")?;
                let by =
                    [Merge::Sum, Merge::Max, Merge::Lse].into_iter().find(|m| m.name() == word);
                let unknown =
                    || OpError::new(Self::NAME, format!("by is sum, max or lse, got {word}"));
                Exchange::AllReduce(by.ok_or_else(unknown)?)
            }
            "all_gather" => Exchange::AllGather { axis: axis("axis")?, into: axis("into")? },
            "reduce_scatter" => {
                Exchange::ReduceScatter { axis: axis("axis")?, into: axis("into")? }
            }
            "keep" => Exchange::Keep { axis: axis("axis")?, into: axis("into")? },
            other => return Err(OpError::new(Self::NAME, format!("no exchange is `{other}`"))),
        };
        let list = attrs.text(Self::NAME, "over")?;
        let inner = list.trim_start_matches('[').trim_end_matches(']');
        let over = inner
            .split_whitespace()
            .map(|n| {
                let missing = || OpError::new(Self::NAME, format!("the mesh has no axis `{n}`"));
                axes.mesh.find(n).ok_or_else(missing)
            })
            .collect::<Result<_, _>>()?;
        Ok(Collective { exchange, over })
    }
}
