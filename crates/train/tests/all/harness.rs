//! The device against the interpreter: a graph is planned, loaded into an arena full of NaN, run
//! twice on one, two and three threads, and every output and state is compared.

use crate::ranks::Placed;
use aerogel_cpu::pool::Pool;
use aerogel_cpu::{CpuDevice, CpuTarget};
use aerogel_graph::{
    Build, Clock, DType, Def, Env, Graph, Op, Rounding, Tensor, Type, ValueId, interpret,
};
use aerogel_machine::{Collectives, Device, Machine, Program};
use aerogel_plan::{Ask, Plan, PlanError, plan};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes by name.
pub type Bytes = BTreeMap<String, Vec<u8>>;

/// SplitMix64: the tests' source of shapes and values.
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

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// In [-1, 1).
    pub fn value(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

/// The name of the only section of a graph that is run alone.
const ALONE: &str = "alone";

/// Plans sections for the CPU.
pub fn planned(asks: Vec<Ask>, threads: usize) -> Result<Plan, PlanError> {
    let machine = Machine::cpu(threads, 1 << 34);
    plan(asks, &CpuTarget::new(machine.clone()), &machine)
}

/// One graph as the only section of a plan.
pub fn alone(g: &Graph) -> Vec<Ask> {
    vec![Ask { name: ALONE.to_owned(), graph: g.clone(), calls: 1 }]
}

/// The elements of a tensor as a device holds them.
pub fn bytes_of(dtype: DType, data: &[f64]) -> Vec<u8> {
    let bytes = |x: &f64| match dtype {
        DType::F32 => (*x as f32).to_le_bytes().to_vec(),
        DType::Bf16 => (dtype.round(*x) as f32).to_le_bytes()[2..].to_vec(),
        DType::U32 => (*x as u32).to_le_bytes().to_vec(),
    };
    data.iter().flat_map(bytes).collect()
}

/// The inverse of [`bytes_of`].
pub fn numbers_of(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let number = |b: &[u8]| match dtype {
        DType::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::Bf16 => f64::from(f32::from_le_bytes([0, 0, b[0], b[1]])),
        DType::U32 => f64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    };
    bytes.chunks_exact(dtype.bytes()).map(number).collect()
}

/// A loaded program whose arena held nothing but NaN.
pub struct Loaded {
    pub device: CpuDevice,
    pub program: Arc<Program>,
}

impl Loaded {
    pub fn new(asks: Vec<Ask>, threads: usize) -> Result<Loaded, PlanError> {
        Loaded::at(asks, threads, 0)
    }

    /// As one rank of the mesh that the graphs know, which cannot exchange anything.
    pub fn at(asks: Vec<Ask>, threads: usize, rank: usize) -> Result<Loaded, PlanError> {
        let ties = Placed { mesh: asks[0].graph.axes().mesh.clone(), rank };
        let program = Arc::new(planned(asks, threads)?.program);
        let pool = Arc::new(Pool::new(threads).expect("a few threads can be had"));
        Ok(Loaded::tied(program, pool, Arc::new(ties)))
    }

    /// As one rank of several.
    pub fn tied(program: Arc<Program>, pool: Arc<Pool>, ties: Arc<dyn Collectives>) -> Loaded {
        let device = CpuDevice::load_rank(program.clone(), pool, ties);
        let mut device = device.expect("a plan can be loaded");
        assert_eq!(device.allocated_bytes(), program.arena_bytes, "planned = allocated");
        device.poison().unwrap();
        Loaded { device, program }
    }

    /// Writes the states that the section declares and the environment has.
    pub fn write_states(&mut self, section: usize, env: &Env) {
        let g = &self.program.sections[section].graph;
        for s in g.states() {
            let Some(t) = env.get(&s.name) else { continue };
            let bytes = bytes_of(g.ty(s.value).dtype, &t.data);
            self.device.write_state(&s.name, 0, &bytes).unwrap();
        }
    }

    /// Writes the inputs, runs, and reads all outputs and states.
    pub fn run(&mut self, section: usize, env: &Env, clock: Clock) -> Bytes {
        let program = self.program.clone();
        let g = &program.sections[section].graph;
        for i in g.inputs() {
            let bytes = bytes_of(g.ty(i.value).dtype, &env[&i.name].data);
            self.device.write_input(section, &i.name, &bytes).unwrap();
        }
        self.device.run(section, clock, 0).unwrap();
        let mut all = Bytes::new();
        let space = |v: ValueId| vec![0; g.ty(v).bytes(g.axes()) as usize];
        for (name, v) in &g.outputs {
            let mut bytes = space(*v);
            self.device.read_output(section, name, &mut bytes).unwrap();
            all.insert(format!("output {name}"), bytes);
        }
        for s in g.states() {
            let mut bytes = space(s.value);
            self.device.read_state(&s.name, 0, &mut bytes).unwrap();
            all.insert(format!("state {}", s.name), bytes);
        }
        all
    }
}

/// Asserts that the device computes what the interpreter does, whatever the threads.
pub fn check(what: &str, g: &Graph, env: &Env, clock: Clock) -> Bytes {
    check_near(what, g, env, clock, 1.0)
}

/// `check`, where what values are computed from is as large as `floor`.
pub fn check_near(what: &str, g: &Graph, env: &Env, clock: Clock, floor: f64) -> Bytes {
    let mut first: Option<Bytes> = None;
    let rank = g.axes().mesh.rank(clock.place);
    for threads in 1..=3 {
        let loaded = Loaded::at(alone(g), threads, rank);
        let mut loaded = loaded.unwrap_or_else(|e| panic!("{what}: {e}"));
        // The second run finds the arena as the first one left it.
        for run in 0..2 {
            loaded.write_states(0, env);
            let got = loaded.run(0, env, clock);
            match &first {
                Some(first) => {
                    same_bits(&format!("{what}, {threads} threads, run {run}"), &got, first)
                }
                None => {
                    agrees(what, env, &got, &Reference::new(g, env, clock, floor));
                    first = Some(got);
                }
            }
        }
    }
    first.expect("it ran")
}

/// Asserts that two runs gave the same bits.
pub fn same_bits(what: &str, got: &Bytes, wanted: &Bytes) {
    for (name, bytes) in wanted {
        assert!(got[name] == *bytes, "{what}: {name} has other bits");
    }
}

/// Asserts that outputs and new states are the interpreter's, and other states are untouched.
pub fn agrees(what: &str, env: &Env, got: &Bytes, reference: &Reference<'_>) {
    let g = reference.g;
    for (name, v) in &g.outputs {
        reference.compare(what, &format!("output {name}"), *v, got);
    }
    for (id, s) in g.states().iter().enumerate() {
        let name = format!("state {}", s.name);
        match g.assigns.iter().find(|a| a.0.index() == id) {
            Some((_, v)) => reference.compare(what, &name, *v, got),
            None => {
                let before = bytes_of(g.ty(s.value).dtype, &env[&s.name].data);
                assert!(got[&name] == before, "{what}: {name} is not assigned, and changed");
            }
        }
    }
}

/// What the interpreter says, and how far a device may be from it.
pub struct Reference<'a> {
    g: &'a Graph,
    declared: Vec<Tensor>,
    exact: Vec<Tensor>,
    /// Factor of all tolerances: c √K.
    factor: f64,
    /// Whether anything is computed from bf16 values.
    half: bool,
    /// The least magnitude that rounding is relative to.
    floor: f64,
}

