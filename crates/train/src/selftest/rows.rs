//! What works row by row: norms, output layers with their loss, embeddings.

use super::suite::{Case, Tight, rng_of, word};
use super::world::Built;
use aerogel_graph::{
    AxisId, Build, DType, Env, Expr, Graph, OpError, Tensor, Type, ValueId, gradients,
};

const WIDTHS: [usize; 14] = [768, 1, 64, 1000, 2, 8192, 7, 1536, 31, 4097, 128, 3, 1024, 257];
const ROWS: [usize; 5] = [33, 1, 200, 5, 64];
const VOCABULARIES: [usize; 6] = [50257, 7, 257, 1001, 4099, 256];

fn dtype_of(number: usize) -> DType {
    [DType::F32, DType::Bf16, DType::F32, DType::F16][number % 4]
}

/// Outputs the gradients of the sum of `y`, each element weighted by itself.
fn weighted(g: &mut Graph, y: ValueId, leaves: &[(&str, ValueId)]) -> Built<()> {
    let axes: Vec<AxisId> = g.ty(y).axes.to_vec();
    let w = g.input("w", g.ty(y).dtype, &axes)?;
    let f32 = Type::new(DType::F32, axes.iter().copied());
    let terms = g.map_to(&[y, w], f32, &|v| &v[0] * &v[1])?;
    let loss = g.sum(terms, &axes)?;
    differentiated(g, loss, leaves)
}

fn differentiated(g: &mut Graph, loss: ValueId, leaves: &[(&str, ValueId)]) -> Built<()> {
    let wrt: Vec<ValueId> = leaves.iter().map(|l| l.1).collect();
    for ((name, _), gradient) in leaves.iter().zip(gradients(g, loss, &wrt)?) {
        let missing = || OpError::new("gradients", "a gradient is missing");
        g.output(&format!("d{name}"), gradient.ok_or_else(missing)?);
    }
    Ok(())
}

/// A residual sum with dropout before it, its norm, and back.
pub fn norm_case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let (dtype, width) = (dtype_of(number), WIDTHS[number % WIDTHS.len()]);
    let rows = if width > 4000 { 1 + rng.below(9) } else { rng.pick(&ROWS) };
    let (batch, center) = (1 + rng.below(3), rng.coin());
    let (affine, chain) = (rng.coin(), rng.below(3));
    let name = format!(
        "{} of {batch} x {rows} rows of {width}, {}, chain {chain}, {}",
        if center { "layer norm" } else { "rms norm" },
        if affine { "gain and bias" } else { "bare" },
        word(dtype)
    );
    Case::new(name, move |bench| {
        let form = |dtype| {
            let mut g = Graph::new();
            let axes = [g.axis("batch", batch)?, g.axis("row", rows)?, g.axis("width", width)?];
            let x = g.input("x", dtype, &axes)?;
            let mut leaves = vec![("x", x)];
            let mut h = x;
            if chain > 0 {
                let branch = g.input("branch", dtype, &axes)?;
                leaves.push(("branch", branch));
                h = g.map(&[x, branch], &|v| match chain {
                    1 => &v[0] + &v[1],
                    _ => &v[0] + Expr::rand("drop").lt(0.1).select(0.0, &v[1] / 0.9),
                })?;
                g.output("h", h);
            }
            let mut vector = |g: &mut Graph, name: &'static str| -> Built<Option<ValueId>> {
                if !affine {
                    return Ok(None);
                }
                let v = g.input(name, DType::F32, &axes[2..])?;
                leaves.push((name, v));
                Ok(Some(v))
            };
            let (gain, bias) = (vector(&mut g, "gain")?, vector(&mut g, "bias")?);
            let y = g.norm(h, axes[2], center, 1e-2, gain, bias)?;
            g.output("y", y);
            weighted(&mut g, y, &leaves)?;
            Ok(g)
        };
        // In a short row all is a difference of what is nearly equal.
        let short = Tight { steps: 32.0, floor: 1.0 };
        let tight = if width < 8 { short } else { Tight::default() };
        bench.hold(dtype, tight, &mut rng, 1, Env::new(), &form)
    })
}

/// The output layer with its cross entropy, over vocabularies that divide by nothing.
pub fn loss_case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let (dtype, vocab) = (dtype_of(number), VOCABULARIES[number / 4 % VOCABULARIES.len()]);
    let embed = rng.pick(&[64, 8, 100, 128]);
    let (batch, seq) = (1 + rng.below(3), rng.pick(&[1, 5, 16]));
    let name =
        format!("{batch} x {seq} tokens of width {embed}, vocabulary of {vocab}, {}", word(dtype));
    Case::new(name, move |bench| {
        let form = |dtype| {
            let mut g = Graph::new();
            let (batch, seq) = (g.axis("batch", batch)?, g.axis("seq", seq)?);
            let (embed, vocab) = (g.axis("embed", embed)?, g.axis("vocab", vocab)?);
            let x = g.input("x", dtype, &[batch, seq, embed])?;
            let w = g.input("matrix", dtype, &[vocab, embed])?;
            let targets = g.input("targets", DType::U32, &[batch, seq])?;
            let weights = g.input("weights", DType::F32, &[batch, seq])?;
            let ce = g.linear_ce(x, w, targets, weights, embed, vocab)?;
            let loss = g.sum(ce, &[batch, seq])?;
            g.output("loss", loss);
            differentiated(&mut g, loss, &[("x", x), ("matrix", w)])?;
            Ok(g)
        };
        // Weights of one sign, as data has them: the loss is no difference of losses.
        let weights = (0..batch * seq).map(|i| f64::from(u8::from(i % 4 != 3)));
        let sizes = form(dtype)?;
        let axes = ["batch", "seq"].map(|n| sizes.axes().find(n).unwrap_or(AxisId(0)));
        let weights = Tensor::from_vec(sizes.axes(), &axes, weights.collect());
        let given = Env::from([("weights".to_owned(), weights)]);
        bench.hold(dtype, Tight::default(), &mut rng, vocab, given, &form)
    })
}

