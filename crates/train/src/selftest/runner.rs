//! Graphs on a device: planned, loaded into an arena full of NaN, run twice, and compared.

use super::failure::Failure;
use super::reference::{Bound, Reference, Step, coarsest, judge, longest_sum, same_bits};
use super::values::{Bytes, bytes_of, numbers_of};
use crate::backend::{Backend, Loader};
use crate::error::TrainError;
use aerogel_graph::{Build, Clock, Env, Graph, Op, Rounding, StateId, ValueId, interpret};
use aerogel_machine::{Alone, Device, Machine, Program, Target};
use aerogel_plan::{Ask, plan};
use std::sync::Arc;

/// The name of the only section of a graph that is run alone.
const ALONE: &str = "alone";
/// Threads of the CPU.
const THREADS: usize = 2;

/// One graph as the only section of a plan.
pub fn alone(g: &Graph) -> Vec<Ask> {
    vec![Ask { name: ALONE.to_owned(), graph: g.clone(), calls: 1 }]
}

/// How tightly a graph is held.
#[derive(Clone, Copy, Debug)]
pub struct Tight {
    /// Roundings that an element may be off, for all the steps that it was computed in.
    pub steps: f64,
    /// The least size that roundings are relative to.
    pub floor: f64,
}

impl Default for Tight {
    fn default() -> Tight {
        Tight { steps: 8.0, floor: 0.0 }
    }
}

/// Plans and loads for one backend.
pub struct Runner {
    /// What it runs on.
    pub backend: Backend,
    machine: Machine,
    target: Box<dyn Target>,
    loader: Loader,
}

/// A loaded program whose arena held nothing but NaN.
pub struct Loaded {
    /// The device.
    pub device: Box<dyn Device>,
    /// What it runs.
    pub program: Arc<Program>,
}

impl Runner {
    /// A runner on this machine.
    ///
    /// # Errors
    /// The device is not there.
    pub fn new(backend: Backend) -> Result<Runner, TrainError> {
        let machine = backend.machine(THREADS);
        let target = backend.target(&machine);
        let loader = backend.loader(THREADS, 1)?;
        Ok(Runner { backend, machine, target, loader })
    }

    /// Plans and loads sections.
    ///
    /// # Errors
    /// There is no kernel for them, or no memory.
    pub fn load(&self, asks: Vec<Ask>) -> Result<Loaded, Failure> {
        let program = Arc::new(plan(asks, self.target.as_ref(), &self.machine)?.program);
        let device = self.loader.load(program.clone(), Arc::new(Alone::new()))?;
        Loaded::new(device, program)
    }

    /// Runs a graph twice and compares it with the interpreter; gives the largest error in parts
    /// of its bound. What values are computed from is as large as `floor`.
    ///
    /// # Errors
    /// It cannot run, or an error is above its bound.
    pub fn check(&self, g: &Graph, env: &Env, clock: Clock, floor: f64) -> Result<f64, Failure> {
        let got = self.twice(g, env, clock)?;
        Reference::new(g, env, clock, floor).agrees(env, &got)
    }

    /// Runs a graph twice and compares it with the interpreter, which rounds nothing on the way.
    /// Bounds do not grow with what rounding in 16 bits may add up to, as those of
    /// [`Runner::check`] do: the graph has to be well conditioned.
    ///
    /// # Errors
    /// As [`Runner::check`].
    pub fn check_exact(
        &self,
        g: &Graph,
        env: &Env,
        clock: Clock,
        tight: Tight,
    ) -> Result<f64, Failure> {
        let got = self.twice(g, env, clock)?;
        let run = interpret(g, env, clock, Rounding::Exact)?;
        let wanted = |v: ValueId| run.values[v.index()].data.clone();
        compared(g, &got, longest_sum(g), tight, ends(g).map(|(name, v)| (name, v, wanted(v))))
    }

    /// The same for graphs that the interpreter would take long for: `exact` is the graph in f32,
    /// and runs on the CPU in primitive ops, products as they are.
    ///
    /// # Errors
    /// As [`Runner::check`].
    pub fn check_beside(
        &self,
        cpu: &Runner,
        g: &Graph,
        exact: &Graph,
        env: &Env,
        clock: Clock,
        tight: Tight,
    ) -> Result<f64, Failure> {
        let got = self.twice(g, env, clock)?;
        let fused = |op: &Op| {
            use Op::{Attend, AttendGrad, LinearCe, LinearCeGrad, Norm, NormGrad};
            matches!(
                op,
                Attend(_) | AttendGrad(_) | LinearCe(_) | LinearCeGrad(_) | Norm(_) | NormGrad(_)
            )
        };
        let primitive = exact.expanded(|node| fused(&node.op))?;
        let mut loaded = cpu.load(alone(&primitive))?;
        loaded.write_states(0, env)?;
        let wanted = loaded.run(0, env, clock)?;
        let all = ends(g).zip(ends(exact)).map(|((name, v), (_, w))| {
            let wanted = numbers_of(exact.ty(w).dtype, &wanted[&name]);
            (name, v, wanted)
        });
        compared(g, &got, longest_sum(&primitive), tight, all)
    }

