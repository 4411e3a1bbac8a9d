//! A random graph under construction, with its data.

use super::rng::Rng;
use aerogel_graph::{
    AxisId, Build, Clock, DType, Env, Graph, Init, OpError, ParamClass, Place, Tensor, Type,
    ValueId,
};

/// What building gives.
pub type Built<T> = Result<T, OpError>;

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
}
