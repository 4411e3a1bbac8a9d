//! Sections together: states in one place, one program, clear refusals.

use super::support::{ask, graph, planned};
use aerogel_graph::{Build, DType, Graph, Init, Role, Type};
use aerogel_plan::PlanError;

fn with_state(size: usize) -> Graph {
    let mut g = Graph::new();
    let a = g.axis("a", size).unwrap();
    let ty = Type::new(DType::F32, [a]);
    let s = g.state("s", ty, Role::Optimizer, None, Init::Constant(0.0)).unwrap();
    let y = g.map(&[s], &|v| &v[0] * 2.0).unwrap();
    g.output("y", y);
    g
}

#[test]
fn sections_that_disagree_about_a_state() {
    let error = planned(vec![ask("one", with_state(3)), ask("two", with_state(4))]).err().unwrap();
    assert_eq!(error, PlanError::States { name: "s".to_owned(), section: "two".to_owned() });
    let shown = error.to_string();
    assert!(shown.contains("`s`") && shown.contains("two"), "{shown}");
}

#[test]
fn a_target_without_a_kernel() {
    let mut g = Graph::new();
    let a = g.axis("a", 4).unwrap();
    let x = g.input("x", DType::F32, &[a]).unwrap();
    let y = g.scope("h.0", |g| g.norm(x, a, true, 1e-5, None, None)).unwrap();
    g.output("y", y);
    let shown = planned(vec![ask("eval", g)]).err().unwrap().to_string();
    let wanted = "plain has no kernel for `norm` at h.0 (section eval): it does not normalise";
    assert_eq!(shown, wanted);
}

#[test]
fn states_lie_in_one_place_below_what_is_shared() {
    let plan = planned(vec![ask("one", graph()), ask("two", graph())]).unwrap();
    let p = &plan.program;
    let end = p.states.iter().map(|s| s.offset + s.bytes).max().unwrap();
    for s in &p.sections {
        for (v, value) in s.graph.values().iter().enumerate() {
            let Some(slot) = &s.slots[v] else { continue };
            if let aerogel_graph::Def::Input(_) = value.def {
                assert!(slot.offset >= end, "an input among the states");
            }
        }
        for state in s.graph.states() {
            assert_eq!(s.slot(state.value).unwrap().offset, p.state(&state.name).unwrap().offset);
        }
    }
    assert_eq!(plan.report.kinds.total(), p.arena_bytes);
}

#[test]
fn the_same_asks_give_the_same_program() {
    let of = || planned(vec![ask("one", graph()), ask("two", graph())]).unwrap().program;
    let first = of();
    for _ in 0..5 {
        let again = of();
        assert_eq!(again.hash, first.hash);
        assert_eq!(again.sections[0].slots, first.sections[0].slots);
        assert_eq!(again.sections[0].steps, first.sections[0].steps);
    }
    let other = planned(vec![ask("one", graph()), ask("three", graph())]).unwrap().program;
    assert_ne!(other.hash, first.hash);
}
