//! tile: the step of a global batch as sections over micro-batches, summed by a balanced tree.
//!
//! The tree over micro-batches 0..M is that of a binary counter: level l holds the sum of 2^l
//! neighbours, and a micro-batch that completes a level carries into the next. So as many buffers
//! as M - 1 has binary digits are enough, a sum of n terms rounds log2(n) times on each path, and
//! whoever owns a whole subtree can sum it alone: how micro-batches are dealt out in powers of two
//! changes no bit.

use crate::PassError;
use crate::shards::{Shards, is_sum};
use aerogel_graph::{Build, DType, Def, Graph, Init, OpError, Role, StateId, ValueId, verify};

const PASS: &str = "tile";
const AXIS: &str = "batch";

/// In which order the micro-batches of a rank are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the balanced tree, which is the same however micro-batches are dealt out.
    Tree,
    /// One after another, into one buffer.
    Fold,
}

/// The section that runs micro-batch `j` of `micro_batches`. In a tree: `micro.last` for the last
/// one, else `micro.K`, where K sums of earlier micro-batches are carried. In a fold: `micro.0` for
/// the first, `micro.1` for the others.
pub fn section_of(j: usize, micro_batches: usize, order: Order) -> String {
    match order {
        Order::Tree if j + 1 == micro_batches => "micro.last".to_owned(),
        Order::Tree => format!("micro.{}", carries(j)),
        Order::Fold => format!("micro.{}", j.min(1)),
    }
}

/// How many levels micro-batch `j` completes.
fn carries(j: usize) -> u32 {
    j.trailing_ones()
}

/// Levels of sums that are kept; one at least, for the update reads level 0.
fn levels(micro_batches: usize) -> u32 {
    (usize::BITS - (micro_batches - 1).leading_zeros()).max(1)
}

/// Cuts axis `batch` of the graph of the global batch, so that it is that of one micro-batch.
///
/// # Errors
/// `batch` does not divide, a state has it, or the graph does something to it that a piece of it
/// does not allow.
pub fn cut(g: &Graph, shards: &Shards, micro_batches: usize) -> Result<Graph, PassError> {
    let over_batch = |v: ValueId| g.axes().find(AXIS).is_some_and(|a| g.ty(v).has(a));
    if let Some(s) = g.states().iter().find(|s| over_batch(s.value)) {
        return Err(PassError::OverBatch { name: s.name.clone() });
    }
    let mut cut = g.clone();
    cut.set_mesh(shards.mesh.clone());
    shards.cut_batch(&mut cut, micro_batches)?;
    verify::verify(&cut).map_err(|source| PassError::Verify { pass: PASS, source })?;
    Ok(cut)
}

/// The sections of a rank that runs `micro_batches` of them, one after another. Outputs `loss`,
/// `tokens` and `grad.*` of `g`, as far as it has them, are sums over the batch, and become states
/// `sum.L.NAME`: after the sections of [`section_of`] for j = 0, 1, ..., each under clock
/// `micro = j`, `sum.0.*` holds the totals. Every section declares the same states in the same
/// order.
///
/// # Errors
/// There is no such output, or one is no f32 sum over the batch; there are no micro-batches.
pub fn accumulate(
    g: &Graph,
    micro_batches: usize,
    order: Order,
) -> Result<Vec<(String, Graph)>, PassError> {
    let Some(last) = micro_batches.checked_sub(1) else {
        return Err(OpError::new(PASS, "a step needs at least one micro-batch").into());
    };
    let sums = summed(g)?;
    let mut cut = g.clone();
    cut.outputs.retain(|(name, _)| !is_sum(name));
    let mut sections = vec![];
    if order == Order::Fold {
        let stack = [declare(&mut cut, 0, &sums)?];
        sections.push(("micro.0".to_owned(), section(&cut, &sums, &stack, &[], 0)?));
        if last > 0 {
            sections.push(("micro.1".to_owned(), section(&cut, &sums, &stack, &[0], 0)?));
        }
        return Ok(sections);
    }
    let mut stack = vec![];
    for level in 0..levels(micro_batches) {
        stack.push(declare(&mut cut, level, &sums)?);
    }
    for level in (0..levels(micro_batches)).filter(|&l| (1usize << l) <= last) {
        let folds: Vec<u32> = (0..level).collect();
        sections.push((format!("micro.{level}"), section(&cut, &sums, &stack, &folds, level)?));
    }
    let folds: Vec<u32> = (0..levels(micro_batches)).filter(|l| last >> l & 1 == 1).collect();
    sections.push(("micro.last".to_owned(), section(&cut, &sums, &stack, &folds, 0)?));
    Ok(sections)
}

/// The outputs that are sums over the batch.
fn summed(g: &Graph) -> Result<Vec<(String, ValueId)>, PassError> {
    let over_batch = |v: ValueId| g.axes().find(AXIS).is_some_and(|a| g.ty(v).has(a));
    let sums: Vec<_> = g.outputs.iter().filter(|(name, _)| is_sum(name)).cloned().collect();
    if sums.is_empty() {
        return Err(PassError::MissingOutput { pass: PASS, name: "loss".to_owned() });
    }
    for (name, v) in &sums {
        if over_batch(*v) {
            return Err(PassError::OverBatch { name: name.clone() });
        }
        if g.ty(*v).dtype != DType::F32 {
            let got = g.ty(*v).show(g.axes());
            return Err(PassError::NotF32 { name: name.clone(), got });
        }
    }
    Ok(sums)
}

fn declare(
    g: &mut Graph,
    level: u32,
    sums: &[(String, ValueId)],
) -> Result<Vec<StateId>, PassError> {
    let mut ids = vec![];
    for (name, v) in sums {
        let ty = g.ty(*v).clone();
        let name = format!("sum.{level}.{name}");
        g.state(&name, ty, Role::Accumulator, None, Init::Constant(0.0))?;
        ids.push(StateId(g.states().len() as u32 - 1));
    }
    Ok(ids)
}

/// One section: the levels in `folds` are added to the fresh sums, the earlier operand first, and
/// the result becomes level `to`. Each sum is taken right behind the node that makes its last term,
/// so that no more than one fresh gradient is there at a time.
fn section(
    cut: &Graph,
    sums: &[(String, ValueId)],
    stack: &[Vec<StateId>],
    folds: &[u32],
    to: u32,
) -> Result<Graph, PassError> {
    let mut assigns = vec![];
    let mut fold = |g: &mut Graph, i: usize, fresh: ValueId| -> Result<(), OpError> {
        let mut value = fresh;
        for &level in folds {
            let earlier = g.states()[stack[level as usize][i].index()].value;
            value = g.add(earlier, value)?;
        }
        assigns.push((stack[to as usize][i], value));
        Ok(())
    };
    let mut g = cut.rewrite(|g, node, ins| {
        let outs = g.emit(node.op.clone(), ins)?;
        for (old, new) in node.outs.iter().zip(&outs) {
            for (i, _) in sums.iter().enumerate().filter(|(_, s)| s.1 == *old) {
                fold(g, i, *new)?;
            }
        }
        Ok(Some(outs))
    })?;
    // A pipeline's backward finds the loss in a state, where its forward left it.
    for (i, (_, v)) in sums.iter().enumerate() {
        let given = match cut.value(*v).def {
            Def::State(s) => g.states()[s.index()].value,
            Def::Input(n) => g.inputs()[n as usize].value,
            Def::Node(..) => continue,
        };
        fold(&mut g, i, given)?;
    }
    for (state, value) in assigns {
        g.assign(state, value)?;
    }
    Ok(g.pruned()?)
}
