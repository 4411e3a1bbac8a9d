//! The CPU device: one arena, one pool, and per section a list of prepared kernels with addresses.

use crate::arena::Arena;
use crate::exchange::Exchanged;
use crate::executable::Library;
use crate::kernel::{Kernel, Ptr, Scalars};
use crate::make::{BlockLists, make};
use crate::pool::Pool;
use crate::timer::Timers;
use aerogel_graph::ops::Collective;
use aerogel_graph::{Build, Clock, Op, Place, ValueId};
use aerogel_lower::{Call, Draws, Source, lower, section_strides};
use aerogel_machine::{
    Alone, Claim, Collectives, Device, DeviceError, Placed, Program, Section, Slot, Span, Step,
    Uses,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// What a section does, with addresses. Where an operand lies in a state of several copies, there
/// is a list of addresses for each copy; else there is one list.
enum Prepared {
    Run {
        kernel: Box<dyn Kernel>,
        ptrs: Vec<Vec<Ptr>>,
        scratch: (u64, usize),
        draws: Draws,
        position: Option<u64>,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
        copy_stride: u64,
    },
    Exchange(Exchanged),
}

/// Runs programs that were planned for a [`CpuTarget`](crate::CpuTarget) of as many threads.
pub struct CpuDevice {
    program: Arc<Program>,
    arena: Arena,
    pool: Arc<Pool>,
    ties: Arc<dyn Collectives>,
    /// What each section does, with the number of the step that it is a part of.
    sections: Vec<Vec<(u32, Prepared)>>,
    timers: Option<Timers>,
    /// The steps' names, as others read them when this rank is late.
    sites: Vec<Arc<str>>,
}

impl CpuDevice {
    /// Allocates the arena and prepares every kernel: the last allocation of a run.
    ///
    /// # Errors
    /// The memory or the threads cannot be had, or the program was planned for another machine.
    pub fn load(program: Arc<Program>, threads: usize) -> Result<CpuDevice, DeviceError> {
        let pool = Pool::new(threads).map_err(|e| DeviceError::Unsupported {
            what: format!("{threads} threads ({e})"),
            device: "cpu".to_owned(),
        })?;
        CpuDevice::load_rank(program, Arc::new(pool), Arc::new(Alone::new()))
    }

    /// The same for one rank of several, which may share a pool.
    ///
    /// # Errors
    /// As [`CpuDevice::load`].
    pub fn load_rank(
        program: Arc<Program>,
        pool: Arc<Pool>,
        ties: Arc<dyn Collectives>,
    ) -> Result<CpuDevice, DeviceError> {
        let arena = Arena::new(program.arena_bytes)?;
        let lists = BlockLists::default();
        let place = ties.mesh().place(ties.rank());
        let library = RefCell::new(Library::new(pool.simd()));
        let loading = Loading { program: &program, arena: &arena, lists: &lists, place, library };
        let sections = program
            .sections
            .iter()
            .map(|s| loading.section(s, pool.threads()))
            .collect::<Result<_, _>>()?;
        let sites = program.sections.iter().map(|s| s.name.as_str().into()).collect();
        Ok(CpuDevice { program, arena, pool, ties, sections, timers: None, sites })
    }
}

/// What preparing looks at.
struct Loading<'a> {
    program: &'a Program,
    arena: &'a Arena,
    lists: &'a BlockLists,
    place: Place,
    /// Machine code that kernels share.
    library: RefCell<Library>,
}

fn unsupported(what: String) -> DeviceError {
    DeviceError::Unsupported { what, device: "cpu".to_owned() }
}

