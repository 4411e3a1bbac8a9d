//! update: the optimizer as a graph over the summed gradients.
//!
//! Gradients are divided by the token count of the global batch, measured, clipped by their global
//! norm, and applied. The equations are those of PyTorch's SGD, RMSprop, Adam and AdamW
//! (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), with eps outside of the
//! root. Weight decay applies to the classes that
//! [`decay`](aerogel_graph::ParamClass::decays), whatever the optimizer.
//!
//! Every new value is a select by `finite`, never a product with it: a step whose loss or gradient
//! norm is not finite leaves parameters, moments and the count of applied steps as they were.

use crate::PassError;
use aerogel_graph::{
    Build, DType, Expr, Graph, Init, OpError, Phase, Role, State, StateId, Type, ValueId,
};

/// The rule by which a gradient changes a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent; decay is added to the gradient.
    Sgd {
        /// Share of the last change that is kept; 0 keeps no state.
        momentum: f64,
    },
    /// RMSprop (Hinton), without centring; decay is added to the gradient.
    RmsProp {
        /// Share of the mean square that is kept.
        alpha: f64,
        /// Added to the root mean square.
        epsilon: f64,
        /// Share of the last change that is kept; 0 keeps no state.
        momentum: f64,
    },
    /// Adam (Kingma and Ba, 2015); decay is added to the gradient.
    Adam {
        /// Share of the mean that is kept.
        beta1: f64,
        /// Share of the mean square that is kept.
        beta2: f64,
        /// Added to the root mean square.
        epsilon: f64,
    },
    /// Adam with decoupled decay.
    AdamW {
        /// Share of the mean that is kept.
        beta1: f64,
        /// Share of the mean square that is kept.
        beta2: f64,
        /// Added to the root mean square.
        epsilon: f64,
    },
}

/// What the update does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateConfig {
    /// The rule.
    pub kind: Optimizer,
    /// Weight decay, by the rate for AdamW and in the gradient for the others.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 leaves it as it is.
    pub clip: f64,
}

/// The update section for the parameters that `states` declares (any section of the step will
/// do; axis ids stay the same).
///
/// Reads the input `rate` f32[] and the states `sum.0.*` of [`tile`](crate::tile()); declares the
/// optimizer's states `optimizer.m.NAME`, `optimizer.v.NAME` (as the rule needs them) and
/// `optimizer.applied` f32[], the number of steps that were applied. Outputs, all f32[]: `loss`
/// (nats a token), `grad_norm` (before clipping), `tokens`, `finite` (1 or 0).
///
/// # Errors
/// There are no parameters, or a number of the configuration is out of range.
pub fn update(states: &Graph, config: &UpdateConfig) -> Result<Graph, PassError> {
    check(config)?;
    let parameters: Vec<&State> =
        states.states().iter().filter(|s| s.role == Role::Parameter).collect();
    if parameters.is_empty() {
        return Err(PassError::NoParameters);
    }
    let mut g = states.bare();
    g.phase(Phase::Update);
    let rate = g.input("rate", DType::F32, &[])?;
    let mut declared = vec![];
    for s in &parameters {
        let ty = states.ty(s.value).clone();
        let value = g.state(&s.name, ty, s.role, s.class, s.init)?;
        declared.push((StateId(g.states().len() as u32 - 1), value));
    }
    let mut moments = vec![];
    for s in &parameters {
        moments.push(Moments::declare(&mut g, s, states.ty(s.value), config)?);
    }
    let applied = optimizer_state(&mut g, "optimizer.applied", scalar())?;
    let mut tensors = vec![];
    for ((s, (id, value)), moments) in parameters.iter().zip(declared).zip(moments) {
        let sum = sum_state(&mut g, &format!("grad.{}", s.name), states.ty(s.value).clone())?;
        let decays = s.class.is_some_and(|c| c.decays());
        tensors.push(Tensor { name: s.name.clone(), id, value, sum, moments, decays });
    }
    let loss = sum_state(&mut g, "loss", scalar())?;
    let tokens = sum_state(&mut g, "tokens", scalar())?;
    let scalars = scalars(&mut g, config, &tensors, [rate, applied.1, loss, tokens])?;
    for t in &tensors {
        g.at(&t.name.as_str().into(), Phase::Update);
        t.step(&mut g, config, &scalars)?;
    }
    g.at(&"".into(), Phase::Update);
    let count = scalar_map(&mut g, &[scalars.finite, applied.1], &|v| {
        v[0].clone().select(&v[1] + 1.0, &v[1])
    })?;
    g.assign(applied.0, count)?;
    g.at(&"".into(), Phase::Forward);
    Ok(g)
}

