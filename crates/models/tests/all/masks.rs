//! Every form of attention against its definition (Child et al. §4.2 and §4.3), element by element.

use super::common::{data, every_attention, formula, gpt2, run, set, sparse, weights};
use aerogel_graph::ops::Attend;
use aerogel_graph::{Build, DType, Graph, Tensor, interpret::Env};
use aerogel_models::attention::{Heads, attend};
use aerogel_models::{Form, ModelConfig, Part, eval_graph, shifts_inside};

/// Whether head `h` at position `i` sees position `j`, written down from the paper.
fn sees(form: &Form, h: usize, i: usize, j: usize) -> bool {
    let part = |part: &Part| match *part {
        Part::Dense => true,
        Part::Local { window } => i < j + window,
        Part::Strided { stride } => i.abs_diff(j).is_multiple_of(stride),
        Part::Block { block } => i / block == j / block,
        Part::Summary { block, columns } => j % block >= block - columns,
    };
    j <= i
        && match form {
            Form::One(p) => part(p),
            Form::Merged([a, b]) => part(a) || part(b),
            Form::Heads(parts) => part(&parts[h % 2]),
        }
}

fn forms(n: usize) -> Vec<Form> {
    let mut forms = vec![Form::One(Part::Dense)];
    forms.extend((1..=n + 1).map(|window| Form::One(Part::Local { window })));
    for l in (1..=n).filter(|l| n.is_multiple_of(*l)) {
        let (strided, block) = (Part::Strided { stride: l }, Part::Block { block: l });
        forms.extend([Form::One(strided), Form::One(block)]);
        for window in 1..=l {
            forms.push(Form::Merged([Part::Local { window }, strided]));
        }
        forms.push(Form::Heads([Part::Local { window: l + 1 }, strided]));
        for columns in 1..=l {
            let summary = Part::Summary { block: l, columns };
            forms.push(Form::One(summary));
            forms.push(Form::Merged([block, summary]));
            forms.push(Form::Heads([block, summary]));
        }
    }
    forms
}

const HEADS: usize = 4;

/// o [batch=1 seq kv group v] of the lowered form and of one attend under the definition.
fn both(form: &Form, n: usize, env: &dyn Fn(&Graph) -> Env) -> [Tensor; 2] {
    let mut g = Graph::new();
    let axes = [("batch", 1), ("seq", n), ("kv", HEADS), ("group", 1), ("qk", 2), ("v", n)];
    let [batch, seq, kv, group, dim, v] = axes.map(|(name, size)| g.axis(name, size).unwrap());
    let q_axes = [batch, seq, kv, group, dim];
    let q = g.input("q", DType::F32, &q_axes).unwrap();
    let k = g.input("k", DType::F32, &[batch, seq, kv, dim]).unwrap();
    let v = g.input("v", DType::F32, &[batch, seq, kv, v]).unwrap();
    let o = attend(&mut g, form, Heads { q, k, v, seq, dim, kv, group }).unwrap();
    g.output("lowered", o);
    let key = g.axis("defined_key", n).unwrap();
    let (k, v) = (g.rename(k, seq, key).unwrap(), g.rename(v, seq, key).unwrap());
    let op = Attend {
        query: seq,
        key,
        dim,
        heads: [kv, group].into_iter().collect(),
        scale: 1.0 / 2f64.sqrt(),
        pattern: form.pattern(),
        offset: false,
    };
    let (o, _) = g.attend(op, &[q, k, v]).unwrap();
    g.output("defined", o);
    aerogel_graph::verify::verify(&g).unwrap();
    let run = run(&g, &env(&g));
    ["lowered", "defined"].map(|name| run.outputs[name].clone())
}

#[test]
fn masks_equal_their_definitions() {
    for n in [1, 2, 6, 8, 12] {
        for form in forms(n) {
            // Equal scores and v = 1: o is the row of the mask over its number of keys.
            let [lowered, _] = both(&form, n, &|g| {
                let mut env = Env::new();
                set(g, &mut env, "q", vec![0.0; n * HEADS * 2]);
                set(g, &mut env, "k", vec![0.0; n * HEADS * 2]);
                let one = |i: usize| if i / (HEADS * n) == i % n { 1.0 } else { 0.0 };
                set(g, &mut env, "v", (0..n * HEADS * n).map(one).collect());
                env
            });
            assert_eq!(lowered.sizes, [1, n, HEADS, 1, n]);
            for (at, o) in lowered.data.iter().enumerate() {
                let (i, h, j) = (at / (HEADS * n), at / n % HEADS, at % n);
                let keys = (0..n).filter(|&j| sees(&form, h, i, j)).count() as f64;
                let wanted = if sees(&form, h, i, j) { 1.0 / keys } else { 0.0 };
                assert!((o - wanted).abs() < 1e-12, "{form:?} n={n} head {h}: {i} sees {j}? {o}");
                assert_eq!(form.pattern().allows(h, i, j), sees(&form, h, i, j), "{form:?}");
            }
        }
    }
}

#[test]
fn probabilities_equal_those_of_one_softmax() {
    for n in [6, 12] {
        for form in forms(n) {
            let [lowered, defined] = both(&form, n, &|g| {
                let mut env = Env::new();
                for name in ["q", "k", "v"] {
                    let ty = &g.value(g.find_input(name).unwrap().value).ty;
                    let count = g.axes().count(&ty.axes);
                    set(g, &mut env, name, (0..count).map(|i| 3.0 * formula(name, i)).collect());
                }
                env
            });
            for (a, b) in lowered.data.iter().zip(&defined.data) {
                assert!((a - b).abs() < 1e-12, "{form:?} {a} {b}");
            }
        }
    }
}

/// Final hidden states: what the output layer reads.
fn hidden(g: &Graph, env: &Env) -> Tensor {
    let node = g.nodes().iter().find(|n| n.op.name() == "linear_ce").unwrap();
    run(g, env).values[node.ins[0].index()].clone()
}

#[test]
fn a_token_reaches_the_positions_that_the_pattern_says_and_no_others() {
    for base in [sparse(), gpt2()] {
        for (name, config) in every_attention(&base) {
            for layer in 0..config.cycle.len().max(1) {
                // The entry of the cycle alone, as the only layer.
                let cycle = config.cycle.get(layer).map(|&kind| vec![kind]).unwrap_or_default();
                let config = ModelConfig { layers: 1, cycle, ..config.clone() };
                reaches(name, &config);
            }
        }
    }
}

fn reaches(name: &str, config: &ModelConfig) {
    let (n, width) = (config.context, config.embed);
    let g = eval_graph(config, 1).unwrap();
    let mut env = weights(&g);
    data(&g, &mut env, config, 1);
    let before = hidden(&g, &env);
    let form = config.form(0);
    for t in 0..n {
        let mut changed = env.clone();
        let token = &mut changed.get_mut("tokens").unwrap().data[t];
        *token = (*token + 1.0) % config.vocab as f64;
        let after = hidden(&g, &changed);
        let at = t + usize::from(shifts_inside(config.family));
        for i in 0..n {
            let rows = [&before, &after].map(|x| &x.data[i * width..][..width]);
            let differs = rows[0] != rows[1];
            // The residual stream carries a position's own input past the attention.
            let wanted = i == at || (0..config.heads).any(|h| sees(&form, h, i, at));
            assert_eq!(differs, wanted, "{name} {:?}: token {t}, position {i}", config.family);
        }
    }
}
