//! Numbers of a whole step: scalars in f32.

use aerogel_graph::{Build, DType, Expr, Graph, Init, OpError, Role, StateId, Type, ValueId};

pub(crate) const ZERO: Init = Init::Constant(0.0);

pub(crate) fn scalar() -> Type {
    Type::new(DType::F32, [])
}

pub(crate) fn scalar_map(
    g: &mut Graph,
    ins: &[ValueId],
    f: &dyn Fn(&[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    g.map_to(ins, scalar(), f)
}

/// A number that the optimizer remembers.
pub(crate) fn scalar_state(
    g: &mut Graph,
    name: &str,
    initial: Init,
) -> Result<(StateId, ValueId), OpError> {
    let value = g.state(name, scalar(), Role::Optimizer, None, initial)?;
    Ok((StateId(g.states().len() as u32 - 1), value))
}
