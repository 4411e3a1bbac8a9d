//! Regions: which nodes go into one kernel. Chains of maps over the same axes are one program; a
//! contraction, a norm and the gradient of one take the chain that follows them as epilogue, a
//! reduction the chain before it as its prologue. A contraction without an epilogue takes the sum
//! of one of its operands over the axes that it contracts: the gradient of a bias goes with that of
//! the weights. Contractions of one value over the same axes, each with what it takes, are one
//! region where a target has a kernel for them all.

use crate::draws::{Origin, global_strides};
use aerogel_graph::expr::Bin;
use aerogel_graph::ops::{Fold, ScatterMode};
use aerogel_graph::{
    Axes, AxisId, Build, Def, Expr, Graph, Node, NodeId, Op, Phase, Role, ValueId,
};
use aerogel_machine::Sight;

/// Longest chain: keeps the values of a program near the arithmetic, and compiling it short.
const MOST_NODES: usize = 48;
/// Readers that do not fit before a region is taken to be complete: a scalar such as the clipping
/// factor has thousands.
const MOST_FAILURES: usize = 32;
/// Contractions of a region.
const MOST_MEMBERS: usize = 4;

/// Region candidates whose lowest node is this one, largest first; the last is the node alone.
pub fn candidates(sight: &Sight<'_>, node: NodeId) -> Vec<Vec<NodeId>> {
    let g = sight.graph;
    let mut list = vec![];
    list.extend(group(sight, node));
    list.extend(sum_of_products(sight, node));
    if matches!(g.node(node).op, Op::Map(_) | Op::Einsum(_) | Op::Norm(_) | Op::NormGrad(_)) {
        let grown = grow(sight, node);
        if matches!(g.node(node).op, Op::Map(_)) {
            list.extend(with_reduction(sight, &grown));
        }
        if grown.len() > 1 {
            list.push(grown);
        }
    }
    list.extend(with_sum(sight, node));
    list.push(vec![node]);
    list
}

/// Whether a node is a contraction of two operands.
pub(crate) fn is_product(node: &Node) -> bool {
    matches!(node.op, Op::Einsum(_)) && node.ins.len() == 2
}

/// The contractions of a region, each with the nodes that are its own, in their order; none where
/// there is at most one. Those that are summed are one member.
pub(crate) fn members(g: &Graph, nodes: &[NodeId]) -> Vec<Vec<NodeId>> {
    if nodes.iter().filter(|n| is_product(g.node(**n))).count() < 2 {
        return vec![];
    }
    let (mut members, mut sums): (Vec<Vec<NodeId>>, Vec<NodeId>) = (vec![], vec![]);
    for &n in nodes {
        let node = g.node(n);
        if matches!(node.op, Op::Reduce(_)) {
            sums.push(n);
            continue;
        }
        // What is read of the region belongs together.
        let reads = |m: &Vec<NodeId>| {
            m.iter().any(|n| g.node(*n).outs.iter().any(|v| node.ins.contains(v)))
        };
        let (read, mut rest): (Vec<_>, Vec<_>) = members.into_iter().partition(reads);
        let mut own = read.concat();
        own.push(n);
        own.sort_unstable();
        rest.push(own);
        members = rest;
    }
    let product = |m: &Vec<NodeId>| m.iter().copied().find(|n| is_product(g.node(*n)));
    members.sort_by_key(|m| (product(m), m[0]));
    for sum in sums {
        let takes = |m: &&mut Vec<NodeId>| m.len() == 1 && sums_operand(g, m[0], sum);
        match members.iter_mut().find(takes) {
            Some(member) if sum < member[0] => member.insert(0, sum),
            Some(member) => member.push(sum),
            None => members.push(vec![sum]),
        }
    }
    members
}

