//! Attention, forward and backward: which axes are batch, heads and positions.

use crate::error::LowerError;
use crate::operand::Operand;
use crate::source::Source;
use crate::spec::{AttendGradSpec, AttendMask, AttendSpec, Attention, Call, Spec};
use aerogel_graph::{AxisId, Build, Node, ValueId, ops};

/// The axes of an attention by their part in it.
struct Parts {
    batch: Vec<AxisId>,
    kv: Vec<AxisId>,
    group: Vec<AxisId>,
    query: AxisId,
    key: AxisId,
    dim: AxisId,
    width: AxisId,
}

impl Parts {
    fn of(s: &Source<'_>, op: &ops::Attend, node: &Node) -> Result<Parts, LowerError> {
        let ty = |i: usize| s.graph.ty(node.ins[i]);
        let (q, k, v) = (ty(0), ty(1), ty(2));
        let heads = |with: bool| op.heads.iter().copied().filter(move |&a| k.has(a) == with);
        let parts = Parts {
            batch: op.batch(q).into_iter().filter(|a| !op.heads.contains(a)).collect(),
            kv: heads(true).collect(),
            group: heads(false).collect(),
            query: op.query,
            key: op.key,
            dim: op.dim,
            width: op.width(k, v).unwrap_or(op.dim),
        };
        let ordered = parts.kv.iter().chain(&parts.group).eq(&op.heads);
        let shared = parts.batch.iter().all(|&a| k.has(a));
        if parts.kv.len() > 1 || parts.group.len() > 1 || !ordered || !shared {
            let what = "takes one axis of key heads, then one of groups";
            return Err(LowerError::unsupported("attend", what));
        }
        Ok(parts)
    }

    /// A value over [batch.., kv, group, position, width].
    fn operand(
        &self,
        s: &Source<'_>,
        v: ValueId,
        position: AxisId,
        width: Option<AxisId>,
    ) -> Operand {
        let of = |list: &[AxisId]| match list {
            [] => vec![0],
            list => s.along(v, list),
        };
        let mut strides = s.along(v, &self.batch);
        strides.extend(of(&self.kv));
        strides.extend(of(&self.group));
        strides.extend(of(&[position]));
        strides.extend(of(width.as_slice()));
        s.with(v, strides)
    }

    fn attention(&self, s: &Source<'_>, op: &ops::Attend) -> Attention {
        let axes = s.graph.axes();
        Attention {
            batch: axes.sizes(&self.batch),
            kv: axes.count(&self.kv),
            group: axes.count(&self.group),
            queries: axes.size(self.query),
            key_width: axes.size(self.dim),
            value_width: axes.size(self.width),
            scale: op.scale as f32,
        }
    }

    fn mask(&self, s: &Source<'_>, op: &ops::Attend) -> AttendMask {
        let axes = s.graph.axes();
        let (keys, queries) = (axes.size(self.key), axes.size(self.query));
        AttendMask {
            pattern: op.pattern.clone(),
            heads: if op.pattern.head_kinds() == 1 { 1 } else { axes.count(&op.heads) },
            // Decoding sees a window of the whole pattern.
            queries: if op.offset { keys } else { queries },
            keys,
        }
    }
}

pub(super) fn attend(s: &Source<'_>, op: &ops::Attend, node: &Node) -> Result<Call, LowerError> {
    let p = Parts::of(s, op, node)?;
    let [q, k, v] = [0, 1, 2].map(|i| node.ins[i]);
    let (o, lse) = (node.outs[0], node.outs[1]);
    let spec = AttendSpec {
        attention: p.attention(s, op),
        q: p.operand(s, q, p.query, Some(p.dim)),
        k: p.operand(s, k, p.key, Some(p.dim)),
        v: p.operand(s, v, p.key, Some(p.width)),
        o: p.operand(s, o, p.query, Some(p.width)),
        lse: p.operand(s, lse, p.query, None),
    };
    let position = op.offset.then(|| node.ins[3]);
    Ok(Call { position, ..Call::new(Spec::Attend(spec, p.mask(s, op)), [q, k, v, o, lse]) })
}

pub(super) fn attend_grad(
    s: &Source<'_>,
    op: &ops::AttendGrad,
    node: &Node,
) -> Result<Call, LowerError> {
    let p = Parts::of(s, &op.attend, node)?;
    let [q, k, v, o, lse, dout] = [0, 1, 2, 3, 4, 5].map(|i| node.ins[i]);
    let [dq, dk, dv] = [0, 1, 2].map(|i| node.outs[i]);
    let dlse = op.dlse.then(|| node.ins[6]);
    let row = |v: ValueId| p.operand(s, v, p.query, None);
    let wide = |v: ValueId, position, width| p.operand(s, v, position, Some(width));
    let spec = AttendGradSpec {
        attention: p.attention(s, &op.attend),
        q: wide(q, p.query, p.dim),
        k: wide(k, p.key, p.dim),
        v: wide(v, p.key, p.width),
        o: wide(o, p.query, p.width),
        lse: row(lse),
        dout: wide(dout, p.query, p.width),
        dq: wide(dq, p.query, p.dim),
        dk: wide(dk, p.key, p.dim),
        dv: wide(dv, p.key, p.width),
        dlse: dlse.map(row),
    };
    let operands = [q, k, v, o, lse, dout, dq, dk, dv].into_iter().chain(dlse);
    Ok(Call::new(Spec::AttendGrad(spec, p.mask(s, &op.attend)), operands))
}
