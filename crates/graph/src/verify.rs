//! The verifier: what every graph must be, whoever wrote it.

use crate::graph::{Def, Graph};
use crate::ops::Build;
use crate::types::{NodeId, ValueId, is_name};

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
    /// An output or an assignment names a value or a state that is not there, or that has another
    /// type.
    #[error("{what} `{name}`: {message}")]
    End {
        /// Output or assignment.
        what: &'static str,
        /// Of which output or state.
        name: String,
        /// What was wanted and got.
        message: String,
    },
}

/// Checks order, types, names, outputs and assignments.
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
        let got = node.op.infer(g.axes(), &g.in_types(node));
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
                let name = g.axes()[*a].name.clone();
                return Err(VerifyError::Twice { what: "an axis of one value", name });
            }
        }
    }
    ends(g)?;
    unique("input", g.inputs().iter().map(|i| i.name.as_str()))?;
    unique("state", g.states().iter().map(|s| s.name.as_str()))?;
    unique("output", g.outputs.iter().map(|o| o.0.as_str()))?;
    unique("assignment to", g.assigns.iter().map(|a| g.states()[a.0.index()].name.as_str()))
}

/// Outputs and assignments are plain lists, which anybody may have written to.
fn ends(g: &Graph) -> Result<(), VerifyError> {
    let end = |what, name: &str, message: String| {
        Err(VerifyError::End { what, name: name.to_owned(), message })
    };
    let ty = |v: ValueId| g.values().get(v.index()).map(|value| &value.ty);
    let missing = || "there is no such value".to_owned();
    for (name, v) in &g.outputs {
        if !is_name(name) {
            return end("output", name, "the text form cannot carry this name".to_owned());
        }
        if ty(*v).is_none() {
            return end("output", name, missing());
        }
    }
    for (id, v) in &g.assigns {
        let Some(state) = g.states().get(id.index()) else {
            return end("assignment to", &id.0.to_string(), "there is no such state".to_owned());
        };
        let Some(got) = ty(*v) else { return end("assignment to", &state.name, missing()) };
        let wanted = g.ty(state.value);
        if wanted != got {
            let (w, g) = (wanted.show(g.axes()), got.show(g.axes()));
            return end("assignment to", &state.name, format!("the state is {w}, got {g}"));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Init, Role};
    use crate::ops::Einsum;
    use crate::types::{DType, Type};

    /// x -> a -> b, and a state.
    fn chain() -> Graph {
        let mut g = Graph::new();
        let x = g.input("x", DType::F32, &[]).unwrap();
        let ty = Type::new(DType::F32, []);
        g.state("w", ty, Role::Parameter, None, Init::Constant(0.0)).unwrap();
        let a = g.map(&[x], &|v| v[0].exp()).unwrap();
        g.map(&[a], &|v| v[0].exp()).unwrap();
        g
    }

    fn broken(change: impl FnOnce(&mut Graph)) -> VerifyError {
        let mut g = chain();
        assert_eq!(verify(&g), Ok(()));
        change(&mut g);
        verify(&g).unwrap_err()
    }

    #[test]
    fn what_no_builder_makes_is_found_too() {
        let late = broken(|g| g.raw().0.swap(0, 1));
        assert_eq!(late, VerifyError::Order { node: 0, op: "map", scope: String::new() });
        let own = broken(|g| {
            let nodes = g.raw().0;
            nodes[1].ins = nodes[1].outs.clone();
        });
        assert!(matches!(own, VerifyError::Order { node: 1, .. }));
        let out = Type::new(DType::Bf16, []);
        let other = broken(|g| g.raw().0[0].op = Einsum { out }.into());
        let message = "einsum: declared output types are not what its rules give".to_owned();
        assert_eq!(other, VerifyError::Types { node: 0, message });
        let input = broken(|g| {
            let inputs = g.raw().1;
            inputs.push(inputs[0].clone());
        });
        assert_eq!(input, VerifyError::Twice { what: "input", name: "x".to_owned() });
        let state = broken(|g| {
            let states = g.raw().2;
            states.push(states[0].clone());
        });
        assert_eq!(state, VerifyError::Twice { what: "state", name: "w".to_owned() });
    }
}