/// Contractions that read one value, each with its own epilogue or sum: one region if none needs
/// another's results and there is a place where all can run.
fn group(sight: &Sight<'_>, node: NodeId) -> Option<Vec<NodeId>> {
    let g = sight.graph;
    let first = match &g.node(node).op {
        Op::Reduce(_) => with_sum(sight, node)?,
        _ if is_product(g.node(node)) => member(sight, node, node, &[]),
        _ => return None,
    };
    let product = *first.iter().find(|n| is_product(g.node(**n)))?;
    let draws = |nodes: &[NodeId]| nodes.iter().any(|n| draw_origin(g, *n).is_some());
    if draws(&first) {
        return None;
    }
    let groups = g.node(product).ins.iter().filter(|v| !is_weight(g, **v)).map(|&v| {
        let mut all = vec![first.clone()];
        let later = sight.uses.readers(v).iter().filter(|r| **r > product);
        for &other in later.filter(|r| (sight.free)(**r) && are_alike(g, product, **r)) {
            let own = member(sight, other, node, &all.concat());
            let with = [&all[..], &[own]].concat();
            let nodes = sorted(&with);
            let sound = !draws(&with.concat()) && members(g, &nodes) == with;
            if all.len() < MOST_MEMBERS && sound && (sight.runs)(&nodes) {
                all = with;
            }
        }
        all
    });
    groups.max_by_key(Vec::len).filter(|all| all.len() > 1).map(|all| sorted(&all))
}

