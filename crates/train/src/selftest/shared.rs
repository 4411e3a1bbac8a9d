//! What attention's three linear layers compute, forward and back: products of one value, and sums
//! of products. Devices may run them as one kernel.

use super::rng::Rng;
use super::suite::{Case, Tight, rng_of, word};
use super::world::Built;
use aerogel_graph::{AxisId, Build, DType, Env, Expr, Graph, Phase, ValueId};

/// Columns of the layers: of models, ragged ones, and some that vectors do not fit.
const COLUMNS: [&[usize]; 7] = [
    &[128, 128, 256],
    &[72, 264, 136],
    &[256, 256],
    &[96, 200, 328, 128],
    &[33, 129, 70],
    &[8, 16, 64],
    &[384, 384, 384],
];
/// Tokens, and what the layers read of each.
const ROWS: [[usize; 2]; 5] = [[2048, 256], [1000, 72], [4096, 128], [520, 320], [130, 1030]];

/// What is computed.
#[derive(Clone, Copy)]
enum What {
    /// The layers.
    Layers,
    /// The gradients of weights and biases.
    Weights,
    /// The gradient of what the layers read.
    Input,
}

struct Shape {
    rows: [usize; 2],
    columns: &'static [usize],
    what: What,
    /// Elements of the bucket before the first weight: with an odd one, no vector begins where it
    /// should.
    before: usize,
    /// Whether the factors of every other product are exchanged.
    turns: bool,
}

/// The case of that number.
pub fn case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let (dtype, shape) = Shape::draw(number, &mut rng);
    let Shape { rows: [tokens, deep], columns, what, before, turns } = shape;
    let way = match what {
        What::Layers => "layers",
        What::Weights => "gradients of layers",
        What::Input => "gradient before layers",
    };
    let turned = if turns { ", turned" } else { "" };
    let name = format!(
        "{way} {deep} -> {columns:?} over {tokens} rows, bucket at {before}{turned}, {}",
        word(dtype)
    );
    Case::new(name, move |bench| {
        bench.hold(dtype, Tight::default(), &mut rng, 1, Env::new(), &|dtype| shape.graph(dtype))
    })
}

impl Shape {
    fn draw(number: usize, rng: &mut Rng) -> (DType, Shape) {
        let dtype = if rng.one_in(6) { DType::F32 } else { DType::Bf16 };
        let shape = Shape {
            rows: ROWS[number / 3 % ROWS.len()],
            columns: COLUMNS[number / 3 % COLUMNS.len()],
            what: [What::Weights, What::Layers, What::Input][number % 3],
            before: rng.pick(&[0, 0, 0, 8, 3]),
            turns: rng.one_in(3),
        };
        (dtype, shape)
    }

    fn graph(&self, dtype: DType) -> Built<Graph> {
        let mut g = Graph::new();
        let [tokens, deep] = self.rows;
        let (t, e) = (g.axis("t", tokens)?, g.axis("e", deep)?);
        let mut axes = vec![];
        for (i, columns) in self.columns.iter().enumerate() {
            axes.push(g.axis(&format!("n{i}"), *columns)?);
        }
        match self.what {
            What::Layers => self.layers(&mut g, [t, e], &axes, dtype)?,
            What::Weights => self.gradients(&mut g, [t, e], &axes, dtype)?,
            What::Input => self.input(&mut g, [t, e], &axes, dtype)?,
        }
        Ok(g)
    }

    /// Whether the factors of this product are exchanged.
    fn turned(&self, product: usize) -> bool {
        self.turns && product % 2 == 1
    }

    /// The layers' weights, parts of one bucket.
    fn weights(
        &self,
        g: &mut Graph,
        e: AxisId,
        axes: &[AxisId],
        dtype: DType,
    ) -> Built<Vec<ValueId>> {
        let deep = g.axes().size(e);
        let all: usize = self.columns.iter().sum();
        let bucket = g.axis("bucket", self.before + all * deep)?;
        let weights = g.input("weights", dtype, &[bucket])?;
        let mut first = self.before;
        let mut list = vec![];
        for (i, &axis) in axes.iter().enumerate() {
            let size = g.axes().size(axis) * deep;
            let flat = g.axis(&format!("flat{i}"), size)?;
            let part = g.slice(weights, bucket, first, flat)?;
            list.push(g.split(part, flat, &[axis, e])?);
            first += size;
        }
        Ok(list)
    }

    fn layers(
        &self,
        g: &mut Graph,
        [t, e]: [AxisId; 2],
        axes: &[AxisId],
        dtype: DType,
    ) -> Built<()> {
        let x = g.input("x", dtype, &[t, e])?;
        let weights = self.weights(g, e, axes, dtype)?;
        let mut products = vec![];
        for (i, (&axis, &w)) in axes.iter().zip(&weights).enumerate() {
            let factors = if self.turned(i) { [w, x] } else { [x, w] };
            products.push(g.einsum_to(&factors, &[t, axis], dtype)?);
        }
        let deep = g.axes().size(e);
        let scale = 1.0 / (deep as f64).sqrt();
        for (i, (&axis, &product)) in axes.iter().zip(&products).enumerate() {
            let bias = g.input(&format!("bias{i}"), DType::F32, &[axis])?;
            let y = g.map(&[product, bias], &|v| scale * &v[0] + &v[1])?;
            let y = if g.ty(y).dtype == dtype { y } else { g.cast(y, dtype, DType::F32)? };
            g.output(&format!("y{i}"), y);
        }
        Ok(())
    }

    fn gradients(
        &self,
        g: &mut Graph,
        [t, e]: [AxisId; 2],
        axes: &[AxisId],
        dtype: DType,
    ) -> Built<()> {
        let x = g.input("x", dtype, &[t, e])?;
        let mut dys = vec![];
        for (i, &axis) in axes.iter().enumerate() {
            dys.push(g.input(&format!("dy{i}"), dtype, &[t, axis])?);
            let sum = g.sum(dys[i], &[t])?;
            g.output(&format!("dbias{i}"), sum);
        }
        for (i, (&axis, &dy)) in axes.iter().zip(&dys).enumerate() {
            let factors = if self.turned(i) { [x, dy] } else { [dy, x] };
            let dw = g.einsum_to(&factors, &[axis, e], DType::F32)?;
            g.output(&format!("dw{i}"), dw);
        }
        Ok(())
    }

    fn input(
        &self,
        g: &mut Graph,
        [t, e]: [AxisId; 2],
        axes: &[AxisId],
        dtype: DType,
    ) -> Built<()> {
        let weights = self.weights(g, e, axes, dtype)?;
        g.phase(Phase::Backward);
        let mut products = vec![];
        for (i, (&axis, &w)) in axes.iter().zip(&weights).enumerate() {
            let dy = g.input(&format!("dy{i}"), dtype, &[t, axis])?;
            let factors = if self.turned(i) { [w, dy] } else { [dy, w] };
            products.push(g.einsum_to(&factors, &[t, e], dtype)?);
        }
        let sum = |v: &[Expr]| v[1..].iter().fold(v[0].clone(), |sum, x| sum + x);
        let dx = g.map(&products, &sum)?;
        let skip = g.input("skip", dtype, &[t, e])?;
        let more = g.map(&[dx, skip], &|v| 0.05 * &v[0] + &v[1])?;
        g.output("dx", dx);
        g.output("more", more);
        Ok(())
    }
}