impl Loading<'_> {
    fn address(&self, s: &Section, v: ValueId) -> Result<Placed, DeviceError> {
        let placed = self.program.placed(s, v);
        placed.ok_or_else(|| unsupported(format!("{v:?} without a slot")))
    }

    fn section(&self, s: &Section, threads: usize) -> Result<Vec<(u32, Prepared)>, DeviceError> {
        let uses = Uses::new(&s.graph);
        let strides = section_strides(s);
        let place = self.place;
        let source = Source { graph: &s.graph, uses: &uses, strides: &strides, place };
        let mut list = vec![];
        // Ranks are told apart by what they come to: the n-th collective of a group in a section.
        let mut counts: HashMap<&[u8], usize> = HashMap::new();
        for (number, step) in (0..).zip(&s.steps) {
            match step {
                Step::Kernel { claim, workspace } => {
                    if let Some(op) = collective(s, claim) {
                        let count = counts.entry(&op.over).or_default();
                        let exchanged = self.exchange(s, claim, op, *count)?;
                        list.push((number, Prepared::Exchange(exchanged)));
                        *count += 1;
                        continue;
                    }
                    let calls =
                        lower(&source, &claim.nodes).map_err(|e| unsupported(e.to_string()))?;
                    for call in &calls {
                        let kernel = self.kernel(s, call, claim, *workspace, threads)?;
                        list.extend(kernel.map(|k| (number, k)));
                    }
                }
                Step::Assign { from, to } => {
                    let state = &s.graph.states()[to.index()].name;
                    let slot = self.program.state(state);
                    let slot = slot.ok_or_else(|| unsupported(state.clone()))?;
                    let contiguous = |x: &&Slot| x.is_contiguous(s.axes(), s.graph.ty(*from));
                    let window = s.slot(*from).filter(contiguous);
                    let window =
                        window.ok_or_else(|| unsupported("assigning a window".to_owned()))?;
                    let copy_stride = if slot.copies > 1 { slot.stride_bytes } else { 0 };
                    let (from, to, bytes) = (window.offset, slot.offset, slot.bytes as usize);
                    list.push((number, Prepared::Copy { from, to, bytes, copy_stride }));
                }
            }
        }
        Ok(list)
    }

    /// A kernel with its addresses; `None` where there is nothing to do.
    fn kernel(
        &self,
        s: &Section,
        call: &Call,
        claim: &Claim,
        workspace: u64,
        threads: usize,
    ) -> Result<Option<Prepared>, DeviceError> {
        let made = make(&call.spec, self.lists);
        let mut kernel = made.map_err(|e| unsupported(e.to_string()))?;
        let scratch = kernel.scratch_bytes(threads);
        if scratch as u64 > claim.workspace_bytes {
            let (kernel, planned) = (claim.kernel, claim.workspace_bytes);
            return Err(unsupported(format!(
                "{scratch} bytes of workspace for {kernel}, planned {planned}"
            )));
        }
        let operands = call
            .operands
            .iter()
            .map(|&(v, first)| {
                let bytes = s.graph.ty(v).dtype.bytes() as isize * first;
                Ok((self.address(s, v)?, bytes))
            })
            .collect::<Result<Vec<_>, DeviceError>>()?;
        let copies = operands.iter().map(|o| o.0.copies).max().unwrap_or(1);
        let at = |copy: u32, (a, bytes): &(Placed, isize)| {
            Ptr::new(self.arena.at(a.at(copy)).wrapping_offset(*bytes).cast_const())
        };
        let ptrs: Vec<Vec<Ptr>> =
            (0..copies).map(|copy| operands.iter().map(|o| at(copy, o)).collect()).collect();
        if call.idle_in_place && operands_meet(&ptrs[0]) {
            return Ok(None);
        }
        let position = call.position.map(|v| self.address(s, v).map(|a| a.offset)).transpose()?;
        let draws = call.draws;
        kernel.prepare(&mut self.library.borrow_mut());
        Ok(Some(Prepared::Run { kernel, ptrs, scratch: (workspace, scratch), draws, position }))
    }

    fn exchange(
        &self,
        s: &Section,
        claim: &Claim,
        op: &Collective,
        count: usize,
    ) -> Result<Exchanged, DeviceError> {
        let node = s.graph.node(claim.nodes[0]);
        let ends = [self.address(s, node.ins[0])?, self.address(s, node.outs[0])?];
        if ends.iter().any(|a| a.copies > 1) {
            return Err(unsupported("a collective on an activation in flight".to_owned()));
        }
        let (kind, scope) = (op.kind_name(), &node.scope);
        let site = format!("{kind} {count} of section {} at `{scope}`", s.name);
        Ok(Exchanged::new(s, node, op, self.place, ends.map(|a| a.offset), &site))
    }
}

