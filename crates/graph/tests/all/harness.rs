//! Random graphs with their data, and the comparison with central differences.

use aerogel_graph::{
    Axes, AxisId, Build, Clock, DType, Env, Expr, Graph, Init, OpError, ParamClass, Place,
    Rounding, Tensor, Type, ValueId, gradients, interpret,
};

pub type Built<T> = Result<T, OpError>;

/// SplitMix64: small, seeded, good enough for test data.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

/// A graph under construction, the data of its inputs and states, and what to differentiate by.
pub struct World {
    pub g: Graph,
    pub env: Env,
    pub rng: Rng,
    /// Which of a case's variants is to be built.
    pub variant: usize,
    pub leaves: Vec<(String, ValueId)>,
    pub clock: Clock,
}

impl World {
    pub fn new(seed: u64, variant: usize) -> World {
        World {
            g: Graph::new(),
            env: Env::new(),
            rng: Rng(seed ^ 0x0a11_0ca7_ed00_0000),
            variant,
            leaves: vec![],
            clock: Clock { seed: 11, step: seed, micro: 0, place: Place::default() },
        }
    }

    /// An axis of a random extent in `low..=high`.
    pub fn axis(&mut self, name: &str, low: usize, high: usize) -> Built<AxisId> {
        let size = low + self.rng.below(high - low + 1);
        self.g.axis(name, size)
    }

    pub fn size(&self, axis: AxisId) -> usize {
        self.g.axes().size(axis)
    }

    pub fn order(&mut self, axes: &[AxisId]) -> Vec<AxisId> {
        let mut list = axes.to_vec();
        self.rng.shuffle(&mut list);
        list
    }

    /// A parameter with axes in random order and elements in -1.5..1.5.
    pub fn leaf(&mut self, name: &str, axes: &[AxisId]) -> Built<ValueId> {
        self.leaf_of(name, axes, |rng| rng.within(-1.5, 1.5))
    }

    /// A parameter with axes in random order and elements from `f`.
    pub fn leaf_of(
        &mut self,
        name: &str,
        axes: &[AxisId],
        mut f: impl FnMut(&mut Rng) -> f64,
    ) -> Built<ValueId> {
        let order = self.order(axes);
        let v = self.g.parameter(name, ParamClass::Weight, &order, Init::Normal(0.02))?;
        let data = (0..self.g.axes().count(&order)).map(|_| f(&mut self.rng)).collect();
        self.env.insert(name.to_owned(), Tensor::from_vec(self.g.axes(), &order, data));
        self.leaves.push((name.to_owned(), v));
        Ok(v)
    }

    /// A parameter whose elements lie at least 0.1 apart: no reordering within a difference.
    pub fn distinct(&mut self, name: &str, axes: &[AxisId]) -> Built<ValueId> {
        let n = self.g.axes().count(axes);
        let mut grid: Vec<f64> = (0..n).map(|i| 0.1 * (i as f64 - n as f64 / 2.0)).collect();
        self.rng.shuffle(&mut grid);
        let mut grid = grid.into_iter();
        self.leaf_of(name, axes, |_| grid.next().expect("one number per element"))
    }

    /// An input of ids below `bound`.
    pub fn ids(&mut self, name: &str, axes: &[AxisId], bound: usize) -> Built<ValueId> {
        let n = self.g.axes().count(axes);
        let data = (0..n).map(|_| self.rng.below(bound) as f64).collect();
        self.given(name, DType::U32, axes, data)
    }

    /// An input of random numbers that is not differentiated by.
    pub fn noise(&mut self, name: &str, axes: &[AxisId]) -> Built<ValueId> {
        let n = self.g.axes().count(axes);
        let data = (0..n).map(|_| self.rng.within(-1.0, 1.0)).collect();
        self.given(name, DType::F32, axes, data)
    }

    /// An input with these elements.
    pub fn given(
        &mut self,
        name: &str,
        dtype: DType,
        axes: &[AxisId],
        data: Vec<f64>,
    ) -> Built<ValueId> {
        let v = self.g.input(name, dtype, axes)?;
        self.env.insert(name.to_owned(), Tensor::from_vec(self.g.axes(), axes, data));
        Ok(v)
    }

    /// The same values with axes in a random order; the cotangent then comes in that order.
    pub fn turned(&mut self, v: ValueId) -> Built<ValueId> {
        let axes = self.g.ty(v).axes.clone();
        let out = Type::new(DType::F32, self.order(&axes));
        self.g.map_to(&[v], out, &|x| x[0].clone())
    }

