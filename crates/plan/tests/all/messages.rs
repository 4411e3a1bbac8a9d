//! Collectives: claimed without the target, fed with bytes that have no gaps, listed, and checked.

use super::support::{kernels, offset, plan_of};
use aerogel_graph::ops::{Collective, Exchange, Merge};
use aerogel_graph::{
    AxisId, Build, DType, Graph, Init, Mesh, Op, OpError, Phase, Role, StateId, Type, ValueId,
};
use aerogel_machine::{Program, Section, Step};
use aerogel_plan::{Kind, PlanError, check};

/// Two nodes of four ranks.
fn on_mesh(g: &mut Graph) {
    g.set_mesh(Mesh(vec![("node".to_owned(), 2), ("local".to_owned(), 4)]));
}

fn exchanged(
    g: &mut Graph,
    exchange: Exchange,
    over: &[u8],
    v: ValueId,
) -> Result<ValueId, OpError> {
    let op = Collective { exchange, over: over.into() };
    Ok(g.emit(op.into(), &[v])?[0])
}

fn sum(g: &mut Graph, v: ValueId) -> Result<ValueId, OpError> {
    exchanged(g, Exchange::AllReduce(Merge::Sum), &[0, 1], v)
}

/// The inputs of the collectives, in order.
fn sent(s: &Section) -> Vec<ValueId> {
    let collective = |n: &&aerogel_graph::Node| matches!(n.op, Op::Collective(_));
    s.graph.nodes().iter().filter(collective).map(|n| n.ins[0]).collect()
}

/// Gradients are joined, each rank gets its piece of the sum, and adds it to what it has.
fn scattered(g: &mut Graph) -> Result<(), OpError> {
    on_mesh(g);
    let (a, b, flat) = (g.axis("a", 30)?, g.axis("b", 10)?, g.storage_axis("flat", 40)?);
    let own = g.storage_axis("own", 10)?;
    let x = g.input("x", DType::F32, &[a])?;
    let ty = Type::new(DType::F32, [own]);
    let old = g.state("sum", ty, Role::Accumulator, None, Init::Constant(0.0))?;
    g.phase(Phase::Backward);
    let dx = g.map(&[x], &|v| v[0].tanh())?;
    let zeros = g.constant(0.0, Type::new(DType::F32, [b]))?;
    let new = g.scope("h.0", |g| {
        let bucket = g.concat(&[dx, zeros], &[a, b], flat)?;
        let exchange = Exchange::ReduceScatter { axis: flat, into: own };
        let mine = exchanged(g, exchange, &[1], bucket)?;
        g.add(old, mine)
    })?;
    g.assign(StateId(0), new)
}

#[test]
fn a_bucket_of_gradients_is_scattered() {
    let plan = plan_of(scattered);
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["map", "map", "reduce_scatter", "map"]);
    let report = &plan.report.sections[0];
    let [message] = report.messages.as_slice() else { panic!("one collective") };
    assert_eq!((message.step, message.kind, message.scope.as_str()), (2, "reduce_scatter", "h.0"));
    assert_eq!(message.over, ["local"]);
    let bytes = (message.input_bytes, message.output_bytes, message.wire_bytes);
    assert_eq!(bytes, (160, 40, 120));
    let named = |v: &&aerogel_plan::Share| v.name.contains("concat");
    let bucket = plan.report.peak_values.iter().find(named).expect("it is the largest");
    assert_eq!(bucket.kind, Kind::Gradients);
    assert!(report.seconds > 1e-9, "messages take time");
}

#[test]
fn windows_with_gaps_are_copied_and_others_are_not() {
    let plan = plan_of(|g| {
        on_mesh(g);
        let (a, b, c, d) = (g.axis("a", 6)?, g.axis("b", 8)?, g.axis("c", 2)?, g.axis("d", 4)?);
        let x = g.input("x", DType::F32, &[a, b])?;
        let rows = g.slice(x, a, 3, c)?;
        let columns = g.slice(x, b, 3, d)?;
        let (rows, columns) = (sum(g, rows)?, sum(g, columns)?);
        g.output("rows", rows);
        g.output("columns", columns);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["all_reduce", "map", "all_reduce"]);
    let x = offset(s, s.input("x").unwrap());
    let [rows, columns] = [0, 1].map(|i| offset(s, sent(s)[i]));
    assert_eq!(rows - x, 3 * 8 * 4);
    assert!(!(x..x + 6 * 8 * 4).contains(&columns), "a copy lies in the input");
}

/// What all ranks have gathered may go straight into a bucket, and a gather into a state.
#[test]
fn what_comes_out_is_placed_like_any_value() {
    let plan = plan_of(|g| {
        on_mesh(g);
        let axis = |g: &mut Graph, name: &str, size| g.axis(name, size);
        let (own, all, more) = (axis(g, "own", 5)?, axis(g, "all", 40)?, axis(g, "more", 50)?);
        let rest: AxisId = axis(g, "rest", 10)?;
        let ty = Type::new(DType::F32, [all]);
        g.state("weights", ty, Role::Weights, None, Init::Constant(0.0))?;
        let x = g.input("x", DType::F32, &[own])?;
        let gather = Exchange::AllGather { axis: own, into: all };
        let gathered = exchanged(g, gather.clone(), &[0, 1], x)?;
        g.assign(StateId(0), gathered)?;
        let again = exchanged(g, gather, &[0, 1], x)?;
        let zeros = g.constant(0.0, Type::new(DType::F32, [rest]))?;
        let bucket = g.concat(&[zeros, again], &[rest, all], more)?;
        g.output("bucket", bucket);
        Ok(())
    });
    let s = &plan.program.sections[0];
    assert_eq!(kernels(s), ["all_gather", "all_gather", "map"]);
    let outs: Vec<u64> = (s.graph.nodes().iter())
        .filter(|n| matches!(n.op, Op::Collective(_)))
        .map(|n| offset(s, n.outs[0]))
        .collect();
    let bucket = s.graph.find_output("bucket").unwrap();
    assert_eq!(outs, [plan.program.state("weights").unwrap().offset, offset(s, bucket) + 40]);
}

fn refused(spoil: impl FnOnce(&mut Program)) -> String {
    let mut program = plan_of(scattered).program;
    check::section(&program.sections[0], &program).unwrap();
    spoil(&mut program);
    let error = check::section(&program.sections[0], &program).unwrap_err();
    let PlanError::Unsound { message, .. } = error else { panic!("{error}") };
    message
}

#[test]
fn collectives_that_a_device_could_not_run() {
    let message = refused(|p| {
        let s = &mut p.sections[0];
        let Step::Kernel { claim, .. } = &mut s.steps[2] else { unreachable!() };
        let node = s.graph.node(claim.nodes[0]);
        claim.in_place = vec![(node.ins[0], node.outs[0])];
    });
    assert!(message.contains("alone and out of place"), "{message}");
    let message = refused(|p| {
        let out = p.sections[0].graph.nodes().iter().find(|n| matches!(n.op, Op::Collective(_)));
        let out = out.unwrap().outs[0];
        p.sections[0].slots[out.index()].as_mut().unwrap().strides[0] = 2;
    });
    assert!(message.contains("gaps") || message.contains("over its operand"), "{message}");
    let message = refused(|p| drop(p.sections[0].steps.remove(2)));
    assert!(message.contains("no step makes"), "{message}");
}
