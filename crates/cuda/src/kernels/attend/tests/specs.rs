//! Attentions to test with: shapes, a pattern, and an order of axes in memory.

use aerogel_graph::{DType, Pattern};
use aerogel_lower::{AttendGradSpec, AttendMask, AttendSpec, Attention, Operand};

/// An attention in a few words.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub pattern: &'static str,
    pub batch: Vec<usize>,
    pub kv: usize,
    pub group: usize,
    pub queries: usize,
    pub keys: usize,
    pub widths: [usize; 2],
    pub dtype: DType,
    /// Which of [batch.., kv, group, position, width] come first in memory; empty: in this order.
    pub order: Vec<usize>,
    /// Elements beside each row.
    pub pad: usize,
}

impl Default for Case {
    fn default() -> Case {
        Case {
            pattern: "causal",
            batch: vec![2],
            kv: 2,
            group: 1,
            queries: 64,
            keys: 64,
            widths: [64, 64],
            dtype: DType::Bf16,
            order: vec![],
            pad: 0,
        }
    }
}

impl Case {
    pub fn mask(&self) -> AttendMask {
        let pattern = Pattern::parse(self.pattern).unwrap();
        let heads = if pattern.head_kinds() == 1 { 1 } else { self.kv * self.group };
        AttendMask { pattern, heads, queries: self.queries, keys: self.keys }
    }

    fn attention(&self) -> Attention {
        Attention {
            batch: self.batch.clone(),
            kv: self.kv,
            group: self.group,
            queries: self.queries,
            key_width: self.widths[0],
            value_width: self.widths[1],
            scale: 0.125,
        }
    }

    /// An operand over [batch.., kv, group, position, width]; axes of size 0 are absent.
    fn operand(&self, group: usize, positions: usize, width: usize, dtype: DType) -> Operand {
        let sizes = [&self.batch[..], &[self.kv, group, positions, width]].concat();
        let mut order = self.order.clone();
        order.extend((0..sizes.len()).filter(|axis| !self.order.contains(axis)));
        let (mut strides, mut next) = (vec![0; sizes.len()], 1);
        for (n, &axis) in order.iter().rev().enumerate() {
            if sizes[axis] > 0 {
                strides[axis] = next;
                next *= sizes[axis] as isize;
                next += if n == 0 { self.pad as isize } else { 0 };
            }
        }
        Operand { dtype, strides }
    }

    pub fn forward(&self) -> AttendSpec {
        let [dq, dv] = self.widths;
        let (queries, keys) = (self.queries, self.keys);
        AttendSpec {
            attention: self.attention(),
            q: self.operand(self.group, queries, dq, self.dtype),
            k: self.operand(0, keys, dq, self.dtype),
            v: self.operand(0, keys, dv, self.dtype),
            o: self.operand(self.group, queries, dv, self.dtype),
            lse: self.operand(self.group, queries, 0, DType::F32),
        }
    }

    pub fn backward(&self) -> AttendGradSpec {
        let AttendSpec { attention, q, k, v, o, lse } = self.forward();
        let (dq, dk, dv, dout) = (q.clone(), k.clone(), v.clone(), o.clone());
        let dlse = self.queries.is_multiple_of(2).then(|| lse.clone());
        AttendGradSpec { attention, q, k, v, o, lse, dout, dq, dk, dv, dlse }
    }
}
