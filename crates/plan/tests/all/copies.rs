//! States of several copies: all are in the arena, sections are placed on the first, and what host
//! and ranks see never lies in one.

use super::support::{ask, kernels, offset, plan_of, planned};
use aerogel_graph::ops::{Collective, Exchange, Merge};
use aerogel_graph::{Build, DType, Graph, Init, Mesh, Op, OpError, Role, StateId, Type, ValueId};
use aerogel_machine::{ALIGN, Program, Step};
use aerogel_plan::{Plan, PlanError, check};

const COPIES: u32 = 3;

/// `kept` has 40 bytes, of which there are three.
fn saved(g: &mut Graph) -> Result<ValueId, OpError> {
    let a = g.axis("a", 10)?;
    let ty = Type::new(DType::F32, [a]);
    let kept = g.state("kept", ty, Role::Saved, None, Init::Constant(0.0))?;
    let id = g.find_state("kept").expect("it is declared");
    g.set_copies(id, COPIES);
    Ok(kept)
}

/// The forward section keeps an activation that it goes on with.
fn forward(g: &mut Graph) -> Result<(), OpError> {
    saved(g)?;
    let a = g.axis("a", 10)?;
    let x = g.input("x", DType::F32, &[a])?;
    let y = g.map(&[x], &|v| v[0].tanh())?;
    let z = g.map(&[y], &|v| &v[0] * &v[0])?;
    g.assign(StateId(0), y)?;
    g.output("z", z);
    Ok(())
}

/// The backward section reads it, and the host asks for it as well.
fn backward(g: &mut Graph) -> Result<(), OpError> {
    let y = saved(g)?;
    let d = g.map(&[y], &|v| 1.0 - &v[0] * &v[0])?;
    g.output("d", d);
    g.output("y", y);
    Ok(())
}

fn both() -> Plan {
    let section = |name, build: fn(&mut Graph) -> Result<(), OpError>| {
        let mut g = Graph::new();
        build(&mut g).unwrap();
        ask(name, g)
    };
    planned(vec![section("forward", forward), section("backward", backward)]).unwrap()
}

#[test]
fn every_copy_has_its_place_below_what_is_transient() {
    let plan = both();
    let state = plan.program.state("kept").unwrap();
    let facts = (state.offset, state.bytes, state.copies, state.stride_bytes);
    assert_eq!(facts, (0, 40, COPIES, ALIGN));
    let end = u64::from(COPIES) * ALIGN;
    for s in &plan.program.sections {
        let among = |(v, value): (usize, &aerogel_graph::Value)| {
            let slot = s.slots[v].as_ref().expect("one kernel a node");
            slot.offset < end && !matches!(value.def, aerogel_graph::Def::State(_))
        };
        let inside = s.graph.values().iter().enumerate().filter(|v| among(*v)).count();
        // In the forward section the activation itself, written in place.
        assert_eq!(inside, usize::from(s.name == "forward"));
    }
    assert_eq!(kernels(&plan.program.sections[0]), ["map", "map"]);
    // The host reads a copy.
    assert_eq!(kernels(&plan.program.sections[1]), ["map", "map"]);
    assert_eq!(plan.report.kinds.in_flight_bytes, 3 * 40);
    assert_eq!(plan.report.kinds.total(), plan.program.arena_bytes);
}

#[test]
fn what_host_and_ranks_see_lies_elsewhere() {
    let plan = plan_of(|g| {
        g.set_mesh(Mesh(vec![("local".to_owned(), 4)]));
        let old = saved(g)?;
        let exchange = Exchange::AllReduce(Merge::Sum);
        let op = Collective { exchange, over: [0].into_iter().collect() };
        let merged = g.emit(op.into(), &[old])?[0];
        g.assign(StateId(0), merged)?;
        let (b, ty) = (g.axis("b", 10)?, g.ty(old).clone());
        let other = g.state("other", ty, Role::Optimizer, None, Init::Constant(0.0))?;
        let renamed = g.axes().find("a").map(|a| g.rename(old, a, b)).transpose()?;
        g.output("old", renamed.unwrap_or(other));
        g.assign(StateId(1), merged)
    });
    let s = &plan.program.sections[0];
    // The old value is copied for ranks and host; the new one is stored in `other`, then copied.
    assert_eq!(kernels(s), ["map", "all_reduce", "map", "assign"]);
    assert!(matches!(s.steps[3], Step::Assign { to: StateId(0), .. }));
    let node = s.graph.nodes().iter().find(|n| matches!(n.op, Op::Collective(_))).unwrap();
    assert_eq!(offset(s, node.outs[0]), plan.program.state("other").unwrap().offset);
}

#[test]
fn sections_agree_on_the_number() {
    let section = |name, copies| {
        let mut g = Graph::new();
        let kept = saved(&mut g).unwrap();
        g.set_copies(StateId(0), copies);
        let y = g.map(&[kept], &|v| 2.0 * &v[0]).unwrap();
        g.output("y", y);
        ask(name, g)
    };
    let error = planned(vec![section("one", 3), section("two", 4)]).err().unwrap();
    assert_eq!(error, PlanError::States { name: "kept".to_owned(), section: "two".to_owned() });
}

/// A section is run on one number of a copy: states that differ in theirs would not fit together.
#[test]
fn states_of_a_section_have_as_many() {
    let mut g = Graph::new();
    let kept = saved(&mut g).unwrap();
    let ty = g.ty(kept).clone();
    let more = g.state("more", ty, Role::Saved, None, Init::Constant(0.0)).unwrap();
    g.set_copies(StateId(1), COPIES + 1);
    let y = g.add(kept, more).unwrap();
    g.output("y", y);
    let shown = planned(vec![ask("one", g)]).err().unwrap().to_string();
    assert!(shown.contains("of state `more` there are 4 copies"), "{shown}");
}

fn refused(section: usize, spoil: impl FnOnce(&mut Program)) -> String {
    let mut program = both().program;
    program.sections.iter().for_each(|s| check::section(s, &program).unwrap());
    spoil(&mut program);
    let error = check::section(&program.sections[section], &program).unwrap_err();
    let PlanError::Unsound { message, .. } = error else { panic!("{error}") };
    message
}

#[test]
fn copies_that_are_not_safe() {
    // A transient value on the third copy.
    let message = refused(0, |p| {
        let z = p.sections[0].graph.find_output("z").unwrap();
        p.sections[0].slots[z.index()].as_mut().unwrap().offset = 2 * ALIGN;
        p.sections[0].graph.outputs.clear();
    });
    assert!(message.contains("`kept` of another section or copy"), "{message}");
    let message = refused(0, |p| p.states[0].stride_bytes = 32);
    assert!(message.contains("`kept` of another section or copy"), "{message}");
    let message = refused(0, |p| p.states[0].stride_bytes = 1 << 20);
    assert!(message.contains("outside of the arena"), "{message}");
    let message = refused(0, |p| p.states[0].copies = 2);
    assert!(message.contains("not where the program has it"), "{message}");
}

#[test]
fn an_output_that_would_be_read_from_the_first_copy() {
    let message = refused(1, |p| {
        let s = &mut p.sections[1];
        let kept = s.graph.states()[0].value;
        let y = s.graph.outputs.iter_mut().find(|o| o.0 == "y").unwrap();
        y.1 = kept;
    });
    assert!(message.contains("output `y` lies in a state of several copies"), "{message}");
}
