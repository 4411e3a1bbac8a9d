//! Products of one value: what attention's three linear layers compute, forward and back. Devices
//! may run them as one kernel.

use super::suite::{Case, Tight, rng_of, word};
use super::world::Built;
use aerogel_graph::{AxisId, Build, DType, Env, Graph, ValueId};

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

struct Shape {
    rows: [usize; 2],
    columns: &'static [usize],
    /// The gradients of weights and biases instead of the layers.
    back: bool,
    /// Elements of the bucket before the first weight: with an odd one, no vector begins where it
    /// should.
    before: usize,
    /// Whether x stands on the right of every other product.
    turns: bool,
}

/// The case of that number.
pub fn case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let dtype = if rng.one_in(6) { DType::F32 } else { DType::Bf16 };
    let shape = Shape {
        rows: ROWS[number / 2 % ROWS.len()],
        columns: COLUMNS[number / 2 % COLUMNS.len()],
        back: number.is_multiple_of(2),
        before: rng.pick(&[0, 0, 0, 8, 3]),
        turns: rng.one_in(3),
    };
    let Shape { rows: [tokens, deep], columns, back, before, turns } = shape;
    let way = if back { "gradients of layers" } else { "layers" };
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
    fn graph(&self, dtype: DType) -> Built<Graph> {
        let mut g = Graph::new();
        let [tokens, deep] = self.rows;
        let (t, e) = (g.axis("t", tokens)?, g.axis("e", deep)?);
        let x = g.input("x", dtype, &[t, e])?;
        let mut axes = vec![];
        for (i, columns) in self.columns.iter().enumerate() {
            axes.push(g.axis(&format!("n{i}"), *columns)?);
        }
        match self.back {
            true => self.gradients(&mut g, x, [t, e], &axes, dtype)?,
            false => self.layers(&mut g, x, [t, e], &axes, dtype)?,
        }
        Ok(g)
    }

    /// Whether x is the second factor of this product.
    fn turned(&self, product: usize) -> bool {
        self.turns && product % 2 == 1
    }

    fn layers(
        &self,
        g: &mut Graph,
        x: ValueId,
        [t, e]: [AxisId; 2],
        axes: &[AxisId],
        dtype: DType,
    ) -> Built<()> {
        let deep = g.axes().size(e);
        let all: usize = self.columns.iter().sum();
        let bucket = g.axis("bucket", self.before + all * deep)?;
        let weights = g.input("weights", dtype, &[bucket])?;
        let mut first = self.before;
        let mut products = vec![];
        for (i, &axis) in axes.iter().enumerate() {
            let size = g.axes().size(axis) * deep;
            let flat = g.axis(&format!("flat{i}"), size)?;
            let part = g.slice(weights, bucket, first, flat)?;
            let w = g.split(part, flat, &[axis, e])?;
            first += size;
            let factors = if self.turned(i) { [w, x] } else { [x, w] };
            products.push(g.einsum_to(&factors, &[t, axis], dtype)?);
        }
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
        x: ValueId,
        [t, e]: [AxisId; 2],
        axes: &[AxisId],
        dtype: DType,
    ) -> Built<()> {
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
}
