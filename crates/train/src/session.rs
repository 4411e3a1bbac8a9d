//! The plan loaded with weights: all ranks of a run.

use crate::crew::{OnHang, each};
use crate::error::TrainError;
use crate::pipe::Pipe;
use crate::plan::RunPlan;
use crate::tensors::Tensors;
use aerogel_comm::Fabric;
use aerogel_graph::{Clock, DType, Init, Role, random};
use aerogel_machine::{Alone, Collectives, Device, DeviceError};
use std::sync::Arc;
use std::time::Duration;

/// How ranks wait for each other.
#[derive(Clone)]
pub struct Ties {
    /// How long a silent rank is waited for.
    pub timeout: Duration,
    /// What to do with one that does not come back.
    pub on_hang: OnHang,
    /// What stands between a rank and the others: nothing, but in tests.
    pub wrap: Option<Wrap>,
}

/// Makes of a rank's ties what it is given instead.
pub type Wrap = Arc<dyn Fn(usize, Box<dyn Collectives>) -> Arc<dyn Collectives> + Send + Sync>;

impl Ties {
    /// Ties that give a silent rank so long; a rank that never comes back is waited for.
    pub fn new(timeout: Duration) -> Ties {
        Ties { timeout, on_hang: Arc::new(|_| ()), wrap: None }
    }
}

/// A loaded plan.
pub struct Session {
    /// The plan that it runs.
    pub plan: RunPlan,
    /// The devices, with all states.
    pub ranks: Vec<Box<dyn Device>>,
    pub(crate) tensors: Tensors,
    pub(crate) ties: Ties,
}

/// Elements that are drawn or copied at a time: enough for all threads to start for.
const CHUNK: u64 = 1 << 21;

impl Session {
    /// Loads the programs of all ranks; states are zero.
    ///
    /// # Errors
    /// There is no such device for so many ranks, or it cannot have the memory.
    pub fn load(plan: RunPlan, ties: Ties) -> Result<Session, TrainError> {
        let loader = plan.backend.loader(plan.threads, plan.mesh.ranks())?;
        let mut ranks = vec![];
        for (rank, tie) in tie(&plan, &ties).into_iter().enumerate() {
            ranks.push(loader.load(plan.program(rank).clone(), tie)?);
        }
        let tensors = Tensors::of(&plan);
        Ok(Session { plan, ranks, tensors, ties })
    }

    /// Bytes of all arenas, as allocated.
    pub fn allocated_bytes(&self) -> u64 {
        self.ranks.iter().map(|d| d.allocated_bytes()).sum()
    }

    /// Bytes beside the arenas: what libraries took, and messages between ranks.
    pub fn library_bytes(&self) -> u64 {
        self.ranks.iter().map(|d| d.library_bytes() + d.ties().held_bytes()).sum()
    }

    /// Draws the initial values, by (seed, name, element).
    ///
    /// # Errors
    /// A device failed.
    pub fn initialise(&mut self, seed: u64) -> Result<(), TrainError> {
        let threads = self.plan.threads;
        let mut chunk: Vec<f32> = vec![];
        for tensor in self.tensors.iter() {
            let stream = random::stream_id(&tensor.name);
            let count = tensor.count();
            for start in (0..count).step_by(CHUNK as usize) {
                chunk.resize((count - start).min(CHUNK) as usize, 0.0);
                match tensor.init {
                    Init::Constant(c) => chunk.fill(c as f32),
                    Init::Normal(std) => fill(&mut chunk, start, threads, |first, out| {
                        random::normals(seed, stream, first, std, out);
                    }),
                }
                tensor.write(&mut self.ranks, start, bytemuck::cast_slice(&chunk))?;
            }
        }
        self.refresh()
    }

    /// Makes the copies that follow from the parameters, after these were written.
    pub(crate) fn refresh(&mut self) -> Result<(), TrainError> {
        let plan = &self.plan;
        let mut pipes: Vec<Option<Pipe>> =
            (0..self.ranks.len()).map(|rank| Pipe::new(plan, rank)).collect();
        self.each_with(&mut pipes, |plan, rank, device, pipe| {
            if let Some(section) = plan.program(rank).section("weights") {
                device.run(section, Clock::default(), 0)?;
            }
            pipe.as_mut().map_or(Ok(()), |pipe| pipe.renew(device))
        })?;
        Ok(())
    }

