//! The verifier, through what the public interface lets one break.

use aerogel_graph::verify::{VerifyError, verify};
use aerogel_graph::{
    AxisId, Build, Cutter, DType, Graph, Init, ParamClass, StateId, Type, ValueId, ops::Attend,
    ops::View, pattern::Pattern,
};

fn graph() -> (Graph, AxisId, ValueId) {
    let mut g = Graph::new();
    let a = g.axis("a", 8).unwrap();
    let x = g.input("x", DType::F32, &[a]).unwrap();
    g.parameter("w", ParamClass::Weight, &[a], Init::Normal(1.0)).unwrap();
    (g, a, x)
}

#[test]
fn a_sound_graph_passes() {
    let (mut g, _, x) = graph();
    let y = g.map(&[x], &|v| v[0].exp()).unwrap();
    g.output("y", y);
    g.assign(StateId(0), y).unwrap();
    assert_eq!(verify(&g), Ok(()));
}

/// Cutting an axis after the fact can leave nodes that no longer fit.
#[test]
fn types_that_no_longer_fit() {
    let (mut g, a, x) = graph();
    let (b, c) = (g.axis("b", 2).unwrap(), g.axis("c", 4).unwrap());
    g.split(x, a, &[b, c]).unwrap();
    assert_eq!(verify(&g), Ok(()));
    g.cut_axis("a", Cutter::Time, 2).unwrap();
    let error = verify(&g).unwrap_err();
    assert!(matches!(error, VerifyError::Types { node: 0, .. }));
    assert!(error.to_string().starts_with("node 0: view: "), "{error}");
    // Cut alike, both are pieces of the same whole; cut inside, they are not.
    g.cut_axis("b", Cutter::Time, 2).unwrap();
    assert_eq!(verify(&g), Ok(()));
    let (mut g, a, x) = graph();
    let (b, c) = (g.axis("b", 2).unwrap(), g.axis("c", 4).unwrap());
    g.split(x, a, &[b, c]).unwrap();
    g.cut_axis("a", Cutter::Time, 2).unwrap();
    g.cut_axis("c", Cutter::Time, 2).unwrap();
    assert!(verify(&g).unwrap_err().to_string().contains("is a piece of a longer axis"));
}

/// Only the outermost factor may be a piece: extents alone would let these pass.
#[test]
fn an_inner_factor_is_no_piece() {
    let mut g = Graph::new();
    let [a, b, c] = [("a", 8), ("b", 4), ("c", 4)].map(|(n, e)| g.axis(n, e).unwrap());
    for name in ["a", "b", "c"] {
        g.cut_axis(name, Cutter::Time, 2).unwrap();
    }
    let whole = g.input("whole", DType::F32, &[a]).unwrap();
    let parts = g.input("parts", DType::F32, &[b, c]).unwrap();
    for error in [g.split(whole, a, &[b, c]).unwrap_err(), g.merge(parts, &[b, c], a).unwrap_err()]
    {
        assert!(error.to_string().contains("is a piece of a longer axis"), "{error}");
    }
}

#[test]
fn names_that_come_twice() {
    let (mut g, a, x) = graph();
    g.output("y", x);
    g.output("y", x);
    let twice = |what| VerifyError::Twice { what, name: "y".to_owned() };
    assert_eq!(verify(&g), Err(twice("output")));
    let (mut g, ..) = graph();
    g.input("square", DType::F32, &[a, a]).unwrap();
    let message = verify(&g).unwrap_err().to_string();
    assert_eq!(message, "an axis of one value `a` is declared twice");
    let (mut g, ..) = graph();
    g.assigns = vec![(StateId(0), x), (StateId(0), x)];
    assert_eq!(verify(&g).unwrap_err().to_string(), "assignment to `w` is declared twice");
}

