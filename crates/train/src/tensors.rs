//! Tensors by name and global index: which rank holds which elements of them.
//!
//! A checkpoint knows tensors only; how a plan cuts them, packs them into buckets and deals them
//! out over ranks is found here, so that any layout reads what any other has written.

use crate::error::TrainError;
use crate::plan::RunPlan;
use aerogel_graph::{DType, Init, Role};
use aerogel_machine::{Device, DeviceError, Part, Run, StateSlot};
use std::collections::HashMap;

/// Elements of a tensor on one rank.
struct Holder {
    rank: usize,
    state: String,
    /// Ascending, in the tensor and in the state.
    runs: Vec<Run>,
    /// Whether a checkpoint is written from here: of ranks that hold the same, one is.
    writes: bool,
}

/// A tensor, and who holds it.
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: DType,
    pub role: Role,
    pub init: Init,
    /// Names and extents of its axes, outermost first.
    pub axes: Vec<(String, u64)>,
    holders: Vec<Holder>,
}

/// All tensors that last: parameters in the order of the model, then the optimizer's.
pub(crate) struct Tensors(Vec<Tensor>);

impl Tensors {
    pub fn of(plan: &RunPlan) -> Tensors {
        let mut list: Vec<Tensor> = vec![];
        let mut known: HashMap<String, usize> = HashMap::new();
        for rank in 0..plan.mesh.ranks() {
            let place = plan.mesh.place(rank);
            let lasting = |s: &&StateSlot| matches!(s.role, Role::Parameter | Role::Optimizer);
            for state in plan.program(rank).states.iter().filter(lasting) {
                for part in &state.parts {
                    let at = *known.entry(part.name.clone()).or_insert_with(|| {
                        list.push(tensor(state, part));
                        list.len() - 1
                    });
                    let runs = state.runs(part, place);
                    let holders = &mut list[at].holders;
                    let writes = !runs.is_empty() && holders.iter().all(|h| h.runs_differ(&runs));
                    holders.push(Holder { rank, state: state.name.clone(), runs, writes });
                }
            }
        }
        let order: HashMap<&str, usize> =
            plan.parameters.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        let key = |t: &Tensor| order.get(t.name.as_str()).copied().unwrap_or(usize::MAX);
        list.sort_by_key(key);
        Tensors(list)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter()
    }

    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|t| t.name == name)
    }
}

fn tensor(state: &StateSlot, part: &Part) -> Tensor {
    Tensor {
        name: part.name.clone(),
        dtype: state.dtype,
        role: state.role,
        init: part.init,
        axes: part.axes.iter().map(|a| (a.name.clone(), a.global_size() as u64)).collect(),
        holders: vec![],
    }
}

impl Holder {
    /// Whether the runs name other elements: two pieces are equal or have nothing in common.
    fn runs_differ(&self, runs: &[Run]) -> bool {
        let first = |r: &[Run]| r.first().map(|r| r.global);
        first(&self.runs) != first(runs)
    }
}

impl Tensor {
    /// Elements of the whole tensor.
    pub fn count(&self) -> u64 {
        self.axes.iter().map(|a| a.1).product()
    }

    /// Reads elements from `first` on, from the ranks that hold them.
    pub fn read(
        &self,
        ranks: &[Box<dyn Device>],
        first: u64,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let width = self.dtype.bytes();
        let end = first + (out.len() / width) as u64;
        for holder in self.holders.iter().filter(|h| h.writes) {
            let from = holder.runs.partition_point(|r| r.global + r.count <= first);
            for run in holder.runs[from..].iter().take_while(|r| r.global < end) {
                let start = run.global.max(first);
                let count = (run.global + run.count).min(end) - start;
                let to = (start - first) as usize * width;
                let bytes = &mut out[to..to + count as usize * width];
                let local = (run.local + start - run.global) * width as u64;
                ranks[holder.rank].read_state(&holder.state, local, bytes)?;
            }
        }
        Ok(())
    }

    /// Writes elements from `first` on, to every rank that holds some of them.
    pub fn write(
        &self,
        ranks: &mut [Box<dyn Device>],
        first: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let width = self.dtype.bytes();
        let end = first + (bytes.len() / width) as u64;
        for holder in &self.holders {
            let from = holder.runs.partition_point(|r| r.global + r.count <= first);
            for run in holder.runs[from..].iter().take_while(|r| r.global < end) {
                let start = run.global.max(first);
                let count = (run.global + run.count).min(end) - start;
                let at = (start - first) as usize * width;
                let local = (run.local + start - run.global) * width as u64;
                let piece = &bytes[at..at + count as usize * width];
                ranks[holder.rank].write_state(&holder.state, local, piece)?;
            }
        }
        Ok(())
    }

    /// A tensor of a checkpoint must be this one.
    pub fn check(&self, step: u64, dtype: DType, axes: &[(String, u64)]) -> Result<(), TrainError> {
        if dtype == self.dtype && axes == self.axes {
            return Ok(());
        }
        let problem = format!("has axes {axes:?}, the model {:?}", self.axes);
        Err(TrainError::Mismatch { step, name: self.name.clone(), problem })
    }
}
