//! Where regions run that someone reads before their last node.

use super::support::{Plain, ask};
use aerogel_graph::{Build, DType, Graph, NodeId, Op, OpError, Phase, ValueId};
use aerogel_machine::{Claim, Machine, Sight, Step, Target};
use aerogel_plan::plan;

/// Offers every map together with a map that reads it, then alone.
struct Pairs;

impl Target for Pairs {
    fn name(&self) -> &str {
        "pairs"
    }

    fn claims(&self, sight: &Sight<'_>, node: NodeId) -> Result<Vec<Claim>, String> {
        let mut alone = Plain.claims(sight, node)?;
        let g = sight.graph;
        let is_map = |n: NodeId| matches!(g.node(n).op, Op::Map(_));
        let readers = sight.uses.readers(g.node(node).outs[0]).iter();
        let joined = readers
            .filter(|r| is_map(node) && is_map(**r) && (sight.free)(**r))
            .map(|r| Claim { kernel: "pair", nodes: vec![node, *r], ..alone[0].clone() })
            .map(|pair| Claim { in_place: vec![], ..pair });
        let mut offers: Vec<Claim> = joined.collect();
        offers.append(&mut alone);
        Ok(offers)
    }

    fn expands(&self, _op: &Op) -> bool {
        false
    }
}

/// The nodes of each kernel, in the order in which they run.
fn order(build: impl Fn(&mut Graph, ValueId) -> Result<(), OpError>) -> Vec<Vec<u32>> {
    let mut g = Graph::new();
    let axes = [g.axis("a", 6).unwrap(), g.axis("b", 4).unwrap()];
    let x = g.input("x", DType::F32, &axes).unwrap();
    build(&mut g, x).unwrap();
    let plan = plan(vec![ask("one", g)], &Pairs, &Machine::cpu(1, 1 << 30)).unwrap();
    let nodes = |step: &Step| match step {
        Step::Kernel { claim, .. } => claim.nodes.iter().map(|n| n.0).collect(),
        Step::Assign { .. } => vec![],
    };
    plan.program.sections[0].steps.iter().map(nodes).collect()
}

fn twice(g: &mut Graph, v: ValueId) -> Result<ValueId, OpError> {
    g.map(&[v], &|v| 2.0 * &v[0])
}

#[test]
fn a_region_that_nobody_reads_early_runs_at_its_last_node() {
    let order = order(|g, x| {
        let y = twice(g, x)?;
        let other = twice(g, x)?;
        let sum = g.map(&[y, other], &|v| &v[0] + &v[1])?;
        g.output("sum", sum);
        Ok(())
    });
    assert_eq!(order, [vec![1], vec![0, 2]]);
}

/// The view 1 moves nothing, and the sum 2 reads through it before the map 3 stands there.
#[test]
fn a_region_that_is_read_early_runs_at_its_first_node() {
    let order = order(|g, x| {
        let y = twice(g, x)?;
        let (a, half) = (g.axis("a", 6)?, g.axis("half", 3)?);
        let part = g.slice(y, a, 3, half)?;
        let sum = g.sum(part, &[half])?;
        let z = g.map(&[y, x], &|v| &v[0] + &v[1])?;
        [("part", sum), ("z", z)].iter().for_each(|(name, v)| g.output(name, *v));
        Ok(())
    });
    assert_eq!(order, [vec![0, 3], vec![2]]);
}

/// A view of what is there is there, wherever it stands.
#[test]
fn a_view_in_between_is_no_obstacle() {
    let order = order(|g, x| {
        let y = twice(g, x)?;
        let (a, a2, b) = (g.axis("a", 6)?, g.axis("a2", 6)?, g.axis("b", 4)?);
        let total = g.sum(y, &[b])?;
        let renamed = g.rename(x, a, a2)?;
        let back = g.rename(renamed, a2, a)?;
        let z = g.map(&[y, back], &|v| &v[0] + &v[1])?;
        [("total", total), ("z", z)].iter().for_each(|(name, v)| g.output(name, *v));
        Ok(())
    });
    assert_eq!(order, [vec![0, 4], vec![1]]);
}

/// The sum 1 reads the map 0, and the map 4 reads the sum, if only through views.
#[test]
fn no_region_waits_for_who_waits_for_it() {
    let order = order(|g, x| {
        let y = twice(g, x)?;
        let (a, b, b2) = (g.axis("a", 6)?, g.axis("b", 4)?, g.axis("b2", 4)?);
        let total = g.sum(y, &[a])?;
        let renamed = g.rename(total, b, b2)?;
        let back = g.rename(renamed, b2, b)?;
        let z = g.map(&[y, back], &|v| &v[0] + &v[1])?;
        g.output("z", z);
        Ok(())
    });
    assert_eq!(order, [vec![0], vec![1], vec![4]]);
}

/// What the backward makes of kept values is not made by the forward and kept instead.
#[test]
fn no_region_takes_a_map_into_an_earlier_phase() {
    let order = order(|g, x| {
        let y = twice(g, x)?;
        let a = g.axis("a", 6)?;
        let total = g.sum(y, &[a])?;
        g.at(&"back".into(), Phase::Backward);
        let z = twice(g, y)?;
        [("total", total), ("z", z)].iter().for_each(|(name, v)| g.output(name, *v));
        Ok(())
    });
    assert_eq!(order, [vec![0], vec![1], vec![2]]);
}
