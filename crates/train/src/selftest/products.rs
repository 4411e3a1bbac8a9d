//! Products: axes of any role in any order, with the chains of maps that follow them, or the sum of
//! an operand beside them.

use super::rng::Rng;
use super::suite::{Case, Tight, rng_of, word};
use super::world::Built;
use aerogel_graph::{AxisId, Build, DType, Env, Expr, Graph, ValueId};

/// Sizes m, n, k that large tiles are made for, and some that do not divide.
const LARGE: [[usize; 3]; 8] = [
    [512, 768, 1024],
    [256, 1024, 512],
    [333, 50, 770],
    [128, 3072, 768],
    [1024, 256, 128],
    [300, 257, 129],
    [1000, 504, 72],
    [8, 1536, 2048],
];
/// Chains that are tried by turns.
const CHAINS: usize = 7;

struct Shape {
    /// Label and size of each axis: labels `b` are in all three values, `m` and `n` in one operand
    /// and the result, `k` in both operands.
    axes: Vec<(&'static str, usize)>,
    /// The order of the axes of x, of y and of the result, as positions in `axes`.
    orders: [Vec<usize>; 3],
    chain: usize,
    /// Whether the product is rounded before the chain.
    rounds: bool,
    /// Instead of a chain: which operand is summed over the axes that the product sums over, as
    /// the gradient of a bias is.
    summed: Option<usize>,
}

/// The case of that number: every third one is large.
pub fn case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let dtype = [DType::Bf16, DType::F32, DType::F16, DType::F32][number % 4];
    let shape = Shape::draw(number, &mut rng);
    let show = |order: &Vec<usize>| {
        let one = |i: &usize| format!("{} {}", shape.axes[*i].0, shape.axes[*i].1);
        order.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let [x, y, out] = [0, 1, 2].map(|i| show(&shape.orders[i]));
    let rest = match shape.summed {
        Some(operand) => format!("sum of {}", ["x", "y"][operand]),
        None => format!("chain {}", shape.chain),
    };
    let name = format!("[{x}] x [{y}] -> [{out}], {rest}, {}", word(dtype));
    Case::new(name, move |bench| {
        bench.hold(dtype, Tight::default(), &mut rng, 1, Env::new(), &|dtype| shape.graph(dtype))
    })
}

impl Shape {
    fn draw(number: usize, rng: &mut Rng) -> Shape {
        let is_large = number % 3 == 2;
        let axes = if is_large {
            let [m, n, k] = LARGE[number / 3 % LARGE.len()];
            vec![("m", m), ("n", n), ("k", k)]
        } else {
            let mut axes = vec![];
            for (label, names) in
                [("b", ["b0", "b1"]), ("m", ["m0", "m1"]), ("n", ["n0", "n1"]), ("k", ["k0", "k1"])]
            {
                let least = usize::from(label == "k");
                let count = least + rng.below(3 - least);
                for name in &names[..count] {
                    let most = if label == "b" { 4 } else { 40 };
                    let size = if rng.one_in(4) {
                        8 * (1 + rng.below(most / 4))
                    } else {
                        1 + rng.below(most)
                    };
                    axes.push((*name, if count > 1 { 1 + size / 3 } else { size }));
                }
            }
            axes
        };
        let of = |labels: [char; 3]| -> Vec<usize> {
            let has = |i: &usize| labels.iter().any(|l| axes[*i].0.starts_with(*l));
            (0..axes.len()).filter(has).collect()
        };
        let mut orders = [of(['b', 'm', 'k']), of(['b', 'n', 'k']), of(['b', 'm', 'n'])];
        for order in &mut orders[..2] {
            rng.shuffle(order);
        }
        if !is_large && rng.one_in(3) {
            rng.shuffle(&mut orders[2]);
        }
        let summed = (number % 5 == 4).then(|| usize::from(rng.coin()));
        Shape { axes, orders, chain: number % CHAINS, rounds: rng.coin(), summed }
    }

    fn graph(&self, dtype: DType) -> Built<Graph> {
        let mut g = Graph::new();
        let mut ids = vec![];
        for (label, size) in &self.axes {
            ids.push(g.axis(label, *size)?);
        }
        let [xs, ys, out] =
            [0, 1, 2].map(|i| self.orders[i].iter().map(|a| ids[*a]).collect::<Vec<AxisId>>());
        let (x, y) = (g.input("x", dtype, &xs)?, g.input("y", dtype, &ys)?);
        if let Some(operand) = self.summed {
            let over = ids.iter().zip(&self.axes).filter(|(_, axis)| axis.0.starts_with('k'));
            let over: Vec<AxisId> = over.map(|(id, _)| *id).collect();
            // Either may come first.
            for sums in [operand == 0, operand == 1] {
                let (name, end) = match sums {
                    true => ("sum", g.sum([x, y][operand], &over)?),
                    false => ("out", g.einsum_to(&[x, y], &out, DType::F32)?),
                };
                g.output(name, end);
            }
            return Ok(g);
        }
        let rounds = self.rounds || self.chain == 0;
        let product = g.einsum_to(&[x, y], &out, if rounds { dtype } else { DType::F32 })?;
        let terms: usize = self.axes.iter().filter(|a| a.0.starts_with('k')).map(|a| a.1).product();
        let end = self.chained(&mut g, product, &out, dtype, 1.0 / (terms as f64).sqrt())?;
        let end = if g.ty(end).dtype == dtype { end } else { g.cast(end, dtype, DType::F32)? };
        g.output("out", end);
        Ok(g)
    }

    /// The maps after a product.
    fn chained(
        &self,
        g: &mut Graph,
        product: ValueId,
        out: &[AxisId],
        dtype: DType,
        scale: f64,
    ) -> Built<ValueId> {
        let last: Vec<AxisId> = out.last().copied().into_iter().collect();
        let gelu = |x: &Expr| x * (1.702 * x).sigmoid();
        let dropped = |x: Expr| Expr::rand("drop").lt(0.2).select(0.0, x / 0.8);
        let bias = |g: &mut Graph| g.input("bias", DType::F32, &last);
        let skip = |g: &mut Graph| g.input("skip", dtype, out);
        match self.chain {
            0 => Ok(product),
            1 => {
                let bias = bias(g)?;
                g.map(&[product, bias], &|v| scale * &v[0] + &v[1])
            }
            2 => {
                let bias = bias(g)?;
                let inner = g.map(&[product, bias], &|v| scale * &v[0] + &v[1])?;
                g.output("inner", inner);
                g.map(&[inner], &|v| gelu(&v[0]))
            }
            3 => {
                let (bias, skip) = (bias(g)?, skip(g)?);
                let kept = g.map(&[product, bias], &|v| dropped(scale * &v[0] + &v[1]))?;
                g.map(&[kept, skip], &|v| &v[0] + &v[1])
            }
            4 => {
                // The derivative of a gelu, from what was kept of it.
                let skip = skip(g)?;
                g.map(&[product, skip], &|v| {
                    let s = (1.702 * &v[1]).sigmoid();
                    scale * &v[0] * (&s + 1.702 * &v[1] * &s * (1.0 - &s))
                })
            }
            5 => {
                let cube = |x: &Expr| x * x * x;
                g.map(&[product], &|v| {
                    let x = scale * &v[0];
                    let inner = 0.797_884_560_8 * (&x + 0.044_715 * cube(&x));
                    0.5 * &x * (1.0 + inner.tanh())
                })
            }
            _ => {
                let skip = skip(g)?;
                g.map(&[product, skip], &|v| scale * &v[0] + &v[1])
            }
        }
    }
}