fn collective<'a>(s: &'a Section, claim: &Claim) -> Option<&'a Collective> {
    match &s.graph.node(claim.nodes[0]).op {
        Op::Collective(op) => Some(op),
        _ => None,
    }
}

/// Whether the first two operands are in one place.
fn operands_meet(ptrs: &[Ptr]) -> bool {
    matches!(ptrs, [a, b, ..] if a.address() == b.address())
}

impl Device for CpuDevice {
    fn ties(&self) -> &dyn Collectives {
        self.ties.as_ref()
    }

    fn allocated_bytes(&self) -> u64 {
        self.arena.bytes() as u64
    }

    fn library_bytes(&self) -> u64 {
        0
    }

    fn write_state(
        &mut self,
        name: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let to = self.arena.at(self.program.state_bytes(name, offset_bytes, bytes.len())?);
        // SAFETY: the state has this many bytes from there on, inside of the arena.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read_state(
        &self,
        name: &str,
        offset_bytes: u64,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        let from = self.arena.at(self.program.state_bytes(name, offset_bytes, bytes.len())?);
        // SAFETY: as above.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn write_input(&mut self, section: usize, name: &str, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = self.arena.at(self.program.input_bytes(section, name, bytes.len())?);
        // SAFETY: the value has exactly this many bytes inside of the arena.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn run(&mut self, section: usize, clock: Clock, copy: u32) -> Result<(), DeviceError> {
        let Some(list) = self.sections.get(section) else {
            let name = section.to_string();
            return Err(DeviceError::Unknown { kind: "section", name, bytes: 0 });
        };
        let mut lap = self.timers.as_mut().map(|t| t.start(section));
        for (step, prepared) in list {
            self.ties.progress(&self.sites[section]);
            match prepared {
                Prepared::Run { kernel, ptrs, scratch, draws, position } => {
                    let ptrs = if ptrs.len() > 1 { &ptrs[copy as usize] } else { &ptrs[0] };
                    // SAFETY: the plan was checked: operands and workspace lie in the arena, no
                    // written operand overlaps another one unless the kernel allows it, and the
                    // arena is borrowed by this call alone.
                    unsafe {
                        let position =
                            position.map_or(0, |p| self.arena.at(p).cast::<u32>().read());
                        let scalars = Scalars {
                            seed: clock.seed,
                            step: clock.step,
                            element: draws.element(clock.micro),
                            piece: clock.micro,
                            position: position as usize,
                        };
                        let bytes =
                            std::slice::from_raw_parts_mut(self.arena.at(scratch.0), scratch.1);
                        kernel.run(&self.pool, ptrs, &scalars, bytes);
                    }
                }
                Prepared::Copy { from, to, bytes, copy_stride } => {
                    let to = to + u64::from(copy) * copy_stride;
                    // SAFETY: both ranges lie in the arena; the checker saw that they differ.
                    unsafe {
                        self.arena.at(to).copy_from(self.arena.at(*from), *bytes);
                    }
                }
                Prepared::Exchange(exchanged) => {
                    // SAFETY: the plan was checked: both ranges lie in the arena and differ.
                    unsafe { exchanged.run(self.arena.at(0), self.ties.as_ref())? };
                }
            }
            if let Some(lap) = &mut lap {
                lap.end(*step as usize);
            }
        }
        Ok(())
    }

    fn read_output(&self, section: usize, name: &str, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.arena.at(self.program.output_bytes(section, name, bytes.len())?);
        // SAFETY: the value has exactly this many bytes inside of the arena.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn profile(&mut self, on: bool) {
        self.timers = on.then(Timers::new);
    }

    fn spans(&self) -> &[Span] {
        self.timers.as_ref().map_or(&[], Timers::spans)
    }

    fn poison(&mut self) -> Result<(), DeviceError> {
        // SAFETY: the arena has this many bytes and is borrowed by this call alone.
        unsafe { self.arena.at(0).write_bytes(0xff, self.arena.bytes()) }
        Ok(())
    }
}