#[test]
fn ends_that_lead_nowhere() {
    let message = |change: &dyn Fn(&mut Graph)| {
        let (mut g, ..) = graph();
        change(&mut g);
        verify(&g).unwrap_err().to_string()
    };
    let nowhere = ValueId(99);
    assert_eq!(message(&|g| g.output("y", nowhere)), "output `y`: there is no such value");
    assert_eq!(
        message(&|g| g.output("two words", ValueId(0))),
        "output `two words`: the text form cannot carry this name"
    );
    assert_eq!(
        message(&|g| g.assigns.push((StateId(0), nowhere))),
        "assignment to `w`: there is no such value"
    );
    assert_eq!(
        message(&|g| g.assigns.push((StateId(7), ValueId(0)))),
        "assignment to `7`: there is no such state"
    );
    let wrong = |g: &mut Graph| {
        let y = g.constant(1.0, Type::new(DType::F32, [])).unwrap();
        g.assigns.push((StateId(0), y));
    };
    assert_eq!(message(&wrong), "assignment to `w`: the state is f32[a=8], got f32[]");
}

/// What the builder refuses at once, so that no verifier has to.
#[test]
fn the_builder_refuses_at_once() {
    let (mut g, a, x) = graph();
    let axis = g.axis("a", 9).unwrap_err().to_string();
    assert!(axis.contains("`a` is 8 long already") && axis.contains("wanted 9"), "{axis}");
    assert!(g.axis("none", 0).is_err());
    assert!(g.axis("two words", 2).is_err());
    assert!(g.input("x", DType::F32, &[]).is_err());
    assert!(g.input("", DType::F32, &[]).is_err());
    assert!(g.parameter("w", ParamClass::Bias, &[], Init::Constant(0.0)).is_err());
    let unknown = g
        .map(&[x, x], &|v| v[0].clone())
        .and_then(|_| g.emit(View::Rename { from: a, to: a }.into(), &[ValueId(1234)]));
    assert_eq!(
        unknown.unwrap_err().to_string(),
        "view: reads a value that the graph does not have"
    );
    assert!(
        g.cut_axis("a", Cutter::Time, 3).is_err()
            && g.cut_axis("a", Cutter::Time, 0).is_err()
            && g.cut_axis("z", Cutter::Time, 2).is_err()
    );
    let scoped = g.scope("h.0", |g| g.scope("attn", |g| g.einsum(&[x], &[])));
    let message = scoped.unwrap_err().to_string();
    assert!(message.starts_with("einsum at h.0.attn: axis `a`"), "{message}");
    assert_eq!(g.path("w"), "w", "an error leaves the scope");
    let wrong = g.constant(0.0, Type::new(DType::Bf16, [a])).unwrap();
    assert!(g.assign(StateId(0), wrong).is_err());
    g.assign(StateId(0), x).unwrap();
    assert!(g.assign(StateId(0), x).is_err());
}

/// The rules of attention's axes.
#[test]
fn attention_refuses_axes_that_do_not_fit() {
    let mut g = Graph::new();
    let [t, s, d, w, h] =
        [("t", 4), ("s", 4), ("d", 2), ("w", 3), ("h", 2)].map(|(n, e)| g.axis(n, e).unwrap());
    let mut input = |name, axes: &[AxisId]| g.input(name, DType::F32, axes).unwrap();
    let (q, k, v) = (input("q", &[h, t, d]), input("k", &[s, d]), input("v", &[s, w]));
    let (own_t, own_d) = (input("kt", &[t, d]), input("vd", &[s, d]));
    let vector = input("vector", &[t]);
    let op = |heads: &[AxisId], pattern, offset| Attend {
        query: t,
        key: s,
        dim: d,
        heads: heads.iter().copied().collect(),
        scale: 1.0,
        pattern,
        offset,
    };
    let plain = op(&[h], Pattern::Causal, false);
    g.attend(plain.clone(), &[q, k, v]).unwrap();
    let mut refuse = |op: Attend, ins: &[ValueId], reason: &str| {
        let message = g.attend(op, ins).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    };
    refuse(plain.clone(), &[q, k], "takes 3..=3 inputs, got 2");
    refuse(plain.clone(), &[q, own_t, v], "k needs axis `s`");
    refuse(plain.clone(), &[q, k, own_d], "v needs one width axis");
    refuse(op(&[t], Pattern::Causal, false), &[q, k, v], "head axis `t` is no batch axis");
    refuse(op(&[], Pattern::Local(0), false), &[q, k, v], "a window needs at least 1");
    refuse(op(&[], Pattern::Causal, true), &[q, k, v, vector], "the offset is a scalar");
    refuse(Attend { key: t, ..plain }, &[q, own_t, v], "v needs axis `t`");
}
