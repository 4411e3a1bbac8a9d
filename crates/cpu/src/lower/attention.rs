//! Attention, forward and backward; block lists are made once for each pattern.

use super::{Call, Source};
use crate::compile::{along, dtype};
use crate::kernel::{KernelError, Operand};
use crate::kernels::attend::{Attend, Attention};
use crate::kernels::attend_grad::{AttendGrad, GradOperands};
use crate::kernels::pattern::BlockList;
use aerogel_graph::{AxisId, Build, Node, Pattern, ValueId, ops};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Pattern, heads, queries, keys.
type Key = (Pattern, usize, usize, usize);

/// Block lists, made once each.
#[derive(Default)]
pub(crate) struct BlockLists(Mutex<HashMap<Key, Arc<BlockList>>>);

impl BlockLists {
    fn get(
        &self,
        pattern: &Pattern,
        heads: usize,
        queries: usize,
        keys: usize,
    ) -> Result<Arc<BlockList>, KernelError> {
        let heads = if pattern.head_kinds() == 1 { 1 } else { heads };
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (pattern.clone(), heads, queries, keys);
        if let Some(list) = lists.get(&key) {
            return Ok(list.clone());
        }
        let list = BlockList::with_coverage(
            heads,
            [queries, keys],
            &|head, i, j| pattern.allows(head, i, j),
            &|head, q, k| pattern.coverage(head, q, k),
        )?;
        let list = Arc::new(list);
        lists.insert(key, list.clone());
        Ok(list)
    }
}

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
    fn of(s: &Source<'_>, op: &ops::Attend, node: &Node) -> Result<Parts, KernelError> {
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
            let what = "takes one axis of key heads, then one of groups".to_owned();
            return Err(KernelError::Unsupported { kernel: "attend", what });
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
            list => along(s.graph, s.strides, v, list),
        };
        let mut strides = along(s.graph, s.strides, v, &self.batch);
        strides.extend(of(&self.kv));
        strides.extend(of(&self.group));
        strides.extend(of(&[position]));
        strides.extend(of(width.as_slice()));
        Operand { dtype: dtype(s.graph.ty(v).dtype), strides }
    }

    fn attention(&self, s: &Source<'_>, op: &ops::Attend) -> Result<Attention, KernelError> {
        let axes = s.graph.axes();
        let (kv, group) = (axes.count(&self.kv), axes.count(&self.group));
        let keys = axes.size(self.key);
        let queries = axes.size(self.query);
        // Decoding sees a window of the whole pattern.
        let all = if op.offset { keys } else { queries };
        Ok(Attention {
            batch: axes.sizes(&self.batch),
            kv,
            group,
            queries,
            key_width: axes.size(self.dim),
            value_width: axes.size(self.width),
            scale: op.scale as f32,
            pattern: s.lists.get(&op.pattern, kv * group, all, keys)?,
        })
    }
}

pub(super) fn attend(s: &Source<'_>, op: &ops::Attend, node: &Node) -> Result<Call, KernelError> {
    let p = Parts::of(s, op, node)?;
    let [q, k, v] = [0, 1, 2].map(|i| node.ins[i]);
    let (o, lse) = (node.outs[0], node.outs[1]);
    let kernel = Attend::new(
        &p.attention(s, op)?,
        [
            &p.operand(s, q, p.query, Some(p.dim)),
            &p.operand(s, k, p.key, Some(p.dim)),
            &p.operand(s, v, p.key, Some(p.width)),
            &p.operand(s, o, p.query, Some(p.width)),
            &p.operand(s, lse, p.query, None),
        ],
    )?;
    let position = op.offset.then(|| node.ins[3]);
    Ok(Call { position, ..Call::new(kernel, [q, k, v, o, lse]) })
}

pub(super) fn attend_grad(
    s: &Source<'_>,
    op: &ops::AttendGrad,
    node: &Node,
) -> Result<Call, KernelError> {
    let p = Parts::of(s, &op.attend, node)?;
    let [q, k, v, o, lse, dout] = [0, 1, 2, 3, 4, 5].map(|i| node.ins[i]);
    let [dq, dk, dv] = [0, 1, 2].map(|i| node.outs[i]);
    let dlse = op.dlse.then(|| node.ins[6]);
    let row = |v: ValueId| p.operand(s, v, p.query, None);
    let wide = |v: ValueId, position, width| p.operand(s, v, position, Some(width));
    let dlse_operand = dlse.map(row);
    let operands = GradOperands {
        inputs: [
            &wide(q, p.query, p.dim),
            &wide(k, p.key, p.dim),
            &wide(v, p.key, p.width),
            &wide(o, p.query, p.width),
            &row(lse),
            &wide(dout, p.query, p.width),
        ],
        dlse: dlse_operand.as_ref(),
        outputs: [&wide(dq, p.query, p.dim), &wide(dk, p.key, p.dim), &wide(dv, p.key, p.width)],
    };
    let kernel = AttendGrad::new(&p.attention(s, &op.attend)?, operands)?;
    Ok(Call::new(kernel, [q, k, v, o, lse, dout, dq, dk, dv].into_iter().chain(dlse)))
}
