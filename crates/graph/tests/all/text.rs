//! The text form: what is printed parses back to a graph that prints and runs alike.

use super::cases::CASES;
use super::harness::{Rng, World, close};
use aerogel_graph::text::{parse, print};
use aerogel_graph::{
    AxisId, Build, DType, Expr, Graph, Init, Op, ParamClass, Phase, Role, Rounding, Type, ValueId,
    gradients, interpret, verify,
};

/// The graphs of the case table, each with its gradient appended.
fn graphs() -> Vec<(String, World)> {
    let mut list = vec![];
    for case in CASES {
        for variant in 0..case.variants {
            for seed in 0..4 {
                let mut w = World::new(seed, variant);
                let loss = (case.build)(&mut w).unwrap();
                let leaves = w.leaves.clone();
                let wrt: Vec<ValueId> = leaves.iter().map(|l| l.1).collect();
                for (d, (name, _)) in gradients(&mut w.g, loss, &wrt).unwrap().iter().zip(leaves) {
                    if let Some(d) = d {
                        w.g.output(&format!("d.{name}"), *d);
                    }
                }
                w.g.output("loss", loss);
                list.push((format!("{} (variant {variant}, seed {seed})", case.name), w));
            }
        }
    }
    list
}

#[test]
fn every_op_prints_and_parses_to_the_same_graph() {
    let mut seen = std::collections::BTreeSet::new();
    for (what, w) in graphs() {
        let text = print(&w.g);
        let back = parse(&text).unwrap_or_else(|e| panic!("{what}: {e}\n{text}"));
        assert_eq!(print(&back), text, "{what}");
        verify::verify(&back).unwrap();
        let run = |g: &Graph| interpret(g, &w.env, w.clock, Rounding::Exact).unwrap().outputs;
        let (own, other) = (run(&w.g), run(&back));
        assert_eq!(own.len(), other.len());
        for (name, t) in &own {
            close(&other[name], t, 0.0, &format!("{what}: {name}"));
        }
        seen.extend(back.nodes().iter().map(|n| n.op.name()));
    }
    // `collectives.rs` prints and parses its own.
    seen.insert("collective");
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), {
        let mut all = Op::NAMES.to_vec();
        all.sort_unstable();
        all
    });
}

/// A graph in the order of the text form parses back to an equal one, not only to an equal text.
#[test]
fn a_parsed_graph_is_equal_to_what_was_printed() {
    for (what, w) in graphs() {
        let once = parse(&print(&w.g)).unwrap();
        assert_eq!(parse(&print(&once)).unwrap(), once, "{what}");
    }
}

