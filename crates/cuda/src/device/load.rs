//! From a program to launches with addresses.

use super::{CudaDevice, Lanes, Prepared, Staging, Start};
use crate::cache::Cache;
use crate::context::Context;
use crate::error::CudaError;
use crate::handles::{Function, Memory, Module};
use crate::kernels::{Chip, make};
use crate::launch::{Address, Kernel, Launch, MAP_BYTES};
use crate::source::Source;
use aerogel_graph::{Build, Op, Place, ValueId};
use aerogel_lower::{Call, section_strides};
use aerogel_machine::{
    ALIGN, Claim, Collectives, DeviceError, Placed, Program, Section, Slot, Step, Uses,
};
use std::collections::HashMap;
use std::sync::Arc;

/// A step whose kernels are made, with values where addresses will be.
enum Made {
    Kernel {
        kernel: Kernel,
        operands: Vec<(Placed, i64)>,
        position: Option<Placed>,
        workspace: u64,
    },
    Copy(Prepared),
}

/// The clock, at the start of the constants.
const CLOCK_BYTES: u64 = 256;
/// Tables start on such multiples.
const TABLE_ALIGN: u64 = 256;
/// Pinned memory for inputs on their way.
const STAGING_BYTES: usize = 8 << 20;

impl CudaDevice {
    /// Compiles what is not in the user's cache, allocates the arena and prepares every launch: the
    /// last allocation of a run.
    ///
    /// # Errors
    /// The memory cannot be had, the compiler is missing, or the program was planned for another
    /// device.
    pub fn load_rank(
        program: Arc<Program>,
        context: &Context,
        ties: Arc<dyn Collectives>,
    ) -> Result<CudaDevice, DeviceError> {
        let chip = Chip { architecture: context.gpu().architecture };
        let made = make_all(&program, ties.mesh().place(ties.rank()), chip)?;
        let kernels = || made.iter().flatten().filter_map(|(_, m)| m.kernel());
        let functions = Functions::load(context, kernels())?;
        let tables = Tables::new(kernels());
        // All of the memory is asked for in one piece, so that a plan either fits or does not.
        let arena = context.allocate(program.arena_bytes)?;
        let constants = context.allocate(tables.bytes)?;
        for (offset, table) in &tables.list {
            context.upload(&constants, *offset, table)?;
        }
        let placing = Placing { context, arena: &arena, constants: &constants, tables: &tables };
        let mut sections = vec![];
        for list in made {
            let mut prepared = vec![];
            for (step, own) in list {
                prepared.extend(placing.prepare(own, &functions)?.into_iter().map(|p| (step, p)));
            }
            sections.push(prepared);
        }
        let lanes = Lanes::new(&program, context)?;
        let staging = Staging::new(context, STAGING_BYTES)?;
        let used = context.gpu().memory_bytes.saturating_sub(context.free_bytes()?);
        let library_bytes = used.saturating_sub(arena.bytes());
        let sites = program.sections.iter().map(|s| s.name.as_str().into()).collect();
        Ok(CudaDevice {
            program,
            context: context.clone(),
            arena,
            constants,
            staging,
            ties,
            sections,
            lanes,
            graphs: HashMap::new(),
            timers: None,
            library_bytes,
            sites,
        })
    }
}

/// What a program asks the compiler for, each source once. It needs no GPU: kernels can be compiled
/// before there is one.
///
/// # Errors
/// The program was planned for another device.
pub fn sources(program: &Program, chip: Chip) -> Result<Vec<Source>, DeviceError> {
    let made = make_all(program, Place::default(), chip)?;
    let kernels = made.iter().flatten().filter_map(|(_, m)| m.kernel());
    let mut list: Vec<Source> =
        kernels.flat_map(|k| &k.launches).map(|launch| launch.source.clone()).collect();
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// The kernels of all sections, each with the number of its step.
fn make_all(
    program: &Program,
    place: Place,
    chip: Chip,
) -> Result<Vec<Vec<(u32, Made)>>, DeviceError> {
    let making = Making { program, place, chip };
    program.sections.iter().map(|s| making.section(s)).collect()
}

fn unsupported(what: String) -> DeviceError {
    DeviceError::Unsupported { what, device: "cuda".to_owned() }
}

/// Makes kernels of the steps of a program.
struct Making<'a> {
    program: &'a Program,
    place: Place,
    chip: Chip,
}

impl Made {
    fn kernel(&self) -> Option<&Kernel> {
        match self {
            Made::Kernel { kernel, .. } => Some(kernel),
            Made::Copy(_) => None,
        }
    }
}

