//! The global norm of the gradient.

use super::config::Share;
use crate::bucket::Bucket;
use crate::shards::{Shards, all_reduce, exchange};
use aerogel_graph::ops::Exchange;
use aerogel_graph::{AxisId, Build, DType, Graph, Op, OpError, Phase, Type, ValueId};

/// Chunks of a bucket whose sum may be made together with those of others. Beyond, devices may cut
/// a sum by how many there are beside it, which would show in its bits.
const MOST_CHUNKS: usize = 1024;
/// Buckets after which the same numbers of chunks come again, at most: what a layer has.
const MOST_PERIOD: usize = 4;

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
    let mut own: Vec<Option<(&Bucket, ValueId)>> = vec![None; share.buckets.list.len()];
    share.list().zip(lists).for_each(|((i, b), v)| own[i] = Some((b, v)));
    let sizes: Vec<Option<usize>> = own.iter().map(|own| like_others(g, *own)).collect();
    let (mut list, mut axes) = (vec![], vec![]);
    let mut at = 0;
    while at < own.len() {
        let (period, times) = repeats(&sizes[at..]);
        let v = if times > 1 {
            let run: Vec<ValueId> =
                own[at..at + period * times].iter().flatten().map(|own| own.1).collect();
            run_totals(g, &run, period)?
        } else {
            total(g, own[at])?
        };
        axes.push(g.ty(v).axes[0]);
        list.push(v);
        at += period * times;
    }
    let axis = g.storage_axis("buckets", own.len())?;
    let mut v = match list.as_slice() {
        [single] => g.rename(*single, axes[0], axis)?,
        list => g.concat(list, &axes, axis)?,
    };
    for m in [share.tensor, share.pipe].into_iter().flatten() {
        v = all_reduce(g, v, m)?;
    }
    g.sum(v, &[axis])
}

/// The sum of a bucket's chunks; 0 of a bucket that another stage has.
fn total(g: &mut Graph, own: Option<(&Bucket, ValueId)>) -> Result<ValueId, OpError> {
    let one = g.storage_axis("one", 1)?;
    let Some((b, v)) = own else { return g.constant(0.0, Type::new(DType::F32, [one])) };
    let all = g.ty(v).axes[0];
    let own = g.storage_axis(&format!("chunks.{}", b.name), b.chunks)?;
    let v = g.slice(v, all, 0, own)?;
    let v = g.split(v, own, &[one, own])?;
    g.sum(v, &[own])
}

/// How many chunks a bucket has, if it can be summed together with others.
fn like_others(g: &Graph, own: Option<(&Bucket, ValueId)>) -> Option<usize> {
    let (b, v) = own?;
    let is_whole = g.axes().size(g.ty(v).axes[0]) == b.chunks;
    let is_made_here = matches!(g.op_of(v), Some(Op::Reduce(_)));
    (is_whole && is_made_here && b.chunks <= MOST_CHUNKS).then_some(b.chunks)
}

/// The period of the numbers at the start of a list, and how often it comes: layers have the same
/// buckets. As many numbers as possible, the shortest period of equals; (1, 1) if nothing repeats.
fn repeats(sizes: &[Option<usize>]) -> (usize, usize) {
    let of = |period: usize| {
        let alike = |i: &usize| sizes[*i].is_some() && sizes[*i] == sizes[i % period];
        let times = (0..sizes.len()).take_while(alike).count() / period;
        if times > 1 { (period, times) } else { (1, 1) }
    };
    let longest = |&(period, times): &(usize, usize)| (period * times, std::cmp::Reverse(period));
    (1..=MOST_PERIOD).map(of).max_by_key(longest).unwrap_or((1, 1))
}

/// The sums of the chunks of each of several buckets, whose numbers of chunks come again after so
/// many: one sum for each number.
fn run_totals(g: &mut Graph, run: &[ValueId], period: usize) -> Result<ValueId, OpError> {
    let axes: Vec<AxisId> = run.iter().map(|v| g.ty(*v).axes[0]).collect();
    let sizes: Vec<usize> = axes[..period].iter().map(|&a| g.axes().size(a)).collect();
    let (times, length): (usize, usize) = (run.len() / period, sizes.iter().sum());
    let mut axis = |what: &str, n: usize| g.storage_axis(&format!("{what}.{n}"), n);
    let (all, many) = (axis("chunks", length * times)?, axis("layers", times)?);
    let each = axis("layer", length)?;
    let v = g.concat(run, &axes, all)?;
    let v = g.split(v, all, &[many, each])?;
    let (mut start, mut sums) = (0, vec![]);
    for size in sizes {
        let own = g.storage_axis(&format!("chunks.{size}"), size)?;
        let slice = g.slice(v, each, start, own)?;
        sums.push(g.sum(slice, &[own])?);
        start += size;
    }
    if let [single] = sums.as_slice() {
        return Ok(*single);
    }
    let one = g.storage_axis("one", 1)?;
    let kinds = g.storage_axis(&format!("kinds.{period}"), period)?;
    let buckets = g.storage_axis(&format!("buckets.{}", run.len()), run.len())?;
    for v in &mut sums {
        *v = g.split(*v, many, &[many, one])?;
    }
    let v = g.concat(&sums, &vec![one; period], kinds)?;
    g.merge(v, &[many, kinds], buckets)
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

#[cfg(test)]
mod tests {
    use super::repeats;

    #[test]
    fn layers_have_the_same_buckets_again() {
        let of = |list: &[usize]| {
            repeats(&list.iter().map(|n| Some(*n).filter(|n| *n > 0)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[4, 9, 4, 9, 4, 9, 4]), (2, 3));
        assert_eq!(of(&[5, 5, 5, 7]), (1, 3));
        assert_eq!(of(&[5, 5, 5, 5]), (1, 4));
        assert_eq!(of(&[5, 5, 7, 5, 5, 7]), (3, 2));
        // Of other stages, or too long: 0.
        assert_eq!(of(&[4, 9, 4, 0, 4, 9]), (1, 1));
        assert_eq!(of(&[0, 0, 0]), (1, 1));
        assert_eq!(of(&[3]), (1, 1));
    }
}
