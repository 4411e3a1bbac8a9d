//! Numbers of a whole step: scalars in f32.

use aerogel_graph::{Build, DType, Expr, Graph, Init, OpError, Type, ValueId};

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
