//! backward: the gradient of the loss with respect to every parameter, as more graph.

use crate::PassError;
use crate::scale::SCALED_LOSS;
use aerogel_graph::{Build, Graph, Phase, Role, gradients};

/// Appends the gradient of output `loss` and declares outputs `grad.NAME`, one for each parameter,
/// of the parameter's own type. After [`scale`](crate::scale()) they are those of the scaled loss.
///
/// # Errors
/// There is no scalar output `loss`, it does not depend on a parameter, or an op on the way has no
/// gradient.
pub fn backward(g: &Graph) -> Result<Graph, PassError> {
    let Some(loss) = g.find_output("loss") else {
        return Err(PassError::MissingOutput { pass: "backward", name: "loss".to_owned() });
    };
    let mut g = g.clone();
    let scaled = g.find_output(SCALED_LOSS);
    let parameters: Vec<_> =
        g.states().iter().filter(|s| s.role == Role::Parameter).cloned().collect();
    let values: Vec<_> = parameters.iter().map(|s| s.value).collect();
    let grads = gradients(&mut g, scaled.unwrap_or(loss), &values)?;
    for (state, grad) in parameters.into_iter().zip(grads) {
        let Some(mut grad) = grad else {
            return Err(PassError::NoGradient { parameter: state.name });
        };
        let wanted = g.ty(state.value).clone();
        if *g.ty(grad) != wanted {
            // The same numbers, with the axes as the optimizer's element-wise maps want them.
            g.at(&state.name.as_str().into(), Phase::Backward);
            grad = g.map_to(&[grad], wanted, &|v| v[0].clone())?;
        }
        g.output(&format!("grad.{}", state.name), grad);
    }
    g.at(&"".into(), Phase::Forward);
    if scaled.is_none() {
        return Ok(g);
    }
    // It was there to be differentiated; nothing reads it.
    g.outputs.retain(|(name, _)| name != SCALED_LOSS);
    Ok(g.pruned()?)
}