impl Making<'_> {
    fn section(&self, s: &Section) -> Result<Vec<(u32, Made)>, DeviceError> {
        let uses = Uses::new(&s.graph);
        let strides = section_strides(s);
        let (graph, place) = (&s.graph, self.place);
        let source = aerogel_lower::Source { graph, uses: &uses, strides: &strides, place };
        let mut list = vec![];
        for (number, step) in (0..).zip(&s.steps) {
            match step {
                Step::Kernel { claim, workspace } => {
                    if let Op::Collective(op) = &graph.node(claim.nodes[0]).op {
                        return Err(unsupported(format!("{} between ranks", op.kind_name())));
                    }
                    let calls = aerogel_lower::lower(&source, &claim.nodes);
                    for call in &calls.map_err(|e| unsupported(e.to_string()))? {
                        let made = self.kernel(s, call, claim, *workspace)?;
                        list.extend(made.map(|m| (number, m)));
                    }
                }
                Step::Assign { from, to } => {
                    let state = &graph.states()[to.index()].name;
                    let slot = self.program.state(state);
                    let slot = slot.ok_or_else(|| unsupported(state.clone()))?;
                    let contiguous = |x: &&Slot| x.is_contiguous(s.axes(), graph.ty(*from));
                    let window = s.slot(*from).filter(contiguous);
                    let window =
                        window.ok_or_else(|| unsupported("assigning a window".to_owned()))?;
                    let copy_stride = if slot.copies > 1 { slot.stride_bytes } else { 0 };
                    let (from, to, bytes) = (window.offset, slot.offset, slot.bytes);
                    list.push((
                        number,
                        Made::Copy(Prepared::Copy { from, to, bytes, copy_stride }),
                    ));
                }
            }
        }
        Ok(list)
    }

    /// The kernel of a call; `None` where there is nothing to do.
    fn kernel(
        &self,
        s: &Section,
        call: &Call,
        claim: &Claim,
        workspace: u64,
    ) -> Result<Option<Made>, DeviceError> {
        let placed = |v: ValueId| {
            let placed = self.program.placed(s, v);
            placed.ok_or_else(|| unsupported(format!("{v:?} without a slot")))
        };
        let bytes = |v: ValueId, first: isize| s.graph.ty(v).dtype.bytes() as i64 * first as i64;
        let operands = call
            .operands
            .iter()
            .map(|&(v, first)| Ok((placed(v)?, bytes(v, first))))
            .collect::<Result<Vec<_>, DeviceError>>()?;
        if let ([a, b, ..], true) = (operands.as_slice(), call.idle_in_place)
            && a == b
        {
            return Ok(None);
        }
        let align: Vec<u64> = operands.iter().map(|(p, bytes)| alignment(p, *bytes)).collect();
        let kernel = make(call, &align, self.chip).map_err(|e| unsupported(e.to_string()))?;
        if kernel.workspace_bytes > claim.workspace_bytes {
            let (needs, planned) = (kernel.workspace_bytes, claim.workspace_bytes);
            let name = claim.kernel;
            let what = format!("{needs} bytes of workspace for {name}, planned {planned}");
            return Err(unsupported(what));
        }
        let position = call.position.map(placed).transpose()?;
        Ok(Some(Made::Kernel { kernel, operands, position, workspace }))
    }
}

/// The largest power of two, up to the planner's own alignment, that all addresses of an operand
/// are multiples of.
fn alignment(placed: &Placed, bytes: i64) -> u64 {
    let parts = ALIGN | placed.at(0).wrapping_add_signed(bytes) | placed.stride_bytes;
    1 << parts.trailing_zeros()
}