    /// The loss: sum of random weights times outputs. Elements of minus infinity (the lse of a
    /// query without keys) count as 0. Each output is made an output of the graph.
    pub fn loss(&mut self, outs: &[ValueId]) -> Built<ValueId> {
        let mut terms = vec![];
        for (i, &v) in outs.iter().enumerate() {
            self.g.output(&format!("out{i}"), v);
            let turned = self.turned(v)?;
            let axes = self.g.ty(turned).axes.clone();
            let weights = self.noise(&format!("loss.weights{i}"), &axes)?;
            let term = self.g.map(&[turned, weights], &|x| {
                x[0].equals(f64::NEG_INFINITY).select(0.0, &x[0] * &x[1])
            })?;
            terms.push(self.g.sum(term, &axes)?);
        }
        self.g.map(&terms, &|x| x[1..].iter().fold(x[0].clone(), |s, t| s + t))
    }

    /// What `gradients` gives for each leaf, `None` as zeros, axes in the leaf's order.
    pub fn gradient(&self, of: ValueId) -> Built<Vec<Tensor>> {
        let wrt: Vec<ValueId> = self.leaves.iter().map(|l| l.1).collect();
        let mut g = self.g.clone();
        let grads = gradients(&mut g, of, &wrt)?;
        aerogel_graph::verify::verify(&g).expect("a gradient is a graph");
        let run = interpret(&g, &self.env, self.clock, Rounding::Exact).expect("all is given");
        Ok(grads.iter().zip(&wrt).map(|(d, &w)| in_order(&g, &run.values, *d, w)).collect())
    }

    /// The value of a scalar of the graph.
    pub fn scalar(&self, env: &Env, of: ValueId) -> f64 {
        let run = interpret(&self.g, env, self.clock, Rounding::Exact).expect("all is given");
        run.values[of.index()].data[0]
    }

    /// Central differences of fourth order for each leaf.
    pub fn differences(&self, of: ValueId) -> Vec<Tensor> {
        let h = 1e-3;
        let mut env = self.env.clone();
        let mut grads = vec![];
        for (name, _) in &self.leaves {
            let mut grad = self.env[name].clone();
            for i in 0..grad.data.len() {
                let mut at = |step: f64| {
                    let x = self.env[name].data[i] + step * h;
                    env.get_mut(name).expect("a leaf is given").data[i] = x;
                    self.scalar(&env, of)
                };
                let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
                at(0.0);
                grad.data[i] = slope;
            }
            grads.push(grad);
        }
        grads
    }

    /// Asserts that the symbolic gradient is the numeric one, leaf by leaf.
    pub fn check_gradient(&self, of: ValueId, what: &str) {
        let symbolic = self.gradient(of).unwrap_or_else(|e| panic!("{what}: {e}"));
        let numeric = self.differences(of);
        let whole = largest(&numeric);
        for (((name, _), s), n) in self.leaves.iter().zip(&symbolic).zip(&numeric) {
            let scale = largest(std::slice::from_ref(n)).max(1e-3 * whole).max(1e-6);
            close(s, n, 1e-6 * scale, &format!("{what}: gradient of {name}"));
        }
    }
}

/// A gradient in the axis order of its leaf.
pub fn in_order(g: &Graph, values: &[Tensor], d: Option<ValueId>, leaf: ValueId) -> Tensor {
    let axes: &Axes = g.axes();
    match d {
        Some(d) => {
            assert_eq!(g.ty(d).dtype, g.ty(leaf).dtype, "dtype of a gradient");
            values[d.index()].permuted(axes, &g.ty(leaf).axes)
        }
        None => Tensor::full(axes, &g.ty(leaf).axes, 0.0),
    }
}

pub fn largest(tensors: &[Tensor]) -> f64 {
    tensors.iter().flat_map(|t| &t.data).fold(0.0, |m, x| x.abs().max(m))
}

/// Asserts that elements differ by `tolerance` at most; equal infinities are equal.
pub fn close(got: &Tensor, wanted: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.axes, wanted.axes, "{what}: axes");
    for (i, (a, b)) in got.data.iter().zip(&wanted.data).enumerate() {
        // Written so that NaN fails.
        let fits = a == b || (a - b).abs() <= tolerance;
        assert!(fits, "{what}: element {i} is {a}, wanted {b} (tolerance {tolerance:e})");
    }
}

/// A sum of expressions.
pub fn total(terms: Vec<Expr>) -> Expr {
    terms.into_iter().reduce(|a, b| a + b).expect("at least one term")
}