fn sorted(members: &[Vec<NodeId>]) -> Vec<NodeId> {
    let mut nodes = members.concat();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// A contraction with its epilogue, or with a sum beside it that comes after `first` and is not
/// `taken`.
fn member(sight: &Sight<'_>, product: NodeId, first: NodeId, taken: &[NodeId]) -> Vec<NodeId> {
    let g = sight.graph;
    let grown = grow(sight, product);
    if grown.len() > 1 {
        return grown;
    }
    let readers = g.node(product).ins.iter().flat_map(|v| sight.uses.readers(*v));
    let mut sums = readers.copied().filter(|sum| {
        let pair = [product.min(*sum), product.max(*sum)];
        *sum > first
            && !taken.contains(sum)
            && (sight.free)(*sum)
            && sums_operand(g, product, *sum)
            && (sight.runs)(&pair)
    });
    match sums.next() {
        Some(sum) => vec![product.min(sum), product.max(sum)],
        None => vec![product],
    }
}

/// Contractions in the backward whose sum is all that anybody wants of them, with it and the maps
/// behind it: the gradient of what several linear layers read. Not in the forward: what is kept of
/// it, and so what is rounded, depends on what is computed again.
fn sum_of_products(sight: &Sight<'_>, node: NodeId) -> Option<Vec<NodeId>> {
    let g = sight.graph;
    let own = |n: NodeId| is_product(g.node(n)) && g.node(n).phase == Phase::Backward;
    if !own(node) {
        return None;
    }
    let &[sum] = sight.uses.readers(g.node(node).outs[0]) else { return None };
    let Op::Map(map) = &g.node(sum).op else { return None };
    let ins = &g.node(sum).ins;
    let mut added = vec![];
    let axes = &g.ty(g.node(node).outs[0]).axes;
    let sides_of = |n: NodeId| sides(g, g.node(n), axes);
    let mut nodes = vec![];
    for &v in ins {
        let Def::Node(n, _) = g.value(v).def else { return None };
        let only = sight.uses.readers(v) == [sum] && !sight.uses.leaves(v);
        let [a, b] = sides_of(node);
        let alike = own(n) && [[a.clone(), b.clone()], [b, a]].contains(&sides_of(n));
        if !only || !alike || !(sight.free)(n) || g.ty(v).axes.len() != axes.len() {
            return None;
        }
        nodes.push(n);
    }
    nodes.sort_unstable();
    nodes.dedup();
    let whole = adds(&map.expr, &mut added) && added.len() == ins.len() && nodes.len() == ins.len();
    let few = (2..=MOST_MEMBERS).contains(&nodes.len()) && nodes[0] == node;
    if !whole || !few || !fits(sight, &nodes, sum) {
        return None;
    }
    nodes.push(sum);
    (sight.runs)(&nodes).then(|| extend(sight, nodes, sum))
}

/// Which of some axes each factor of a contraction has.
pub(crate) fn sides(g: &Graph, product: &Node, axes: &[AxisId]) -> [Vec<bool>; 2] {
    [0, 1].map(|i| axes.iter().map(|axis| g.ty(product.ins[i]).has(*axis)).collect())
}

/// Whether an expression is a sum of inputs, and of which.
fn adds(e: &Expr, inputs: &mut Vec<usize>) -> bool {
    match e {
        Expr::In(i) if !inputs.contains(i) => {
            inputs.push(*i);
            true
        }
        Expr::Bin(Bin::Add, a, b) => adds(a, inputs) && adds(b, inputs),
        _ => false,
    }
}

/// Contractions over the same axes that stand in one layer and one part of the step.
fn are_alike(g: &Graph, product: NodeId, other: NodeId) -> bool {
    let (product, other) = (g.node(product), g.node(other));
    let (Op::Einsum(a), Op::Einsum(b)) = (&product.op, &other.op) else { return false };
    let layer = |node: &Node| node.scope.split('.').take(2).collect::<Vec<_>>().join(".");
    let over = a.contracted(&g.in_types(product));
    let others = is_product(other).then(|| b.contracted(&g.in_types(other)));
    product.phase == other.phase
        && layer(product) == layer(other)
        && others.is_some_and(|o| o.len() == over.len() && o.iter().all(|x| over.contains(x)))
}

/// Whether a value is a parameter, or made of one alone. What reads weights works on pieces of a
/// batch one after the other, so that not all are there at once.
fn is_weight(g: &Graph, mut v: ValueId) -> bool {
    loop {
        match g.value(v).def {
            Def::State(s) => {
                let role = g.states()[s.index()].role;
                return matches!(role, Role::Parameter | Role::Weights);
            }
            Def::Node(n, _) => match (&g.node(n).op, g.node(n).ins.as_slice()) {
                (Op::View(_) | Op::Map(_), [from]) => v = *from,
                _ => return false,
            },
            Def::Input(_) => return false,
        }
    }
}

/// A contraction that has no epilogue, and a sum of one of its operands beside it, whichever of the
/// two is the node.
fn with_sum(sight: &Sight<'_>, node: NodeId) -> Option<Vec<NodeId>> {
    let g = sight.graph;
    let fits = |product: NodeId, sum: NodeId| {
        let pair = [product.min(sum), product.max(sum)];
        (sight.free)(pair[1])
            && sums_operand(g, product, sum)
            // They run at once.
            && !g.node(product).ins.contains(&g.node(sum).outs[0])
            && (sight.runs)(&pair)
            && grow(sight, product).len() == 1
    };
    let later = |v: &ValueId| sight.uses.readers(*v).iter().copied().filter(|r| *r > node);
    let others = g.node(node).ins.iter().flat_map(later);
    let mut fitting = others.filter(|other| match &g.node(node).op {
        Op::Einsum(_) => fits(node, *other),
        Op::Reduce(_) => fits(*other, node),
        _ => false,
    });
    fitting.next().map(|other| vec![node, other])
}

/// Whether a node sums an operand of a contraction over exactly the axes that this contracts.
fn sums_operand(g: &Graph, product: NodeId, sum: NodeId) -> bool {
    let (product, sum) = (g.node(product), g.node(sum));
    let (Op::Einsum(einsum), Op::Reduce(reduce)) = (&product.op, &sum.op) else { return false };
    if product.ins.len() != 2 || reduce.fold != Fold::Sum || !product.ins.contains(&sum.ins[0]) {
        return false;
    }
    let contracted = einsum.contracted(&g.in_types(product));
    let same = contracted.len() == reduce.over.len();
    same && contracted.iter().all(|axis| reduce.over.contains(axis))
}

/// The anchor and the maps after it that can run with it.
fn grow(sight: &Sight<'_>, anchor: NodeId) -> Vec<NodeId> {
    let g = sight.graph;
    if is_permutation(&g.node(anchor).op, g.node(anchor).ins.len()) {
        return vec![anchor];
    }
    extend(sight, vec![anchor], anchor)
}

/// A region and the maps after a node that can run with it.
fn extend(sight: &Sight<'_>, mut region: Vec<NodeId>, mut after: NodeId) -> Vec<NodeId> {
    let mut failures = 0;
    while failures < MOST_FAILURES {
        let Some(candidate) = next_reader(sight, &region, after) else { break };
        after = candidate;
        match join(sight, &region, candidate) {
            Some(joined) => region = joined,
            None => failures += 1,
        }
    }
    region
}

/// The first node after `after` that reads a value of the region and is no part of it.
fn next_reader(sight: &Sight<'_>, region: &[NodeId], after: NodeId) -> Option<NodeId> {
    let outs = region.iter().flat_map(|n| &sight.graph.node(*n).outs);
    let first = |v: &ValueId| {
        let readers = sight.uses.readers(*v);
        let later = &readers[readers.partition_point(|r| *r <= after)..];
        later.iter().find(|r| !region.contains(r)).copied()
    };
    outs.filter_map(first).min()
}

/// The region with a map, and the maps that it needs, if all can run together.
fn join(sight: &Sight<'_>, region: &[NodeId], map: NodeId) -> Option<Vec<NodeId>> {
    let mut joined = region.to_vec();
    let mut wanted = vec![map];
    while let Some(n) = wanted.pop() {
        if joined.contains(&n) {
            continue;
        }
        if !fits(sight, region, n) || joined.len() == MOST_NODES {
            return None;
        }
        joined.push(n);
        // Maps in between that only this chain needs come along; others are read from memory.
        for &v in &sight.graph.node(n).ins {
            let aerogel_graph::Def::Node(producer, _) = sight.graph.value(v).def else { continue };
            if producer <= region[0] || region.contains(&producer) {
                continue;
            }
            if fits(sight, region, producer) {
                wanted.push(producer);
            } else if has_epilogue(sight.graph, region[0]) && has_epilogue(sight.graph, producer) {
                // A sum of products is the epilogue of the last one: the first would wait for it,
                // and all that both read with it.
                return None;
            }
        }
    }
    joined.sort_unstable();
    (sight.runs)(&joined).then_some(joined)
}

/// Whether maps can follow a node in its kernel; maps themselves wait for nothing.
fn has_epilogue(g: &Graph, n: NodeId) -> bool {
    let node = g.node(n);
    is_product(node) || matches!(node.op, Op::Norm(_) | Op::NormGrad(_))
}

/// A free map over the region's axes whose random draws advance as the region's do.
fn fits(sight: &Sight<'_>, region: &[NodeId], n: NodeId) -> bool {
    let g = sight.graph;
    let Op::Map(map) = &g.node(n).op else { return false };
    let space = &g.ty(g.node(region[0]).outs[0]).axes;
    let same = map.out.axes.len() == space.len() && map.out.axes.iter().all(|a| space.contains(a));
    // A norm's gradients of gain and bias are sums: whole only when the kernel ends.
    let sums = &g.node(region[0]).outs[1..];
    let reads_sums = g.node(n).ins.iter().any(|v| sums.contains(v));
    same && !reads_sums && (sight.free)(n) && draws_agree(g, region, n)
}

fn draws_agree(g: &Graph, region: &[NodeId], n: NodeId) -> bool {
    let Some(own) = draw_origin(g, n) else { return true };
    region.iter().all(|r| draw_origin(g, *r).is_none_or(|other| other == own))
}

/// Where the draws of a map begin; `None` for one that has none.
fn draw_origin(g: &Graph, n: NodeId) -> Option<Origin> {
    let Op::Map(map) = &g.node(n).op else { return None };
    let draws = map.expr.any(&|e| matches!(e, Expr::Rand(_)));
    draws.then(|| global_strides(g.axes(), &map.out.axes).1)
}

/// The chain and the one reduction that is all its readers.
fn with_reduction(sight: &Sight<'_>, chain: &[NodeId]) -> Option<Vec<NodeId>> {
    let exports = sight.uses.exports(sight.graph, chain);
    let [value] = exports.as_slice() else { return None };
    let [reader] = sight.uses.readers(*value) else { return None };
    let reduce = matches!(sight.graph.node(*reader).op, Op::Reduce(_));
    if !reduce || sight.uses.leaves(*value) || !(sight.free)(*reader) {
        return None;
    }
    let mut joined = chain.to_vec();
    joined.push(*reader);
    joined.is_sorted().then_some(joined)
}

/// Whether an op only reorders axes.
fn is_permutation(op: &Op, ins: usize) -> bool {
    matches!(op, Op::Einsum(_)) && ins == 1
}

/// Pairs (read, written) of a region such that the written value may lie where the read one lay.
pub fn in_place(sight: &Sight<'_>, nodes: &[NodeId]) -> Vec<(ValueId, ValueId)> {
    let members = members(sight.graph, nodes);
    if members.len() > 1 {
        return apart(sight, &members);
    }
    let first = sight.graph.node(nodes[0]);
    match &first.op {
        Op::Map(_) | Op::Einsum(_) | Op::Norm(_) | Op::NormGrad(_) => by_element(sight, nodes),
        // Rows are set in the base itself where nobody else needs it.
        Op::Scatter(op) if op.mode == ScatterMode::Set => vec![(first.ins[0], first.outs[0])],
        _ => vec![],
    }
}

/// Those of members: what one of them reads and no other, which may be done later.
fn apart(sight: &Sight<'_>, members: &[Vec<NodeId>]) -> Vec<(ValueId, ValueId)> {
    let imports: Vec<_> = members.iter().map(|m| sight.uses.imports(sight.graph, m)).collect();
    let readers = |v: ValueId| imports.iter().filter(|list| list.contains(&v)).count();
    let pairs = members.iter().flat_map(|m| by_element(sight, m));
    pairs.filter(|pair| readers(pair.0) == 1).collect()
}

/// Those of a chain: element by element in the same layout, and read by nothing but maps. A
/// reduction reads its operands again after it has begun to write.
fn by_element(sight: &Sight<'_>, nodes: &[NodeId]) -> Vec<(ValueId, ValueId)> {
    let g = sight.graph;
    if nodes.iter().any(|n| matches!(g.node(*n).op, Op::Reduce(_))) {
        return vec![];
    }
    let whole = |v: ValueId| {
        nodes.iter().any(|n| {
            let node = g.node(*n);
            !matches!(node.op, Op::Map(_)) && node.ins.contains(&v)
        })
    };
    let mut pairs = vec![];
    // Sums beside the finished values are no map's to place.
    let sums = &g.node(nodes[0]).outs[1..];
    let mut exports = sight.uses.exports(g, nodes);
    exports.retain(|v| !sums.contains(v));
    for read in sight.uses.imports(g, nodes) {
        if whole(read) {
            continue;
        }
        let same = |written: &ValueId| {
            g.ty(read) == g.ty(*written) && layouts_agree(g.axes(), g, sight, read, *written)
        };
        pairs.extend(exports.iter().filter(|w| same(w)).map(|w| (read, *w)));
    }
    pairs
}

fn layouts_agree(axes: &Axes, g: &Graph, sight: &Sight<'_>, a: ValueId, b: ValueId) -> bool {
    let (sa, sb) = (&sight.strides[a.index()], &sight.strides[b.index()]);
    g.ty(a).axes.iter().zip(sa.iter().zip(sb)).all(|(&x, (p, q))| axes.size(x) == 1 || p == q)
}

/// The name of a region's kernel, for reports.
pub fn kernel_name(g: &Graph, nodes: &[NodeId]) -> &'static str {
    let last = nodes.last().map(|n| &g.node(*n).op);
    let has = |wanted: fn(&Op) -> bool| nodes.iter().any(|n| wanted(&g.node(*n).op));
    let members = members(g, nodes);
    if !members.is_empty() {
        return match () {
            () if members.len() == 1 => "einsums+add",
            () if has(|op| matches!(op, Op::Map(_))) => "einsums+map",
            () if has(|op| matches!(op, Op::Reduce(_))) => "einsums+sum",
            () => "einsums",
        };
    }
    match (&g.node(nodes[0]).op, nodes.len(), last) {
        (Op::Einsum(_), 2.., Some(Op::Reduce(_))) | (Op::Reduce(_), 2.., _) => "einsum+sum",
        (Op::Einsum(_), 1, _) => "einsum",
        (Op::Einsum(_), ..) => "einsum+map",
        (Op::Norm(_), 2.., _) => "norm+map",
        (Op::NormGrad(_), 2.., _) => "norm_grad+map",
        (Op::Map(_), _, Some(Op::Reduce(_))) => "map+reduce",
        (op, ..) => op.name(),
    }
}