/// Machine code of all launches.
struct Functions {
    by_launch: HashMap<(Source, &'static str, u32), Function>,
}

impl Functions {
    fn load<'a>(
        context: &Context,
        kernels: impl Iterator<Item = &'a Kernel>,
    ) -> Result<Functions, CudaError> {
        let mut wanted: HashMap<(Source, &'static str, u32), Option<Function>> = HashMap::new();
        for launch in kernels.flat_map(|k| &k.launches) {
            wanted.entry((launch.source.clone(), launch.entry, launch.shared_bytes)).or_default();
        }
        let mut sources: Vec<Source> = wanted.keys().map(|key| key.0.clone()).collect();
        sources.sort_unstable();
        sources.dedup();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let cubins = Cache::of_user().all(&sources, context.gpu().architecture, threads)?;
        let mut modules: HashMap<Source, Module> = HashMap::new();
        for source in sources {
            if let Some(cubin) = cubins.get(&source) {
                let module = context.load(cubin)?;
                modules.insert(source, module);
            }
        }
        let mut by_launch = HashMap::new();
        for (key, _) in wanted {
            if let Some(module) = modules.get(&key.0) {
                let function = module.function(key.1, key.2)?;
                by_launch.insert(key, function);
            }
        }
        Ok(Functions { by_launch })
    }

    fn of(&self, launch: &Launch) -> Result<Function, DeviceError> {
        let key = (launch.source.clone(), launch.entry, launch.shared_bytes);
        let function = self.by_launch.get(&key).cloned();
        function.ok_or_else(|| unsupported(format!("{} of {}", launch.entry, launch.source.file)))
    }
}

/// The kernels' constants, each once.
struct Tables {
    /// Byte offset among the constants, and content.
    list: Vec<(u64, Arc<[u8]>)>,
    by_content: HashMap<Arc<[u8]>, u64>,
    bytes: u64,
}

impl Tables {
    fn new<'a>(kernels: impl Iterator<Item = &'a Kernel>) -> Tables {
        let mut tables = Tables { list: vec![], by_content: HashMap::new(), bytes: CLOCK_BYTES };
        // Most layers share one object, which is told by where it is.
        let mut seen: HashMap<*const u8, ()> = HashMap::new();
        for table in kernels.flat_map(|k| &k.tables) {
            if seen.insert(table.as_ptr(), ()).is_some() || tables.by_content.contains_key(table) {
                continue;
            }
            tables.by_content.insert(table.clone(), tables.bytes);
            tables.list.push((tables.bytes, table.clone()));
            tables.bytes = (tables.bytes + table.len() as u64).next_multiple_of(TABLE_ALIGN);
        }
        tables
    }
}

/// Puts addresses where names are.
struct Placing<'a> {
    context: &'a Context,
    arena: &'a Memory,
    constants: &'a Memory,
    tables: &'a Tables,
}

/// What addresses of one kernel are made of.
struct Bases {
    operands: Vec<(Placed, i64)>,
    position: Option<Placed>,
    workspace: u64,
    tables: Vec<u64>,
}

impl Placing<'_> {
    fn prepare(&self, made: Made, functions: &Functions) -> Result<Vec<Prepared>, DeviceError> {
        let (kernel, operands, position, workspace) = match made {
            Made::Copy(prepared) => return Ok(vec![prepared]),
            Made::Kernel { kernel, operands, position, workspace } => {
                (kernel, operands, position, workspace)
            }
        };
        let at = |table: &Arc<[u8]>| self.tables.by_content.get(table).copied().unwrap_or(0);
        let tables = kernel.tables.iter().map(at).collect();
        let bases = Bases { operands, position, workspace, tables };
        let copies = bases.operands.iter().map(|o| o.0.copies).max().unwrap_or(1);
        let start = |launch: &Launch| {
            let arguments = (0..copies).map(|copy| self.argument(launch, &bases, copy));
            Ok(Prepared::Run(Start {
                function: functions.of(launch)?,
                grid: launch.grid,
                threads: launch.threads,
                shared_bytes: launch.shared_bytes,
                arguments: arguments.collect::<Result<_, CudaError>>()?,
            }))
        };
        kernel.launches.iter().map(start).collect()
    }

    fn argument(&self, launch: &Launch, bases: &Bases, copy: u32) -> Result<Vec<u8>, CudaError> {
        let mut bytes = launch.parameters.bytes().to_vec();
        for &(byte, address) in launch.parameters.addresses() {
            let number = self.number(address, bases, copy);
            bytes[byte..byte + 8].copy_from_slice(&number.to_le_bytes());
        }
        for (byte, map) in launch.parameters.maps() {
            let encoded = self.context.encode(map, self.number(map.address, bases, copy))?;
            bytes[*byte..byte + MAP_BYTES].copy_from_slice(&encoded);
        }
        Ok(bytes)
    }

    fn number(&self, address: Address, bases: &Bases, copy: u32) -> u64 {
        let (arena, constants) = (self.arena.address(), self.constants.address());
        match address {
            Address::Operand { operand, bytes } => {
                let (placed, first) = &bases.operands[operand];
                (arena + placed.at(copy)).wrapping_add_signed(first + bytes)
            }
            Address::Workspace(at) => arena + bases.workspace + at,
            Address::Table(table) => constants + bases.tables[table],
            Address::Clock => constants,
            Address::Position => bases.position.map_or(0, |p| arena + p.at(copy)),
            Address::Null => 0,
        }
    }
}
