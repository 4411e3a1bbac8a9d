//! The optimizers' equations.

use super::config::{Optimizer, UpdateConfig};
use super::held::Moments;
use crate::scalar::scalar_map;
use aerogel_graph::{Build, Expr, Graph, OpError, StateId, ValueId};

/// Numbers that all tensors share.
pub(crate) struct Scalars {
    /// 1 where the step is to be applied; `None` where it always is.
    finite: Option<ValueId>,
    /// What a summed gradient is multiplied by.
    factor: ValueId,
    /// What the direction is multiplied by: the rate, for Adam over its first bias correction.
    step: ValueId,
    /// Adam: one over the root of the second bias correction.
    root: Option<ValueId>,
    /// AdamW: rate times decay.
    decay: Option<ValueId>,
}

/// The global norm of the gradient, and whether it and the loss are finite; declares the outputs.
pub(crate) fn measured(
    g: &mut Graph,
    squares: ValueId,
    [loss, tokens]: [ValueId; 2],
) -> Result<[ValueId; 2], OpError> {
    let norm = scalar_map(g, &[squares], &|v| v[0].sqrt())?;
    let mean = scalar_map(g, &[loss, tokens], &|v| &v[0] / &v[1])?;
    let finite = scalar_map(g, &[norm, mean], &|v| is_finite(&v[0]) * is_finite(&v[1]))?;
    g.output("loss", mean);
    g.output("grad_norm", norm);
    g.output("tokens", tokens);
    g.output("finite", finite);
    Ok([norm, finite])
}

/// What a summed gradient is multiplied by: one over the tokens, times the clipping.
pub(crate) fn clipped(
    g: &mut Graph,
    config: &UpdateConfig,
    [inverse, norm]: [ValueId; 2],
) -> Result<ValueId, OpError> {
    match config.clip {
        0.0 => Ok(inverse),
        clip => scalar_map(g, &[inverse, norm], &|v| {
            &v[0] * (Expr::Const(clip) / (&v[1] + 1e-6)).min(1.0)
        }),
    }
}

/// The optimizer's scalars.
pub(crate) fn scalars(
    g: &mut Graph,
    config: &UpdateConfig,
    [rate, applied, factor]: [ValueId; 3],
    finite: Option<ValueId>,
) -> Result<Scalars, OpError> {
    let (step, root) = match config.kind {
        Optimizer::Adam { beta1, beta2, .. } | Optimizer::AdamW { beta1, beta2, .. } => {
            let step = scalar_map(g, &[rate, applied], &|v| &v[0] / correction(beta1, &v[1]))?;
            (step, Some(scalar_map(g, &[applied], &|v| correction(beta2, &v[0]).rsqrt())?))
        }
        _ => (rate, None),
    };
    let decay = match config.kind {
        Optimizer::AdamW { .. } if config.weight_decay > 0.0 => {
            Some(scalar_map(g, &[rate], &|v| &v[0] * config.weight_decay)?)
        }
        _ => None,
    };
    Ok(Scalars { finite, factor, step, root, decay })
}

/// 1 for every number but the infinities and NaN, for which x - x is no number.
#[allow(clippy::eq_op)] // of floats: that is the test
fn is_finite(x: &Expr) -> Expr {
    (x - x).equals(0.0)
}

/// 1 - beta^t for the step after `applied` ones, as 2u / (1 + u) with u = tanh(-t ln(beta) / 2):
/// 1 minus a power loses its digits in f32 where beta is close to 1.
fn correction(beta: f64, applied: &Expr) -> Expr {
    if beta == 0.0 {
        return Expr::Const(1.0);
    }
    let u = ((applied + 1.0) * (-0.5 * beta.ln())).tanh();
    2.0 * &u / (1.0 + u)
}

/// A bucket, as the rules see it.
pub(crate) struct Owned {
    /// Whether weight decay applies.
    pub decays: bool,
    /// This rank's piece of the summed gradient.
    pub grad: ValueId,
    /// The parameters that are updated here.
    pub master: ValueId,
    /// What is remembered of them.
    pub moments: Moments,
}