    /// Runs a graph twice, the second time on what the first run left.
    fn twice(&self, g: &Graph, env: &Env, clock: Clock) -> Result<Bytes, Failure> {
        let mut loaded = self.load(alone(g))?;
        loaded.write_states(0, env)?;
        let first = loaded.run(0, env, clock)?;
        loaded.write_states(0, env)?;
        same_bits(&loaded.run(0, env, clock)?, &first)?;
        Ok(first)
    }
}

/// The outputs and new states of a graph.
fn ends(g: &Graph) -> impl Iterator<Item = (String, ValueId)> {
    let state = |id: StateId| format!("state {}", g.states()[id.index()].name);
    let outputs = g.outputs.iter().map(|(name, v)| (format!("output {name}"), *v));
    outputs.chain(g.assigns.iter().map(move |(s, v)| (state(*s), *v)))
}

/// The largest error of all values in parts of its bound: some roundings of what is computed, and
/// as many of f32 as sums of so many terms make.
fn compared(
    g: &Graph,
    got: &Bytes,
    terms: usize,
    tight: Tight,
    wanted: impl Iterator<Item = (String, ValueId, Vec<f64>)>,
) -> Result<f64, Failure> {
    let read = coarsest(g);
    let sums = (terms as f64).sqrt() * 2f64.powi(-24);
    let mut worst = 0f64;
    for (name, v, wanted) in wanted {
        let ty = g.ty(v);
        let step = read.or(Step::of(ty.dtype));
        let numbers = numbers_of(ty.dtype, &got[&name]);
        let relative = tight.steps * (step.relative + sums);
        let bound = Bound { relative, floor: tight.floor.max(step.normal) };
        worst = worst.max(judge(&name, &ty.show(g.axes()), &numbers, &wanted, bound)?);
    }
    Ok(worst)
}

impl Loaded {
    /// Fills the arena of a device with NaN.
    ///
    /// # Errors
    /// The device failed, or allocated something else than was planned.
    pub fn new(mut device: Box<dyn Device>, program: Arc<Program>) -> Result<Loaded, Failure> {
        let (planned, allocated) = (program.arena_bytes, device.allocated_bytes());
        if planned != allocated {
            return Err(Failure::Memory { planned, allocated });
        }
        device.poison()?;
        Ok(Loaded { device, program })
    }

    /// Writes the states that the section declares and the environment has.
    ///
    /// # Errors
    /// The device failed.
    pub fn write_states(&mut self, section: usize, env: &Env) -> Result<(), Failure> {
        let g = &self.program.sections[section].graph;
        for s in g.states() {
            let Some(t) = env.get(&s.name) else { continue };
            let bytes = bytes_of(g.ty(s.value).dtype, &t.data);
            self.device.write_state(&s.name, 0, &bytes)?;
        }
        Ok(())
    }

    /// Writes the inputs, runs, and reads all outputs and states.
    ///
    /// # Errors
    /// The device failed.
    pub fn run(&mut self, section: usize, env: &Env, clock: Clock) -> Result<Bytes, Failure> {
        let g = &self.program.sections[section].graph;
        for i in g.inputs() {
            let bytes = bytes_of(g.ty(i.value).dtype, &env[&i.name].data);
            self.device.write_input(section, &i.name, &bytes)?;
        }
        self.device.run(section, clock, 0)?;
        let mut all = Bytes::new();
        let space = |v: ValueId| vec![0; g.ty(v).bytes(g.axes()) as usize];
        for (name, v) in &g.outputs {
            let mut bytes = space(*v);
            self.device.read_output(section, name, &mut bytes)?;
            all.insert(format!("output {name}"), bytes);
        }
        for s in g.states() {
            let mut bytes = space(s.value);
            self.device.read_state(&s.name, 0, &mut bytes)?;
            all.insert(format!("state {}", s.name), bytes);
        }
        Ok(all)
    }
}
