//! What results should be, and how far a device may be from them.

use super::failure::Failure;
use super::values::{Bytes, bytes_of, numbers_of};
use aerogel_graph::{
    Build, Clock, DType, Env, Graph, Node, Op, Rounding, Tensor, ValueId, interpret,
};
use std::ops::Range;

/// The largest element of a value in which everything cancels.
const CANCELLED: f64 = 1e-4;

/// How near results have to come.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Errors, in parts of the largest element, and of all together in parts of their root mean
    /// square.
    pub relative: f64,
    /// The least size that this is of: that of terms which may cancel.
    pub floor: f64,
}

/// What the interpreter says of a graph, in f64.
pub struct Reference<'a> {
    g: &'a Graph,
    declared: Vec<Tensor>,
    exact: Vec<Tensor>,
    /// Factor of all tolerances: c √K.
    factor: f64,
    /// Of the values that others are computed from.
    step: Step,
    /// The least magnitude that rounding is relative to.
    floor: f64,
}

impl<'a> Reference<'a> {
    /// Interprets the graph; what its values are computed from is as large as `floor`.
    ///
    /// # Panics
    /// The environment lacks an input or a state.
    pub fn new(g: &'a Graph, env: &Env, clock: Clock, floor: f64) -> Reference<'a> {
        let run = |mode| interpret(g, env, clock, mode).expect("all is given").values;
        Reference::of(g, [run(Rounding::Declared), run(Rounding::Exact)], floor)
    }

    /// The same of values that are known, as declared and exactly.
    pub fn of(g: &'a Graph, [declared, exact]: [Vec<Tensor>; 2], floor: f64) -> Reference<'a> {
        let factor = 8.0 * (longest_sum(g) as f64).sqrt();
        Reference { g, declared, exact, floor, factor, step: coarsest(g) }
    }

    /// What it is of.
    pub fn graph(&self) -> &Graph {
        self.g
    }

    /// The numbers of a value.
    pub fn values(&self, v: ValueId) -> &Tensor {
        &self.declared[v.index()]
    }

    /// c √K roundings of what is computed, as a part of a magnitude.
    pub fn relative(&self) -> f64 {
        self.factor * self.step.relative.max(2f64.powi(-24))
    }

    /// How far a device may be from a value: c √K roundings of its largest element (or of what it
    /// is the difference of), and as many times what rounding each value once has done to it,
    /// which is large where the graph is badly conditioned. A lost or doubled term makes more.
    pub fn tolerance(&self, v: ValueId) -> f64 {
        self.tolerance_in(v, 0..self.declared[v.index()].data.len())
    }

    /// The same of some of a value's elements, judged by themselves.
    pub fn tolerance_in(&self, v: ValueId, part: Range<usize>) -> f64 {
        let [a, b] = [&self.declared, &self.exact].map(|t| &t[v.index()].data[part.clone()]);
        let finite = |x: &&f64| x.is_finite();
        let own = Step::of(self.g.ty(v).dtype);
        let least = self.floor.max(self.step.normal).max(own.normal);
        let largest = a.iter().filter(finite).fold(least, |m, x| m.max(x.abs()));
        let noise = a.iter().zip(b).map(|(x, y)| (x - y).abs());
        let noise = noise.filter(|x| x.is_finite()).fold(0.0, f64::max);
        self.relative().max(self.factor * own.relative) * largest + self.factor * noise
    }

    /// The largest error of outputs and new states, in parts of its bound.
    ///
    /// # Errors
    /// It is above its bound, or a state changed that is not assigned.
    pub fn agrees(&self, env: &Env, got: &Bytes) -> Result<f64, Failure> {
        let g = self.g;
        let mut worst = 0f64;
        for (name, v) in &g.outputs {
            worst = worst.max(self.compare(&format!("output {name}"), *v, got)?);
        }
        for (id, s) in g.states().iter().enumerate() {
            let name = format!("state {}", s.name);
            match g.assigns.iter().find(|a| a.0.index() == id) {
                Some((_, v)) => worst = worst.max(self.compare(&name, *v, got)?),
                None if got[&name] != bytes_of(g.ty(s.value).dtype, &env[&s.name].data) => {
                    return Err(Failure::Touched { name });
                }
                None => {}
            }
        }
        Ok(worst)
    }

    fn compare(&self, name: &str, v: ValueId, got: &Bytes) -> Result<f64, Failure> {
        let ty = self.g.ty(v);
        let numbers = numbers_of(ty.dtype, &got[name]);
        let shown = ty.show(self.g.axes());
        nearest(name, &shown, &numbers, &self.values(v).data, self.tolerance(v))
    }
}

/// The largest error of some elements, in parts of `bound`; not a number is infinitely far from all
/// numbers.
///
/// # Errors
/// It is above the bound.
pub fn nearest(
    name: &str,
    shown: &str,
    got: &[f64],
    wanted: &[f64],
    bound: f64,
) -> Result<f64, Failure> {
    let mut worst = (0f64, 0);
    for (i, (a, b)) in got.iter().zip(wanted).enumerate() {
        // What is too large for f16 is infinite, and the difference of two such is no number.
        let same = a == b || a.is_nan() && b.is_nan();
        let error = if same { 0.0 } else { (a - b).abs() };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > worst.0 {
            worst = (error, i);
        }
    }
    let (error, element) = worst;
    if error <= bound && got.len() == wanted.len() {
        return Ok(if error == 0.0 { 0.0 } else { error / bound });
    }
    let (name, shown) = (name.to_owned(), shown.to_owned());
    let [got, wanted] = [got, wanted].map(|x| x.get(element).copied().unwrap_or(f64::NAN));
    Err(Failure::Element { name, shown, element, got, wanted, bound })
}

/// The largest error of some elements in parts of its bound, which is relative to the largest of
/// them; for all together, to their root mean square. Where everything cancels, what is left is
/// the rounding of terms that are about 1.
///
/// # Errors
/// It is above its bound.
pub fn judge(
    name: &str,
    shown: &str,
    got: &[f64],
    wanted: &[f64],
    bound: Bound,
) -> Result<f64, Failure> {
    let finite = || wanted.iter().filter(|x| x.is_finite());
    let mean = |sum: f64| (sum / wanted.len().max(1) as f64).sqrt();
    let largest = finite().fold(0f64, |m, x| m.max(x.abs()));
    let size = mean(finite().map(|x| x * x).sum());
    let floor = if largest < CANCELLED { 1.0 } else { bound.floor };
    let Bound { relative, .. } = bound;
    let worst = nearest(name, shown, got, wanted, relative * largest.max(floor))?;
    let errors = got.iter().zip(wanted).filter(|(a, b)| a != b);
    let error = mean(errors.map(|(a, b)| (a - b).powi(2)).sum());
    let bound = relative * size.max(floor);
    // Written so that NaN fails.
    if error == 0.0 || error <= bound {
        return Ok(worst.max(if error == 0.0 { 0.0 } else { error / bound }));
    }
    let (name, shown) = (name.to_owned(), shown.to_owned());
    Err(Failure::Mean { name, shown, got: error, bound })
}

/// The names of what two runs gave other bits for: none, or the first.
///
/// # Errors
/// There is one.
pub fn same_bits(got: &Bytes, wanted: &Bytes) -> Result<(), Failure> {
    match wanted.iter().find(|(name, bytes)| got.get(*name) != Some(bytes)) {
        None => Ok(()),
        Some((name, _)) => Err(Failure::Bits { name: name.clone() }),
    }
}

/// What rounding to a dtype of 16 bits may do to a number; to another, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// Half a unit in the last place, as a part of the number.
    pub relative: f64,
    /// The least number with all digits: smaller ones lose as much as it does.
    pub normal: f64,
}

impl Step {
    /// Of a dtype.
    pub fn of(dtype: DType) -> Step {
        match dtype {
            DType::F32 | DType::U32 => Step::default(),
            // Its least number is that of f32.
            DType::Bf16 => Step { relative: 2f64.powi(-9), normal: 0.0 },
            DType::F16 => Step { relative: 2f64.powi(-12), normal: 2f64.powi(-14) },
        }
    }

    /// What either may do.
    #[must_use]
    pub fn or(self, other: Step) -> Step {
        let Step { relative, normal } = other;
        Step { relative: self.relative.max(relative), normal: self.normal.max(normal) }
    }
}

/// The largest steps of the values that anything is computed from.
pub fn coarsest(g: &Graph) -> Step {
    let read = g.values().iter().zip(g.readers()).filter(|(_, readers)| !readers.is_empty());
    read.fold(Step::default(), |step, (v, _)| step.or(Step::of(v.ty.dtype)))
}

/// The most terms that one node of the graph adds into one element.
pub fn longest_sum(g: &Graph) -> usize {
    let sum = |node: &Node| {
        let axes = |v: &ValueId| g.ty(*v).axes.clone();
        let mut all: Vec<_> = node.ins.iter().flat_map(axes).collect();
        all.sort_unstable();
        all.dedup();
        let least = node.outs.iter().map(|v| g.axes().count(&g.ty(*v).axes)).min().unwrap_or(1);
        match node.op {
            Op::Map(_) | Op::View(_) => 1,
            _ => g.axes().count(&all) / least.max(1),
        }
    };
    g.nodes().iter().map(sum).max().unwrap_or(1).max(1)
}