impl Owned {
    /// Assigns new moments; gives the new parameters.
    pub fn applied(
        &self,
        g: &mut Graph,
        config: &UpdateConfig,
        s: &Scalars,
    ) -> Result<ValueId, OpError> {
        let decoupled = matches!(config.kind, Optimizer::AdamW { .. });
        let l2 = if self.decays && !decoupled { config.weight_decay } else { 0.0 };
        // The gradient is written out where it is read: no buffer for it, and no second rounding.
        let mut ins = vec![self.grad, s.factor];
        if l2 > 0.0 {
            ins.push(self.master);
        }
        let gradient = move |x: &[Expr]| match l2 {
            0.0 => &x[0] * &x[1],
            l2 => &x[0] * &x[1] + l2 * &x[2],
        };
        let gate = |g: &mut Graph, state, ins: &[ValueId], f: &dyn Fn(&Expr, &[Expr]) -> Expr| {
            gated(g, s.finite, state, ins, f)
        };
        let master = self.master;
        let step = |g: &mut Graph, ins: &[ValueId], f: &dyn Fn(&Expr, &[Expr]) -> Expr| {
            selected(g, s.finite, master, ins, f)
        };
        match config.kind {
            Optimizer::Sgd { momentum } => {
                if let Some(m) = self.moments.m {
                    let m = gate(g, m, &ins, &|m, x| momentum * m + gradient(x))?;
                    return step(g, &[s.step, m], &|p, x| p - &x[0] * &x[1]);
                }
                ins.insert(0, s.step);
                step(g, &ins, &|p, x| p - &x[0] * gradient(&x[1..]))
            }
            Optimizer::RmsProp { alpha, epsilon, momentum } => {
                let v = self.moments.v.expect("RMSprop declares a second moment");
                let v = gate(g, v, &ins, &|v, x| mean_square(alpha, v, &gradient(x)))?;
                ins.insert(0, v);
                let direction = |x: &[Expr]| gradient(&x[1..]) / (x[0].sqrt() + epsilon);
                if let Some(m) = self.moments.m {
                    let m = gate(g, m, &ins, &|m, x| momentum * m + direction(x))?;
                    return step(g, &[s.step, m], &|p, x| p - &x[0] * &x[1]);
                }
                ins.insert(0, s.step);
                step(g, &ins, &|p, x| p - &x[0] * direction(&x[1..]))
            }
            Optimizer::Adam { beta1, beta2, epsilon }
            | Optimizer::AdamW { beta1, beta2, epsilon } => {
                let (m, v) = (self.moments.m, self.moments.v);
                let m = m.expect("Adam declares a first moment");
                let v = v.expect("Adam declares a second moment");
                let m = gate(g, m, &ins, &|m, x| beta1 * m + (1.0 - beta1) * gradient(x))?;
                let v = gate(g, v, &ins, &|v, x| mean_square(beta2, v, &gradient(x)))?;
                let root = s.root.expect("Adam corrects its second moment");
                let mut ins = vec![m, v, s.step, root];
                ins.extend(s.decay.filter(|_| self.decays));
                step(g, &ins, &|p, x| {
                    let change = &x[2] * &x[0] / (x[1].sqrt() * &x[3] + epsilon);
                    match x.get(4) {
                        Some(decay) => p - (decay * p + change),
                        None => p - change,
                    }
                })
            }
        }
    }
}

/// The running mean of squares with one more term.
fn mean_square(keep: f64, old: &Expr, x: &Expr) -> Expr {
    keep * old + (1.0 - keep) * (x * x)
}

/// Assigns a state `f` of its old value and of `ins` where the step is finite; gives the new value.
fn gated(
    g: &mut Graph,
    finite: Option<ValueId>,
    (id, old): (StateId, ValueId),
    ins: &[ValueId],
    f: &dyn Fn(&Expr, &[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    let new = selected(g, finite, old, ins, f)?;
    g.assign(id, new)?;
    Ok(new)
}

/// `f` of an old value and of `ins` where the step is finite, else the old value; always `f`, where
/// nothing says whether it is.
fn selected(
    g: &mut Graph,
    finite: Option<ValueId>,
    old: ValueId,
    ins: &[ValueId],
    f: &dyn Fn(&Expr, &[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    let ty = g.ty(old).clone();
    let args: Vec<ValueId> = finite.into_iter().chain([old]).chain(ins.iter().copied()).collect();
    match finite {
        Some(_) => g.map_to(&args, ty, &|v| v[0].clone().select(f(&v[1], &v[2..]), &v[1])),
        None => g.map_to(&args, ty, &|v| f(&v[0], &v[1..])),
    }
}