const WHOLE: &str = "\
graph v1
axis batch = 2 of 8
axis seq = 4
axis vocab = 5
axis embed = 6
axis unit = 1
input %0 = tokens: u32[batch seq]
input %1 = rate: f32[]
state %2 = wte: f32[vocab embed] parameter embedding normal(0.02)
state %3 = ln.gain: f32[embed] parameter norm constant(1.0)
state %4 = ln.bias: f32[embed] parameter bias constant(-0.0)
state %5 = h.weight: f32[embed] parameter weight normal(1e-5)
state %6 = head: bf16[vocab embed] parameter head constant(0.0)
state %7 = wte.adam.m: f32[vocab embed] optimizer constant(0.0)
state %8 = wte.sum: f32[vocab embed] accumulator constant(0.0)
state %9 = keys: bf16[seq embed] cache constant(inf)
%10: f32[batch=2 seq=4 embed=6] = gather %2 %0 {axis=vocab} @embed
%11: f32[batch=2 seq=4 embed=6] = norm %10 %3 %4 {axis=embed kind=layer eps=1e-5 gain=true \
bias=true} @h.0.ln
%12: bf16[vocab=5 embed=6] = map %2 {f=\"$0\" cotangent=f32}
%13: f32[] = map {f=\"1.0\"} !backward
%14: f32[vocab=5 embed=6] = map %7 %8 %1 {f=\"(select((rand(drop.a) < 0.5), $0, \
max(($1 + coord(embed)), -inf)) * $2)\"} @opt !update
output h = %11
output low = %12
assign wte.adam.m = %14
assign wte = %14
";

#[test]
fn states_pieces_scopes_and_phases_come_back() {
    let g = parse(WHOLE).unwrap();
    assert_eq!(print(&g), WHOLE);
    verify::verify(&g).unwrap();
    let batch = &g.axes()[g.axes().find("batch").unwrap()];
    assert_eq!((batch.size, batch.pieces()), (2, 4));
    let state = |name: &str| &g.states()[g.find_state(name).unwrap().index()];
    assert_eq!(state("wte").class, Some(ParamClass::Embedding));
    assert_eq!(state("h.weight").init, Init::Normal(1e-5));
    assert_eq!(state("keys").role, Role::Cache);
    let phases: Vec<Phase> = g.nodes().iter().map(|n| n.phase).collect();
    let last = [Phase::Backward, Phase::Update];
    assert_eq!(phases, [&[Phase::Forward; 3][..], &last].concat());
    assert_eq!(&*g.nodes()[1].scope, "h.0.ln");
    assert_eq!(g.assigns.len(), 2);
}

/// Comments, blank lines and other numbers of values are no part of a graph.
#[test]
fn numbers_comments_and_blanks_do_not_matter() {
    let mut text = WHOLE.replace("%1", "%x1").replace('\n', "\n\n# a comment\n   ");
    text.push('\n');
    assert_eq!(print(&parse(text.trim_end()).unwrap()), WHOLE);
}

/// Every function and every operator of expressions, nested, with odd constants.
#[test]
fn expressions_come_back() {
    use aerogel_graph::expr::{Bin, Un};
    const UN: [Un; 13] = [
        Un::Neg,
        Un::Exp,
        Un::Ln,
        Un::Tanh,
        Un::Sqrt,
        Un::Rsqrt,
        Un::Recip,
        Un::Sigmoid,
        Un::Erf,
        Un::Abs,
        Un::Floor,
        Un::Sin,
        Un::Cos,
    ];
    const BIN: [Bin; 10] = [
        Bin::Add,
        Bin::Sub,
        Bin::Mul,
        Bin::Div,
        Bin::Min,
        Bin::Max,
        Bin::Pow,
        Bin::Lt,
        Bin::Le,
        Bin::Eq,
    ];
    const ODD: [f64; 7] = [0.0, -0.0, 1e300, -2.5e-300, f64::INFINITY, f64::NEG_INFINITY, 0.1];
    fn tree(rng: &mut Rng, depth: usize, axis: AxisId) -> Expr {
        let next = |rng: &mut Rng| tree(rng, depth.saturating_sub(1), axis);
        match if depth == 0 { rng.below(4) } else { 4 + rng.below(5) } {
            0 => Expr::In(rng.below(2)),
            1 => Expr::Const(ODD[rng.below(ODD.len())]),
            2 => Expr::rand("h.11.mlp-drop"),
            3 => Expr::Coord(axis),
            4 | 5 => Expr::un(UN[rng.below(UN.len())], next(rng)),
            6 | 7 => {
                let (a, b) = (next(rng), next(rng));
                Expr::bin(BIN[rng.below(BIN.len())], a, b)
            }
            _ => {
                let (c, a, b) = (next(rng), next(rng), next(rng));
                c.select(a, b)
            }
        }
    }
    let mut rng = Rng(3);
    for n in 0..2000 {
        let mut g = Graph::new();
        let a = g.axis("a", 2).unwrap();
        let ins = [g.input("x", DType::F32, &[a]).unwrap(), g.input("y", DType::F32, &[]).unwrap()];
        let e = tree(&mut rng, n % 5, a);
        let y = g.map_to(&ins, Type::new(DType::F32, [a]), &|_| e.clone()).unwrap();
        g.output("y", y);
        let text = print(&g);
        let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(back, g, "{text}");
    }
}

/// Damaged text is refused or read, and never ends in a panic.
#[test]
fn damaged_text_does_not_panic() {
    let mut rng = Rng(17);
    let mut texts: Vec<String> =
        graphs().into_iter().step_by(9).map(|(_, w)| print(&w.g)).collect();
    texts.push(WHOLE.to_owned());
    let mut refused = 0;
    for n in 0..6000 {
        let text = &texts[n % texts.len()];
        let mut bytes = text.clone().into_bytes();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len());
            match rng.below(4) {
                0 => drop(bytes.remove(at)),
                1 => bytes[at] = b" {}[]()=%,\"0159-$@!abx:"[rng.below(23)],
                2 => bytes.insert(at, b" {}[]()=%,\"0159-$@!abx:"[rng.below(23)]),
                _ => {
                    let end = (at + rng.below(12)).min(bytes.len());
                    drop(bytes.drain(at..end));
                }
            }
        }
        let damaged = String::from_utf8(bytes).expect("the text is ASCII");
        match parse(&damaged) {
            Ok(g) => {
                let _ = verify::verify(&g);
                let again = parse(&print(&g)).unwrap_or_else(|e| panic!("{e}\n{damaged}"));
                assert_eq!(print(&again), print(&g));
            }
            Err(e) => {
                refused += 1;
                assert!(
                    e.line >= 1
                        && e.line <= damaged.lines().count().max(1)
                        && !e.message.is_empty()
                );
            }
        }
    }
    assert!(refused > 3000, "{refused}");
}