fn check(config: &UpdateConfig) -> Result<(), PassError> {
    let fail = |what, wanted, got| Err(PassError::OutOfRange { what, wanted, got });
    let share = |what, x: f64| match x {
        x if (0.0..1.0).contains(&x) => Ok(()),
        x => fail(what, "at least 0 and below 1", x),
    };
    let positive = |what, x: f64| match x {
        x if x > 0.0 && x.is_finite() => Ok(()),
        x => fail(what, "above 0", x),
    };
    match config.kind {
        Optimizer::Sgd { momentum } => share("momentum", momentum)?,
        Optimizer::RmsProp { alpha, epsilon, momentum } => {
            share("alpha", alpha)?;
            share("momentum", momentum)?;
            positive("epsilon", epsilon)?;
        }
        Optimizer::Adam { beta1, beta2, epsilon } | Optimizer::AdamW { beta1, beta2, epsilon } => {
            share("beta1", beta1)?;
            share("beta2", beta2)?;
            positive("epsilon", epsilon)?;
        }
    }
    for (what, x) in [("weight_decay", config.weight_decay), ("clip", config.clip)] {
        if !(x >= 0.0 && x.is_finite()) {
            return fail(what, "at least 0", x);
        }
    }
    Ok(())
}

fn scalar() -> Type {
    Type::new(DType::F32, [])
}

