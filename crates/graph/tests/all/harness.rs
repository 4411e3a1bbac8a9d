//! The comparison of random graphs' gradients with central differences.

use aerogel_graph::{
    Axes, Build, Env, Expr, Graph, Rounding, Tensor, ValueId, gradients, interpret,
};

pub use super::rng::Rng;
pub use super::world::{Built, World};

impl World {
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
