//! What cases are, and what they run with.

use super::failure::Failure;
use super::rng::Rng;
use super::runner::Runner;
pub use super::runner::Tight;
use super::values::fill;
use super::world::Built;
use crate::backend::Backend;
use crate::error::TrainError;
use aerogel_graph::{Build, Clock, DType, Env, Graph};

/// FLOPs of a graph that the interpreter is given.
const INTERPRETED: u64 = 2_000_000;

/// What a case does with the device.
type Run = Box<dyn FnOnce(&Bench) -> Result<f64, Failure>>;

/// One thing to hold a device to.
pub struct Case {
    /// What sets it apart within its group.
    pub name: String,
    /// Runs it; gives the largest error in parts of its bound.
    pub run: Run,
}

/// The device that is tested, and the one that it is compared with where the interpreter would
/// take long.
pub struct Bench {
    /// The device.
    pub device: Runner,
    /// The CPU.
    pub cpu: Runner,
}

/// A graph in a dtype of its products and activations.
pub type Form<'a> = &'a dyn Fn(DType) -> Built<Graph>;

impl Case {
    /// A case of that name.
    pub fn new(name: String, run: impl FnOnce(&Bench) -> Result<f64, Failure> + 'static) -> Case {
        Case { name, run: Box::new(run) }
    }
}

impl Bench {
    /// On this machine.
    ///
    /// # Errors
    /// The device is not there.
    pub fn new(backend: Backend) -> Result<Bench, TrainError> {
        Ok(Bench { device: Runner::new(backend)?, cpu: Runner::new(Backend::Cpu)? })
    }

    /// Holds the device to a graph on random data, ids below `rows`; `given` has what is not
    /// random.
    ///
    /// # Errors
    /// The graph cannot be built or run, or an error is above its bound.
    pub fn hold(
        &self,
        dtype: DType,
        tight: Tight,
        rng: &mut Rng,
        rows: usize,
        given: Env,
        form: Form<'_>,
    ) -> Result<f64, Failure> {
        let (g, mut env) = (form(dtype)?, given);
        fill(&g, &mut env, rng, rows);
        let clock = Clock { seed: rng.next(), step: 3, ..Clock::default() };
        if flops(&g) <= INTERPRETED {
            return self.device.check_exact(&g, &env, clock, tight);
        }
        self.device.check_beside(&self.cpu, &g, &form(DType::F32)?, &env, clock, tight)
    }
}

fn flops(g: &Graph) -> u64 {
    g.nodes().iter().map(|n| n.op.flops(g.axes(), &g.in_types(n), &g.out_types(n))).sum()
}

/// The source of a case's shape and numbers.
pub fn rng_of(seed: u64, number: usize) -> Rng {
    let mut rng = Rng(seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
    rng.next();
    rng
}

/// The word for a dtype.
pub fn word(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::U32 => "u32",
    }
}
