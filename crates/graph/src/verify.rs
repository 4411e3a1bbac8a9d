//! The verifier: what every graph must be, whoever wrote it.

use crate::graph::{Def, Graph};
use crate::types::{NodeId, ValueId};

/// What is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A node reads a value that a later node, or itself, defines.
    #[error("node {node} ({op} at {scope}) reads a value that is defined later")]
    Order {
        /// Position of the node.
        node: usize,
        /// Its op.
        op: &'static str,
        /// Its scope.
        scope: String,
    },
    /// An op's rules refuse its inputs, or give other types than the graph declares.
    #[error("node {node}: {message}")]
    Types {
        /// Position of the node.
        node: usize,
        /// What was wanted and got.
        message: String,
    },
    /// A name that must be unique is not.
    #[error("{what} `{name}` is declared twice")]
    Twice {
        /// Axis of a value, input, state, output.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// Checks order, types, names and assignments.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(g: &Graph) -> Result<(), VerifyError> {
    for (n, node) in g.nodes().iter().enumerate() {
        let late =
            |v: &ValueId| matches!(g.value(*v).def, Def::Node(id, _) if id >= NodeId(n as u32));
        if node.ins.iter().any(late) {
            let scope = node.scope.to_string();
            return Err(VerifyError::Order { node: n, op: node.op.name(), scope });
        }
        let got = node.op.infer(crate::Build::axes(g), &g.in_types(node));
        let message = match got {
            Err(e) => e.to_string(),
            Ok(types) if types != g.out_types(node) => {
                format!("{}: declared output types are not what its rules give", node.op.name())
            }
            Ok(_) => continue,
        };
        return Err(VerifyError::Types { node: n, message });
    }
    for value in g.values() {
        for (i, a) in value.ty.axes.iter().enumerate() {
            if value.ty.axes[..i].contains(a) {
                let name = crate::Build::axes(g)[*a].name.clone();
                return Err(VerifyError::Twice { what: "an axis of one value", name });
            }
        }
    }
    unique("input", g.inputs().iter().map(|i| i.name.as_str()))?;
    unique("state", g.states().iter().map(|s| s.name.as_str()))?;
    unique("output", g.outputs.iter().map(|o| o.0.as_str()))?;
    unique("assignment to", g.assigns.iter().map(|a| g.states()[a.0.index()].name.as_str()))
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), VerifyError> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(VerifyError::Twice { what, name: name.to_owned() });
        }
    }
    Ok(())
}
