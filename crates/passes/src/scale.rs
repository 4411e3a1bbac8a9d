//! scale: the loss times a number, so that gradients in f16 stay within its range (Micikevicius et
//! al., Mixed Precision Training, 2018, section 3.2).
//!
//! The number is a state that the update adapts: it halves where a gradient overflowed, in a step
//! that changes nothing else, and doubles after an interval of steps without. It is a power of two
//! as long as it starts as one, so that in f32 and bf16, whose range it does not need, it changes
//! no bit of a gradient. What it multiplies is the loss of the update's graph, a sum over tokens:
//! 1 here is what 65,536 is to a mean over as many tokens.

use crate::PassError;
use crate::scalar::{ZERO, scalar_map, scalar_state};
use aerogel_graph::{Expr, Graph, Init, OpError, Phase, StateId, ValueId};

/// Output of a graph whose gradient is taken in place of the loss's.
pub(crate) const SCALED_LOSS: &str = "scaled_loss";
/// The state that holds the number.
const STATE: &str = "optimizer.loss_scale";
/// Steps since the last change, and steps that were not applied.
const STREAK: &str = "optimizer.loss_scale.streak";
const SKIPPED: &str = "optimizer.loss_scale.skipped";
/// It never halves below this: where 1 overflows, scaling is not what is missing.
pub const LEAST_SCALE: f64 = 1.0;
/// It never doubles beyond this.
const MOST_SCALE: f64 = 4_294_967_296.0;

/// How the loss is scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// The factor of the first step.
    pub initial: f64,
    /// Applied steps after which it doubles; 0 keeps it, whatever overflows.
    pub interval: u64,
}

impl LossScale {
    /// Whether its numbers are in range.
    pub(crate) fn check(&self) -> Result<(), PassError> {
        match self.initial {
            x if x >= LEAST_SCALE && x.is_finite() => Ok(()),
            got => Err(PassError::OutOfRange { what: "loss scale", wanted: "at least 1", got }),
        }
    }

    fn declare(&self, g: &mut Graph) -> Result<(StateId, ValueId), OpError> {
        scalar_state(g, STATE, Init::Constant(self.initial))
    }
}

/// Lets [`backward`](crate::backward()) take the gradient of the loss times a state f32[].
///
/// # Errors
/// There is no scalar output `loss`, or a number of the scale is out of range.
pub fn scale(g: &Graph, scale: &LossScale) -> Result<Graph, PassError> {
    scale.check()?;
    let Some(loss) = g.find_output("loss") else {
        return Err(PassError::MissingOutput { pass: "scale", name: "loss".to_owned() });
    };
    let mut g = g.clone();
    g.at(&"".into(), Phase::Forward);
    let (_, factor) = scale.declare(&mut g)?;
    let scaled = scalar_map(&mut g, &[loss, factor], &|v| &v[0] * &v[1])?;
    g.output(SCALED_LOSS, scaled);
    Ok(g)
}

/// The scale in the update.
pub(crate) struct Scale {
    config: LossScale,
    /// What gradients were multiplied by.
    pub factor: ValueId,
    id: StateId,
    /// None where the scale is kept.
    streak: Option<(StateId, ValueId)>,
    skipped: (StateId, ValueId),
}

impl Scale {
    pub fn declare(g: &mut Graph, config: LossScale) -> Result<Scale, OpError> {
        let (id, factor) = config.declare(g)?;
        let streak = (config.interval > 0).then(|| scalar_state(g, STREAK, ZERO)).transpose()?;
        let skipped = scalar_state(g, SKIPPED, ZERO)?;
        Ok(Scale { config, factor, id, streak, skipped })
    }

    /// Assigns the scale of the next step, and declares the outputs.
    pub fn adapt(&self, g: &mut Graph, finite: ValueId) -> Result<(), OpError> {
        let count = scalar_map(g, &[finite, self.skipped.1], &|v| {
            v[0].clone().select(v[1].clone(), &v[1] + 1.0)
        })?;
        g.assign(self.skipped.0, count)?;
        g.output("loss_scale", self.factor);
        g.output("skipped", count);
        let Some(streak) = self.streak else { return g.assign(self.id, self.factor) };
        let grows = |streak: &Expr| (streak + 1.0).equals(self.config.interval as f64);
        let ins = [finite, streak.1, self.factor];
        let factor = scalar_map(g, &ins, &|v| {
            let larger = (&v[2] * 2.0).min(MOST_SCALE);
            let smaller = (&v[2] * 0.5).max(LEAST_SCALE);
            v[0].clone().select(grows(&v[1]).select(larger, v[2].clone()), smaller)
        })?;
        let length = scalar_map(g, &ins[..2], &|v| {
            v[0].clone().select(grows(&v[1]).select(0.0, &v[1] + 1.0), 0.0)
        })?;
        g.assign(self.id, factor)?;
        g.assign(streak.0, length)
    }
}
