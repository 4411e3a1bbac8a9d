//! The CPU device: one arena, one pool, and per section a list of prepared kernels with addresses.

use crate::kernel::{Kernel, Ptr, Scalars};
use crate::lower::{BlockLists, Source, lower};
use crate::pool::Pool;
use aerogel_graph::{Build, Clock, ValueId};
use aerogel_machine::{ALIGN, Device, DeviceError, Program, Section, Slot, Step, Uses};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

/// Memory of a program: allocated once, zeroed, never moved.
struct Arena {
    base: *mut u8,
    layout: Layout,
}

// SAFETY: the arena is plain memory; the device hands out access under `&mut self` only.
unsafe impl Send for Arena {}

impl Arena {
    fn new(bytes: u64) -> Result<Arena, DeviceError> {
        let refused = |reason: &str| DeviceError::Arena { bytes, reason: reason.to_owned() };
        let size = usize::try_from(bytes.max(ALIGN)).map_err(|_| refused("not addressable"))?;
        let layout = Layout::from_size_align(size, ALIGN as usize)
            .map_err(|_| refused("not addressable"))?;
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(refused("the system has not that much memory"));
        }
        Ok(Arena { base, layout })
    }

    fn at(&self, offset: u64) -> *mut u8 {
        self.base.wrapping_add(offset as usize)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

enum Prepared {
    Run {
        kernel: Box<dyn Kernel>,
        ptrs: Vec<Ptr>,
        scratch: (u64, usize),
        piece_elements: u64,
        position: Option<u64>,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
    },
}

/// Runs programs that were planned for a [`CpuTarget`](crate::CpuTarget) of as many threads.
pub struct CpuDevice {
    program: Arc<Program>,
    arena: Arena,
    pool: Pool,
    sections: Vec<Vec<Prepared>>,
}

impl CpuDevice {
    /// Allocates the arena and prepares every kernel: the last allocation of a run.
    ///
    /// # Errors
    /// The memory or the threads cannot be had, or the program was planned for another machine.
    pub fn load(program: Arc<Program>, threads: usize) -> Result<CpuDevice, DeviceError> {
        let arena = Arena::new(program.arena_bytes)?;
        let pool = Pool::new(threads).map_err(|e| DeviceError::Unsupported {
            what: format!("{threads} threads ({e})"),
            device: "cpu".to_owned(),
        })?;
        let lists = BlockLists::default();
        let sections = program
            .sections
            .iter()
            .map(|s| prepare(s, &program, &arena, threads, &lists))
            .collect::<Result<_, _>>()?;
        Ok(CpuDevice { program, arena, pool, sections })
    }

    /// Fills the arena with bytes that are NaN in every float dtype: whatever a test does not
    /// write afterwards, no kernel may read.
    #[doc(hidden)]
    pub fn poison(&mut self) {
        // SAFETY: the arena has this many bytes and is borrowed by this call alone.
        unsafe { self.arena.base.write_bytes(0xff, self.arena.layout.size()) }
    }

    fn state(&self, name: &str, offset: u64, bytes: usize) -> Result<*mut u8, DeviceError> {
        let end = offset.checked_add(bytes as u64);
        let found = self.program.state(name).filter(|s| end.is_some_and(|end| end <= s.bytes));
        let slot =
            found.ok_or(DeviceError::Unknown { kind: "state", name: name.to_owned(), bytes })?;
        Ok(self.arena.at(slot.offset + offset))
    }

    fn value(
        &self,
        section: usize,
        kind: &'static str,
        name: &str,
        bytes: usize,
        find: impl Fn(&Section) -> Option<ValueId>,
    ) -> Result<*mut u8, DeviceError> {
        let unknown = || DeviceError::Unknown { kind, name: name.to_owned(), bytes };
        let s = self.program.sections.get(section).ok_or_else(unknown)?;
        let v = find(s).ok_or_else(unknown)?;
        let (slot, ty) = (s.slot(v).ok_or_else(unknown)?, s.graph.ty(v));
        let fits = ty.bytes(s.axes()) == bytes as u64 && slot.is_contiguous(s.axes(), ty);
        if fits { Ok(self.arena.at(slot.offset)) } else { Err(unknown()) }
    }
}

fn prepare(
    s: &Section,
    program: &Program,
    arena: &Arena,
    threads: usize,
    lists: &BlockLists,
) -> Result<Vec<Prepared>, DeviceError> {
    let uses = Uses::new(&s.graph);
    // Values inside of regions have no slot; their strides are those that one would have.
    let strides: Vec<_> = (s.graph.values().iter().zip(&s.slots))
        .map(|(value, slot)| match slot {
            Some(slot) => slot.strides.clone(),
            None => Slot::contiguous(0, s.axes(), &value.ty.axes).strides,
        })
        .collect();
    let source = Source { graph: &s.graph, uses: &uses, strides: &strides, lists };
    let unsupported = |what: String| DeviceError::Unsupported { what, device: "cpu".to_owned() };
    let address = |v: ValueId| {
        s.slot(v)
            .map(|slot| slot.offset)
            .ok_or_else(|| unsupported(format!("{v:?} without a slot")))
    };
    let mut list = vec![];
    for step in &s.steps {
        match step {
            Step::Kernel { claim, workspace } => {
                let calls = lower(&source, &claim.nodes).map_err(|e| unsupported(e.to_string()))?;
                for call in calls {
                    let scratch = call.kernel.scratch_bytes(threads);
                    if scratch as u64 > claim.workspace_bytes {
                        let (kernel, planned) = (claim.kernel, claim.workspace_bytes);
                        return Err(unsupported(format!(
                            "{scratch} bytes of workspace for {kernel}, planned {planned}"
                        )));
                    }
                    let mut ptrs = vec![];
                    for &(v, first) in &call.operands {
                        let bytes = s.graph.ty(v).dtype.bytes() as isize * first;
                        let at = arena.at(address(v)?).wrapping_offset(bytes);
                        ptrs.push(Ptr::new(at.cast_const()));
                    }
                    if call.idle_in_place && operands_meet(&ptrs) {
                        continue;
                    }
                    list.push(Prepared::Run {
                        kernel: call.kernel,
                        ptrs,
                        scratch: (*workspace, scratch),
                        piece_elements: call.piece_elements,
                        position: call.position.map(address).transpose()?,
                    });
                }
            }
            Step::Assign { from, to } => {
                let state = &s.graph.states()[to.index()].name;
                let slot = program.state(state).ok_or_else(|| unsupported(state.clone()))?;
                let window = s.slot(*from).filter(|x| x.is_contiguous(s.axes(), s.graph.ty(*from)));
                let window = window.ok_or_else(|| unsupported("assigning a window".to_owned()))?;
                list.push(Prepared::Copy {
                    from: window.offset,
                    to: slot.offset,
                    bytes: slot.bytes as usize,
                });
            }
        }
    }
    Ok(list)
}

/// Whether the first two operands are in one place.
fn operands_meet(ptrs: &[Ptr]) -> bool {
    matches!(ptrs, [a, b, ..] if a.address() == b.address())
}

impl Device for CpuDevice {
    fn allocated_bytes(&self) -> u64 {
        self.arena.layout.size() as u64
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
        let to = self.state(name, offset_bytes, bytes.len())?;
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
        let from = self.state(name, offset_bytes, bytes.len())?;
        // SAFETY: as above.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn write_input(&mut self, section: usize, name: &str, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = self.value(section, "input", name, bytes.len(), |s| s.input(name))?;
        // SAFETY: the value has exactly this many bytes inside of the arena.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn run(&mut self, section: usize, clock: Clock) -> Result<(), DeviceError> {
        let Some(list) = self.sections.get(section) else {
            let name = section.to_string();
            return Err(DeviceError::Unknown { kind: "section", name, bytes: 0 });
        };
        for prepared in list {
            match prepared {
                Prepared::Run { kernel, ptrs, scratch, piece_elements, position } => {
                    // SAFETY: the plan was checked: operands and workspace lie in the arena, no
                    // written operand overlaps another one unless the kernel allows it, and the
                    // arena is borrowed by this call alone.
                    unsafe {
                        let position =
                            position.map_or(0, |p| self.arena.at(p).cast::<u32>().read());
                        let scalars = Scalars {
                            seed: clock.seed,
                            step: clock.step,
                            element: clock.micro * piece_elements,
                            piece: clock.micro,
                            position: position as usize,
                        };
                        let bytes =
                            std::slice::from_raw_parts_mut(self.arena.at(scratch.0), scratch.1);
                        kernel.run(&self.pool, ptrs, &scalars, bytes);
                    }
                }
                Prepared::Copy { from, to, bytes } => {
                    // SAFETY: both ranges lie in the arena; the checker saw that they differ.
                    unsafe {
                        self.arena.at(*to).copy_from(self.arena.at(*from), *bytes);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_output(&self, section: usize, name: &str, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let from =
            self.value(section, "output", name, bytes.len(), |s| s.graph.find_output(name))?;
        // SAFETY: the value has exactly this many bytes inside of the arena.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}