/// An embedding and its gradient, with ids that come often.
pub fn embedding_case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let dtype = dtype_of(number);
    let (vocab, width) = (rng.pick(&[300, 1, 5, 1000]), rng.pick(&[64, 1, 3, 130]));
    let (batch, seq) = (1 + rng.below(4), rng.pick(&[1, 16, 77, 128]));
    let ids = if rng.coin() { vocab } else { 1 + rng.below(vocab.min(3)) };
    let name =
        format!("{batch} x {seq} ids of {ids} out of {vocab} rows of {width}, {}", word(dtype));
    Case::new(name, move |bench| {
        let form = |dtype| {
            let mut g = Graph::new();
            let (batch, seq) = (g.axis("batch", batch)?, g.axis("seq", seq)?);
            let (vocab, width) = (g.axis("vocab", vocab)?, g.axis("width", width)?);
            let table = g.input("table", DType::F32, &[vocab, width])?;
            let ids = g.input("ids", DType::U32, &[batch, seq])?;
            let y = g.gather(table, vocab, ids)?;
            let y = if dtype == DType::F32 { y } else { g.cast(y, dtype, DType::F32)? };
            g.output("y", y);
            weighted(&mut g, y, &[("table", table)])?;
            Ok(g)
        };
        bench.hold(dtype, Tight::default(), &mut rng, ids, Env::new(), &form)
    })
}

/// AdamW with clipping by the global norm, and copies in 16 bits of what it trains: tensors of odd
/// sizes.
pub fn update_case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let sizes: Vec<usize> =
        (0..1 + rng.below(4)).map(|_| rng.pick(&[1, 3, 31, 1000, 4097, 2173, 16384])).collect();
    let dtype = dtype_of(number);
    let copy = (dtype != DType::F32).then_some(dtype);
    let copies = copy.map_or(String::new(), |dtype| format!(", with {} copies", word(dtype)));
    let name = format!("tensors of {sizes:?}{copies}");
    Case::new(name, move |bench| {
        let form = |_| adamw(&sizes, copy);
        // Second moments are sums of squares.
        let g = form(DType::F32)?;
        let mut given = Env::new();
        for s in g.states().iter().filter(|s| s.name.starts_with("v.")) {
            let axes = &g.ty(s.value).axes;
            let data = (0..g.axes().count(axes)).map(|_| rng.within(0.1, 1.0)).collect();
            given.insert(s.name.clone(), Tensor::from_vec(g.axes(), axes, data));
        }
        bench.hold(DType::F32, Tight::default(), &mut rng, 1, given, &form)
    })
}

fn adamw(sizes: &[usize], copy: Option<DType>) -> Built<Graph> {
    use aerogel_graph::{Init, Role, StateId};
    let mut g = Graph::new();
    let rate = g.input("rate", DType::F32, &[])?;
    let state = |g: &mut Graph, name: String, dtype: DType, axis: AxisId| {
        let ty = Type::new(dtype, [axis]);
        let v = g.state(&name, ty, Role::Optimizer, None, Init::Constant(0.0))?;
        Ok::<_, OpError>((StateId(g.states().len() as u32 - 1), v))
    };
    let (mut grads, mut squares) = (vec![], vec![]);
    for (i, size) in sizes.iter().enumerate() {
        let axis = g.axis(&format!("a{i}"), *size)?;
        let grad = g.input(&format!("grad.{i}"), DType::F32, &[axis])?;
        let terms = g.map(&[grad], &|v| &v[0] * &v[0])?;
        squares.push(g.sum(terms, &[axis])?);
        grads.push((axis, grad));
    }
    let norm = g.map(&squares, &|v| v[1..].iter().fold(v[0].clone(), |s, t| s + t).sqrt())?;
    g.output("grad_norm", norm);
    let scale = g.map(&[norm], &|v| (1.0 / &v[0]).min(1.0))?;
    for (i, (axis, grad)) in grads.into_iter().enumerate() {
        let (w_id, w) = state(&mut g, format!("p.{i}"), DType::F32, axis)?;
        let (m_id, m) = state(&mut g, format!("m.{i}"), DType::F32, axis)?;
        let (v_id, v) = state(&mut g, format!("v.{i}"), DType::F32, axis)?;
        let clipped = g.map(&[grad, scale], &|x| &x[0] * &x[1])?;
        let m = g.map(&[m, clipped], &|x| 0.9 * &x[0] + 0.1 * &x[1])?;
        let v = g.map(&[v, clipped], &|x| 0.95 * &x[0] + 0.05 * (&x[1] * &x[1]))?;
        let w = g.map(&[w, m, v, rate], &|x| {
            &x[0] - 0.01 * &x[3] * (&x[1] / (x[2].sqrt() + 1e-8) + 0.1 * &x[0])
        })?;
        [(w_id, w), (m_id, m), (v_id, v)].into_iter().try_for_each(|(s, v)| g.assign(s, v))?;
        if let Some(dtype) = copy {
            let (id, _) = state(&mut g, format!("copy.{i}"), dtype, axis)?;
            let copy = g.cast(w, dtype, DType::F32)?;
            g.assign(id, copy)?;
        }
    }
    Ok(g)
}
