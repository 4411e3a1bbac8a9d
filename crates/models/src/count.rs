//! How many parameters a graph has.

use aerogel_graph::{Build, Graph, ParamClass, Role};

/// Trained numbers of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCounts {
    /// All of them.
    pub parameters: u64,
    /// The weight matrices of the blocks alone: no biases, norms, embeddings or output layer. This
    /// is how Child et al. count.
    pub parameters_without_embeddings: u64,
}

/// Counts the parameters that a graph declares.
pub fn parameter_counts(graph: &Graph) -> ParameterCounts {
    let mut counts = ParameterCounts { parameters: 0, parameters_without_embeddings: 0 };
    for state in graph.states().iter().filter(|s| s.role == Role::Parameter) {
        let n = graph.axes().count(&graph.value(state.value).ty.axes) as u64;
        counts.parameters += n;
        if state.class == Some(ParamClass::Weight) && state.name.starts_with("h.") {
            counts.parameters_without_embeddings += n;
        }
    }
    counts
}