    /// Runs `work` on all ranks side by side, each with its item.
    pub(crate) fn each_with<E: Send, T: Send>(
        &mut self,
        items: &mut [E],
        work: impl Fn(&RunPlan, usize, &mut dyn Device, &mut E) -> Result<T, TrainError> + Sync,
    ) -> Result<Vec<T>, TrainError> {
        let plan = &self.plan;
        each(&mut self.ranks, items, 2 * self.ties.timeout, &self.ties.on_hang, |rank, d, e| {
            work(plan, rank, d, e)
        })
    }

    /// BLAKE3 over names and bytes of all parameters, whatever the layout.
    ///
    /// # Errors
    /// A device failed.
    pub fn parameters_hash(&self) -> Result<String, TrainError> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0u8; 4 * CHUNK as usize];
        for tensor in self.tensors.iter().filter(|t| t.role == Role::Parameter) {
            debug_assert_eq!(tensor.dtype, DType::F32);
            hasher.update(tensor.name.as_bytes());
            let count = tensor.count();
            for start in (0..count).step_by(CHUNK as usize) {
                let bytes = &mut chunk[..4 * (count - start).min(CHUNK) as usize];
                tensor.read(&self.ranks, start, bytes)?;
                hasher.update(bytes);
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The elements of a parameter or of a tensor of the optimizer, row-major.
    ///
    /// # Errors
    /// There is no such tensor, or a device failed.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        let unknown = || DeviceError::Unknown { kind: "tensor", name: name.to_owned(), bytes: 0 };
        let tensor = self.tensors.find(name).ok_or_else(unknown)?;
        let mut values = vec![0f32; tensor.count() as usize];
        tensor.read(&self.ranks, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Names of all tensors that last, parameters first.
    pub fn tensor_names(&self) -> Vec<String> {
        self.tensors.iter().map(|t| t.name.clone()).collect()
    }
}

/// Elements for which a thread is worth starting: it takes as long as some hundred draws.
const SHARE: usize = 1 << 13;

/// Fills elements from number `first` on by shares, each from its first number on.
fn fill(out: &mut [f32], first: u64, threads: usize, run: impl Fn(u64, &mut [f32]) + Sync) {
    let share = out.len().div_ceil(threads.max(1)).max(SHARE);
    std::thread::scope(|scope| {
        let mut shares = (first..).step_by(share).zip(out.chunks_mut(share));
        let own = shares.next();
        for (first, share) in shares {
            let run = &run;
            scope.spawn(move || run(first, share));
        }
        own.into_iter().for_each(|(first, share)| run(first, share));
    });
}

/// The ties of all ranks.
fn tie(plan: &RunPlan, ties: &Ties) -> Vec<Arc<dyn Collectives>> {
    let bare: Vec<Box<dyn Collectives>> = match plan.mesh.ranks() {
        1 => vec![Box::new(Alone::new())],
        _ => {
            let options = aerogel_comm::Options { timeout: ties.timeout };
            let all = Fabric::new(plan.mesh.clone(), options);
            all.into_iter().map(|t| Box::new(t) as Box<dyn Collectives>).collect()
        }
    };
    bare.into_iter()
        .enumerate()
        .map(|(rank, tie)| match &ties.wrap {
            Some(wrap) => wrap(rank, tie),
            None => Arc::from(tie),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{SHARE, fill};

    #[test]
    fn elements_are_filled_by_their_numbers_whatever_the_threads() {
        for (count, threads) in [(1, 4), (SHARE + 1, 0), (5 * SHARE + 3, 3), (SHARE, 100)] {
            let mut out = vec![-1.0; count];
            fill(&mut out, 7, threads, |first, out| {
                (first..).zip(out).for_each(|(i, x)| *x = i as f32);
            });
            let wanted: Vec<f32> = (7..).take(count).map(|i: u64| i as f32).collect();
            assert!(out == wanted, "{count} by {threads}");
        }
    }
}
