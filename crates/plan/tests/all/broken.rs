//! The checker can fail: good programs, each broken in one place, are refused where they break.

use super::support::{ask, graph, planned};
use aerogel_graph::{StateId, ValueId};
use aerogel_machine::{Program, Step};
use aerogel_plan::{PlanError, check};

fn good() -> Program {
    planned(vec![ask("one", graph())]).unwrap().program
}

/// The program is fine, and no longer so once `spoil` has been at it.
fn refused(spoil: impl FnOnce(&mut Program)) -> (usize, String) {
    let mut program = good();
    check::section(&program.sections[0], &program).unwrap();
    spoil(&mut program);
    let error = check::section(&program.sections[0], &program).unwrap_err();
    let shown = error.to_string();
    let PlanError::Unsound { section, step, message } = error else { panic!("{shown}") };
    assert_eq!(section, "one");
    let starts = format!("the plan of section one is wrong at step {step}: ");
    assert!(shown.starts_with(&starts), "{shown}");
    (step, message)
}

/// The first value that the named kernel writes, and the step.
fn made(program: &Program, kernel: &str, nth: usize) -> (ValueId, usize) {
    let s = &program.sections[0];
    let mut found = s.steps.iter().enumerate().filter_map(|(i, step)| match step {
        Step::Kernel { claim, .. } if claim.kernel == kernel => {
            Some((s.graph.node(claim.nodes[0]).outs[0], i))
        }
        _ => None,
    });
    found.nth(nth).expect("the kernel is there")
}

#[test]
fn a_slot_on_a_live_one() {
    let mut at = 0;
    let (step, message) = refused(|p| {
        let ((y, _), (z, step)) = (made(p, "map", 0), made(p, "map", 1));
        at = step;
        p.sections[0].slots[z.index()] = p.sections[0].slots[y.index()].clone();
    });
    // y is still needed for the output that is a window of it.
    assert!(step >= at && message.contains("part"), "{step}: {message}");
}

#[test]
fn a_slot_half_over_an_operand() {
    let (step, message) = refused(|p| {
        let x = p.sections[0].input("x").unwrap();
        let offset = p.sections[0].slot(x).unwrap().offset;
        let (y, _) = made(p, "map", 0);
        p.sections[0].slots[y.index()].as_mut().unwrap().offset = offset + 64;
    });
    assert!(step == 0 && message.contains("over its operand"), "{step}: {message}");
}

#[test]
fn an_arena_that_is_too_small() {
    let (_, message) = refused(|p| p.arena_bytes -= 64);
    assert!(message.contains("outside of the arena"), "{message}");
}

#[test]
fn two_steps_the_other_way_round() {
    let (step, message) = refused(|p| p.sections[0].steps.swap(0, 1));
    assert!(step == 0 && message.contains("not there"), "{step}: {message}");
}

#[test]
fn a_step_that_is_left_out() {
    let (_, message) = refused(|p| drop(p.sections[0].steps.remove(0)));
    assert!(message.contains("no step makes"), "{message}");
}

#[test]
fn writing_in_place_without_leave() {
    let (step, message) = refused(|p| {
        let (_, i) = made(p, "map", 2);
        let Step::Kernel { claim, .. } = &mut p.sections[0].steps[i] else { unreachable!() };
        assert!(!claim.in_place.is_empty(), "the update of s is in place");
        claim.in_place.clear();
    });
    assert!(step == 3 && message.contains("over its operand"), "{step}: {message}");
}

#[test]
fn a_copy_of_another_value_or_to_another_state() {
    let spoiled = |p: &mut Program, from: Option<ValueId>, to: StateId| {
        let last = p.sections[0].steps.last_mut().unwrap();
        let Step::Assign { from: f, to: t } = last else { panic!("t' is a copy") };
        (*f, *t) = (from.unwrap_or(*f), to);
    };
    let (step, message) = refused(|p| {
        let (sum, _) = made(p, "reduce", 0);
        spoiled(p, Some(sum), StateId(1));
    });
    assert!(step == 4 && message.contains("state `t`, which is not so"), "{step}: {message}");
    let (step, message) = refused(|p| spoiled(p, None, StateId(0)));
    assert!(step == 4 && message.contains("over itself"), "{step}: {message}");
    let (_, message) = refused(|p| drop(p.sections[0].steps.pop()));
    assert!(message.contains("state `t` does not hold"), "{message}");
}

#[test]
fn a_workspace_on_an_operand_and_one_on_a_state() {
    let (_, message) = refused(|p| {
        let (sum, i) = made(p, "reduce", 0);
        let offset = p.sections[0].slot(sum).unwrap().offset;
        let Step::Kernel { workspace, .. } = &mut p.sections[0].steps[i] else { unreachable!() };
        *workspace = offset;
    });
    assert!(message.contains("workspace"), "{message}");
    let (_, message) = refused(|p| {
        let (_, i) = made(p, "reduce", 0);
        let offset = p.state("s").unwrap().offset;
        let Step::Kernel { workspace, .. } = &mut p.sections[0].steps[i] else { unreachable!() };
        *workspace = offset;
    });
    assert!(message.contains("written over"), "{message}");
}

#[test]
fn a_window_that_is_another_one() {
    let (_, message) = refused(|p| {
        let v = p.sections[0].graph.find_output("part").unwrap();
        p.sections[0].slots[v.index()].as_mut().unwrap().offset += 64;
    });
    assert!(message.contains("another window"), "{message}");
}

#[test]
fn a_state_that_is_elsewhere() {
    let (step, message) = refused(|p| p.states[0].offset += 64);
    assert!(step == 0 && message.contains("state `s` is not where"), "{step}: {message}");
}

/// A section may not touch states that only others declare.
#[test]
fn a_state_of_another_section() {
    let (_, message) = refused(|p| {
        let (z, _) = made(p, "map", 1);
        let offset = p.sections[0].slot(z).unwrap().offset;
        let other =
            aerogel_machine::StateSlot { name: "other".to_owned(), offset, ..p.states[0].clone() };
        p.states.push(other);
    });
    assert!(message.contains("`other` of another section"), "{message}");
}
