//! A GPU that runs programs: one arena, one stream, and per section one recorded graph of launches,
//! in which short steps that have nothing to do with each other stand side by side.
//!
//! Loading does everything once: kernels are compiled (or found on disk), addresses are put into
//! their parameters, constants are uploaded. A run then copies what changes, the inputs and the
//! [`Clock`], through pinned memory, and replays the section's graph; the host waits for the GPU
//! only where it reads.

mod lanes;
mod load;
mod reach;
mod record;
mod staging;
mod timers;

use crate::context::Context;
use crate::error::CudaError;
use crate::handles::{Function, Graph, Memory};
use aerogel_graph::Clock;
use aerogel_machine::{Collectives, Device, DeviceError, Program, Span};
pub use load::sources;
use record::Lanes;
use staging::Staging;
use std::collections::HashMap;
use std::sync::Arc;
use timers::Timers;

/// What a section does, with addresses.
enum Prepared {
    Run(Start),
    /// Byte offsets in the arena; the target moves with the copy of its state.
    Copy {
        from: u64,
        to: u64,
        bytes: u64,
        copy_stride: u64,
    },
}

/// A launch with its arguments: one for each copy of the states that it works on, or one for all.
struct Start {
    function: Function,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    arguments: Vec<Vec<u8>>,
}

/// Runs programs that were planned for a [`CudaTarget`](crate::CudaTarget).
pub struct CudaDevice {
    program: Arc<Program>,
    context: Context,
    arena: Memory,
    /// The clock, then the kernels' tables.
    constants: Memory,
    staging: Staging,
    ties: Arc<dyn Collectives>,
    /// What each section does, with the number of the step that it is a part of.
    sections: Vec<Vec<(u32, Prepared)>>,
    lanes: Lanes,
    /// Recorded when a section first runs, for each copy.
    graphs: HashMap<(usize, u32), Graph>,
    timers: Option<Timers>,
    library_bytes: u64,
    /// The sections' names, as others read them when this rank is late.
    sites: Vec<Arc<str>>,
}

/// Calls that fail because a kernel did, after which the GPU is of no further use to this process.
const HEARS_OF_FAILURES: [&str; 5] = [
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "cuMemcpyDtoHAsync",
    "cuMemcpyHtoDAsync",
    "cuGraphLaunch",
];

impl From<CudaError> for DeviceError {
    fn from(e: CudaError) -> DeviceError {
        let (device, reason) = ("cuda".to_owned(), e.to_string());
        match e {
            CudaError::Memory { bytes, .. } => DeviceError::Arena { bytes, reason },
            CudaError::Call { call, .. } => {
                let is_lost = HEARS_OF_FAILURES.contains(&call);
                DeviceError::Failed { device, reason, is_lost }
            }
            _ => DeviceError::Failed { device, reason, is_lost: false },
        }
    }
}

impl CudaDevice {
    /// The GPU.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Enqueues one thing that a section does.
    fn enqueue(&self, to: &Context, prepared: &Prepared, copy: u32) -> Result<(), CudaError> {
        match prepared {
            Prepared::Run(start) => {
                let own = if start.arguments.len() > 1 { copy as usize } else { 0 };
                let block = [start.threads, 1, 1];
                // SAFETY: the argument was made by the host's half of this kernel, whose size the
                // compiler checked; operands and workspace lie in the arena where the plan, which
                // was checked, has them, and the constants beside it live as long.
                unsafe {
                    to.launch(
                        &start.function,
                        start.grid,
                        block,
                        start.shared_bytes,
                        &[&start.arguments[own]],
                    )
                }
            }
            Prepared::Copy { from, to: first, bytes, copy_stride } => {
                let first = first + u64::from(copy) * copy_stride;
                to.copy((&self.arena, *from), (&self.arena, first), *bytes)
            }
        }
    }

    /// Enqueues a section, step by step with marks between.
    fn run_timed(&mut self, section: usize, copy: u32) -> Result<(), DeviceError> {
        let Some(mut timers) = self.timers.take() else { return Ok(()) };
        let mut lap = timers.start(&self.context)?;
        for (step, prepared) in &self.sections[section] {
            self.enqueue(&self.context, prepared, copy)?;
            lap.end(&self.context, *step)?;
        }
        timers.add(section, &lap)?;
        self.timers = Some(timers);
        Ok(())
    }
}

impl Device for CudaDevice {
    fn ties(&self) -> &dyn Collectives {
        self.ties.as_ref()
    }

    fn allocated_bytes(&self) -> u64 {
        self.arena.bytes()
    }

    fn library_bytes(&self) -> u64 {
        self.library_bytes
    }

    fn write_state(
        &mut self,
        name: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let to = self.program.state_bytes(name, offset_bytes, bytes.len())?;
        Ok(self.context.upload(&self.arena, to, bytes)?)
    }

    fn read_state(
        &self,
        name: &str,
        offset_bytes: u64,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        let from = self.program.state_bytes(name, offset_bytes, bytes.len())?;
        Ok(self.context.download(&self.arena, from, bytes)?)
    }

    fn write_input(&mut self, section: usize, name: &str, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = self.program.input_bytes(section, name, bytes.len())?;
        Ok(self.staging.upload(&self.context, &self.arena, to, bytes)?)
    }

    fn run(&mut self, section: usize, clock: Clock, copy: u32) -> Result<(), DeviceError> {
        if section >= self.sections.len() {
            let name = section.to_string();
            return Err(DeviceError::Unknown { kind: "section", name, bytes: 0 });
        }
        self.ties.progress(&self.sites[section]);
        // The struct of lib/clock.cuh; a position is read where the plan has it.
        let words = [clock.seed, clock.step, clock.micro, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.staging.upload(&self.context, &self.constants, 0, &bytes)?;
        if self.timers.is_some() {
            return self.run_timed(section, copy);
        }
        if !self.graphs.contains_key(&(section, copy)) {
            let graph = self.record(section, copy)?;
            self.graphs.insert((section, copy), graph);
        }
        Ok(self.context.replay(&self.graphs[&(section, copy)])?)
    }

    fn read_output(&self, section: usize, name: &str, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.program.output_bytes(section, name, bytes.len())?;
        Ok(self.context.download(&self.arena, from, bytes)?)
    }

    fn profile(&mut self, on: bool) {
        // A GPU that gives no marks says why when it is asked to run.
        self.timers = if on { Timers::new(&self.context).ok() } else { None };
    }

    fn poison(&mut self) -> Result<(), DeviceError> {
        Ok(self.context.fill(&self.arena, 0, self.arena.bytes(), 0xff)?)
    }

    fn spans(&self) -> &[Span] {
        self.timers.as_ref().map_or(&[], Timers::spans)
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Graphs hold addresses of the memory that goes with the other fields.
        self.graphs.clear();
    }
}