impl<'a> Reference<'a> {
    pub fn new(g: &'a Graph, env: &Env, clock: Clock, floor: f64) -> Reference<'a> {
        let run = |mode| interpret(g, env, clock, mode).expect("all is given").values;
        Reference::of(g, [run(Rounding::Declared), run(Rounding::Exact)], floor)
    }

    /// The same of values that are known, as declared and exactly.
    pub fn of(g: &'a Graph, [declared, exact]: [Vec<Tensor>; 2], floor: f64) -> Reference<'a> {
        let half = g.values().iter().zip(g.readers());
        let half = half.clone().any(|(v, r)| v.ty.dtype == DType::Bf16 && !r.is_empty());
        Reference { g, declared, exact, floor, factor: 8.0 * (longest_sum(g) as f64).sqrt(), half }
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
        self.factor * if self.half { 2f64.powi(-9) } else { 2f64.powi(-24) }
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
        let largest = a.iter().filter(finite).fold(self.floor, |m, x| m.max(x.abs()));
        let noise = a.iter().zip(b).map(|(x, y)| (x - y).abs());
        let noise = noise.filter(|x| x.is_finite()).fold(0.0, f64::max);
        let own = if self.g.ty(v).dtype == DType::Bf16 { 2f64.powi(-9) } else { 0.0 };
        self.relative().max(self.factor * own) * largest + self.factor * noise
    }

    fn compare(&self, what: &str, name: &str, v: ValueId, got: &Bytes) {
        let ty = self.g.ty(v);
        let numbers = numbers_of(ty.dtype, &got[name]);
        let tolerance = self.tolerance(v);
        assert_eq!(numbers.len(), self.values(v).data.len(), "{what}: {name}");
        for (i, (a, b)) in numbers.iter().zip(&self.values(v).data).enumerate() {
            // Written so that NaN fails.
            let fits = a == b || (a - b).abs() <= tolerance;
            let shown = ty.show(self.g.axes());
            assert!(fits, "{what}: {name}, {shown} element {i} is {a}, wanted {b} ± {tolerance:e}");
        }
    }
}

/// The most terms that one node of the graph adds into one element.
fn longest_sum(g: &Graph) -> usize {
    let sum = |node: &aerogel_graph::Node| {
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

/// Random numbers for all inputs and states that the environment lacks: floats in [-1, 1), and
/// ids below `rows`.
pub fn fill(g: &Graph, env: &mut Env, rng: &mut Rng, rows: usize) {
    for value in g.values() {
        let name = match value.def {
            Def::Input(i) => &g.inputs()[i as usize].name,
            Def::State(s) => &g.states()[s.index()].name,
            Def::Node(..) => continue,
        };
        if !env.contains_key(name) {
            env.insert(name.clone(), random(g, &value.ty, rng, rows));
        }
    }
}

/// A random tensor of a type.
pub fn random(g: &Graph, ty: &Type, rng: &mut Rng, rows: usize) -> Tensor {
    let count = g.axes().count(&ty.axes);
    let draw = |rng: &mut Rng| match ty.dtype {
        DType::U32 => rng.below(rows) as f64,
        dtype => dtype.round(rng.value()),
    };
    let data = (0..count).map(|_| draw(rng)).collect();
    Tensor::from_vec(g.axes(), &ty.axes, data)
}
