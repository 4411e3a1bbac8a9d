//! The global norm of the gradient.

use super::config::Share;
use crate::bucket::Bucket;
use crate::shards::{Shards, all_reduce, exchange};
use aerogel_graph::ops::Exchange;
use aerogel_graph::{AxisId, Build, DType, Graph, OpError, Phase, Type, ValueId};

/// The sum of squares of the mean gradient over all buckets of all ranks, from the [`chunks`] of
/// this rank's.
///
/// Each chunk is summed by itself, then the chunks of a bucket, then the buckets, each in order:
/// so the number of pieces, and which stage has which bucket, changes no bit.
pub(crate) fn squares(
    g: &mut Graph,
    share: &Share<'_>,
    lists: &[ValueId],
) -> Result<ValueId, OpError> {
    let shards = &share.buckets.shards;
    g.at(&"".into(), Phase::Update);
    let lists = together(g, shards, lists)?;
    let one = g.storage_axis("one", 1)?;
    let mut totals: Vec<Option<ValueId>> = vec![None; share.buckets.list.len()];
    for ((i, b), v) in share.list().zip(lists) {
        let all = g.ty(v).axes[0];
        let own = g.storage_axis(&format!("chunks.{}", b.name), b.chunks)?;
        let v = g.slice(v, all, 0, own)?;
        let v = g.split(v, own, &[one, own])?;
        totals[i] = Some(g.sum(v, &[own])?);
    }
    let mut list = vec![];
    for total in totals {
        list.push(match total {
            Some(v) => v,
            None => g.constant(0.0, Type::new(DType::F32, [one]))?,
        });
    }
    let axis = g.storage_axis("buckets", list.len())?;
    let mut v = match list.as_slice() {
        [single] => g.rename(*single, one, axis)?,
        list => g.concat(list, &vec![one; list.len()], axis)?,
    };
    for m in [share.tensor, share.pipe].into_iter().flatten() {
        v = all_reduce(g, v, m)?;
    }
    g.sum(v, &[axis])
}

/// Sums of chunks of all pieces of each bucket, from those of this rank's pieces: one message.
fn together(g: &mut Graph, shards: &Shards, own: &[ValueId]) -> Result<Vec<ValueId>, OpError> {
    let ranks = shards.pieces(&shards.optimizer);
    if ranks == 1 || own.is_empty() {
        return Ok(own.to_vec());
    }
    let axes: Vec<AxisId> = own.iter().map(|v| g.ty(*v).axes[0]).collect();
    let sizes: Vec<usize> = axes.iter().map(|&a| g.axes().size(a)).collect();
    let length: usize = sizes.iter().sum();
    let mut axis = g.storage_axis("squares", length)?;
    let mut v = match own {
        [single] => g.rename(*single, axes[0], axis)?,
        own => g.concat(own, &axes, axis)?,
    };
    for &m in &shards.optimizer {
        let (name, size) = shards.mesh.0[m as usize].clone();
        let name = format!("{}*{name}", g.axes()[axis].name);
        let into = g.storage_axis(&name, g.axes().size(axis) * size)?;
        v = exchange(g, v, Exchange::AllGather { axis, into }, m)?;
        axis = into;
    }
    let (rank, each) = (g.storage_axis("pieces", ranks)?, g.storage_axis("squares", length)?);
    let v = g.split(v, axis, &[rank, each])?;
    let mut start = 0;
    let mut lists = vec![];
    for size in sizes {
        let piece = g.storage_axis(&format!("squares.{size}"), size)?;
        let whole = g.storage_axis(&format!("squares.{}", size * ranks), size * ranks)?;
        let slice = g.slice(v, each, start, piece)?;
        lists.push(g.merge(slice, &[rank, piece], whole)?);
        start += size;
    }
    Ok(lists)
}

/// The sum of squares of the mean gradient in each chunk of this rank's piece of a bucket.
pub(crate) fn chunks(
    g: &mut Graph,
    b: &Bucket,
    share: &Share<'_>,
    [grad, inverse]: [ValueId; 2],
) -> Result<ValueId, OpError> {
    let (axis, chunk) = (g.ty(grad).axes[0], b.chunk);
    let count = g.axes().size(axis) / chunk;
    // What all ranks along the tensor axis have alike is summed over them and counted once.
    let alike = match share.tensor {
        Some(m) if b.replicated => share.buckets.shards.mesh.size(m),
        _ => 1,
    };
    let many = g.storage_axis(&format!("chunks.{count}"), count)?;
    let lane = g.storage_axis(&format!("chunk.{chunk}"), chunk)?;
    let grad = g.split(grad, axis, &[many, lane])?;
    let square = g.map(&[grad, inverse], &|v| {
        let x = &v[0] * &v[1];
        let square = &x * &x;
        if alike > 1 { square * (1.0 / alike as f64) } else { square }
    })?;
    g.sum(square, &[lane])
}
