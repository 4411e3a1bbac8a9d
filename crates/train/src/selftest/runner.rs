//! Graphs on a device: planned, loaded into an arena full of NaN, run twice, and compared.

use super::failure::Failure;
use super::reference::{Reference, is_half, longest_sum, nearest, same_bits};
use super::values::{Bytes, bytes_of, numbers_of};
use crate::backend::{Backend, Loader};
use crate::error::TrainError;
use aerogel_graph::{Build, Clock, DType, Env, Graph, Op, ValueId};
use aerogel_machine::{Alone, Device, Machine, Program, Target};
use aerogel_plan::{Ask, plan};
use std::sync::Arc;

/// The name of the only section of a graph that is run alone.
const ALONE: &str = "alone";
/// Threads of the CPU.
const THREADS: usize = 2;
/// Roundings that an element computed in several steps may be off, in parts of the largest.
const STEPS: f64 = 8.0;

/// One graph as the only section of a plan.
pub fn alone(g: &Graph) -> Vec<Ask> {
    vec![Ask { name: ALONE.to_owned(), graph: g.clone(), calls: 1 }]
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
        let half = if is_half(g) { 2f64.powi(-9) } else { 0.0 };
        let sums = (longest_sum(&primitive) as f64).sqrt() * 2f64.powi(-24);
        let mut worst = 0f64;
        for (name, v, w) in ends(g, exact) {
            let (ty, exact) = (g.ty(v), exact.ty(w));
            let numbers = numbers_of(ty.dtype, &got[&name]);
            let wanted = numbers_of(exact.dtype, &wanted[&name]);
            let own = if ty.dtype == DType::Bf16 { 2f64.powi(-9) } else { 0.0 };
            let relative = STEPS * (half.max(own) + sums);
            let shown = ty.show(g.axes());
            worst = worst.max(judge(&name, &shown, &numbers, &wanted, relative)?);
        }
        Ok(worst)
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

/// The largest error of some elements in parts of its bound, which is relative to the largest of
/// them; for all together, to their root mean square.
///
/// # Errors
/// It is above its bound.
pub fn judge(
    name: &str,
    shown: &str,
    got: &[f64],
    wanted: &[f64],
    relative: f64,
) -> Result<f64, Failure> {
    let finite = || wanted.iter().filter(|x| x.is_finite());
    let largest = finite().fold(0f64, |m, x| m.max(x.abs()));
    let worst = nearest(name, shown, got, wanted, relative * largest)?;
    let mean = |sum: f64| (sum / wanted.len().max(1) as f64).sqrt();
    let errors = got.iter().zip(wanted).filter(|(a, b)| a != b);
    let error = mean(errors.map(|(a, b)| (a - b).powi(2)).sum());
    let bound = relative * mean(finite().map(|x| x * x).sum());
    // Written so that NaN fails.
    if error == 0.0 || error <= bound {
        return Ok(worst.max(if error == 0.0 { 0.0 } else { error / bound }));
    }
    let (name, shown) = (name.to_owned(), shown.to_owned());
    Err(Failure::Mean { name, shown, got: error, bound })
}

/// The outputs and new states of a graph, beside those of its f32 form.
fn ends(g: &Graph, exact: &Graph) -> Vec<(String, ValueId, ValueId)> {
    let outputs = g.outputs.iter().zip(&exact.outputs);
    let assigns = g.assigns.iter().zip(&exact.assigns);
    outputs
        .map(|((name, v), (_, w))| (format!("output {name}"), *v, *w))
        .chain(
            assigns
                .map(|((s, v), (_, w))| (format!("state {}", g.states()[s.index()].name), *v, *w)),
        )
        .collect()
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