fn scalar_map(
    g: &mut Graph,
    ins: &[ValueId],
    f: &dyn Fn(&[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    g.map_to(ins, scalar(), f)
}

fn optimizer_state(g: &mut Graph, name: &str, ty: Type) -> Result<(StateId, ValueId), OpError> {
    let value = g.state(name, ty, Role::Optimizer, None, Init::Constant(0.0))?;
    Ok((StateId(g.states().len() as u32 - 1), value))
}

fn sum_state(g: &mut Graph, name: &str, ty: Type) -> Result<ValueId, OpError> {
    g.state(&format!("sum.0.{name}"), ty, Role::Accumulator, None, Init::Constant(0.0))
}

/// Numbers that all tensors share.
struct Scalars {
    /// 1 where the step is to be applied.
    finite: ValueId,
    /// What a summed gradient is multiplied by: one over the tokens, times the clipping.
    factor: ValueId,
    /// What the direction is multiplied by: the rate, for Adam over its first bias correction.
    step: ValueId,
    /// Adam: one over the root of the second bias correction.
    root: Option<ValueId>,
    /// AdamW: rate times decay.
    decay: Option<ValueId>,
}

fn scalars(
    g: &mut Graph,
    config: &UpdateConfig,
    tensors: &[Tensor],
    [rate, applied, loss, tokens]: [ValueId; 4],
) -> Result<Scalars, OpError> {
    let share = scalar_map(g, &[tokens], &|v| v[0].recip())?;
    let mut squares = vec![];
    for t in tensors {
        g.at(&t.name.as_str().into(), Phase::Update);
        squares.push(t.square(g, share)?);
    }
    g.at(&"".into(), Phase::Update);
    let total = pairwise(g, squares)?;
    let norm = scalar_map(g, &[total], &|v| v[0].sqrt())?;
    let mean = scalar_map(g, &[loss, tokens], &|v| &v[0] / &v[1])?;
    let finite = scalar_map(g, &[norm, mean], &|v| is_finite(&v[0]) * is_finite(&v[1]))?;
    g.output("loss", mean);
    g.output("grad_norm", norm);
    g.output("tokens", tokens);
    g.output("finite", finite);
    let factor = match config.clip {
        0.0 => share,
        clip => scalar_map(g, &[share, norm], &|v| {
            &v[0] * (Expr::Const(clip) / (&v[1] + 1e-6)).min(1.0)
        })?,
    };
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

/// How many scalars one map adds; a power of two, so that the tree is that of pairs.
const FAN_IN: usize = 8;

/// The sum of scalars by a tree over neighbours, fixed by their order.
fn pairwise(g: &mut Graph, mut level: Vec<ValueId>) -> Result<ValueId, OpError> {
    while level.len() > 1 {
        let mut next = vec![];
        for group in level.chunks(FAN_IN) {
            next.push(match group {
                [one] => *one,
                _ => scalar_map(g, group, &|v| halves(v))?,
            });
        }
        level = next;
    }
    Ok(level[0])
}

/// The sum as a tree: pairs first, then pairs of pairs.
fn halves(v: &[Expr]) -> Expr {
    match v {
        [one] => one.clone(),
        _ => {
            let (left, right) = v.split_at(v.len().next_power_of_two() / 2);
            halves(left) + halves(right)
        }
    }
}

/// What the optimizer remembers of one parameter.
#[derive(Clone, Copy)]
struct Moments {
    /// First moment, or the last change.
    m: Option<(StateId, ValueId)>,
    /// Second moment.
    v: Option<(StateId, ValueId)>,
}

impl Moments {
    fn declare(
        g: &mut Graph,
        s: &State,
        ty: &Type,
        config: &UpdateConfig,
    ) -> Result<Self, OpError> {
        let (m, v) = match config.kind {
            Optimizer::Sgd { momentum } => (momentum > 0.0, false),
            Optimizer::RmsProp { momentum, .. } => (momentum > 0.0, true),
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => (true, true),
        };
        let mut declare = |used: bool, letter: &str| {
            let name = format!("optimizer.{letter}.{}", s.name);
            used.then(|| optimizer_state(g, &name, ty.clone())).transpose()
        };
        Ok(Moments { m: declare(m, "m")?, v: declare(v, "v")? })
    }
}

/// One parameter and what belongs to it.
struct Tensor {
    name: String,
    id: StateId,
    value: ValueId,
    /// The summed gradient.
    sum: ValueId,
    moments: Moments,
    decays: bool,
}

impl Tensor {
    /// The sum of squares of the mean gradient.
    fn square(&self, g: &mut Graph, share: ValueId) -> Result<ValueId, OpError> {
        let ty = g.ty(self.value).clone();
        let over = ty.axes.clone();
        let square = g.map_to(&[self.sum, share], ty, &|v| {
            let x = &v[0] * &v[1];
            &x * &x
        })?;
        if over.is_empty() { Ok(square) } else { g.sum(square, &over) }
    }

    /// New moments and the new parameter: one map each, over the parameter's own axes.
    fn step(&self, g: &mut Graph, config: &UpdateConfig, s: &Scalars) -> Result<(), OpError> {
        let decoupled = matches!(config.kind, Optimizer::AdamW { .. });
        let l2 = if self.decays && !decoupled { config.weight_decay } else { 0.0 };
        // The gradient is written out where it is read: no buffer for it, and no second rounding.
        let mut ins = vec![self.sum, s.factor];
        if l2 > 0.0 {
            ins.push(self.value);
        }
        let gradient = move |x: &[Expr]| match l2 {
            0.0 => &x[0] * &x[1],
            l2 => &x[0] * &x[1] + l2 * &x[2],
        };
        let gate = |g: &mut Graph, state, ins: &[ValueId], f: &dyn Fn(&Expr, &[Expr]) -> Expr| {
            gated(g, s.finite, state, ins, f)
        };
        let parameter = (self.id, self.value);
        match config.kind {
            Optimizer::Sgd { momentum } => {
                if let Some(m) = self.moments.m {
                    let m = gate(g, m, &ins, &|m, x| momentum * m + gradient(x))?;
                    gate(g, parameter, &[s.step, m], &|p, x| p - &x[0] * &x[1])?;
                } else {
                    ins.insert(0, s.step);
                    gate(g, parameter, &ins, &|p, x| p - &x[0] * gradient(&x[1..]))?;
                }
            }
            Optimizer::RmsProp { alpha, epsilon, momentum } => {
                let v = self.moments.v.expect("RMSprop declares a second moment");
                let v = gate(g, v, &ins, &|v, x| mean_square(alpha, v, &gradient(x)))?;
                ins.insert(0, v);
                let direction = |x: &[Expr]| gradient(&x[1..]) / (x[0].sqrt() + epsilon);
                if let Some(m) = self.moments.m {
                    let m = gate(g, m, &ins, &|m, x| momentum * m + direction(x))?;
                    gate(g, parameter, &[s.step, m], &|p, x| p - &x[0] * &x[1])?;
                } else {
                    ins.insert(0, s.step);
                    gate(g, parameter, &ins, &|p, x| p - &x[0] * direction(&x[1..]))?;
                }
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
                gate(g, parameter, &ins, &|p, x| {
                    let change = &x[2] * &x[0] / (x[1].sqrt() * &x[3] + epsilon);
                    match x.get(4) {
                        Some(decay) => p - (decay * p + change),
                        None => p - change,
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// The running mean of squares with one more term.
fn mean_square(keep: f64, old: &Expr, x: &Expr) -> Expr {
    keep * old + (1.0 - keep) * (x * x)
}

/// Assigns a state `f` of its old value and of `ins` where the step is finite; gives the new value.
fn gated(
    g: &mut Graph,
    finite: ValueId,
    (id, old): (StateId, ValueId),
    ins: &[ValueId],
    f: &dyn Fn(&Expr, &[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    let ty = g.ty(old).clone();
    let args: Vec<ValueId> = [finite, old].into_iter().chain(ins.iter().copied()).collect();
    let new = g.map_to(&args, ty, &|v| v[0].clone().select(f(&v[1], &v[2..]), &v[1]))?;
    g.assign(id, new)?;
    Ok(new)
}
