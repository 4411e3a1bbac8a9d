//! The text form: prints a graph, and parses it back. Ids are renumbered on print.
//!
//! ```text
//! graph v1
//! axis batch = 4 of 16
//! input %0 = tokens: u32[batch seq]
//! state %1 = h.0.attn.q.weight: f32[kv group qk embed] parameter weight normal(0.02)
//! %2: f32[batch=4 seq=8 embed=16] = gather %1 %0 {axis=vocab} @embed !forward
//! output loss = %2
//! assign h.0.attn.q.weight = %2
//! ```

mod parse;

pub use parse::{TextError, parse};

use crate::graph::{Def, Graph, Init, ParamClass, Part, Role};
use crate::ops::Build;
use crate::types::{Axis, Cut, Cutter, Type, ValueId};
use std::fmt::Write as _;

const ROLES: [(Role, &str); 6] = [
    (Role::Parameter, "parameter"),
    (Role::Optimizer, "optimizer"),
    (Role::Accumulator, "accumulator"),
    (Role::Cache, "cache"),
    (Role::Weights, "weights"),
    (Role::Saved, "saved"),
];

const CLASSES: [(ParamClass, &str); 5] = [
    (ParamClass::Weight, "weight"),
    (ParamClass::Bias, "bias"),
    (ParamClass::Norm, "norm"),
    (ParamClass::Embedding, "embedding"),
    (ParamClass::Head, "head"),
];

/// The graph as text.
pub fn print(g: &Graph) -> String {
    let mut out = String::from("graph v1\n");
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let mesh = &g.axes().mesh;
    if !mesh.0.is_empty() {
        let list: Vec<_> = mesh.0.iter().map(|(name, size)| format!("{name}={size}")).collect();
        line(format!("mesh {}", list.join(" ")));
    }
    for (_, axis) in g.axes().iter() {
        line(format!("axis {} = {}{}", axis.name, axis.size, cuts(g, axis)));
    }
    let mut number = vec![0usize; g.values().len()];
    let mut next = 0;
    let mut take = |v: ValueId, number: &mut Vec<usize>| {
        number[v.index()] = next;
        next += 1;
    };
    for (id, value) in g.values().iter().enumerate() {
        let id = ValueId(id as u32);
        match value.def {
            Def::Input(i) => {
                take(id, &mut number);
                let (n, name) = (number[id.index()], &g.inputs()[i as usize].name);
                line(format!("input %{n} = {name}: {}", short(g, &value.ty)));
            }
            Def::State(s) => {
                take(id, &mut number);
                line(state_line(g, s.index(), number[id.index()]));
                let state = &g.states()[s.index()];
                state.parts.iter().for_each(|p| line(part_line(g, &state.name, p)));
            }
            Def::Node(..) => {}
        }
    }
    for node in g.nodes() {
        node.outs.iter().for_each(|&v| take(v, &mut number));
        line(node_line(g, node, &number));
    }
    for (name, v) in &g.outputs {
        line(format!("output {name} = %{}", number[v.index()]));
    }
    for (s, v) in &g.assigns {
        line(format!("assign {} = %{}", g.states()[s.index()].name, number[v.index()]));
    }
    out
}

/// ` of 16` for pieces in time alone, ` of 16 by node:2 time:4 #3:8` for others.
fn cuts(g: &Graph, axis: &Axis) -> String {
    let mut text = if axis.storage { " storage".to_owned() } else { String::new() };
    if axis.cuts.is_empty() {
        return text;
    }
    let _ = write!(text, " of {}", axis.global_size());
    if !matches!(axis.cuts.as_slice(), [Cut { by: Cutter::Time, .. }]) {
        text.push_str(" by");
        for cut in &axis.cuts {
            let _ = match cut.by {
                Cutter::Time => write!(text, " time:{}", cut.pieces),
                Cutter::Mesh(m) => {
                    write!(text, " {}:{}", g.axes().mesh.0[m as usize].0, cut.pieces)
                }
                Cutter::Fixed(piece) => write!(text, " #{piece}:{}", cut.pieces),
            };
        }
    }
    text
}

fn short(g: &Graph, ty: &Type) -> String {
    format!("{}[{}]", ty.dtype, g.axes().names(&ty.axes))
}

fn word<T: PartialEq>(table: &[(T, &'static str)], item: &T) -> &'static str {
    table.iter().find(|(t, _)| t == item).map_or("?", |(_, w)| w)
}

fn state_line(g: &Graph, index: usize, number: usize) -> String {
    let s = &g.states()[index];
    let mut text = format!("state %{number} = {}: {}", s.name, short(g, g.ty(s.value)));
    let _ = write!(text, " {}", word(&ROLES, &s.role));
    if let Some(class) = s.class {
        let _ = write!(text, " {}", word(&CLASSES, &class));
    }
    text.push_str(&init(s.init));
    if s.copies != 1 {
        let _ = write!(text, " x{}", s.copies);
    }
    text
}

/// `part bucket.h.0 = h.0.attn.q.weight: [kv group qk embed] at 128 weight normal(0.02)`.
fn part_line(g: &Graph, state: &str, part: &Part) -> String {
    let axes = g.axes().names(&part.axes);
    let mut text = format!("part {state} = {}: [{axes}] at {}", part.name, part.first);
    if let Some(class) = part.class {
        let _ = write!(text, " {}", word(&CLASSES, &class));
    }
    text.push_str(&init(part.init));
    text
}

fn init(init: Init) -> String {
    match init {
        Init::Constant(c) => format!(" constant({c:?})"),
        Init::Normal(std) => format!(" normal({std:?})"),
    }
}

fn node_line(g: &Graph, node: &crate::graph::Node, number: &[usize]) -> String {
    let outs: Vec<_> = node
        .outs
        .iter()
        .map(|v| format!("%{}: {}", number[v.index()], g.ty(*v).show(g.axes())))
        .collect();
    let mut text = format!("{} = {}", outs.join(", "), node.op.name());
    for v in &node.ins {
        let _ = write!(text, " %{}", number[v.index()]);
    }
    let attrs = node.op.attrs(g.axes()).0;
    if !attrs.is_empty() {
        let list: Vec<_> = attrs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let _ = write!(text, " {{{}}}", list.join(" "));
    }
    if !node.scope.is_empty() {
        let _ = write!(text, " @{}", node.scope);
    }
    if node.phase != crate::graph::Phase::Forward {
        let _ = write!(text, " !{}", node.phase.name());
    }
    text
}
